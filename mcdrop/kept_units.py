"""Kept units: which a value has on one of its axes, how they are taken out, and which operations leave them alone."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = [
    "ARITHMETIC",
    "CHANNEL_WISE",
    "GROUPS",
    "QUOTIENTS",
    "SUMS",
    "UNIT_WISE",
    "WEIGHT_AXES",
    "ZERO_KEEPING",
    "Cut",
    "Gather",
    "blocks_of",
    "filled",
    "select",
]

aten = torch.ops.aten


class Cut(NamedTuple):
    """The units of one axis that a site keeps; `block` neighbours on the axis share the fate of one unit."""

    draw: int
    axis: int
    block: int = 1


class Gather(NamedTuple):
    """A weight cut down to kept units along some axes, times the value of a kept unit where that is left to it."""

    weight: int
    cuts: tuple[Cut, ...]
    factor: float = 1.0


def select(x: Tensor, axis: int, kept: Tensor) -> Tensor:
    """Units of an axis, in the layout that `x` has."""
    if x.ndim == 4 and axis < 2 and _is_channels_last(x):
        last = x.permute(0, 2, 3, 1).index_select(3 if axis == 1 else 0, kept)
        return last.permute(0, 3, 1, 2)
    return x.index_select(axis, kept)


def filled(x: Tensor, axis: int, kept: Tensor, size: int) -> Tensor:
    """All units of an axis, zero where they are not kept, in the layout that `x` has."""
    shape = [*x.shape[:axis], size, *x.shape[axis + 1 :]]
    if x.ndim == 4 and axis == 1 and _is_channels_last(x):
        last = x.new_zeros([shape[0], *shape[2:], size])
        return last.index_copy_(3, kept, x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return x.new_zeros(shape).index_copy_(axis, kept, x)


def _is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def blocks_of(units: Tensor, block: int) -> Tensor:
    if block == 1:
        return units
    return (units[:, None] * block + torch.arange(block, device=units.device)).flatten()


# operations by the axes of their weight that leave and enter: (out, in, ...)
WEIGHT_AXES: Mapping[Any, tuple[int, int]] = {
    torch.nn.functional.linear: (0, 1),
    aten.conv1d.default: (0, 1),
    torch.conv2d: (0, 1),
    aten.conv3d.default: (0, 1),
    aten.conv_transpose1d.default: (1, 0),
    aten.conv_transpose2d.input: (1, 0),
    aten.conv_transpose3d.input: (1, 0),
}
GROUPS = 6  # place of the number of groups among the arguments of each convolution
# operations that act unit by unit and give 0 for 0
ZERO_KEEPING = frozenset({
    torch.relu, aten.relu6.default, aten.gelu.default, aten.silu.default, aten.tanh.default, aten.leaky_relu.default,
    aten.elu.default, aten.selu.default, aten.celu.default, aten.hardswish.default, aten.mish.default,
    aten.abs.default, aten.neg.default, aten.square.default, aten.sin.default, aten.clone.default,
    aten.contiguous.default, aten.to.dtype,
})  # fmt: skip
# operations that act unit by unit
UNIT_WISE = frozenset({
    aten.sigmoid.default, aten.softplus.default, aten.hardtanh.default, aten.hardsigmoid.default, aten.exp.default,
    aten.clamp.default, aten.log_sigmoid.default, aten.cos.default, aten.threshold.default,
})  # fmt: skip
# operations that act channel by channel, over the space behind them, and give 0 for 0
CHANNEL_WISE = frozenset({
    torch.max_pool2d, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default, aten.upsample_nearest2d.vec,
    aten.upsample_bilinear2d.vec,
})  # fmt: skip
SUMS = frozenset({torch.add, aten.sub.Tensor})
QUOTIENTS = frozenset({aten.div.Tensor})
ARITHMETIC = SUMS | QUOTIENTS | {torch.mul}
