"""What `torch.export` does not know by itself: rules that stand while a network is traced, and are gone afterwards.

causal masks     `nn.TransformerEncoder` looks at the values of a mask, which a tracer does not have
lengths          `len(x)` has to be an integer, which would fix the number of rows
distributions    `torch.distributions` checks the values of its arguments
recurrence       a tracer takes an LSTM, GRU or RNN apart step by step, which fixes its length and takes its time
"""

import builtins
import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._decomp import decomposition_table
from torch.overrides import TorchFunctionMode

from mcdrop.splitting.recurrent import LAYERS

__all__ = ["recurrence_kept_whole", "tracer_rules"]


@contextlib.contextmanager
def tracer_rules() -> Iterator[None]:
    """Inside, a tracer on this thread follows all rules of this module."""
    with _explicit_causal_masks(), _open_lengths(), _trusted_distributions(), _EvenParts(), recurrence_kept_whole():
        yield


@contextlib.contextmanager
def _explicit_causal_masks() -> Iterator[None]:
    """`nn.TransformerEncoder` looks into its mask to see whether it is causal; a tracer cannot. A mask is a mask."""
    detect = "torch.nn.modules.transformer._detect_is_causal_mask"
    with mock.patch(detect, lambda mask, is_causal=None, size=None: is_causal is True):
        yield


@contextlib.contextmanager
def _open_lengths() -> Iterator[None]:
    """`len` of a tensor, on this thread, is its first size as the tracer has it: open where that is open.

    The built-in one makes an integer of what is asked for; the tracer itself replaces `max` and `min` likewise.
    """
    counted, thread = builtins.len, threading.get_ident()

    def length(x: Any, /) -> Any:
        open_size = isinstance(x, Tensor) and x.ndim and threading.get_ident() == thread
        return x.shape[0] if open_size else counted(x)

    with mock.patch.object(builtins, "len", length):
        yield


@contextlib.contextmanager
def _trusted_distributions() -> Iterator[None]:
    """`torch.distributions` checks the values of its arguments, which a tracer does not have."""
    with mock.patch.object(torch.distributions.Distribution, "_validate_args", False):
        yield


class _EvenParts(TorchFunctionMode):
    """`chunk` and `split` that cut an open size into a fixed number of even parts, by plain arithmetic.

    The tracer counts the parts as (size + width - 1) // width, and cannot see that this is the same for every size.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _PARTS:
            x, count, dim = _PARTS[func](*args, **(kwargs or {}))
            if count is not None:
                width = x.shape[dim] // count
                return tuple(x.narrow(dim, number * width, width) for number in range(count))
        return func(*args, **(kwargs or {}))


def _chunk(x: Tensor, chunks: int, dim: int = 0) -> tuple[Tensor, int | None, int]:
    """The tensor, the number of its parts if they are even whatever its size, and the axis."""
    size: Any = x.shape[dim]
    even = isinstance(size, torch.SymInt) and (size.node.expr / chunks).is_integer
    return x, chunks if even else None, dim


def _split(x: Tensor, split_size: Any, dim: int = 0) -> tuple[Tensor, int | None, int]:
    size: Any = x.shape[dim]
    if not isinstance(size, torch.SymInt) or not isinstance(split_size, torch.SymInt):
        return x, None, dim
    ratio = size.node.expr / split_size.node.expr
    return x, int(ratio) if ratio.is_Integer else None, dim


_PARTS: dict[Any, Callable[..., tuple[Tensor, int | None, int]]] = {
    torch.chunk: lambda input, chunks, dim=0: _chunk(input, chunks, dim),  # PyTorch's names
    torch.Tensor.chunk: _chunk,
    torch.split: lambda tensor, split_size_or_sections, dim=0: _split(tensor, split_size_or_sections, dim),
    torch.Tensor.split: _split,
}


@contextlib.contextmanager
def recurrence_kept_whole() -> Iterator[None]:
    """Inside, a tracer on this thread asks of a recurrent layer its shapes alone, instead of taking it step by step."""
    with contextlib.ExitStack() as stack:
        for operation in LAYERS.values():  # a tracer looks for their rules in two tables
            stack.callback(operation._dispatch_cache.clear)
            kernels: dict[Any, Any] = operation.py_kernels
            opaque = {operation: _opaque(decomposition_table[operation])}
            stack.enter_context(_replaced(decomposition_table, opaque))
            stack.enter_context(_replaced(kernels, {key: _opaque(rule) for key, rule in kernels.items()}))
            operation._dispatch_cache.clear()
        yield


@contextlib.contextmanager
def _replaced(table: dict[Any, Any], entries: Mapping[Any, Any]) -> Iterator[None]:
    """Inside, `table` has these entries; what others add to it meanwhile stays."""
    before = {key: table[key] for key in entries}
    table.update(entries)
    try:
        yield
    finally:
        table.update(before)


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
