"""Which modules get the training flag: those, and only those, whose flag does nothing but switch dropout on.

Neither "all but normalisation" nor "dropout modules only" is right: the first switches on auxiliary outputs, RReLU and
batch statistics, the second misses attention and everything written as a function. So modules are watched: those that
*read* `.training` are candidates, and one whose flag alone changes the noise-neutral output, its structure or a buffer
does more than dropout and keeps its evaluation behaviour.
"""

import contextlib
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mcdrop.capturing.snapshot import Adapter
from mcdrop.engines.eager import drawing, neutral
from mcdrop.engines.supplies import Drawn, Neutral, Places, Traced
from mcdrop.errors import UnsupportedRandomnessError

__all__ = ["RRELU", "Flags", "buffers_of", "find_flags", "once", "put_back", "same"]

RRELU = "RReLU keeps the slope of its evaluation mode"  # why its flag stays off, which is as it should be


@dataclass(frozen=True)
class Flags:
    """The outcome: modules whose flag is on, and those whose flag stays off although something draws under it."""

    on: tuple[str, ...]
    off: dict[str, str]  # path -> reason
    readers: int
    neutral_outputs: tuple[Tensor, ...]  # of the network in evaluation mode
    exact: bool  # whether the flagged network is known to be the identity on neutral noise
    foreign: bool  # whether it draws from the generators of Python or NumPy
    always: tuple[Drawn, ...] = ()  # what it draws in evaluation mode too


def find_flags(network: Adapter, inputs: Sequence[Tensor]) -> Flags:
    """Set the training flags of a private copy, and leave it flagged.

    Its outputs under neutral noise are those of evaluation mode, or the flag that changes them stays off.

    Raises:
        UnsupportedRandomnessError: a random operation of unknown law, in evaluation mode or under a flag.
    """
    search = _Search(network, inputs)
    modules = {name: module for name, module in network.named_modules() if name}
    network.eval()
    reading: set[str] = set()
    restore = _watch(modules, reading)
    try:
        search.look()
        for module in modules.values():
            module.training = True
        with contextlib.suppress(Exception):  # what fails with every flag on fails again below, flag by flag
            search.look()
    finally:
        restore()
    for module in modules.values():
        module.training = False
    search.truth = search.look()
    search.after = buffers_of(network)
    always = search.drawn() if search.truth.supply.count else ()
    readers = {name: modules[name] for name in modules if name in reading}
    together = search.verdict(list(readers.values()))
    if together.reason is None:
        on, off, exact = list(readers), dict[str, str](), together.exact
    else:
        on, off, exact = [], {}, True
        for name, module in readers.items():
            verdict = search.verdict([module])
            if verdict.reason is None:
                on.append(name)
                exact = exact and verdict.exact
            elif verdict.draws:
                off[name] = verdict.reason
    for name in on:
        modules[name].training = True
    put_back(network, search.buffers)
    return Flags(tuple(on), off, len(readers), search.truth.outputs, exact, search.foreign, always)


@dataclass(frozen=True)
class _Look:
    """One forward pass under neutral noise."""

    structure: str
    leaves: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    supply: Neutral
    foreign: bool


@dataclass(frozen=True)
class _Verdict:
    """Why some flags may not be on (None if they may), whether something draws under them, whether that is proved."""

    reason: str | None
    draws: bool
    exact: bool = True


class _Search:
    """Looks at a network under different flags."""

    def __init__(self, network: Adapter, inputs: Sequence[Tensor]) -> None:
        self.network, self.inputs = network, inputs
        self.buffers = buffers_of(network)
        self.foreign = False
        self.truth: _Look
        self.after = self.buffers

    def look(self, kept: float | None = None, deviation: float = 0.0) -> _Look:
        put_back(self.network, self.buffers)
        with neutral(kept, deviation) as supply, _Watch() as watch:
            structure, leaves, outputs = self.network.everything(*(x.clone() for x in self.inputs))
        foreign = watch.drew
        self.foreign |= foreign
        return _Look(structure, _clones(leaves), _clones(outputs), supply, foreign)

    def drawn(self) -> tuple[Drawn, ...]:
        """What one forward pass draws."""
        put_back(self.network, self.buffers)
        places = Places(self.network)
        supply = Traced(places)
        try:
            with drawing(supply):
                self.network.everything(*(x.clone() for x in self.inputs))
        finally:
            places.close()
        return tuple(supply.found)

    def verdict(self, modules: Sequence[nn.Module]) -> _Verdict:
        for module in modules:
            module.training = True
        try:
            return self._judge(modules)
        except UnsupportedRandomnessError:
            if len(modules) > 1:
                return _Verdict("unknown randomness", True)
            if isinstance(modules[0], nn.RReLU):
                return _Verdict(RRELU, True)
            raise
        except Exception as error:
            return _Verdict(f"its training flag makes the network fail: {type(error).__name__}: {error}"[:300], True)
        finally:
            for module in modules:
                module.training = False
            put_back(self.network, self.buffers)

    def _judge(self, modules: Sequence[nn.Module]) -> _Verdict:
        seen = self.look()
        draws = seen.supply.count > self.truth.supply.count or seen.foreign
        if _changed(self.network, self.after):
            return _Verdict("its training flag also updates a buffer", draws)
        if seen.structure != self.truth.structure:
            return _Verdict("its training flag also changes the structure of the output", draws)
        if _agree(seen, self.truth):
            return _Verdict(None, draws)
        if len(modules) == 1 and self._has_no_neutral_mean(seen):
            return _Verdict(None, draws, exact=False)  # the replay judges what it does
        return _Verdict("its training flag does more than switch on dropout", draws)

    def _has_no_neutral_mean(self, seen: _Look) -> bool:
        """Whether draws at their mean change the output by themselves: numbers that are compared with a rate or ranked
        (then only their order counts, so twice the numbers give the same), masks without scale, marks of the dropped.
        """
        drawn, before = seen.supply, self.truth.supply
        if seen.foreign or drawn.uniforms > before.uniforms:
            return True
        if any(_agree(self.look(kept), self.truth) for kept in (1.0, 0.0)):
            return True
        return drawn.normals > before.normals and _agree(self.look(deviation=1.0), self.look(deviation=2.0))


