"""Shake-shake: two residual branches mixed at random (Gastaldi 2017, arXiv 1705.07485).

    forward    y = alpha a + (1 - alpha) b,    alpha uniform on [0, 1), one number for each row ("image" level)
    backward   dy/da = beta, dy/db = 1 - beta,    beta uniform and independent of alpha ("shake-shake")
    evaluation y = (a + b) / 2

Mean of y: (a + b) / 2. Variance: (a - b)**2 / 12, and all elements of a row move together. In the paper the mix is
switched off after training; Monte Carlo sampling draws alpha again in every pass. A network has one such layer for each
block, with rates that do not exist: nothing is dropped.

Confused with: `DropPath`, which drops one branch, and ShakeDrop (Yamada et al. 2018, arXiv 1802.02375), which shakes
one; mixup, which mixes rows.
"""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mcdrop.errors import InputError

__all__ = ["ShakeShake", "shake_shake"]


def shake_shake(
    a: Float[Tensor, "batch ..."], b: Float[Tensor, "batch ..."], training: bool
) -> Float[Tensor, "batch ..."]:
    """Two branches of one shape, mixed: at random by row in training, half and half in evaluation.

    Raises:
        InputError: the branches differ in shape.
    """
    if a.shape != b.shape:
        raise InputError(f"the branches have the shapes {tuple(a.shape)} and {tuple(b.shape)}; expected one shape.")
    if not training:
        return (a + b) / 2
    alpha = torch.rand((a.shape[0], *[1] * (a.ndim - 1)), dtype=a.dtype, device=a.device)
    mixed = b + alpha * (a - b)
    if not torch.is_grad_enabled():
        return mixed
    beta = torch.rand_like(alpha)
    shaken = b + beta * (a - b)
    return mixed.detach() + (shaken - shaken.detach())  # the value of one mix, the gradient of the other


class ShakeShake(nn.Module):
    """`shake_shake` as a layer: `x + shake(first(x), second(x))`."""

    dropout_kind: ClassVar[str] = "shake_shake"

    def forward(self, a: Float[Tensor, "batch ..."], b: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        return shake_shake(a, b, self.training)
