"""Which modules get the training flag: those, and only those, whose flag does nothing but switch dropout on.

Neither "all but normalisation" nor "dropout modules only" is right: the first switches on auxiliary outputs, RReLU and
batch statistics, the second misses attention and everything written as a function. So modules are watched: those that
*read* `.training` are candidates, and one whose flag alone changes the noise-neutral output, its structure or a buffer
does more than dropout and keeps its evaluation behaviour.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mcdrop.eager import Neutral, neutral
from mcdrop.errors import UnsupportedRandomnessError

__all__ = ["Flags", "find_flags", "same"]



@dataclass(frozen=True)
class Flags:
    """The outcome: modules whose flag is on, and those whose flag stays off although something draws under it."""

    on: tuple[str, ...]
    off: dict[str, str]  # path -> reason
    readers: int
    neutral_outputs: tuple[Tensor, ...]  # of the network in evaluation mode
    exact: bool  # whether the flagged network is known to be the identity on neutral noise


def find_flags(network: nn.Module, inputs: Sequence[Tensor]) -> Flags:
    """Set the training flags of a private copy; `network` takes tensors and returns a tuple of tensors.

    The copy is left flagged. Its outputs under neutral noise are those of evaluation mode, or the flag stays off.
    """
    modules = {name: module for name, module in network.named_modules() if name}
    network.eval()
    reading: set[str] = set()
    restore = _watch(modules, reading)
    buffers = _buffers(network)
    try:
        truth, _ = _outputs(network, inputs, buffers)
        for module in modules.values():
            _set(module, True)
        try:
            _outputs(network, inputs, buffers)
        except Exception:  # what training mode breaks, a single flag will break again, and is then left off
            pass
    finally:
        restore()
    for module in modules.values():
        _set(module, False)
    readers = [name for name in modules if name in reading]

    def verdict(names: Sequence[str]) -> tuple[str | None, Neutral | None]:
        """Why the flags of these modules may not be on; None if they may."""
        for name in names:
            _set(modules[name], True)
        try:
            outputs, supply = _outputs(network, inputs, buffers)
            if _changed(network, buffers):
                return "its training flag also updates a buffer", supply
            if len(outputs) != len(truth) or any(a.shape != b.shape for a, b in zip(outputs, truth, strict=True)):
                return "its training flag also changes the structure of the output", supply
            if not all(same(a, b) for a, b in zip(outputs, truth, strict=True)):
                return "its training flag does more than switch on dropout", supply
            return None, supply
        except UnsupportedRandomnessError:
            raise
        except Exception as error:
            return f"its training flag makes the network fail: {type(error).__name__}: {error}"[:300], None
        finally:
            for name in names:
                _set(modules[name], False)
            _put_back(network, buffers)

    on: list[str] = []
    off: dict[str, str] = {}
    exact = True
    try:
        together, _ = verdict(readers)
    except UnsupportedRandomnessError:
        together = "unknown randomness"
    if together is None:
        on = readers
    else:
        for name in readers:
            try:
                reason, supply = verdict([name])
            except UnsupportedRandomnessError:
                if isinstance(modules[name], nn.RReLU):
                    reason, supply = "RReLU keeps the slope of its evaluation mode", None
                else:
                    raise
            draws_numbers = supply is not None and supply.uniforms > 0
            if reason == "its training flag does more than switch on dropout" and draws_numbers:
                reason, exact = None, False  # a mask made from uniform numbers has no neutral value: the replay judges it
            if reason is None:
                on.append(name)
            elif (supply is not None and supply.count > _count(network, inputs, buffers)) or supply is None:
                off[name] = reason
    for name in on:
        _set(modules[name], True)
    _put_back(network, buffers)
    return Flags(tuple(on), off, len(readers), truth, exact)


def _count(network: nn.Module, inputs: Sequence[Tensor], buffers: dict[str, Tensor]) -> int:
    return _outputs(network, inputs, buffers)[1].count


def _outputs(
    network: nn.Module, inputs: Sequence[Tensor], buffers: dict[str, Tensor]
) -> tuple[tuple[Tensor, ...], Neutral]:
    _put_back(network, buffers)
    with neutral() as supply:
        outputs = tuple(output.clone() for output in network(*(x.clone() for x in inputs)))
    return outputs, supply


def _buffers(network: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in network.named_buffers()}


def _changed(network: nn.Module, buffers: dict[str, Tensor]) -> bool:
    now = dict(network.named_buffers())
    return now.keys() != buffers.keys() or any(not _identical(now[name], buffers[name]) for name in buffers)


def _identical(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(torch.nan_to_num(a) if a.is_floating_point() else a,
                                              torch.nan_to_num(b) if b.is_floating_point() else b)  # fmt: skip


def _put_back(network: nn.Module, buffers: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, buffer in network.named_buffers():
            if name in buffers and not _identical(buffer, buffers[name]):
                buffer.copy_(buffers[name])


def same(a: Tensor, b: Tensor, tolerance: float | None = None) -> bool:
    """Whether two outputs agree but for rounding: relative to the largest value, by the precision of their type."""
    if a.shape != b.shape:
        return False
    if not a.is_floating_point():
        return bool(torch.equal(a, b))
    if a.numel() == 0:
        return True
    if tolerance is None:
        tolerance = {torch.float64: 1e-8, torch.float32: 1e-4}.get(a.dtype, 5e-2)
    a, b = a.double(), b.double()
    finite = b[b.isfinite()]
    size = float(finite.abs().max()) if finite.numel() else 0.0
    return bool(torch.allclose(a, b, rtol=tolerance, atol=tolerance * max(size, 1e-6), equal_nan=True))


def _set(module: nn.Module, flag: bool) -> None:
    module.training = flag


def _watch(modules: dict[str, nn.Module], reading: set[str]) -> Callable[[], None]:
    """Give every module a private subclass whose `training` notes that it was read; returns how to undo it."""
    classes: list[tuple[nn.Module, type]] = []
    for name, module in modules.items():
        cls = type(module)
        if isinstance(module, torch.jit.ScriptModule):
            reading.add(name)
            continue
        flag = module.__dict__.pop("training", False)
        recorder = type(cls.__name__, (cls,), {"training": _recording(name, reading), "__module__": cls.__module__})
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
