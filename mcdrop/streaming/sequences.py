"""Confidence sequences: bounds of a mean that hold after every pass at once, so that one may stop when they are narrow.

The predictable plug-in empirical-Bernstein sequence of Waudby-Smith & Ramdas (2023, arXiv 2010.09686, theorem 2) for
independent X_1, X_2, ... in [0, 1] of one mean. With probability 1 - a it is never below

    lower_t = sum_i l_i X_i / sum_i l_i  -  (log(1/a) + sum_i v_i psi(l_i)) / sum_i l_i        i = 1 ... t
    v_i = (X_i - m_(i-1))^2,  psi(l) = -log(1 - l) - l,  l_t = min(sqrt(2 log(1/a) / (s2_(t-1) t log(1 + t))), 1/2)
    m_t = (1/2 + sum X_i) / (t + 1),  s2_t = (1/4 + sum (X_i - m_i)^2) / (t + 1)

and an upper bound is the same of 1 - X, whose v, l and s2 are those of X: it lies as far above the weighted mean as the
lower bound lies below it. What is kept are sums, so that memory does not depend on the number of passes.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["ConfidenceSequence"]

_AT_ONCE = 2**17  # numbers whose running sums are computed at a time: a handful of float64 copies


class ConfidenceSequence:
    """One sequence for each element (batch, ...), in float64.

    `level` is the probability `a` with which one side may ever be wrong, a number or a tensor that broadcasts.
    """

    def __init__(self, level: float | Tensor) -> None:
        self._level = level
        self._begun = False

    def add(self, values: Float[Tensor, "passes batch *rest"]) -> None:
        """Take in the next passes, in their order; values are between 0 and 1."""
        if not self._begun:
            self._begin(values[0])
        for block in values.split(max(1, _AT_ONCE // max(values[0].numel(), 1))):
            self._add(block.double())

    def _begin(self, like: Tensor) -> None:
        zero = torch.zeros(like.shape, dtype=torch.float64, device=like.device)
        self._log = torch.as_tensor(self._level, dtype=torch.float64, device=like.device).log().neg().expand(like.shape)
        self._count, self._sum, self._squares = zero, zero, zero  # passes, sum X, sum (X - m)^2
        self._weight, self._weighted, self._penalty = zero, zero, zero  # sum l, sum l X, sum v psi(l)
        self._begun = True

    def _add(self, x: Tensor) -> None:
        steps = torch.arange(1, len(x) + 1, device=x.device).view(-1, *[1] * (x.ndim - 1))
        t = self._count + steps
        mean = (0.5 + self._sum + x.cumsum(0)) / (t + 1)
        mean_before = torch.cat([((0.5 + self._sum) / (self._count + 1))[None], mean[:-1]])
        squares = self._squares + (x - mean).square_().cumsum(0)
        variance = (0.25 + squares) / (t + 1)
        variance_before = torch.cat([((0.25 + self._squares) / (self._count + 1))[None], variance[:-1]])
        weight = (2 * self._log / (variance_before * t * t.log1p())).sqrt_().clamp_max_(0.5)
        penalty = (x - mean_before).square_() * (-torch.log1p(-weight) - weight)
        self._count, self._sum, self._squares = t[-1], self._sum + x.sum(0), squares[-1]
        self._weight = self._weight + weight.sum(0)
        self._weighted = self._weighted + (weight * x).sum(0)
        self._penalty = self._penalty + penalty.sum(0)

    @property
    def center(self) -> Float[Tensor, "batch *rest"]:
        """The weighted mean, in the middle between the bounds; NaN before the first pass."""
        return self._weighted / self._weight

    @property
    def radius(self) -> Float[Tensor, "batch *rest"]:
        """From the center to either bound, each of which holds at the sequence's level; infinite before any pass."""
        return (self._log + self._penalty) / self._weight

    @property
    def mean(self) -> Float[Tensor, "batch *rest"]:
        """The plain mean of the values; NaN before the first pass."""
        return self._sum / self._count

    def restart(self, where: Bool[Tensor, "batch *rest"]) -> None:
        """Forget what is known of some elements, and go on at half of their level."""
        for name in ("_count", "_sum", "_squares", "_weight", "_weighted", "_penalty"):
            setattr(self, name, getattr(self, name).masked_fill(where, 0))
        self._log = self._log + where * math.log(2)

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        """Go on with some rows of the batch alone."""
        for name in ("_log", "_count", "_sum", "_squares", "_weight", "_weighted", "_penalty"):
            setattr(self, name, getattr(self, name)[rows])
