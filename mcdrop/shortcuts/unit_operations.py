"""Operations by what they do to the units of one axis: which act unit by unit, and which give zero for zero."""

from collections.abc import Mapping
from typing import Any

import torch

__all__ = [
    "ARITHMETIC",
    "CHANNEL_WISE",
    "FLATTENING",
    "GROUPS",
    "QUOTIENTS",
    "SUMS",
    "UNIT_WISE",
    "WEIGHT_AXES",
    "ZERO_KEEPING",
]

aten = torch.ops.aten

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
# operations that act channel by channel, over the space behind them, and give k times as much for k >= 0 times
CHANNEL_WISE = frozenset({
    torch.max_pool2d, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default, aten.upsample_nearest2d.vec,
    aten.upsample_bilinear2d.vec,
})  # fmt: skip
# operations that may join the channels of a row with the space behind them
FLATTENING = frozenset({torch.reshape, aten.view.default, aten.flatten.using_ints})
SUMS = frozenset({torch.add, aten.sub.Tensor})
QUOTIENTS = frozenset({aten.div.Tensor})
ARITHMETIC = SUMS | QUOTIENTS | {torch.mul}
