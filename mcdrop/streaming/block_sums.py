"""What blocks of passes that depend on one another say about a mean and a variance.

Passes of one block may depend on one another, blocks do not. Blocks are put into 16 groups, in turn; group g has n_g
passes, N = sum_g n_g, and D_g is the sum over its passes of the deviations from the mean m. Then

    error(D) = sum_g D_g^2 / (N (N - n_g))

estimates the squared error of m (HC2 of MacKinnon and White 1985, for a mean of groups). It is unbiased for groups of
one size, and for others where the variance of a group's mean goes with 1 / n_g. A last block that is not whole makes
up for less, and the estimate is then too large rather than too small. And

    variance = mean_i (f_i - m)^2 + error(D)

estimates the variance of one pass without bias where error(D) has none, since E (f - mu)^2 = E (f - m)^2 + E (m - mu)^2
on average over the passes. Where every pass is a group of its own this is the sample variance with ddof 1. The squared
error of a variance is `error` of the squared deviations in place of the values.
"""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mcdrop.streaming.sums import GROUPS, Place

__all__ = ["BlockSums", "error_of_mean", "several"]


class BlockSums:
    """Sums of values, and of their squares where asked for, of the passes in each group, about a reference.

    `reference` is one of the values (*shape): no pass lies further from their mean than sqrt(N - 1) standard deviations
    (Samuelson 1968), so that the squares keep their digits.
    """

    def __init__(self, reference: Tensor, *, squares: bool) -> None:
        self.reference = reference.double()
        self.sums = self.reference.new_zeros((GROUPS, *reference.shape))
        self.squares = torch.zeros_like(self.sums) if squares else None

    def add(self, values: Tensor, groups: Tensor, place: Place) -> None:
        """Add values (passes, ...) at `place` of passes that belong to `groups` (passes,)."""
        within = (slice(None), *place)
        shifted = values.double() - self.reference[place]
        self.sums[within].index_add_(0, groups, shifted)
        if self.squares is not None:
            self.squares[within].index_add_(0, groups, shifted.square_())

    def merge(self, other: "BlockSums", counts: Sequence[int]) -> None:
        """Add the sums of `other`, of so many passes in each group; it stays as it is."""
        shift, sizes = other.reference - self.reference, self._sizes(counts)
        self.sums += other.sums + sizes * shift
        if self.squares is not None and other.squares is not None:
            self.squares += other.squares + 2 * shift * other.sums + sizes * shift.square()

    def select(self, pick: Callable[[Tensor, int], Tensor]) -> "BlockSums":
        """The same of some rows, each of what is kept `pick(kept, axis of the rows)`."""
        twin = copy.copy(self)
        twin.reference, twin.sums = pick(self.reference, 0), pick(self.sums, 1)
        twin.squares = None if self.squares is None else pick(self.squares, 1)
        return twin

    def deviations(self, counts: Sequence[int]) -> Tensor:
        """D_g of the values, (groups, *shape)."""
        sizes = self._sizes(counts)
        return self.sums - sizes * (self.sums.sum(0) / sizes.sum())

    def square_deviations(self, counts: Sequence[int]) -> Tensor:
        """D_g of the squared distances from the mean, (groups, *shape). Needs `squares`."""
        assert self.squares is not None
        sizes = self._sizes(counts)
        mean = self.sums.sum(0) / sizes.sum()
        about_mean = self.squares - 2 * mean * self.sums + sizes * mean.square()
        return about_mean - sizes * (about_mean.sum(0) / sizes.sum())

    def _sizes(self, counts: Sequence[int]) -> Tensor:
        return self.sums.new_tensor(counts).view(-1, *[1] * self.reference.ndim)


def error_of_mean(deviations: Tensor, counts: Sequence[int]) -> Tensor:
    """`error` of deviations (groups, *shape) of so many passes in each group; NaN where all are in one group."""
    if not several(counts):
        return torch.full_like(deviations[0], torch.nan)
    total = sum(counts)
    weights = deviations.new_tensor([1 / (total * (total - count)) for count in counts])
    return torch.einsum("g,g...->...", weights, deviations.square())


def several(counts: Sequence[int]) -> bool:
    """Whether the passes are of more than one group."""
    return sum(count > 0 for count in counts) > 1
