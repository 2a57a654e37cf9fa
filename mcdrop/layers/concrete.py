"""Concrete dropout: the rate is a parameter that training finds (Gal, Hron & Kendall 2017, arXiv 1705.07832).

    y = x (1 - z) / (1 - p),    z = sigmoid((log p - log(1 - p) + log u - log(1 - u)) / t),    u uniform on [0, 1)

z is the concrete relaxation (eq. 5) of dropping with probability p, drawn for each element: differentiable in p, near 0
or 1 at a low temperature t, and above 1/2 with probability p exactly. Mean of y: x (1 - E z) / (1 - p), which is x only
as t goes to 0 (at p = 0.2 and t = 0.1 it is 0.2 % below). Monte Carlo sampling draws the same relaxation, so that
a pass has the law that the network was trained with, not that of hard masks.

The rate learns only if the loss has the regulariser, which is the layer's part of KL(q, prior):

    ( length_scale**2 / 2 * sum W**2 / (1 - p) - K H(p) ) / num_rows,    H(p) = -p log p - (1 - p) log(1 - p)

for the weights W that follow, with K inputs (eq. 3 and 4, where M is W / (1 - p) here, since y is scaled).

Confused with: variational dropout, which learns the variance of Gaussian noise; standout (Ba & Frey 2013), whose rates
depend on the input.
"""

import math
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mcdrop.errors import SettingError
from mcdrop.layers.rates import check_rate

__all__ = ["ConcreteDropout", "concrete_dropout"]


def concrete_dropout(
    x: Float[Tensor, "..."], logit: Float[Tensor, ""], temperature: float, training: bool
) -> Float[Tensor, "..."]:
    """`x` under a relaxed mask in training; `logit` is log p - log(1 - p)."""
    if not training:
        return x
    precise = torch.promote_types(x.dtype, torch.float32)
    logit = logit.to(precise)
    u = torch.rand(x.shape, dtype=precise, device=x.device)
    z = torch.sigmoid((logit + torch.log(u) - torch.log1p(-u)) / temperature)
    return (x * ((1 - z) / torch.sigmoid(-logit))).to(x.dtype)


class ConcreteDropout(nn.Module):
    """`concrete_dropout` as a layer, whose parameter `logit` starts at the rate `p`.

    Raises:
        SettingError: `p` is not between 0 and 1, both excluded, or `temperature` not above 0.
    """

    dropout_kind: ClassVar[str] = "concrete"

    def __init__(self, p: float = 0.1, temperature: float = 0.1) -> None:
        super().__init__()
        if check_rate(p, one=False) == 0:
            raise SettingError("p is 0, from where a learned rate cannot move; start above 0, at 0.1 say.")
        if not 0 < temperature < math.inf:
            raise SettingError(f"temperature is {temperature!r}; give a number above 0. The paper uses 0.1.")
        self.temperature = float(temperature)
        self.logit = nn.Parameter(torch.tensor(math.log(p) - math.log1p(-p)))

    @property
    def p(self) -> float:
        """The rate as it has been learned so far, to the six digits that a logit in float32 gives."""
        return float(f"{torch.sigmoid(self.logit.detach().double()).item():.6g}")

    def regulariser(
        self, weight: Float[Tensor, "outputs inputs ..."], *, num_rows: int, length_scale: float = 1.0
    ) -> Float[Tensor, ""]:
        """What to add, for each such layer, to the mean negative log likelihood (nats) of a mini-batch.

        Args:
            weight: of the Linear or convolution that takes this layer's output.
            num_rows: size of the training set.
            length_scale: of the prior; the larger, the stronger weights are held near 0.

        Raises:
            SettingError: `num_rows` is not above 0.
        """
        if num_rows < 1:
            raise SettingError(f"num_rows is {num_rows!r}; give the number of rows that the network is trained on.")
        log_p, log_kept = nn.functional.logsigmoid(self.logit), nn.functional.logsigmoid(-self.logit)
        entropy = -(log_p.exp() * log_p + log_kept.exp() * log_kept)
        weights = length_scale**2 / 2 * weight.square().sum() / log_kept.exp()
        return (weights - weight.shape[1] * entropy) / num_rows

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return concrete_dropout(x, self.logit, self.temperature, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p:.3g}, temperature={self.temperature}"
