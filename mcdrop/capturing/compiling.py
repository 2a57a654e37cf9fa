"""Prefix and suffix as code that PyTorch's compiler made (`torch.compile`), where that is asked for.

What is compiled takes any number of passes and of rows, so that load of changing sizes compiles nothing again: one
version of a part serves all sizes from 2 on, another one row (the compiler treats a size of 1 apart); of a part with
convolutions there are twice as many, since those of fewer than 16 images are apart. All are made before the first
prediction, on inputs made up for that, and compared with the plain engine. Masks of each row, further
free axes of size 1, another number of threads and the like make further versions when they are first met, up to the
compiler's own limit (`torch._dynamo.config.recompile_limit`, 8 for each part); what comes then runs uncompiled. So do
single passes, which gain nothing, passes that are computed one by one (`mode` "loop"), and thinned passes.
"""

import os
import shutil
import sys
import types
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mcdrop.capturing.flags import same
from mcdrop.capturing.proofs import PROOF_SEED, gap, rounding
from mcdrop.engines.engine import GraphEngine
from mcdrop.errors import CaptureError, SettingError
from mcdrop.graph.examples import example_inputs, proof_rows
from mcdrop.splitting.part import Part
from mcdrop.surroundings.plain import plain

__all__ = ["compile_engine"]

_SOME, _MANY = (5, 7, 11, 13), (17, 19, 23, 29, 31, 37, 41, 43)  # rows or passes
_FEW = ((5, 3), (3, 5), (7, 2), (2, 7), (5, 2), (2, 5), (3, 2), (2, 3))  # rows and passes, less than 16 together


class _CompiledPart(Part):
    """A part that runs as compiled code, from two passes on where its last arguments are `draws` of several passes."""

    def __init__(self, part: Part, draws: int = 0) -> None:
        self.module, self.weights, self.part, self.draws = part.module, part.weights, part, draws
        self._function = part._function
        parameters = [nn.Parameter(weight, requires_grad=False) for weight in self.weights]  # whose sizes are fixed

        def call(*arguments: Any) -> Any:
            return part.module.forward(*arguments, *parameters)

        def over_passes(shared: int, *arguments: Any) -> Any:
            in_dims = (None,) * shared + (0,) * (len(arguments) - shared)
            return torch.func.vmap(call, in_dims=in_dims)(*arguments)

        self._call, self._over_passes = _compiled(call), _compiled(over_passes)

    def __call__(self, *arguments: Any) -> Any:
        single = self.draws > 0 and arguments[-self.draws].shape[0] == 1
        return self.part(*arguments) if single else self._call(*_bare(arguments))

    def over_passes(self, shared: Sequence[Any], draws: Sequence[Tensor]) -> Any:
        if draws[0].shape[0] == 1:
            return self.part.over_passes(shared, draws)
        return self._over_passes(len(shared), *_bare((*shared, *draws)))


def _bare(arguments: Sequence[Any]) -> list[Any]:
    """The same tensors as if they were no views, of which the compiler would make versions of their own."""
    return [argument.data if isinstance(argument, Tensor) else argument for argument in arguments]


def _compiled(function: types.FunctionType | Callable[..., Any]) -> Callable[..., Any]:
    """The function, compiled when it is called; its code is its own, since the compiler counts versions by code."""
    own: Any = function
    own = types.FunctionType(own.__code__.replace(), own.__globals__, own.__name__, own.__defaults__, own.__closure__)
    compiled: Callable[..., Any] = torch.compile(own, dynamic=True)
    return compiled


def compile_engine(engine: GraphEngine) -> None:
    """Compile the parts of an engine, which runs the compiled ones from then on.

    Raises:
        SettingError: there is no C++ compiler, or it fails.
        CaptureError: the compiled parts give other numbers.
    """
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        raise SettingError(
            f"compile=True needs a C++ compiler, and there is no {compiler} here. Install one (on Debian: apt-get "
            "install g++) or name yours in the environment variable CXX, or leave compile out."
        )
    parts = engine.parts
    with plain(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler uses what PyTorch gives up
        compiled = replace(
            parts,
            prefix=_CompiledPart(parts.prefix),
            mapped=_CompiledPart(parts.mapped),
            folded=None if parts.folded is None else _CompiledPart(parts.folded, len(parts.draws)),
        )
        made = [tensor.to(engine.device) for tensor in example_inputs(engine.program.inputs).values()]
        rows = proof_rows(made, engine.program.inputs)
        for count, passes in _free_sizes(engine, rows):
            some = [
                x.repeat(-(-count // 3), *[1] * (x.ndim - 1))[:count] if spec.batched else x
                for x, spec in zip(rows, engine.program.inputs, strict=True)
            ]
            try:
                truth = _outputs(engine, some, passes)
            except Exception:  # a network may fail in any way on inputs that mean nothing to it
                continue
            engine.parts = compiled
            try:
                found = _outputs(engine, some, passes)
            except Exception as error:  # whatever the compiler raises
                said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                raise SettingError(f"the network could not be compiled: {said}. Leave compile out.") from error
            finally:
                engine.parts = parts
            for a, b in zip(found, truth, strict=True):
                if not same(a, b, rounding(engine.program)):
                    raise CaptureError(
                        f"the compiled network gives other numbers than the network, by {gap(a, b)}. Leave compile out."
                    )
    engine.parts = compiled


def _free_sizes(engine: GraphEngine, rows: Sequence[Tensor]) -> list[tuple[int, int]]:
    """Rows and passes of every version, each no other size: the compiler takes equal sizes for one and the same."""
    tensors = [*engine.program.weights.values(), *rows]
    taken = {size for tensor in tensors for size in tensor.shape} | {
        size for site in engine.program.sites for size in site.shape
    }
    some, passes = sorted(_SOME, key=taken.__contains__)[:2]
    many, more = sorted(_MANY, key=taken.__contains__)[:2]
    if not engine.merges:
        return [(3, passes), (3, more)]
    few = min(_FEW, key=lambda pair: len(taken.intersection(pair)))
    return [(some, passes), (many, more), (1, passes), (1, more), few]


def _outputs(engine: GraphEngine, rows: list[Tensor], passes: int) -> tuple[Tensor, ...]:
    draws = engine.draws(rows, passes=range(passes), seed=PROOF_SEED, rows=None)
    return engine.apply(rows, engine.prepare(rows), draws, engine.mode)
