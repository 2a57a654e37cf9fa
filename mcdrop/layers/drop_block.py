"""DropBlock: contiguous blocks of a feature map are dropped (Ghiasi et al. 2018, arXiv 1810.12890).

For maps of size H (x W x D), blocks of side b and a rate p, every place where a whole block fits into the map is the
corner of a dropped block with probability

    gamma = p / b**n * H W D / ((H - b + 1) (W - b + 1) (D - b + 1))        eq. 1, n = 1, 2 or 3 axes

drawn for each row and channel alone; an axis shorter than b has blocks of its own length. These corners are the site
that capture finds, and gamma is its rate; since gamma depends on the size of the maps, a network with free map sizes
runs on the eager engine. With M = 0 inside of a block, else 1:

    y = x M * count(M) / count_ones(M)

Both counts run over one *row*, all its channels and positions, in training too. The paper (algorithm 1) and
torchvision count over the batch, where what a row gives depends on the masks of its neighbours. A row of which nothing
is left is 0.

Law: M is 0 at a position with probability 1 - (1 - gamma)**k, where k is the number of blocks that cover it: b**n
inside, fewer towards the border, so the border is kept more often. Blocks may overlap, so somewhat less than the share
p is dropped. Mean: the factors M count / count_ones of a row have the mean 1, exactly and in every draw that leaves
anything; at a single position the mean of y is x only nearly (more at the border, less inside). The variance at a
position has no closed form.

Confused with: `nn.Dropout2d`, which drops whole channels (blocks as large as the map); cutout, which drops one
block of the input in all channels; torchvision's `DropBlock2d`, which counts over the batch.
"""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mcdrop.errors import InputError, SettingError
from mcdrop.layers.rates import check_rate

__all__ = ["DropBlock1d", "DropBlock2d", "DropBlock3d", "LinearSchedule", "drop_block"]

_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def drop_block(
    x: Float[Tensor, "batch channels *size"], p: float, block_size: int, training: bool
) -> Float[Tensor, "batch channels *size"]:
    """Feature maps of one to three axes, in training without blocks of side `block_size`, rescaled by row.

    Raises:
        InputError: `x` has no such axes.
        SettingError: `p` is not from 0 to 1, or `block_size` not a whole number of at least 1.
    """
    check_rate(p)
    _check_block_size(block_size)
    size = x.shape[2:]
    if len(size) not in _POOL:
        raise InputError(f"DropBlock takes (batch, channels, one to three axes); got the shape {tuple(x.shape)}.")
    if not training or 0 in size:
        return x
    block = [min(block_size, length) for length in size]
    places = [length - side + 1 for length, side in zip(size, block, strict=True)]
    gamma = p * math.prod(size) / (math.prod(block) * math.prod(places))
    corners = F.dropout(x.new_ones((*x.shape[:2], *places)), gamma) == 0
    margins = [side - 1 for side in reversed(block) for _ in range(2)]
    kept = 1 - _POOL[len(size)](F.pad(corners.to(x.dtype), margins), block, stride=1)
    ones = kept.sum(tuple(range(1, x.ndim)), keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    return (x * kept * (math.prod(x.shape[1:]) / ones.clamp_min(1))).to(x.dtype)


def _check_block_size(block_size: int) -> None:
    if isinstance(block_size, bool) or not isinstance(block_size, int) or block_size < 1:
        raise SettingError(f"block_size is {block_size!r}; give the side of a block in positions, at least 1.")


class _DropBlock(nn.Module):
    """What the layers of one, two and three axes share.

    Raises:
        SettingError: `p` is not from 0 to 1, or `block_size` not a whole number of at least 1.
    """

    dropout_kind: ClassVar[str] = "drop_block"
    axes: ClassVar[int]

    def __init__(self, p: float = 0.1, block_size: int = 7) -> None:
        super().__init__()
        self.p = check_rate(p)
        _check_block_size(block_size)
        self.block_size = block_size

    def forward(self, x: Float[Tensor, "batch channels *size"]) -> Float[Tensor, "batch channels *size"]:
        if x.ndim != self.axes + 2:
            raise InputError(
                f"{type(self).__name__} takes maps of (batch, channels, ...) with {self.axes + 2} axes; got a tensor "
                f"of shape {tuple(x.shape)}."
            )
        return drop_block(x, self.p, self.block_size, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}, block_size={self.block_size}"


class DropBlock1d(_DropBlock):
    """`drop_block` as a layer, for (batch, channels, length)."""

    axes = 1


class DropBlock2d(_DropBlock):
    """`drop_block` as a layer, for (batch, channels, height, width)."""

    axes = 2


class DropBlock3d(_DropBlock):
    """`drop_block` as a layer, for (batch, channels, depth, height, width)."""

    axes = 3


class LinearSchedule:
    """Raises the rate of every DropBlock layer of `model` from 0 to its own `p` (section 3.1, "scheduled DropBlock").

        schedule = LinearSchedule(model, steps=num_batches * num_epochs)
        for step, batch in enumerate(batches):
            schedule.set(step)

    The rates are those that the layers have when the schedule is made; make it before training goes on.

    Raises:
        SettingError: `model` has no DropBlock layer, or `steps` is less than 1.
    """

    def __init__(self, model: nn.Module, steps: int) -> None:
        self.targets = [(module, module.p) for module in model.modules() if isinstance(module, _DropBlock)]
        if not self.targets:
            raise SettingError(f"{type(model).__name__} has no DropBlock layer, so there is no rate to raise.")
        if steps < 1:
            raise SettingError(f"steps is {steps!r}; give the number of steps after which the rates are reached.")
        self.steps = steps

    def set(self, step: int) -> None:
        """Set the rates of step `step`, counted from 0: p step / steps, and p from `steps` on."""
        for layer, p in self.targets:
            layer.p = p * min(max(step / self.steps, 0.0), 1.0)
