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
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from mcdrop import draws
from mcdrop.choosing import Choice, Place
from mcdrop.errors import UnsupportedRandomnessError
from mcdrop.noise import keep_mask, normal, uniform
from mcdrop.sites import Law, own_path

__all__ = [
    "Chosen",
    "EagerEngine",
    "Given",
    "Neutral",
    "Places",
    "Supply",
    "Traced",
    "drawing",
    "global_generators",
    "neutral",
]

aten = torch.ops.aten


class Supply:
    """Answers the draws of one forward pass, in the order in which they come.

    `count` says how many came, `kind` which kind of dropout PyTorch is computing, if it is.
    """

    def __init__(self) -> None:
        self.count = 0
        self.shapes: list[tuple[int, ...]] = []
        self.uniforms = 0
        self.kind: str | None = None

    def next(self, law: Law, shape: torch.Size, p: float, device: torch.device) -> Tensor:
        """A draw of float32 numbers: 0 or 1 for "bernoulli" (dropping with probability `p`), else numbers."""
        index, self.count = self.count, self.count + 1
        self.shapes.append(tuple(shape))
        self.uniforms += law == "uniform"
        return self.make(index, law, tuple(shape), p, device)

    def make(self, index: int, law: Law, shape: tuple[int, ...], p: float, device: torch.device) -> Tensor:
        raise NotImplementedError

    def leaves_out(self, kind: str, p: float) -> bool:
        """Whether a dropout function that is about to draw gives its input back instead."""
        return False

    def rate(self, kind: str) -> float | None:
        """The rate to use instead of the network's, if there is one."""
        return None

    def bernoulli(self, probs: Tensor) -> Tensor:
        """A draw of zeros and ones with a tensor of probabilities of a one."""
        return draws.bernoulli(self.next("uniform", probs.shape, 0.0, probs.device), probs)


class Neutral(Supply):
    """Every draw at its mean, so that dropout is the identity; masks with the value `kept`, if that is given."""

    def __init__(self, kept: float | None = None) -> None:
        super().__init__()
        self.kept = kept

    def make(self, index: int, law: Law, shape: tuple[int, ...], p: float, device: torch.device) -> Tensor:
        return _at_mean(law, shape, p if self.kept is None else 1 - self.kept, device)

    def leaves_out(self, kind: str, p: float) -> bool:
        """What no value of a mask makes the identity: alpha dropout, affine in its mask, and p = 1."""
        return "alpha" in kind or p == 1

    def bernoulli(self, probs: Tensor) -> Tensor:
        self.count += 1
        self.shapes.append(tuple(probs.shape))
        return probs.clone()


def _at_mean(law: Law, shape: tuple[int, ...], p: float, device: torch.device) -> Tensor:
    return torch.full(
        shape, {"bernoulli": 1 - p, "uniform": 0.5, "normal": 0.0}[law], device=device, dtype=torch.float64
    )


class Places:
    """Which module of a private copy is running, noted by hooks."""

    def __init__(self, network: nn.Module) -> None:
        self.stack = [""]
        self.handles = []
        for name, module in network.named_modules():
            if not isinstance(module, torch.jit.ScriptModule):
                self.handles.append(module.register_forward_pre_hook(partial(self._enter, name)))
                self.handles.append(module.register_forward_hook(self._leave, always_call=True))

    def _enter(self, name: str, *_: Any) -> None:
        self.stack.append(name)

    def _leave(self, *_: Any) -> None:
        self.stack.pop()

    @property
    def path(self) -> str:
        """The module, as a path in the user's network."""
        return own_path(self.stack[-1])

    def close(self) -> None:
        """Take the hooks off again."""
        for handle in self.handles:
            handle.remove()


@dataclass(frozen=True)
class Drawn:
    """One draw of a forward pass."""

    path: str
    kind: str
    law: Law
    p: float | None
    source: str


