"""The engine for networks that cannot be captured, and the oracle for those that can: the network itself.

A dispatch mode stands below PyTorch's own functions and sees every random operation, wherever it is written; each is
answered with the draw that the seed, the pass and the row say. The n-th draw of a pass is site n, as in a captured
program, so both engines give the same numbers.

A network that had to be run this way may look at its values, so every row is run alone, one pass at a time, and the
global generators of Python and NumPy are set for each pass and put back: slow, but still a function of (row, seed).
"""

import contextlib
import random
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from mcdrop.engines.supplies import Chosen, Neutral, Places, Seeded, Supply, caller
from mcdrop.errors import UnsupportedRandomnessError
from mcdrop.graph.choosing import Choice
from mcdrop.graph.sites import Law

__all__ = ["EagerEngine", "drawing", "global_generators", "neutral"]

aten = torch.ops.aten


class _Draws(TorchDispatchMode):
    """Answers every random operation from a supply; refuses those whose law is unknown."""

    def __init__(self, supply: Supply) -> None:
        super().__init__()
        self.supply = supply

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        answer = _ANSWERS.get(func.overloadpacket)
        if answer is not None:
            bound = {a.name: a.default_value for a in func._schema.arguments if a.has_default_value()}
            bound |= {a.name: value for a, value in zip(func._schema.arguments, args, strict=False)} | kwargs
            answered = answer(self.supply, bound, lambda: func(*args, **kwargs))
            return answered if bound.get("out") is None else bound["out"].copy_(answered)
        raise UnsupportedRandomnessError(
            f"{func} at {caller()} draws random numbers by a law that mcdrop does not know. Known are dropout in all "
            "its forms, bernoulli, uniform and normal draws; write the noise with one of them, or switch it off in "
            "evaluation mode."
        )


def _fill(law: Law, low: str = "", high: str = "") -> Callable[..., Any]:
    def answer(supply: Supply, a: dict[str, Any], run: Callable[[], Any]) -> Any:
        target: Tensor = a["self"]
        drawn = supply.next(law, target.shape, 0.0, target.device)
        width = a[high] - a[low] if law == "uniform" else a[high]
        return target.copy_(drawn * width + a[low])

    return answer


def _new(law: Law) -> Callable[..., Any]:
    def answer(supply: Supply, a: dict[str, Any], run: Callable[[], Any]) -> Any:
        like = a.get("self")
        size = torch.Size(a["size"]) if like is None else like.shape
        device = a.get("device") or (like.device if like is not None else torch.get_default_device())
        dtype = a.get("dtype") or (like.dtype if like is not None else torch.get_default_dtype())
        return supply.next(law, size, 0.0, torch.device(device)).to(dtype)

    return answer


def _normal(supply: Supply, a: dict[str, Any], run: Callable[[], Any]) -> Any:
    mean, std = a["mean"], a["std"]
    if "size" in a:
        return _new("normal")(supply, a, run) * std + mean
    tensors = [x for x in (mean, std) if isinstance(x, Tensor)]
    shape = torch.broadcast_shapes(*(x.shape for x in tensors))
    return (supply.next("normal", shape, 0.0, tensors[0].device) * std + mean).to(tensors[0].dtype)


def _bernoulli(supply: Supply, a: dict[str, Any], run: Callable[[], Any]) -> Any:
    target, p = a["self"], a.get("p", a["self"])
    if isinstance(p, Tensor):
        return supply.bernoulli(p.expand(target.shape)).to(target.dtype)
    return supply.next("bernoulli", target.shape, 1 - p, target.device).to(target.dtype)


def _bernoulli_(supply: Supply, a: dict[str, Any], run: Callable[[], Any]) -> Any:
    return a["self"].copy_(_bernoulli(supply, a, run))


def _native_dropout(supply: Supply, a: dict[str, Any], run: Callable[[], Any]) -> Any:
    x, p = a["input"], a["p"]
    if not a["train"] or p == 0:
        return x.clone(), torch.ones_like(x, dtype=torch.bool)
    kept = supply.next("bernoulli", x.shape, p, x.device)
    return (x * (kept / (1 - p))).to(x.dtype), kept != 0


def _exponential_(supply: Supply, a: dict[str, Any], run: Callable[[], Any]) -> Any:
    drawn = supply.next("uniform", a["self"].shape, 0.0, a["self"].device)
    return a["self"].copy_(torch.log1p(-drawn) / -a["lambd"])


