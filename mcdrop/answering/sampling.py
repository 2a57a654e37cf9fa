"""The sampler: advances runs by passes, alone and together, within a budget of memory.

`advance` computes the prefixes that are missing and then the next passes, of one run or of several. Rows of several
runs share a prefix whatever their seeds; their passes are computed together where seed, masks and position agree, and
side by side otherwise. Runs that agree in everything and are finished in one call are computed as one run with more
rows, down to their statistics. A whole prediction is a run advanced until done.

Rows that are too many for the budget are cut into blocks, which are computed one after the other. Out of memory halves
the chunk and goes on with the same draws: noise is a function of the pass, not of the chunk.
"""

import itertools
import math
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mcdrop.answering.runs import Block, LeavingSink, Run, Share, Sink
from mcdrop.engines.engine import Engine
from mcdrop.errors import PassMemoryError
from mcdrop.prediction import Prediction
from mcdrop.surroundings.memory import free_memory, is_out_of_memory
from mcdrop.surroundings.plain import plain

__all__ = ["Sampler"]

_CACHE_SHARE = 32 * 2**20  # bytes of activations computed at once; more falls out of caches and into fresh memory
_STALE = 1.0  # seconds for which an answer about free memory holds
_HEADROOM = 2.0  # what operations need besides their results, as a factor on the results
_EXACT_PASSES = 16  # computed at once for a run that is exact


