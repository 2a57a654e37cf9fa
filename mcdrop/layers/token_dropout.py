"""Dropout of whole token embeddings: what a position holds is gone, all its features at once.

    y[b, t, :] = x[b, t, :] * m[b, t] / (1 - p),    m = 0 with probability p, else 1: one number for each token

Mean of y: x. Variance: p / (1 - p) x**2; the features of one token move together, tokens and rows are independent.

The mask is that of feature dropout (Tompson et al. 2015, arXiv 1411.4280) with tokens in the place of maps; in language
models dropping a whole word vector goes back to the deep averaging network (Iyyer et al. 2015, section 4.1).

Confused with: `nn.Dropout1d`, which reads (batch, channels, time) and drops a feature at all its positions;
`WordDropout`, which replaces token ids; embedding dropout (Gal & Ghahramani 2016), which drops a *word type* at all its
positions; PatchDropout (Liu et al. 2023, arXiv 2208.07220), which takes tokens out of the sequence without scaling.
"""

from typing import ClassVar

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mcdrop.errors import InputError
from mcdrop.layers.rates import check_rate

__all__ = ["TokenDropout", "token_dropout"]


def token_dropout(
    x: Float[Tensor, "batch time features"], p: float, training: bool
) -> Float[Tensor, "batch time features"]:
    """Token embeddings, in training 0 for a token with probability `p`, else times 1 / (1 - p).

    Raises:
        InputError: `x` has not three axes.
    """
    if x.ndim != 3:
        raise InputError(f"token dropout takes (batch, time, features); got a tensor of shape {tuple(x.shape)}.")
    mask = F.dropout(x.new_ones((x.shape[0], x.shape[1], 1)), p, training)  # (batch, time, 1)
    return x * mask


class TokenDropout(nn.Module):
    """`token_dropout` as a layer, for embeddings (batch, time, features) or the patches of an image.

    Every position can be dropped, a class token too: apply it before such a token is joined, if it has to stay.

    Raises:
        SettingError: `p` is not from 0 to 1.
    """

    dropout_kind: ClassVar[str] = "token"

    def __init__(self, p: float = 0.1) -> None:
        super().__init__()
        self.p = check_rate(p)

    def forward(self, x: Float[Tensor, "batch time features"]) -> Float[Tensor, "batch time features"]:
        return token_dropout(x, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"