def _if_switched_off(argument: str) -> Callable[..., Any]:
    """Operations that are random only when a flag or rate says so; on, they are none of ours."""

    def answer(supply: Supply, a: dict[str, Any], run: Callable[[], Any]) -> Any:
        if a.get(argument):
            raise UnsupportedRandomnessError(
                f"an operation drew noise by {argument}={a[argument]} that cannot be made repeatable at {caller()}. "
                "Use attention by the math backend, and RReLU in evaluation mode."
            )
        return run()

    return answer


_ANSWERS: dict[Any, Callable[..., Any]] = {
    aten.bernoulli_: _bernoulli_,
    aten.bernoulli: _bernoulli,
    aten.native_dropout: _native_dropout,
    aten.rand: _new("uniform"),
    aten.rand_like: _new("uniform"),
    aten.uniform_: _fill("uniform", "from", "to"),
    aten.randn: _new("normal"),
    aten.randn_like: _new("normal"),
    aten.normal_: _fill("normal", "mean", "std"),
    aten.normal: _normal,
    aten.exponential_: _exponential_,
    aten.rrelu_with_noise: _if_switched_off("training"),
    aten.rrelu_with_noise_: _if_switched_off("training"),
    aten._scaled_dot_product_flash_attention: _if_switched_off("dropout_p"),
    aten._scaled_dot_product_flash_attention_for_cpu: _if_switched_off("dropout_p"),
    aten._scaled_dot_product_efficient_attention: _if_switched_off("dropout_p"),
    aten._scaled_dot_product_cudnn_attention: _if_switched_off("dropout_p"),
    aten._scaled_dot_product_fused_attention_overrideable: _if_switched_off("dropout_p"),
}


class _Functions(TorchFunctionMode):
    """Tells a supply which kind of dropout is computed, and lets it leave some out or change their rate."""

    def __init__(self, supply: Supply) -> None:
        super().__init__()
        self.supply = supply

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        kind = _KINDS.get(getattr(func, "__name__", "").rstrip("_"))
        if kind is not None and kind not in _DRAWS_INSIDE and (p := _rate_of(args, kwargs)):
            if self.supply.leaves_out(kind, p):
                return self._left_out(func, kind, p, args, kwargs)
            rate = self.supply.rate(kind)
            if rate is not None and len(args) > 1:
                args = (args[0], rate, *args[2:])
            elif rate is not None:
                kwargs["p"] = rate
        before = self.supply.kind
        self.supply.kind = kind or before
        try:
            return func(*args, **kwargs)
        finally:
            self.supply.kind = before

    def _left_out(self, func: Any, kind: str, p: float, args: Any, kwargs: dict[str, Any]) -> Tensor:
        x: Tensor = args[0] if args else kwargs["input"]
        if p < 1:  # PyTorch draws nothing where all is dropped
            self.supply.count += 1
            self.supply.shapes.append((*x.shape[:2], *[1] * (x.ndim - 2)) if "feature" in kind else tuple(x.shape))
        return x if func.__name__.endswith("_") or kwargs.get("inplace") else x.clone()


def _rate_of(args: Any, kwargs: dict[str, Any]) -> float:
    """The rate of a call of a dropout function; 0 where it is switched off."""
    train = kwargs.get("training", kwargs.get("train", args[2] if len(args) > 2 else True))
    return float(kwargs.get("p", args[1] if len(args) > 1 else 0.5)) if train else 0.0


_KINDS = {
    "dropout": "dropout",
    **dict.fromkeys(("dropout1d", "dropout2d", "dropout3d", "feature_dropout"), "feature_dropout"),
    "alpha_dropout": "alpha_dropout",
    "feature_alpha_dropout": "feature_alpha_dropout",
    **dict.fromkeys(("scaled_dot_product_attention", "multi_head_attention_forward"), "attention_dropout"),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), "recurrent_dropout"),
}
_DRAWS_INSIDE = ("attention_dropout", "recurrent_dropout")  # among other things, so that only the draw can be changed


@contextlib.contextmanager
def drawing(supply: Supply) -> Iterator[None]:
    """Inside, every draw on this thread comes from `supply`.

    Compiled parts run as they were written, attention and cuDNN keep to forms whose draws show.
    """
    with (
        torch.no_grad(),
        torch.compiler.set_stance("force_eager"),
        sdpa_kernel(SDPBackend.MATH),
        torch.backends.cudnn.flags(enabled=False),
        _Draws(supply),
        _Functions(supply),
    ):
        yield