class Sampler:
    """Advances runs on one engine, under a budget of memory."""

    def __init__(self, engine: Engine, batched: Sequence[bool], max_memory: int | None) -> None:
        self.engine, self.batched, self.max_memory = engine, tuple(batched), max_memory
        self._asked, self._free = -math.inf, 0  # when the system was asked for its free memory, and its answer

    def start(
        self,
        inputs: list[Tensor],
        *,
        rows: int,
        num_samples: int,
        seed: int,
        masks: str,
        make_sink: Callable[[], Sink],
        kind: Hashable = None,
        exact: bool = False,
        looks: tuple[int, ...] = (),
    ) -> Run:
        """A run for checked inputs; computes nothing."""
        return Run(inputs, num_samples, seed, masks, rows, make_sink, kind, exact=exact, looks=looks)

    def split(self, run: Run, rows: int) -> list[Run]:
        """Runs of at most `rows` rows each, which are this run, not yet begun, together; itself if it is no longer."""
        if run.rows <= rows or not self.engine.merges:
            return [run]
        return [self._rows_of(run, start, min(start + rows, run.rows)) for start in range(0, run.rows, rows)]

    def advance(self, runs: Sequence[Run], budget: int | None, batch_sizes: Sequence[int] = ()) -> None:
        """Compute the next `budget` passes of every run (all that are left if None), together where that is possible.

        Rows that are computed together are filled up with copies of the last to one of `batch_sizes`, ascending.
        """
        waiting = [run for run in {id(run): run for run in runs}.values() if not run.done]
        with plain():
            together = self._merged(waiting, budget) if len(waiting) > 1 else {}
            alone = [run for run in waiting if run not in together]
            wholes = list(dict.fromkeys(whole for whole, _ in together.values()))
            self._advance(alone + wholes, budget, batch_sizes)
            predictions: dict[Run, tuple[Prediction, dict[Any, Any]]] = {
                whole: (whole.prediction(), {}) for whole in wholes
            }
            for run, (whole, rows) in together.items():
                prediction, derived = predictions[whole]
                run.share = Share(prediction, rows, derived)

    # ---- several runs

    def _merged(self, runs: list[Run], budget: int | None) -> dict[Run, tuple[Run, slice]]:
        """Runs that are finished now and agree in everything, each with the run that they make and its rows in it."""
        groups: dict[Any, list[Run]] = {}
        for run in runs:
            shapes = self._joinable(run)
            if run.kind is None or shapes is None or run.blocks or (budget is not None and run.num_samples > budget):
                continue
            groups.setdefault((run.kind, run.seed, run.masks, run.num_samples, shapes), []).append(run)
        together = {}
        for group in groups.values():
            if len(group) < 2:
                continue
            first, edges = group[0], [0, *itertools.accumulate(run.rows for run in group)]
            inputs = [torch.cat(each) for each in zip(*(run.inputs for run in group), strict=True)]
            whole = Run(
                inputs, first.num_samples, first.seed, first.masks, edges[-1], first.make_sink, looks=first.looks
            )
            if first.masks == "independent":
                whole.numbers = torch.cat([run.numbers_of(0, run.rows) for run in group])  # type: ignore[misc]
            for run, start, stop in zip(group, edges, edges[1:], strict=False):
                together[run] = whole, slice(start, stop)
        return together

    def _advance(self, runs: list[Run], budget: int | None, sizes: Sequence[int]) -> None:
        for run in runs:
            if not run.blocks:
                run.budget = self._budget()
                run.blocks = self._blocks(run)
        waiting = [run for run in runs if not run.done]
        if len(waiting) == 1:
            self._alone(waiting[0], budget, sizes)
            return
        for group in self._grouped(waiting, lambda run: len(run.blocks) < 2 and self._joinable(run)):
            for fitting in self._fitting(group):
                self._prepare([run.blocks[0] for run in fitting if len(run.blocks) == 1], fitting[0].budget, sizes)
                for together in self._grouped(fitting, lambda run: (run.seed, run.masks, run.passes)):
                    if len(together) > 1:
                        self._together(together, budget, sizes)
                    else:
                        self._alone(together[0], budget, sizes)

    def _joinable(self, run: Run) -> Any:
        """What rows must have in common to be computed together with those of this run; None if they never can."""
        if not (self.engine.merges and self.engine.joins and all(self.batched)) or run.rows == 0 or run.exact:
            return None
        return tuple(x.shape[1:] for x in run.inputs)

    @staticmethod
    def _grouped(runs: list[Run], key: Callable[[Run], Any]) -> list[list[Run]]:
        """Runs with equal keys; one whose key is None or False is by itself."""
        groups: dict[Any, list[Run]] = {}
        for run in runs:
            groups.setdefault(key(run) or id(run), []).append(run)
        return list(groups.values())

    def _fitting(self, group: list[Run]) -> Iterator[list[Run]]:
        """Runs of one group, so many together as fit the budget with one pass."""
        if len(group) == 1:
            yield group
            return
        most = self._most_rows(group[0].inputs, group[0].budget)
        together: list[Run] = []
        for run in group:
            if together and sum(other.rows for other in together) + run.rows > most:
                yield together
                together = []
            together.append(run)
        yield together

    # ---- rows into blocks

    def _blocks(self, run: Run) -> list[Block]:
        inputs = [self._padded(x) if batched else x for x, batched in zip(run.inputs, self.batched, strict=True)]
        count = max(run.rows, 1)
        most = count
        if self.engine.merges and count > 1:
            most = 1 if run.exact else self._most_rows(inputs, run.budget)
        blocks = []
        for start in range(0, count, most):
            stop = min(start + most, count)
            part = inputs if stop - start == count else self._cut(inputs, start, stop)
            sink = run.make_sink()
            leaving = sink if run.looks and isinstance(sink, LeavingSink) else None
            blocks.append(Block(part, stop - start, run.numbers_of(start, stop), sink, leaving))
        return blocks

    def _rows_of(self, run: Run, start: int, stop: int) -> Run:
        return Run(
            self._cut(run.inputs, start, stop),
            run.num_samples,
            run.seed,
            run.masks,
            stop - start,
            run.make_sink,
            run.kind,
            run.numbers_of(start, stop),
            run.exact,
            run.looks,
        )

    def _cut(self, inputs: Sequence[Tensor], start: int, stop: int) -> list[Tensor]:
        return [x[start:stop] if batched else x for x, batched in zip(inputs, self.batched, strict=True)]

    @staticmethod
    def _padded(x: Tensor) -> Tensor:
        """An empty batch becomes one row of zeros, whose answer is cut off again."""
        return x if x.shape[0] else x.new_zeros(1, *x.shape[1:])

    def _most_rows(self, inputs: Sequence[Tensor], budget: int) -> int:
        """Rows of which one pass fits the budget."""
        return max(1, budget // max(int(self.engine.bytes_per_pass(inputs) * _HEADROOM), 1))

    def _budget(self) -> int:
        if self.max_memory is not None:
            return self.max_memory
        now = time.monotonic()
        if now - self._asked > _STALE:
            self._asked, self._free = now, free_memory(getattr(self.engine, "device", torch.device("cpu")))
        return self._free // 4

    # ---- prefixes

    def _prepare(self, blocks: Sequence[Block], budget: int, sizes: Sequence[int]) -> None:
        """The frontiers that are missing, of all these blocks at once where they can be joined."""
        missing = [block for block in blocks if block.prepared is None]
        if not missing:
            return
        counts = [block.count for block in missing]
        inputs = self._batch([block.inputs for block in missing], self._spare(sum(counts), sizes))
        prepared = self._frontier(inputs, budget)
        if len(missing) == 1 and missing[0].count == sum(counts) + self._spare(sum(counts), sizes):
            missing[0].prepared = prepared
            return
        edges = [0, *itertools.accumulate(counts)]
        for block, start, stop in zip(missing, edges, edges[1:], strict=False):
            block.prepared = self.engine.part(prepared, start, stop)

    def _frontier(self, inputs: Sequence[Tensor], budget: int) -> list[Tensor]:
        """What the engine prepares; out of memory, in half of the budget."""
        try:
            return self.engine.prepare(inputs, budget)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if budget > 0 and self.engine.joins:
                return self._frontier(inputs, budget // 2)
            raise PassMemoryError(
                "what is computed once for each row does not fit into memory. Send fewer rows at a time, use a device "
                "with more memory, a smaller input, or dtype=torch.bfloat16."
            ) from error

    def _spare(self, rows: int, sizes: Sequence[int]) -> int:
        """Rows to add, so that there is one of a few sizes."""
        if not sizes or not (self.engine.merges and self.engine.joins):
            return 0
        return next((size for size in sizes if size >= rows), rows) - rows

    def _batch(self, inputs: Sequence[Sequence[Tensor]], spare: int) -> list[Tensor]:
        """Inputs of several blocks as one batch, the last row repeated."""
        if len(inputs) == 1 and not spare:
            return list(inputs[0])
        return [
            torch.cat([*each, *([each[-1][-1:]] * spare)]) if batched else each[0]
            for batched, each in zip(self.batched, zip(*inputs, strict=True), strict=True)
        ]

    # ---- passes into chunks

    def _alone(self, run: Run, budget: int | None, sizes: Sequence[int]) -> None:
        todo = run.num_samples - run.passes
        if budget is not None and run.exact:
            budget = -(-budget // _EXACT_PASSES) * _EXACT_PASSES  # the same chunks whatever the budget
        target = run.passes + (todo if budget is None else min(todo, budget))
        for block in run.blocks:
            while block.count and block.passes < target:
                self._compute([block], run, min(target, run.stop_after(block.passes)) - block.passes, sizes)
            if not block.count or block.passes >= run.num_samples:
                block.prepared, block.inputs = None, []
            elif len(run.blocks) > 1:
                block.prepared = None  # the frontiers of all blocks together may be more than the budget

    def _together(self, runs: list[Run], budget: int | None, sizes: Sequence[int]) -> None:
        """Rows of several runs as one batch, for as many passes as all of them still want; then those go on that do."""
        shared = min(run.stop_after(run.passes) for run in runs) - runs[0].passes
        todo = shared if budget is None else min(shared, budget)
        self._compute([run.blocks[0] for run in runs], runs[0], todo, sizes)
        left = None if budget is None else budget - todo
        unfinished = [run for run in runs if not run.done]
        if unfinished and left != 0:
            self._advance(unfinished, left, sizes)

    def _compute(self, blocks: list[Block], run: Run, todo: int, sizes: Sequence[int]) -> None:
        """The next `todo` passes of blocks that stand at the same pass; `run` is one of theirs."""
        self._prepare(blocks, run.budget, sizes)
        counts = [block.count for block in blocks]
        spare = self._spare(sum(counts), sizes)
        inputs = self._batch([block.inputs for block in blocks], spare)
        frontiers = [block.prepared for block in blocks if block.prepared is not None]
        if spare:
            frontiers += [self.engine.part(frontiers[-1], counts[-1] - 1, counts[-1])] * spare
        prepared = self.engine.join(frontiers)
        rows = None
        if blocks[0].numbers is not None:
            numbers = [block.numbers for block in blocks if block.numbers is not None]
            rows = torch.cat([*numbers, *([numbers[-1][-1:]] * spare)])
        edges = [0, *itertools.accumulate(counts)]
        start, stop = blocks[0].passes, blocks[0].passes + todo
        chunk = min(todo, self._chunk(inputs, sum(counts) + spare, run))
        while start < stop:
            passes = range(start, min(start + chunk, stop))
            try:
                outputs = self.engine.passes(
                    inputs, prepared, passes=passes, seed=run.seed, rows=rows, balanced=run.balanced
                )
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                if run.exact:
                    raise PassMemoryError(
                        f"{len(passes)} passes of one row do not fit into memory, and an exact answer takes no fewer "
                        "at a time. Ask for it without exactness, or use a device with more memory."
                    ) from error
                if chunk > 1:
                    chunk //= 2
                    continue
                outputs = self._halved(inputs, passes, run, rows, error)
            for block, low, high in zip(blocks, edges, edges[1:], strict=False):
                whole = len(blocks) == 1 and not spare
                mine = outputs if whole else tuple(output[:, low:high] for output in outputs)
                if block.counted is not None:
                    mine = tuple(output[:, block.counted] for output in mine)
                block.sink.update(mine, passes)
                block.passes = passes.stop
                block.work += len(passes) * block.count
            start = passes.stop
        for block in blocks:
            if block.leaving is not None:
                self._let_leave(block, block.leaving.leave())

    def _let_leave(self, block: Block, stay: Tensor | None) -> None:
        """Go on with some rows of a block alone, by their numbers in it; None: all of them."""
        if stay is None:
            return
        block.count = min(block.count, len(stay))
        if not self.engine.merges or not any(self.batched):  # rows that cannot be cut off are computed, and not counted
            block.counted = stay if block.counted is None else block.counted[stay]
            return
        if block.prepared is not None and self.engine.joins and block.count:
            block.prepared = self.engine.join([self.engine.part(block.prepared, *edges) for edges in _stretches(stay)])
        else:
            block.prepared = None
        block.inputs = [x[stay] if batched else x for x, batched in zip(block.inputs, self.batched, strict=True)]
        if block.numbers is not None:
            block.numbers = block.numbers[stay.to(block.numbers.device)]

    def _halved(
        self, inputs: list[Tensor], passes: range, run: Run, rows: Tensor | None, error: BaseException
    ) -> tuple[Tensor, ...]:
        """One pass of rows that do not fit together: of half of them at a time, with the same draws."""
        count = next((x.shape[0] for x, batched in zip(inputs, self.batched, strict=True) if batched), 1)
        if count < 2 or not self.engine.merges:
            raise PassMemoryError(
                "one pass of one row does not fit into memory. Use a device with more of it, a smaller input, or "
                "dtype=torch.bfloat16."
            ) from error
        halves = []
        for part in (slice(0, count // 2), slice(count // 2, count)):
            some = self._cut(inputs, part.start, part.stop)
            numbers = None if rows is None else rows[part]
            try:
                prepared = self._frontier(some, run.budget)
                halves.append(
                    self.engine.passes(
                        some, prepared, passes=passes, seed=run.seed, rows=numbers, balanced=run.balanced
                    )
                )
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as again:
                if not is_out_of_memory(again):
                    raise
                halves.append(self._halved(some, passes, run, numbers, again))
        return tuple(torch.cat(parts, 1) for parts in zip(*halves, strict=True))

    def _chunk(self, inputs: Sequence[Tensor], rows: int, run: Run) -> int:
        """How many passes to compute at once."""
        if not self.engine.merges:
            return 1
        if run.exact:
            return _EXACT_PASSES
        most = int(run.budget / _HEADROOM) // max(self.engine.bytes_per_pass(inputs) * rows, 1)
        fitting = _CACHE_SHARE * self.engine.stretch(rows) // max(self.engine.working_bytes(inputs) * rows, 1)
        return max(1, min(most, fitting))


def _stretches(rows: Tensor) -> list[tuple[int, int]]:
    """Where stretches of consecutive rows begin and end."""
    numbers = rows.tolist()
    starts = [
        row for row, before in zip(numbers, [None, *numbers], strict=False) if before is None or row != before + 1
    ]
    stops = [row + 1 for row, after in zip(numbers, [*numbers[1:], None], strict=True) if row + 1 != after]
    return list(zip(starts, stops, strict=True))