class Traced(Neutral):
    """Neutral draws that note what each is."""

    def __init__(self, places: Places, chosen: "Chosen | None" = None) -> None:
        super().__init__()
        self.places, self.chosen = places, chosen
        self.found: list[Drawn] = []

    def leaves_out(self, kind: str, p: float) -> bool:
        return False

    def rate(self, kind: str) -> float | None:
        return None if self.chosen is None else self.chosen.rate(kind, self.count)

    def make(self, index: int, law: Law, shape: tuple[int, ...], p: float, device: torch.device) -> Tensor:
        self.found.append(Drawn(self.places.path, self.kind or law, law, p if law == "bernoulli" else None, _caller()))
        return super().make(index, law, shape, p, device)

    def bernoulli(self, probs: Tensor) -> Tensor:
        self.found.append(Drawn(self.places.path, "bernoulli", "uniform", None, _caller()))
        return super().bernoulli(probs)


class Chosen:
    """What a choice says of the draws of a network while it runs.

    `numbers` are those of the draws, in order, where some that had numbers are gone.
    """

    def __init__(self, choice: Choice, places: Places, numbers: Sequence[int] | None = None) -> None:
        self.choice, self.places, self.numbers = choice, places, numbers or ()
        self._shift = 1 + self.numbers[-1] - len(self.numbers) if self.numbers else 0

    def number(self, index: int) -> int:
        """The number of the draw that comes `index`-th."""
        return self.numbers[index] if index < len(self.numbers) else index + self._shift

    def leaves_out(self, kind: str, index: int) -> bool:
        return self.choice.reason(self._site(kind, index)) is not None

    def rate(self, kind: str, index: int) -> float | None:
        return self.choice.rate(self._site(kind, index))

    def _site(self, kind: str, index: int) -> Place:
        return Place(self.number(index), self.places.path, kind)


class Given(Supply):
    """Draws made before: `values[n]` for the n-th, None where it does not matter."""

    def __init__(self, values: Sequence[Tensor | None]) -> None:
        super().__init__()
        self.values = values

    def make(self, index: int, law: Law, shape: tuple[int, ...], p: float, device: torch.device) -> Tensor:
        value = self.values[index] if index < len(self.values) else None
        if value is None:
            return torch.ones(shape, device=device)
        return (value != 0).float().expand(shape) if law == "bernoulli" else value.expand(shape)


class Seeded(Supply):
    """The draws of one pass of one row."""

    def __init__(
        self, seed: int, number: int, row: int | None, by_row: Callable[[int], bool], chosen: Chosen | None = None
    ) -> None:
        super().__init__()
        self.seed, self.passes, self.row, self.by_row = seed, range(number, number + 1), row, by_row
        self.chosen = chosen

    def leaves_out(self, kind: str, p: float) -> bool:
        return self.chosen is not None and self.chosen.leaves_out(kind, self.count)

    def rate(self, kind: str) -> float | None:
        return None if self.chosen is None else self.chosen.rate(kind, self.count)

    def make(self, index: int, law: Law, shape: tuple[int, ...], p: float, device: torch.device) -> Tensor:
        if self.chosen is not None and self.chosen.leaves_out(self.kind or law, index):
            return _at_mean(law, shape, p, device)
        site = index if self.chosen is None else self.chosen.number(index)
        where: dict[str, Any] = {"seed": self.seed, "site": site, "passes": self.passes, "device": device}
        if self.row is not None and self.by_row(index) and shape:
            where |= {"row_axis": 0, "rows": range(self.row, self.row + 1), "units_per_row": shape[0]}
        if law == "uniform":
            return uniform(shape=shape, **where)[0]
        if law == "normal":
            return normal(shape=shape, **where)[0]
        return keep_mask(p=p, shape=shape, **where)[0].float()

    def bernoulli(self, probs: Tensor) -> Tensor:
        if self.chosen is not None and self.chosen.leaves_out("bernoulli", self.count):
            self.count += 1
            self.shapes.append(tuple(probs.shape))
            return probs.clone()
        return super().bernoulli(probs)


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
            return answer(self.supply, bound, lambda: func(*args, **kwargs))
        raise UnsupportedRandomnessError(
            f"{func} at {_caller()} draws random numbers by a law that mcdrop does not know. Known are dropout in all "
            "its forms, bernoulli, uniform and normal draws; write the noise with one of them, or switch it off in "
            "evaluation mode."
        )


