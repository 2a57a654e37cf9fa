"""Gaussian dropout: multiplicative normal noise (Srivastava et al. 2014, section 10).

    y = x * (1 + sqrt(p / (1 - p)) e),    e normal with mean 0 and variance 1, drawn for each element

Mean of y: x. Variance: p / (1 - p) x**2. Both are those of dropout with rate `p`, which is what `p` means here: nothing
is ever dropped, and a factor can be negative.

Confused with: additive Gaussian noise; variational dropout (Kingma et al. 2015, arXiv 1506.02557), which learns the
variance of the same noise; Keras' `GaussianDropout`, which is this one, and `GaussianNoise`, which adds.
"""

import math
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mcdrop.layers.rates import check_rate

__all__ = ["GaussianDropout", "gaussian_dropout"]


def gaussian_dropout(x: Float[Tensor, "..."], p: float, training: bool) -> Float[Tensor, "..."]:
    """`x`, in training each element times a normal number of mean 1 and variance p / (1 - p).

    Raises:
        SettingError: `p` is not from 0 to 1, 1 excluded.
    """
    check_rate(p, one=False)
    if not training or p == 0:
        return x
    return x * (1 + math.sqrt(p / (1 - p)) * torch.randn_like(x))


class GaussianDropout(nn.Module):
    """`gaussian_dropout` as a layer.

    Raises:
        SettingError: `p` is not from 0 to 1, 1 excluded, where the variance is infinite.
    """

    dropout_kind: ClassVar[str] = "gaussian"

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = check_rate(p, one=False)

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return gaussian_dropout(x, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"
