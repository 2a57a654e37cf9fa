"""What a pass is expected to cost, plain and thinned, in nanoseconds on two cores of a server; only ratios count."""

from dataclasses import dataclass

from mcdrop.shortcuts.kept_units import LANES

__all__ = [
    "CALL",
    "ELEMENT",
    "FEW",
    "FLOP",
    "GATHERED_BYTE",
    "MAPPED_CALL",
    "RAGGED",
    "SELECTED",
    "TAKE",
    "PassCost",
    "share",
]

FLOP = 1 / 280  # of a matrix product or convolution
RAGGED = 1.25  # factor on a convolution of one pass by weights of its own, beside one of many passes
ELEMENT = 0.2  # of an activation: a mask or another unit-wise operation
FEW = 64  # results of a linear map, below which a mask before it multiplies fewer numbers than activations
SELECTED = 0.35  # of a unit that is taken from among all of a matrix; channels of maps lie together
GATHERED_BYTE = 0.2  # of a weight: it is gathered in some calls and only read in others
TAKE = 10000.0  # of each tensor that is taken for passes, in some calls and not in others
CALL = 4000.0  # one operation from Python
MAPPED_CALL = 40000.0  # the same, mapped over passes


@dataclass(frozen=True)
class PassCost:
    """Nanoseconds of one pass: for each row in plain and in thinned form, and for a thinned pass whatever its rows."""

    plain_row: float
    thinned_row: float
    thinned_pass: float

    @property
    def least_rows(self) -> int | None:
        """The number of rows from which thinned passes are faster; None if they never are."""
        saved = self.plain_row - self.thinned_row
        return max(1, int(self.thinned_pass / saved) + 1) if saved > 0 else None


def share(p: float, units: int) -> float:
    """The part of so many units that is computed where each is dropped with probability `p`: whole registers."""
    return min(1.0, (units * (1 - p) + LANES / 2) / units)
