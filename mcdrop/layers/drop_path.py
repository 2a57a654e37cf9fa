"""Stochastic depth: a row leaves out a whole residual branch (Huang et al. 2016, arXiv 1603.09382).

    y = branch(x) * m / (1 - p),    m = 0 with probability p, else 1: one number for each row

Mean of y: branch(x). Variance: p / (1 - p) branch(x)**2, and all elements of a row move together. The paper draws one
number for the whole mini-batch, does not scale in training, and multiplies by 1 - p in evaluation; drawn by row and
scaled in training it has the same mean, and evaluation is the network as it is.

Confused with: the drop-path of FractalNet (Larsson et al. 2016, arXiv 1605.07648), which keeps at least one of several
joined paths, although the name stuck to this layer; LayerDrop (Fan et al. 2019, arXiv 1909.11556), which leaves out a
layer for the whole batch by a number drawn outside of the graph; dropout of the branch's units.
"""

from typing import ClassVar

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mcdrop.errors import SettingError
from mcdrop.layers.rates import check_rate

__all__ = ["DropPath", "drop_path", "linear_depth_rates"]


def drop_path(x: Float[Tensor, "batch ..."], p: float, training: bool) -> Float[Tensor, "batch ..."]:
    """The output `x` of a residual branch, in training 0 for a row with probability `p`, else times 1 / (1 - p)."""
    mask = F.dropout(x.new_ones((x.shape[0], *[1] * (x.ndim - 1))), p, training)  # (batch, 1, ...)
    return x * mask


def linear_depth_rates(p: float, depth: int) -> list[float]:
    """The linear rule: block l of `depth`, counted from 1, is dropped with probability p l / depth (section 3, eq. 4).

    The input counts as block 0, which stays, so the first block already has the rate p / depth. timm and others
    spread from 0 to p instead.

    Raises:
        SettingError: `p` is no probability or `depth` no number of blocks.
    """
    p = check_rate(p)
    if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
        raise SettingError(f"depth is {depth!r}; give the number of residual blocks, at least 1.")
    return [p * block / depth for block in range(1, depth + 1)]


class DropPath(nn.Module):
    """`drop_path` as a layer: put it at the end of a residual branch, `x + drop_path(branch(x))`.

    Raises:
        SettingError: `p` is not from 0 to 1.
    """

    dropout_kind: ClassVar[str] = "drop_path"

    def __init__(self, p: float = 0.1) -> None:
        super().__init__()
        self.p = check_rate(p)

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        return drop_path(x, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"
