"""Engines: what computes passes. Both draw the same noise for the same seed.

`GraphEngine` runs a captured program: the prefix once per row, the suffix for many passes at a time. `EagerEngine`
(in `eager`) runs the network itself, pass by pass and row by row. A `Sampler` asks an engine for chunks of passes and
does not care which it has.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, fx

from mcdrop.engines.masks import Masks
from mcdrop.graph.program import Program
from mcdrop.graph.sites import Site
from mcdrop.shortcuts.thinning import STRETCH, Thinned
from mcdrop.splitting.part import Part
from mcdrop.splitting.split import measure, split
from mcdrop.surroundings.memory import keep_freed_memory

__all__ = ["Engine", "GraphEngine", "Mode"]

Mode = Literal["folded", "mapped", "loop"]

_SHAPES = 256  # of inputs, for which the shapes of the draws are remembered


@runtime_checkable
class Engine(Protocol):
    """Computes passes. Read-only while predicting, so that many threads may share one."""

    kind: str
    merges: bool  # whether rows of several requests may be computed together
    joins: bool  # whether what is prepared for several of them may be joined along their rows

    def prepare(self, inputs: Sequence[Tensor], budget: int | None = None) -> list[Tensor]:
        """What has to be computed once per row, for these rows, in at most `budget` bytes beyond its results."""

    def join(self, prepared: Sequence[list[Tensor]]) -> list[Tensor]:
        """What `prepare` gives for several batches, as one batch; several only where `joins` is True."""

    def part(self, prepared: Sequence[Tensor], start: int, stop: int) -> list[Tensor]:
        """What `prepare` gives for some rows of a batch, as views; only where `joins` is True."""

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
        """Outputs (passes, rows, ...) of the network. `rows` holds each row's index where rows draw for themselves.

        With `balanced`, masks are balanced over blocks of passes (`mcdrop.randomness.balance`).
        """

    def bytes_per_pass(self, inputs: Sequence[Tensor]) -> int:
        """Memory that one pass of one row takes while it is computed."""

    def stretch(self, rows: int) -> int:
        """How many times as many passes of these rows to ask for as caches hold: it computes fewer at a time itself."""

    def working_bytes(self, inputs: Sequence[Tensor]) -> int:
        """What of it is written and read again at once, so that caches help: all but what the pass is given."""


class GraphEngine:
    """A captured program, split and lowered, with its draws.

    `mode` says how passes are computed together: "folded" into the batch, "mapped" by vmap, or "loop", one by one.
    """

    kind = "graph"
    merges = True
    joins = False  # has to be proved
    thinned: Thinned | None = None  # has to be proved
    fused = False  # whether its parts are fused, which has to be proved as well
    apart = False  # whether rows that draw for themselves are computed one by one, since their masks would mix

    def __init__(self, program: Program, mode: Mode, masks: Masks | None = None) -> None:
        self.program, self.mode = program, mode
        self.parts = split(program)
        self.masks = masks or Masks()
        self.device = program.device
        keep_freed_memory()
        self._placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
        self._row_sizes = [program.inputs[number].shape[axis] == "batch" for number, axis in self.parts.roots]
        self._shapes: dict[tuple[int, ...], tuple[list[tuple[Site, list[int]]], int]] = {}
        self._footprints: dict[tuple[Any, ...], tuple[int, int]] = {}

    def prepare(self, inputs: Sequence[Tensor], budget: int | None = None) -> list[Tensor]:
        rows = at_once = self.rows_of(inputs)
        if budget is not None and rows > 1 and self.joins:
            at_once = min(max(1, budget // self._bytes_per_row(inputs)), rows)
        with torch.no_grad():
            if at_once == rows:
                return list(self.parts.prefix(*inputs))
            parts = [
                self.parts.prefix(*self._rows(inputs, start, start + at_once)) for start in range(0, rows, at_once)
            ]
            return self.join([list(part) for part in parts])

    def join(self, prepared: Sequence[list[Tensor]]) -> list[Tensor]:
        if len(prepared) == 1:
            return prepared[0]
        axes = self.parts.frontier_axes or ()
        return [
            each[0] if axis is None else torch.cat(each, axis)
            for axis, each in zip(axes, zip(*prepared, strict=True), strict=True)
        ]

    def part(self, prepared: Sequence[Tensor], start: int, stop: int) -> list[Tensor]:
        axes = self.parts.frontier_axes or ()
        return [
            x if axis is None else x.narrow(axis, start, stop - start) for axis, x in zip(axes, prepared, strict=True)
        ]

    def _rows(self, inputs: Sequence[Tensor], start: int, stop: int) -> list[Tensor]:
        return [x[start:stop] if spec.batched else x for x, spec in zip(inputs, self.program.inputs, strict=True)]

    def _bytes_per_row(self, inputs: Sequence[Tensor]) -> int:
        """Memory that the prefix takes for one row; measured once for each shape of a row."""
        return self._measured("prefix", inputs, lambda one: (self.parts.prefix, one))[0]

    def rows_of(self, inputs: Sequence[Tensor]) -> int:
        """Number of rows in these inputs."""
        batched = [x.shape[0] for x, spec in zip(inputs, self.program.inputs, strict=True) if spec.batched]
        return batched[0] if batched else 1

    def draws(
        self, inputs: Sequence[Tensor], *, passes: range, seed: int, rows: Tensor | None, balanced: bool = False
    ) -> list[Tensor]:
        """The draws of every active site for these inputs."""
        count = self.rows_of(inputs)
        shapes, most = self._draw_shapes(count, self.parts.sizes(inputs))
        return [
            self.masks.draw(
                site,
                sizes,
                seed=seed,
                passes=passes,
                row_count=count,
                rows=rows,
                device=self.device,
                balanced=balanced,
                most=most,
            )
            for site, sizes in shapes
        ]

    def _draw_shapes(self, count: int, sizes: tuple[int, ...]) -> tuple[list[tuple[Site, list[int]]], int]:
        """What every draw has for a shape, and for how many passes all of them can be kept ready."""
        found = self._shapes.get((count, *sizes))
        if found is None:
            roots = dict(zip(self.parts.roots, sizes, strict=True))
            shapes = [(site, [measure(s, roots, self._placeholders) for s in each]) for site, each in self.parts.draws]
            units = sum(math.prod(each) // (1 if site.row_axis is None else max(count, 1)) for site, each in shapes)
            if len(self._shapes) >= _SHAPES:
                self._shapes = {}
            found = self._shapes[count, *sizes] = shapes, self.masks.passes_kept(units, len(shapes))
        return found

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
        if self.apart and rows is not None and len(rows) > 1:
            return self._one_by_one(inputs, passes=passes, seed=seed, rows=rows)
        if not self.parts.draws:  # all passes are the same one
            outputs = self.parts.mapped(*self.parts.sizes(inputs), *prepared)
            return tuple(output.expand(len(passes), *output.shape) for output in outputs)
        draws = self.draws(inputs, passes=passes, seed=seed, rows=rows, balanced=balanced)
        count = self.rows_of(inputs)
        if rows is None and self.thinned is not None and self.thinned.pays(count):
            noise, sizes = (seed, balanced), self.parts.sizes(inputs)
            with torch.no_grad():
                return self.thinned.passes(sizes, prepared, draws, passes=passes, seed=noise)
        return self.apply(inputs, prepared, draws, self.mode)

    def _one_by_one(self, inputs: Sequence[Tensor], *, passes: range, seed: int, rows: Tensor) -> tuple[Tensor, ...]:
        each = []
        for i in range(len(rows)):
            one = self._rows(inputs, i, i + 1)
            each.append(self.passes(one, self.prepare(one), passes=passes, seed=seed, rows=rows[i : i + 1]))
        return tuple(torch.cat(outputs, 1) for outputs in zip(*each, strict=True))

    def apply(
        self, inputs: Sequence[Tensor], prepared: Sequence[Tensor], draws: Sequence[Tensor], mode: Mode
    ) -> tuple[Tensor, ...]:
        """Outputs (passes, rows, ...) under given draws (passes, ...)."""
        sizes = self.parts.sizes(inputs)
        passes = draws[0].shape[0]
        with torch.no_grad():
            if mode == "folded" and self.parts.folded is not None:
                folded = (n * passes if by_row else n for n, by_row in zip(sizes, self._row_sizes, strict=True))
                outputs = self.parts.folded(*folded, *prepared, *draws)
                return tuple(output.unflatten(0, (passes, -1)) for output in outputs)
            if mode == "mapped":
                mapped: tuple[Tensor, ...] = self.parts.mapped.over_passes((*sizes, *prepared), draws)
                return mapped
            each = [self.parts.mapped(*sizes, *prepared, *(draw[t] for draw in draws)) for t in range(passes)]
            return tuple(torch.stack(outputs) for outputs in zip(*each, strict=True))

    def bytes_per_pass(self, inputs: Sequence[Tensor]) -> int:
        return self._suffix_measured(inputs)[0]

    def working_bytes(self, inputs: Sequence[Tensor]) -> int:
        return self._suffix_measured(inputs)[1]

    def _suffix_measured(self, inputs: Sequence[Tensor]) -> tuple[int, int]:
        """Measured once for each shape of a row, by running one pass of one row and adding up what is alive."""

        def suffix(one: list[Tensor]) -> tuple[Part, list[Any]]:
            draws = [draw[0].clone() for draw in self.draws(one, passes=range(1), seed=0, rows=None)]
            return self.parts.mapped, [*self.parts.sizes(one), *self.prepare(one), *draws]

        return self._measured("suffix", inputs, suffix)

    def stretch(self, rows: int) -> int:
        return STRETCH[self.thinned.mode] if self.thinned is not None and self.thinned.pays(rows) else 1

    def _measured(
        self,
        name: str,
        inputs: Sequence[Tensor],
        call: Callable[[list[Tensor]], tuple[Part, list[Any]]],
    ) -> tuple[int, int]:
        """Bytes of one row that were alive at once: all, and those of results alone."""
        key = (name, *(x.shape[1:] for x in inputs))
        if key not in self._footprints:
            one = self._rows(inputs, 0, 1)
            with torch.no_grad():
                part, arguments = call(one)
                tally = _Tally(part)
                tally.run(*arguments, *part.weights)
            self._footprints[key] = tally.peak, tally.working
        return self._footprints[key]


class _Tally(fx.Interpreter):
    """Runs a graph and notes how many bytes were alive at once: with what the graph is given, and without."""

    def __init__(self, part: Part) -> None:
        super().__init__(part.module)
        self.peak = self.working = 1
        self._weights = {weight.untyped_storage().data_ptr() for weight in part.weights}
        self._given = set(self._weights)  # stays alive while the graph runs, as its caller holds it

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.op == "placeholder" and isinstance(result, Tensor):
            self._given.add(result.untyped_storage().data_ptr())
        storages = {}
        for value in [*self.env.values(), result]:
            for tensor in value if isinstance(value, tuple | list) else (value,):
                if isinstance(tensor, Tensor):
                    storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        self.peak = max(self.peak, sum(size for place, size in storages.items() if place not in self._weights))
        self.working = max(self.working, sum(size for place, size in storages.items() if place not in self._given))
        return result
