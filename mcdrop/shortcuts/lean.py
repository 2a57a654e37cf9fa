"""Operations of fused parts: what an ordinary operation gives, in the way that its shapes make fastest.

Each says by which rule it chooses; results agree with the ordinary operation up to rounding.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch._C import _len_torch_dispatch_stack

from mcdrop.graph.draws import scale
from mcdrop.splitting.lowering import apply_folded, scale_folded

__all__ = ["add_into", "convolution", "dropped_linear", "is_small", "scale_into", "smaller_side"]

aten = torch.ops.aten

PATCHES = 2**16  # numbers in the patches of a small convolution: one matrix product ends before oneDNN begins
_PRODUCTS = 2**21  # products of such a convolution
_WORTH = 2**17  # numbers: to multiply so many takes as long as two operations more


# ---- convolutions


def convolution(
    x: Tensor, weight: Tensor, plain: Tensor, bias: Tensor | None, stride: list[int], padding: list[int]
) -> Tensor:
    """conv2d of x (rows, channels, height, width), a small one by its patches; `plain` is `weight`, contiguous.

    Under a dispatch mode it is an ordinary one: PyTorch's FLOP counter cannot read the arguments of the other.
    """
    if x.ndim == 4 and is_small(x.shape, weight.shape, stride, padding) and not _len_torch_dispatch_stack():
        kernel = weight.shape[2:]
        small: Tensor = aten._slow_conv2d_forward.default(x.contiguous(), plain, kernel, bias, stride, padding)
        return small
    return torch.conv2d(x, weight, bias, stride, padding)


def is_small(x: Sequence[int], weight: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> bool:
    """Whether a convolution of these shapes takes few patches and products."""
    rows, _, height, width = x
    out, entering, high, wide = weight
    down = (height + 2 * padding[0] - high) // stride[0] + 1
    across = (width + 2 * padding[1] - wide) // stride[1] + 1
    patches = rows * down * across * entering * high * wide
    return 0 < patches <= PATCHES and patches * out <= _PRODUCTS


# ---- dropout before a linear map


def dropped_linear(
    x: Tensor, drawn: Tensor, weight: Tensor, bias: Tensor | None = None, axis: int = 0, row_major: bool = True
) -> Tensor:
    """linear(x * drawn) of all passes, (passes * rows, ..., out), for x (rows, ..., in) and drawn (passes, ...).

    Of x, drawn and weight, two are multiplied unit by unit, and one matrix product with the third does the rest.
    """
    linear, passes, (out, units), rows = torch.nn.functional.linear, len(drawn), weight.shape, len(x)
    if axis != 0 or x.ndim != 2 or drawn.shape[1:] != (1, units) or x.dtype != drawn.dtype:
        return linear(scale_folded(x, drawn, axis, row_major, unrepeated=True), weight, bias)
    side = smaller_side(rows, passes, out, units)
    if side == "activations":
        return linear(x * drawn, weight, bias).flatten(0, 1)
    if side == "products":
        products = (x.unsqueeze(1) * weight).view(rows * out, units)
        return linear(drawn.view(passes, units), products, bias if bias is None else bias.repeat(rows)).view(-1, out)
    masked = (drawn * weight).view(passes * out, units)
    by_row = linear(x, masked, bias if bias is None else bias.repeat(passes)).view(rows, passes, out)
    return by_row.transpose(0, 1).reshape(-1, out)


def smaller_side(rows: int, passes: int, out: int, units: int) -> Literal["activations", "products", "weights"]:
    """What to multiply unit by unit: the fewest numbers, where that is worth more operations.

    Activations by masks make rows * passes * units numbers, activations by weights ("products") rows * out * units,
    weights by masks passes * out * units.
    """
    most = rows * passes
    if out >= max(rows, passes) or (most - out * min(rows, passes)) * units <= _WORTH:
        return "activations"
    return "products" if passes >= rows else "weights"


# ---- over an operand


def scale_into(x: Tensor, drawn: Tensor, axis: int, row_major: bool) -> Tensor:
    """`scale_folded` over x."""
    return apply_folded(Tensor.mul_ if x.dtype == drawn.dtype else scale, x, drawn, axis, row_major)


def add_into(x: Tensor, y: Any) -> Tensor:
    """x + y over x, where the sum has its shape and type."""
    return x.add_(y) if isinstance(y, Tensor) and x.shape == y.shape and x.dtype == y.dtype else torch.add(x, y)
