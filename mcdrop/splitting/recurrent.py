"""One recurrent layer that `torch.func.vmap` can map over passes.

ATen's LSTM, GRU and RNN have no batching rule of their own: taken apart they would run step by step. Here the mapped
axis is folded into the batch, for which a recurrent layer was made; where the weights differ from pass to pass
(DropConnect), passes run one by one.
"""

from typing import Any

import torch
from torch import Tensor

__all__ = ["LAYERS", "recurrent_layer"]

aten = torch.ops.aten

LAYERS = {
    "lstm": aten.lstm.input,
    "gru": aten.gru.input,
    "rnn_tanh": aten.rnn_tanh.input,
    "rnn_relu": aten.rnn_relu.input,
}


@torch.library.custom_op("mcdrop::recurrent", mutates_args=())
def _recurrent(
    kind: str,
    x: Tensor,
    hx: list[Tensor],
    params: list[Tensor],
    biases: bool,
    two: bool,
    batch_first: bool,
    layers: int,
) -> list[Tensor]:
    states: Any = hx if kind == "lstm" else hx[0]
    return [part.clone() for part in LAYERS[kind](x, states, params, biases, layers, 0.0, False, two, batch_first)]


@_recurrent.register_vmap
def _(info: Any, in_dims: Any, kind: Any, x: Any, hx: Any, params: Any, *rest: Any) -> Any:
    biases, two, batch_first, layers = rest
    passes = info.batch_size
    x = _mapped(x, in_dims[1], passes)  # (passes, ...)
    hx = [_mapped(state, axis, passes) for state, axis in zip(hx, in_dims[2], strict=True)]
    if any(axis is not None for axis in in_dims[3]):
        params = [_mapped(weight, axis, passes) for weight, axis in zip(params, in_dims[3], strict=True)]
        each = [
            _recurrent(kind, x[i], [s[i] for s in hx], [w[i] for w in params], biases, two, batch_first, layers)
            for i in range(passes)
        ]
        return [torch.stack(parts) for parts in zip(*each, strict=True)], [0] * len(each[0])
    batch = 0 if batch_first else 1
    folded = _recurrent(
        kind, _fold(x, batch), [_fold(state, 1) for state in hx], params, biases, two, batch_first, layers
    )
    parts = [_unfold(part, batch if number == 0 else 1, passes) for number, part in enumerate(folded)]
    return parts, [0] * len(parts)


def _mapped(value: Tensor, axis: int | None, passes: int) -> Tensor:
    return value.expand(passes, *value.shape) if axis is None else value.movedim(axis, 0)


def _fold(value: Tensor, batch: int) -> Tensor:
    return value.movedim(0, batch).flatten(batch, batch + 1)


def _unfold(value: Tensor, batch: int, passes: int) -> Tensor:
    unfolded: Tensor = value.unflatten(batch, (passes, -1))
    return unfolded.movedim(batch, 0)


def recurrent_layer(kind: str) -> Any:
    """A stand-in for ATen's `kind` with its own argument list, that can be mapped over passes."""

    def layer(
        x: Tensor, hx: Any, params: Any, biases: bool, layers: int, dropout: float, train: bool, two: bool, first: bool
    ) -> list[Tensor]:
        states = list(hx) if kind == "lstm" else [hx]
        result: list[Tensor] = _recurrent(kind, x, states, list(params), biases, two, first, layers)
        return result

    return layer
