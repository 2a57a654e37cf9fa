"""Locked dropout: one mask for all time steps of a row (Gal & Ghahramani 2016, arXiv 1512.05287).

    y[b, t, f] = x[b, t, f] * m[b, f] / (1 - p),    m = 0 with probability p, else 1: one for each row and feature

Mean of y: x. Variance: p / (1 - p) x**2. The values of one feature at two steps s and t have the covariance
p / (1 - p) x[s] x[t], where masks drawn at each step would leave them independent: what is dropped stays dropped, so a
sum over time does not average the noise away. The name is that of AWD-LSTM (Merity et al. 2018, arXiv 1708.02182).

Confused with: `nn.Dropout`, which draws at every step; `nn.Dropout1d`, which is the same mask on tensors laid out
(batch, features, time) and drops whole *steps* of those laid out (batch, time, features); dropout of the recurrent
state, which is inside of the layer (`VariationalLSTM`); `TokenDropout`, which drops all features of a step.
"""

from typing import ClassVar

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mcdrop.errors import InputError
from mcdrop.layers.rates import check_rate

__all__ = ["LockedDropout", "locked_dropout"]


def locked_dropout(
    x: Float[Tensor, "batch time features"], p: float, training: bool
) -> Float[Tensor, "batch time features"]:
    """A sequence, in training 0 at all steps in each feature with probability `p`, else times 1 / (1 - p).

    Raises:
        InputError: `x` has not three axes.
    """
    if x.ndim != 3:
        raise InputError(
            f"locked dropout takes (batch, time, features); got a tensor of shape {tuple(x.shape)}. "
            "Give a single sequence a batch axis: x[None]."
        )
    return x * F.dropout(x.new_ones((x.shape[0], 1, x.shape[2])), p, training)


class LockedDropout(nn.Module):
    """`locked_dropout` as a layer, for (batch, time, features): between recurrent layers, or on embeddings.

    Raises:
        SettingError: `p` is not from 0 to 1.
    """

    dropout_kind: ClassVar[str] = "locked"

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = check_rate(p)

    def forward(self, x: Float[Tensor, "batch time features"]) -> Float[Tensor, "batch time features"]:
        return locked_dropout(x, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"
