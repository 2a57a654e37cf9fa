"""Mixup and CutMix: each row of a batch is mixed with a partner, and its loss with its partner's target.

    mixup    x~ = share x + (1 - share) x'                       Zhang et al. 2018, arXiv 1710.09412, equation 1
    cutmix   x~ = x with a box of x' in it, share of it kept     Yun et al. 2019, arXiv 1905.04899, equation 1

One share is drawn for each batch, from Beta(alpha, alpha); a box covers 1 - share of the image before it is clipped at
the edges, and the share is then what is really kept. The loss is share L(f(x~), y) + (1 - share) L(f(x~), y'), which
for cross-entropy equals the loss of the mixed targets, and for the squared error differs from it by a constant.
"""

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["cutmix", "mix", "mixup"]


def mix(
    inputs: Float[Tensor, "batch ..."], random: np.random.Generator, *, mixup_alpha: float, cutmix_alpha: float
) -> tuple[Tensor, Tensor, float]:
    """Mix a batch with itself in another order; with two alphas above 0 a fair coin chooses which of them is used.

    Returns:
        The mixed inputs, the partner of each row (batch,), and the share (0 to 1) that each row keeps of itself.
    """
    partners = torch.from_numpy(random.permutation(len(inputs))).to(inputs.device)
    if mixup_alpha and (not cutmix_alpha or random.random() < 0.5):
        share = float(random.beta(mixup_alpha, mixup_alpha))
        return mixup(inputs, inputs[partners], share=share), partners, share
    share = float(random.beta(cutmix_alpha, cutmix_alpha))
    mixed, share = cutmix(inputs, inputs[partners], share=share, center=(random.random(), random.random()))
    return mixed, partners, share


def mixup(
    inputs: Float[Tensor, "batch ..."], partners: Float[Tensor, "batch ..."], *, share: float
) -> Float[Tensor, "batch ..."]:
    """share * inputs + (1 - share) * partners."""
    return share * inputs + (1 - share) * partners


def cutmix(
    inputs: Float[Tensor, "batch ... height width"],
    partners: Float[Tensor, "batch ... height width"],
    *,
    share: float,
    center: tuple[float, float],
) -> tuple[Float[Tensor, "batch ... height width"], float]:
    """A box of the partners pasted into the inputs; the share of the pixels that is kept.

    The sides of the box are sqrt(1 - share) of the image's; `center` is given in parts of height and width (0 to 1).
    """
    height, width = inputs.shape[-2:]
    rows, columns = (
        _span(size, part, math.sqrt(1 - share)) for size, part in zip((height, width), center, strict=True)
    )
    mixed = inputs.clone()
    mixed[..., rows, columns] = partners[..., rows, columns]
    pasted = (rows.stop - rows.start) * (columns.stop - columns.start)
    return mixed, 1 - pasted / (height * width)


def _span(size: int, center: float, part: float) -> slice:
    """`part` of `size` pixels around `center`, clipped at the edges."""
    length = round(size * part)
    start = math.floor(center * size) - length // 2
    return slice(max(start, 0), min(start + length, size))