def _agree(one: _Look, other: _Look) -> bool:
    return all(same(a, b) for a, b in zip(one.leaves, other.leaves, strict=True))


def _clones(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(tensor.clone() for tensor in tensors)


class _Watch:
    """Notes whether the code inside draws from the global generators of Python or NumPy.

    NumPy's shows by its state. Python's is watched call by call, because type checkers around a network use it too, to
    pick what they check.
    """

    def __enter__(self) -> "_Watch":
        self.drew = False
        self._numpy = _numpy_state()
        self._profile: Any = sys.getprofile()
        sys.setprofile(self._look)
        return self

    def __exit__(self, *error: object) -> None:
        if self._profile is None or callable(self._profile):
            sys.setprofile(self._profile)
        else:  # that of cProfile, which only it can put in its place
            self._profile.enable()
        self.drew |= _numpy_state() != self._numpy

    def _look(self, frame: Any, event: str, called: Any) -> None:
        if event == "c_call" and getattr(called, "__self__", None) is _PYTHON_GENERATOR:
            while frame is not None and frame.f_code.co_filename == random.__file__:
                frame = frame.f_back
            self.drew |= frame is None or "beartype" not in frame.f_code.co_filename


_PYTHON_GENERATOR = random.random.__self__  # type: ignore[attr-defined]  # the instance behind the module's functions


def _numpy_state() -> Any:
    numpy: Any = sys.modules.get("numpy")
    state = numpy.random.get_state() if numpy else None
    return (state[1].tobytes(), state[2]) if state else None


def buffers_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in network.named_buffers()}


def _changed(network: nn.Module, buffers: dict[str, Tensor]) -> bool:
    now = dict(network.named_buffers())
    return now.keys() != buffers.keys() or any(not _identical(now[name], buffers[name]) for name in buffers)


def _identical(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(torch.nan_to_num(a) if a.is_floating_point() else a,
                                              torch.nan_to_num(b) if b.is_floating_point() else b)  # fmt: skip


def put_back(network: nn.Module, buffers: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, buffer in network.named_buffers():
            if name in buffers and buffer.shape == buffers[name].shape and not _identical(buffer, buffers[name]):
                buffer.copy_(buffers[name])


def once(network: nn.Module, rows: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """One forward pass of the network, whose buffers are put back."""
    buffers = buffers_of(network)
    outputs = tuple(output.clone() for output in network(*(row.clone() for row in rows)))
    put_back(network, buffers)
    return outputs


def same(a: Tensor, b: Tensor, tolerance: float | None = None) -> bool:
    """Whether two outputs agree but for rounding: relative to the largest value, by the precision of their type."""
    if a.shape != b.shape:
        return False
    if not a.is_floating_point():
        return bool(torch.equal(a, b))
    if a.numel() == 0:
        return True
    if tolerance is None:  # draws, and with them the factor of kept units, are numbers of float32 in float64 too
        tolerance = {torch.float64: 1e-5, torch.float32: 1e-4}.get(a.dtype, 5e-2)
    a, b = a.double(), b.double()
    finite = b[b.isfinite()]
    size = float(finite.abs().max()) if finite.numel() else 0.0
    return bool(torch.allclose(a, b, rtol=tolerance, atol=tolerance * max(size, 1e-6), equal_nan=True))


def _watch(modules: dict[str, nn.Module], reading: set[str]) -> Callable[[], None]:
    """Give every module a private subclass whose `training` notes that it was read; returns how to undo it."""
    classes: list[tuple[nn.Module, type]] = []
    for name, module in modules.items():
        cls = type(module)
        if isinstance(module, torch.jit.ScriptModule):
            reading.add(name)
            continue
        members = {"training": _recording(name, reading), "__module__": cls.__module__}
        try:
            recorder = type(cls.__name__, (cls,), members)
        except Exception:  # a class may refuse subclasses as it likes; then its flag counts as read
            reading.add(name)
            continue
        flag = module.__dict__.pop("training", False)
        module.__dict__["_mcdrop_training"] = flag
        module.__class__ = recorder
        classes.append((module, cls))

    def restore() -> None:
        for module, cls in classes:
            module.__class__ = cls
            module.__dict__["training"] = module.__dict__.pop("_mcdrop_training")

    return restore


def _recording(name: str, reading: set[str]) -> property:
    def get(module: Any) -> bool:
        reading.add(name)
        return bool(module.__dict__["_mcdrop_training"])

    def put(module: Any, flag: bool) -> None:
        module.__dict__["_mcdrop_training"] = flag

    return property(get, put)
