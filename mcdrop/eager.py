"""The engine for networks that cannot be captured, and the oracle for those that can: the network itself.

A dispatch mode stands below PyTorch's own functions and sees every random operation, wherever it is written; each is
answered with the draw that the seed, the pass and the row say. The n-th draw of a pass is site n, as in a captured
program, so both engines give the same numbers.

A network that had to be run this way may look at its values, so every row is run alone, one pass at a time, and the
global generators of Python and NumPy are set for each pass and put back: slow, but still a function of (row, seed).
"""

import contextlib
import math
import random
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from mcdrop import draws
from mcdrop.errors import UnsupportedRandomnessError
from mcdrop.noise import keep_mask, normal, uniform

__all__ = ["EagerEngine", "Given", "Neutral", "Supply", "Traced", "drawing", "global_generators", "neutral"]

aten = torch.ops.aten


class Supply:
    """Answers the draws of one forward pass, in the order in which they come. `count` says how many came."""

    def __init__(self) -> None:
        self.count = 0
        self.shapes: list[tuple[int, ...]] = []
        self.uniforms = self.normals = 0

    def next(self, law: str, shape: torch.Size, p: float, device: torch.device) -> Tensor:
        """A draw of float32 numbers: 0 or 1 for "bernoulli" (dropping with probability `p`), else numbers."""
        index, self.count = self.count, self.count + 1
        self.shapes.append(tuple(shape))
        self.uniforms += law == "uniform"
        self.normals += law == "normal"
        return self.make(index, law, tuple(shape), p, device)

    def make(self, index: int, law: str, shape: tuple[int, ...], p: float, device: torch.device) -> Tensor:
        raise NotImplementedError

    def bernoulli(self, probs: Tensor) -> Tensor:
        """A draw of zeros and ones with a tensor of probabilities of a one."""
        return draws.bernoulli(self.next("uniform", probs.shape, 0.0, probs.device), probs)


class Neutral(Supply):
    """Every draw at its mean, so that dropout is the identity; masks with the value `kept`, if that is given.

    With `deviation`, normal numbers take every size up to it and no two are equal.
    """

    def __init__(self, kept: float | None = None, deviation: float = 0.0) -> None:
        super().__init__()
        self.kept, self.deviation = kept, deviation

    def make(self, index: int, law: str, shape: tuple[int, ...], p: float, device: torch.device) -> Tensor:
        if law == "normal" and self.deviation:
            count = math.prod(shape)
            steps = torch.linspace(-self.deviation, self.deviation, count, device=device, dtype=torch.float64)
            return steps.reshape(shape)
        value = {"bernoulli": 1 - p if self.kept is None else self.kept, "uniform": 0.5, "normal": 0.0}[law]
        return torch.full(shape, value, device=device, dtype=torch.float64)

    def bernoulli(self, probs: Tensor) -> Tensor:
        self.count += 1
        self.shapes.append(tuple(probs.shape))
        return probs.clone()


class Traced(Neutral):
    """Neutral draws that note what each is: (path of the module, law, p, line of code)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.found: list[tuple[str, str, float | None, str]] = []
        self.stack = [""]
        self.handles = []
        for name, module in network.named_modules():
            if not isinstance(module, torch.jit.ScriptModule):
                self.handles.append(module.register_forward_pre_hook(partial(self._enter, name)))
                self.handles.append(module.register_forward_hook(self._leave))

    def _enter(self, name: str, *_: Any) -> None:
        self.stack.append(name)

    def _leave(self, *_: Any) -> None:
        self.stack.pop()

    def make(self, index: int, law: str, shape: tuple[int, ...], p: float, device: torch.device) -> Tensor:
        self.found.append((self.stack[-1], law, p if law == "bernoulli" else None, _caller()))
        return super().make(index, law, shape, p, device)

    def bernoulli(self, probs: Tensor) -> Tensor:
        self.found.append((self.stack[-1], "uniform", None, _caller()))
        return super().bernoulli(probs)

    def close(self) -> None:
        """Take the hooks off again."""
        for handle in self.handles:
            handle.remove()


class Given(Supply):
    """Draws made before: `values[n]` for the n-th, None where it does not matter."""

    def __init__(self, values: Sequence[Tensor | None]) -> None:
        super().__init__()
        self.values = values

    def make(self, index: int, law: str, shape: tuple[int, ...], p: float, device: torch.device) -> Tensor:
        value = self.values[index] if index < len(self.values) else None
        if value is None:
            return torch.ones(shape, device=device)
        return (value != 0).float().expand(shape) if law == "bernoulli" else value.expand(shape)


class Seeded(Supply):
    """The draws of one pass of one row."""

    def __init__(self, seed: int, number: int, row: int | None, by_row: Callable[[int, tuple[int, ...]], bool]) -> None:
        super().__init__()
        self.seed, self.passes, self.row, self.by_row = seed, range(number, number + 1), row, by_row

    def make(self, index: int, law: str, shape: tuple[int, ...], p: float, device: torch.device) -> Tensor:
        where: dict[str, Any] = {"seed": self.seed, "site": index, "passes": self.passes, "device": device}
        if self.row is not None and shape and self.by_row(index, shape):
            where |= {"row_axis": 0, "rows": range(self.row, self.row + 1), "units_per_row": shape[0]}
        if law == "uniform":
            return uniform(shape=shape, **where)[0]
        if law == "normal":
            return normal(shape=shape, **where)[0]
        return keep_mask(p=p, shape=shape, **where)[0].float()


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


def _fill(law: str, low: str = "", high: str = "") -> Callable[..., Any]:
    def answer(supply: Supply, a: dict[str, Any], run: Callable[[], Any]) -> Any:
        target: Tensor = a["self"]
        drawn = supply.next(law, target.shape, 0.0, target.device)
        width = a[high] - a[low] if law == "uniform" else a[high]
        return target.copy_(drawn * width + a[low])

    return answer


def _new(law: str) -> Callable[..., Any]:
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


class _Skip(TorchFunctionMode):
    """Leaves out what no value of a mask makes the identity: alpha dropout, affine in its mask, and p = 1."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        kind = name.rstrip("_")
        p = args[1] if len(args) > 1 else (kwargs or {}).get("p")
        if kind in ("alpha_dropout", "feature_alpha_dropout") or (kind in ("dropout", "feature_dropout") and p == 1.0):
            x: Tensor = args[0]
            return x if name.endswith("_") else x.clone()
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def drawing(supply: Supply) -> Iterator[None]:
    """Inside, every draw on this thread comes from `supply`. Attention and cuDNN keep to forms whose draws show."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), torch.backends.cudnn.flags(enabled=False), _Draws(supply):
        yield


@contextlib.contextmanager
def neutral(kept: float | None = None, deviation: float = 0.0) -> Iterator[Neutral]:
    """Inside, every draw has the value that leaves a network unchanged; what was drawn."""
    supply = Neutral(kept, deviation)
    with drawing(supply), _Skip():
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
    merges = False
    lock = threading.RLock()  # of all eager engines: they set global state while they run

    def __init__(
        self,
        network: nn.Module,
        batched: Sequence[bool],
        traced: Sequence[tuple[tuple[int, ...], bool]] | None,
        together: bool = False,
    ) -> None:
        self.network, self.batched, self.together = network, tuple(batched), together
        self._traced = traced or ()
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
        with global_generators(key % 2**63), drawing(Seeded(seed, number, row, self._draws_by_row)):
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
