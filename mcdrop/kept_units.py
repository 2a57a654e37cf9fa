"""Kept units of one pass: which a site keeps, and the parts of activations and weights that belong to them.

So many dropped units stand behind the kept ones that they fill whole vector registers. Products run at full speed then,
convolutions see few different widths, for each of which oneDNN would compile code anew, and a pass in which a site
drops all units needs nothing special. A dropped unit among them is multiplied by its draw, which is zero.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mcdrop.draws import scale

__all__ = ["LANES", "Cut", "Gather", "Index", "Kept", "Scales", "Selection", "filled", "select"]

LANES = 16  # float32 numbers of a vector register of 512 bits


class Cut(NamedTuple):
    """The units of one axis that a site keeps; `block` neighbours on the axis share the fate of one unit."""

    draw: int
    axis: int
    block: int = 1


class Selection:
    """What one pass keeps, of every site and of every weight."""

    def __init__(self, drawn: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
        self._drawn, self._weights = drawn, weights
        self._units: dict[tuple[int, int], Tensor] = {}

    def units(self, draw: int, block: int = 1) -> Tensor:
        """Numbers of the units: those that are kept, then some that are dropped."""
        if (draw, block) not in self._units:
            units = self.units(draw) if block > 1 else _filled_up(self._drawn[draw].flatten())
            self._units[draw, block] = units if block == 1 else _neighbours(units, block)
        return self._units[draw, block]

    def scales(self, draw: int) -> Tensor:
        """The draw at these units."""
        return self._drawn[draw].flatten().index_select(0, self.units(draw))

    def weight(self, number: int, cuts: Sequence[Cut], scaled: Cut | None) -> Tensor:
        """A weight at the units of `cuts`, times the draw along the axis of `scaled`."""
        weight = self._weights[number]
        for cut in cuts:
            weight = select(weight, cut.axis, self.units(cut.draw, cut.block))
        return weight if scaled is None else scale(weight, along(self.scales(scaled.draw), weight.ndim - scaled.axis))


@dataclass(frozen=True)
class Index:
    """Numbers of the units of a site, each `block` times."""

    draw: int
    block: int

    def of(self, selection: Selection) -> Tensor:
        return selection.units(self.draw, self.block)


@dataclass(frozen=True)
class Scales:
    """The draw of a site at its units, on the first of so many axes."""

    draw: int
    axes: int

    def of(self, selection: Selection) -> Tensor:
        return along(selection.scales(self.draw), self.axes)


@dataclass(frozen=True)
class Gather:
    """A weight at the units of some cuts, times the draw of one of them where that is left to it."""

    weight: int
    cuts: tuple[Cut, ...]
    scaled: Cut | None = None

    def of(self, selection: Selection) -> Tensor:
        return selection.weight(self.weight, self.cuts, self.scaled)


Kept = Index | Scales | Gather


def along(x: Tensor, axes: int) -> Tensor:
    """A vector as the first of so many axes."""
    return x.view(-1, *[1] * (axes - 1))


def _filled_up(drawn: Tensor) -> Tensor:
    kept = drawn.nonzero().flatten()
    missing = min(-(-max(len(kept), 1) // LANES) * LANES, len(drawn)) - len(kept)
    return torch.cat([kept, (drawn == 0).nonzero().flatten()[:missing]]) if missing else kept


def _neighbours(units: Tensor, block: int) -> Tensor:
    return (units[:, None] * block + torch.arange(block, device=units.device)).flatten()


def select(x: Tensor, axis: int, units: Tensor) -> Tensor:
    """Units of an axis, in the layout that `x` has."""
    if x.ndim == 4 and axis < 2 and _is_channels_last(x):
        last = x.permute(0, 2, 3, 1).index_select(3 if axis == 1 else 0, units)
        return last.permute(0, 3, 1, 2)
    if x.ndim == 2 and axis == 1 and x.stride(0) == 1:
        return x.t().index_select(0, units).t()
    return x.index_select(axis, units)


def filled(x: Tensor, axis: int, units: Tensor, size: int) -> Tensor:
    """All units of an axis, zero where there are none in `x`, in the layout that `x` has."""
    shape = [*x.shape[:axis], size, *x.shape[axis + 1 :]]
    if x.ndim == 4 and axis == 1 and _is_channels_last(x):
        last = x.new_zeros([shape[0], *shape[2:], size])
        return last.index_copy_(3, units, x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return x.new_zeros(shape).index_copy_(axis, units, x)


def _is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