def _caller() -> str:
    """The line outside of PyTorch and mcdrop that is running."""
    frame = sys._getframe(1)
    place = "an unknown line"
    while frame.f_back is not None:
        name = frame.f_code.co_filename
        if not any(part in name for part in ("/torch/", "\\torch\\", __file__)) and not name.startswith("<"):
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back
    return place


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
                f"an operation drew noise by {argument}={a[argument]} that cannot be made repeatable at {_caller()}. "
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
    """Inside, every draw on this thread comes from `supply`. Attention and cuDNN keep to forms whose draws show."""
    with (
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
        torch.backends.cudnn.flags(enabled=False),
        _Draws(supply),
        _Functions(supply),
    ):
        yield


@contextlib.contextmanager
def neutral(kept: float | None = None) -> Iterator[Neutral]:
    """Inside, every draw has the value that leaves a network unchanged; what was drawn."""
    supply = Neutral(kept)
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
    `by_row` says of the n-th draw whether it is one of the row (rather than of a weight).
    """

    kind = "eager"
    merges = False
    lock = threading.RLock()  # of all eager engines: they set global state while they run

    def __init__(
        self,
        network: nn.Module,
        batched: Sequence[bool],
        by_row: Sequence[bool] | None,
        *,
        together: bool = False,
        choice: Choice | None = None,
        numbers: Sequence[int] | None = None,
    ) -> None:
        self.network, self.batched, self.together = network, tuple(batched), together
        self._chosen = Chosen(choice, Places(network), numbers) if choice else None
        self._by_row = by_row
        self._buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}

    def prepare(self, inputs: Sequence[Tensor], budget: int | None = None) -> list[Tensor]:
        return []

    def join(self, prepared: Sequence[list[Tensor]]) -> list[Tensor] | None:
        return prepared[0] if len(prepared) == 1 else None

    def passes(
        self,
        inputs: Sequence[Tensor],
        prepared: Sequence[Tensor],
        *,
        passes: range,
        seed: int,
        rows: Tensor | None,
    ) -> tuple[Tensor, ...]:
        count = next((x.shape[0] for x, batched in zip(inputs, self.batched, strict=True) if batched), 1)
        numbers = [None] * count if rows is None else rows.tolist()
        outputs = []
        with self.lock:
            for number in passes:
                if self.together:
                    outputs.append(self._one(inputs, seed, number, None))
                    continue
                alone = [
                    self._one(
                        [x[i : i + 1] if by_row else x for x, by_row in zip(inputs, self.batched, strict=True)],
                        seed,
                        number,
                        numbers[i],
                    )
                    for i in range(count)
                ]
                outputs.append(tuple(torch.cat(parts) for parts in zip(*alone, strict=True)))
        return tuple(torch.stack(parts) for parts in zip(*outputs, strict=True))

    def _one(self, inputs: Sequence[Tensor], seed: int, number: int, row: int | None) -> tuple[Tensor, ...]:
        key = (seed * 1_000_003 + number) * 1_000_003 + (0 if row is None else row + 1)
        supply = Seeded(seed, number, row, self._draws_by_row, self._chosen)
        with global_generators(key % 2**63), drawing(supply):
            try:
                outputs: tuple[Tensor, ...] = self.network(*(x.clone() for x in inputs))
                return tuple(output.clone() for output in outputs)
            finally:
                self._restore()

    def _draws_by_row(self, index: int) -> bool:
        return self._by_row is None or index >= len(self._by_row) or self._by_row[index]

    def _restore(self) -> None:
        for name, buffer in self.network.named_buffers():
            kept = self._buffers.get(name)
            if kept is not None and kept.shape == buffer.shape and not torch.equal(buffer, kept):
                buffer.copy_(kept)

    def bytes_per_pass(self, inputs: Sequence[Tensor]) -> int:
        return 1  # one row and one pass is all that is ever computed at once
