"""What `torch.export` does not know by itself: rules that stand while a network is traced, and are gone afterwards.

causal masks     `nn.TransformerEncoder` looks at the values of a mask, which a tracer does not have
distributions    `torch.distributions` checks the values of its arguments
recurrence       a tracer takes an LSTM, GRU or RNN apart step by step, which fixes its length and takes its time
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._decomp import decomposition_table

from mcdrop.recurrent import LAYERS

__all__ = ["recurrence_kept_whole", "tracer_rules"]


@contextlib.contextmanager
def tracer_rules() -> Iterator[None]:
    """Inside, a tracer on this thread follows all rules of this module."""
    with _explicit_causal_masks(), _trusted_distributions(), recurrence_kept_whole():
        yield


@contextlib.contextmanager
def _explicit_causal_masks() -> Iterator[None]:
    """`nn.TransformerEncoder` looks into its mask to see whether it is causal; a tracer cannot. A mask is a mask."""
    detect = "torch.nn.modules.transformer._detect_is_causal_mask"
    with mock.patch(detect, lambda mask, is_causal=None, size=None: is_causal is True):
        yield


@contextlib.contextmanager
def _trusted_distributions() -> Iterator[None]:
    """`torch.distributions` checks the values of its arguments, which a tracer does not have."""
    with mock.patch.object(torch.distributions.Distribution, "_validate_args", False):
        yield


@contextlib.contextmanager
def recurrence_kept_whole() -> Iterator[None]:
    """Inside, a tracer on this thread asks of a recurrent layer its shapes alone, instead of taking it step by step."""
    with contextlib.ExitStack() as stack:
        for operation in LAYERS.values():  # a tracer looks for their rules in two tables
            stack.callback(operation._dispatch_cache.clear)
            kernels: dict[Any, Any] = operation.py_kernels
            opaque = {operation: _opaque(decomposition_table[operation])}
            stack.enter_context(mock.patch.dict(decomposition_table, opaque))
            stack.enter_context(mock.patch.dict(kernels, {key: _opaque(rule) for key, rule in kernels.items()}))
            operation._dispatch_cache.clear()
        yield


def _opaque(rule: Callable[..., Any]) -> Callable[..., Any]:
    """A rule that, on this thread, makes results of the right shapes and no more."""
    thread = threading.get_ident()

    def shapes(
        x: Tensor, hx: Any, params: Any, biases: bool, layers: int, dropout: float, train: bool, two: bool, first: bool
    ) -> Any:
        if threading.get_ident() != thread:
            return rule(x, hx, params, biases, layers, dropout, train, two, first)
        states = list(hx) if isinstance(hx, list | tuple) else [hx]
        *outer, _ = x.transpose(0, 1).shape if first else x.shape
        out = x.new_empty(*outer, (2 if two else 1) * states[0].shape[-1])
        return out.transpose(0, 1) if first else out, *(torch.empty_like(state) for state in states)

    return shapes
