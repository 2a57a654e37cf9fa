"""The operations of a lowered suffix: how draws meet activations, and operations that can be mapped over passes.

In the mapped form a function sees one pass: a draw (..., units, ...) and activations (..., rows, ...). In the folded
form it sees all of them: draws (passes, ..., units, ...) and activations (..., passes * rows, ...), passes slowest.
`axis` is the axis of the draw that runs over the rows, or None; `row_major` says whether the row is its slow index.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mcdrop.graph.draws import alpha_scale, scale
from mcdrop.splitting.recurrent import LAYERS, recurrent_layer

__all__ = [
    "APPLY",
    "MAPPED",
    "apply_folded",
    "repeat",
    "scale_by_draw",
    "scale_folded",
    "spread_draw",
    "spread_folded",
]

aten = torch.ops.aten


def _apply(
    function: Callable[..., Tensor], x: Tensor, drawn: Tensor, axis: int | None, row_major: bool, *rest: Any
) -> Tensor:
    """Apply one pass's draw; a draw shared by the rows may stand for k units of each row."""
    if axis is None or drawn.shape[axis] in (1, x.shape[axis]):
        return function(x, drawn, *rest)
    units = drawn.shape[axis]
    x_sizes, at = ((-1, units), axis) if row_major else ((units, -1), axis + 1)
    return function(x.unflatten(axis, x_sizes), drawn.unsqueeze(at), *rest).flatten(axis, axis + 1)


def apply_folded(
    function: Callable[..., Tensor],
    x: Tensor,
    drawn: Tensor,
    axis: int,
    row_major: bool,
    *rest: Any,
    unrepeated: bool = False,
) -> Tensor:
    """Apply the draws of all passes, broadcasting (..., passes, rows, units, ...) against (..., passes, 1, units)."""
    passes, units = drawn.shape[0], drawn.shape[axis + 1]
    drawn = drawn.movedim(0, axis)
    rows = x.shape[axis] if unrepeated else x.shape[axis] // passes
    x = x.unsqueeze(axis) if unrepeated else x.unflatten(axis, (passes, rows))
    if units in (1, rows):
        return function(x, drawn, *rest).flatten(axis, axis + 1)
    x = x.unflatten(axis + 1, (rows // units, units))
    return function(x, drawn.unsqueeze(axis + 1), *rest).flatten(axis, axis + 2)


def spread_draw(drawn: Tensor, axis: int | None, row_major: bool, size: int) -> Tensor:
    """A draw in the full shape that the network asked for: repeated over the rows that share it."""
    if axis is None or drawn.shape[axis] == size:
        return drawn
    units = drawn.shape[axis]
    at = axis if row_major else axis + 1
    spread = drawn.unsqueeze(at)
    wanted = list(spread.shape)
    wanted[at] = size // units
    return spread.expand(wanted).flatten(axis, axis + 1)


def spread_folded(drawn: Tensor, axis: int, row_major: bool, size: int) -> Tensor:
    passes, units = drawn.shape[0], drawn.shape[axis + 1]
    drawn = drawn.movedim(0, axis).unsqueeze(axis + 1)
    wanted = list(drawn.shape)
    wanted[axis + 1] = size // passes // units
    return drawn.expand(wanted).flatten(axis, axis + 2)


def repeat(x: Tensor, drawn: Tensor, axis: int) -> Tensor:
    """A frontier tensor once for each pass, passes slowest on the axis of the rows."""
    x = x.unsqueeze(axis)
    wanted = list(x.shape)
    wanted[axis] = drawn.shape[0]
    return x.expand(wanted).flatten(axis, axis + 1)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention without dropout, by operations that can be mapped."""
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = (x.repeat_interleave(groups, -3) for x in (key, value))
    scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-2, -1)
    if is_causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~seen, -torch.inf)
    if mask is None:
        return scores.softmax(-1) @ value
    scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1).masked_fill((scores == -torch.inf).all(-1, keepdim=True), 0.0) @ value


def scale_by_draw(x: Tensor, drawn: Tensor, axis: int | None, row_major: bool) -> Tensor:
    return _apply(scale, x, drawn, axis, row_major)


def scale_folded(x: Tensor, drawn: Tensor, axis: int, row_major: bool, unrepeated: bool = False) -> Tensor:
    return apply_folded(scale, x, drawn, axis, row_major, unrepeated=unrepeated)


def _alpha(x: Tensor, drawn: Tensor, axis: int | None, row_major: bool, p: float) -> Tensor:
    return _apply(alpha_scale, x, drawn, axis, row_major, p)


def _alpha_folded(x: Tensor, drawn: Tensor, axis: int, row_major: bool, p: float, unrepeated: bool = False) -> Tensor:
    return apply_folded(alpha_scale, x, drawn, axis, row_major, p, unrepeated=unrepeated)


APPLY: dict[tuple[Any, bool], Callable[..., Tensor]] = {
    (scale, False): scale_by_draw,
    (scale, True): scale_folded,
    (alpha_scale, False): _alpha,
    (alpha_scale, True): _alpha_folded,
}

MAPPED: dict[Any, Any] = {
    aten.scaled_dot_product_attention.default: _attention,
    **{operation: recurrent_layer(kind) for kind, operation in LAYERS.items()},
}