@contextlib.contextmanager
def neutral(kept: float | None = None, deviation: float = 0.0) -> Iterator[Neutral]:
    """Inside, every draw has the value that leaves a network unchanged; what was drawn."""
    supply = Neutral(kept, deviation)
    with drawing(supply):
        yield supply


@contextlib.contextmanager
def global_generators(key: int | None = None) -> Iterator[None]:
    """Put the global generators of Python, NumPy and PyTorch back at the end; with `key`, set the first two first."""
    numpy: Any = sys.modules.get("numpy")
    python_state, torch_state = random.getstate(), torch.random.get_rng_state()
    numpy_state = numpy.random.get_state() if numpy else None
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        if key is not None:
            random.seed(key)
            if numpy:
                numpy.random.seed(key % 2**32)
        yield
    finally:
        random.setstate(python_state)
        torch.random.set_rng_state(torch_state)
        if numpy:
            numpy.random.set_state(numpy_state)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


class EagerEngine:
    """The network itself, one row and one pass at a time.

    `network` takes the input tensors and returns a tuple of tensors; it is a private copy with the right flags set.
    `traced` has the shape of each draw for one row, and whether it is one of the row (rather than of a weight).
    """

    kind = "eager"
    merges = joins = False
    lock = threading.RLock()  # of all eager engines: they set global state while they run

    def __init__(
        self,
        network: nn.Module,
        batched: Sequence[bool],
        traced: Sequence[tuple[tuple[int, ...], bool]] | None,
        *,
        together: bool = False,
        choice: Choice | None = None,
        numbers: Sequence[int] | None = None,
    ) -> None:
        self.network, self.batched, self.together = network, tuple(batched), together
        self._chosen = Chosen(choice, Places(network), numbers) if choice else None
        self._traced = traced or ()
        self._buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}

    def prepare(self, inputs: Sequence[Tensor], budget: int | None = None) -> list[Tensor]:
        return []

    def join(self, prepared: Sequence[list[Tensor]]) -> list[Tensor]:
        return prepared[0]

    def part(self, prepared: Sequence[Tensor], start: int, stop: int) -> list[Tensor]:
        return list(prepared)

    def passes(
        self,
        inputs: Sequence[Tensor],
        prepared: Sequence[Tensor],
        *,
        passes: range,
        seed: int,
        rows: Tensor | None,
        balanced: bool = False,
    ) -> tuple[Tensor, ...]:
        count = next((x.shape[0] for x, batched in zip(inputs, self.batched, strict=True) if batched), 1)
        numbers = [None] * count if rows is None else rows.tolist()
        outputs = []
        with self.lock:
            for number in passes:
                if self.together:
                    outputs.append(self._one(inputs, seed, number, None, balanced))
                    continue
                alone = [
                    self._one(
                        [x[i : i + 1] if by_row else x for x, by_row in zip(inputs, self.batched, strict=True)],
                        seed,
                        number,
                        numbers[i],
                        balanced,
                    )
                    for i in range(count)
                ]
                outputs.append(tuple(torch.cat(parts) for parts in zip(*alone, strict=True)))
        return tuple(torch.stack(parts) for parts in zip(*outputs, strict=True))

    def _one(
        self, inputs: Sequence[Tensor], seed: int, number: int, row: int | None, balanced: bool
    ) -> tuple[Tensor, ...]:
        key = (seed * 1_000_003 + number) * 1_000_003 + (0 if row is None else row + 1)
        supply = Seeded(seed, number, row, self._draws_by_row, self._chosen, balanced)
        with global_generators(key % 2**63), drawing(supply):
            try:
                outputs: tuple[Tensor, ...] = self.network(*(x.clone() for x in inputs))
                return tuple(output.clone() for output in outputs)
            finally:
                self._restore()

    def _draws_by_row(self, index: int, shape: tuple[int, ...]) -> bool:
        """As traced; where a skipped layer has moved the numbers of the draws, as draws of that shape were."""
        if index < len(self._traced) and self._traced[index][0] == shape:
            return self._traced[index][1]
        alike = [by_row for traced, by_row in self._traced if traced == shape]
        return any(alike) or not alike

    def _restore(self) -> None:
        for name, buffer in self.network.named_buffers():
            kept = self._buffers.get(name)
            if kept is not None and kept.shape == buffer.shape and not torch.equal(buffer, kept):
                buffer.copy_(kept)

    def bytes_per_pass(self, inputs: Sequence[Tensor]) -> int:
        return 1  # one row and one pass is all that is ever computed at once

    def stretch(self, rows: int) -> int:
        return 1

    def working_bytes(self, inputs: Sequence[Tensor]) -> int:
        return 1
