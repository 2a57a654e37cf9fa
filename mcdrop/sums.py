"""Power sums of what the passes return: added block by block, merged, turned into moments.

Values are taken relative to those of the first pass seen, and summed in float64. So 1e4 plus or minus 0.01 keeps its
spread, equal passes give a variance of exactly 0, and the order and size of the chunks show in the last digits of
float64 only. The loss is (distance of the first pass from the mean / spread)^2 x 1e-16: nothing, unless the first
pass lies ten thousand standard deviations out.

Shapes are (passes, *shape) for values and *shape for the state. `place` is the part of the state that a block of values
belongs to, so that huge outputs can be added piece by piece.
"""

from collections.abc import Sequence
from math import comb

import torch
from torch import Tensor

__all__ = ["GROUPS", "GroupSums", "Place", "PowerSums", "jackknife_standard_error"]

GROUPS = 16  # of passes, by index modulo 16, for the jackknife
Place = tuple[slice, ...]  # () is everything


class PowerSums:
    """Sums of the powers 1 to `order` of values - reference, element by element."""

    def __init__(self, shape: Sequence[int], *, order: int, device: torch.device) -> None:
        self.reference = torch.empty(tuple(shape), dtype=torch.float64, device=device)
        self.sums = torch.zeros((order, *shape), dtype=torch.float64, device=device)

    def add(self, values: Tensor, place: Place, *, first: bool) -> Tensor:
        """Add values (passes, ...) to the sums at `place` and return values - reference, which the `first` ones set."""
        reference = self.reference[place]
        if first:
            reference.copy_(values[0])
        power = deviations = values - reference  # float64
        for exponent, sums in enumerate(self.sums):
            if exponent:
                power = power * deviations
            sums[place].add_(power.sum(dim=0))
        return deviations

    def rebase(self, reference: Tensor, count: int) -> None:
        """Make the sums, of `count` passes, relative to another reference: binomial theorem."""
        shift = self.reference - reference
        powers = [torch.full_like(shift, count), *self.sums.clone()]  # power 0 first
        for k, sums in enumerate(self.sums, start=1):
            for j in range(k):
                sums.add_(comb(k, j) * shift.pow(k - j) * powers[j])
        self.reference = reference.clone()

    def copy(self) -> "PowerSums":
        twin = object.__new__(PowerSums)
        twin.reference, twin.sums = self.reference.clone(), self.sums.clone()
        return twin

    def merge(self, other: "PowerSums", count: int) -> None:
        """Add the sums of `other`, which saw `count` passes; `other` stays as it is."""
        theirs = other.copy()
        theirs.rebase(self.reference, count)
        self.sums += theirs.sums

    def mean(self, count: int) -> Tensor:
        return torch.add(self.reference, self.sums[0], alpha=1 / count)

    def variance(self, count: int) -> Tensor:
        """Over passes, ddof 1."""
        first, second = self.sums[0], self.sums[1]
        return torch.addcmul(second, first, first, value=-1 / count).div_(count - 1).clamp_min_(0)

    def variance_of_variance(self, count: int) -> Tensor:
        """Squared standard error of `variance`: (mu4 - s^4 (N-3)/(N-1)) / N. Needs order 4."""
        first, second, third, fourth = (self.sums / count).unbind()
        fourth_central = fourth - 4 * first * third + 6 * first.square() * second - 3 * first.pow(4)
        spread = self.variance(count).square() * ((count - 3) / (count - 1))
        return (fourth_central - spread).clamp_min_(0).div_(count)


class GroupSums:
    """Sums of values of the passes in each of the 16 groups: what a jackknife over groups leaves out."""

    def __init__(self, shape: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> None:
        self.sums = torch.zeros((GROUPS, *shape), dtype=dtype, device=device)

    def add(self, values: Tensor, groups: Tensor, place: Place) -> None:
        """Add values (passes, ...) of passes that belong to `groups` (passes,)."""
        self.sums[(slice(None), *place)].index_add_(0, groups, values.to(self.sums.dtype))

    def merge(self, other: "GroupSums", shift: Tensor | float, counts: Sequence[int]) -> None:
        """Add the sums of `other`, whose groups hold `counts` passes and whose values are to be moved by `shift`."""
        for group, count in enumerate(counts):
            self.sums[group] += other.sums[group] + count * shift


def jackknife_standard_error(estimate: Tensor, left_out: Tensor, counts: Sequence[int]) -> Tensor:
    """Standard error of `estimate` (*shape) from its values without each group (groups, *shape) of `counts` passes.

    The delete-group jackknife for groups of unequal size (Busing, Meijer & van der Leeden 1999); about 18 % of noise
    with 16 groups.
    """
    shares = estimate.new_tensor(counts).div_(sum(counts)).view(-1, *[1] * estimate.ndim)
    pseudo = estimate / shares - (1 / shares - 1) * left_out
    center = (pseudo * shares).sum(dim=0)
    return ((pseudo - center).square() / (1 / shares - 1)).mean(dim=0).sqrt()
