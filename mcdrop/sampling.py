"""Runs: requests in progress, advanced by passes.

`start` makes a run and computes nothing. `advance` computes the prefixes that are missing and then the next passes,
of one run or of several together, in chunks that fit the memory budget; a run can be asked for its prediction at any
time, and dropped at any time. A whole prediction is a run advanced until done.

Rows that are too many for the budget are cut into blocks, which are computed one after the other. Out of memory halves
the chunk and goes on with the same draws: noise is a function of the pass, not of the chunk.
"""

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from mcdrop.engine import Engine
from mcdrop.errors import PassMemoryError, SettingError
from mcdrop.prediction import Prediction, concatenate

__all__ = ["Collector", "Run", "Sampler"]

_CACHE_SHARE = 24 * 2**20  # bytes of activations computed at once: more falls out of the processor's caches
_STALE = 1.0  # seconds for which an answer about free memory holds
_HEADROOM = 2.0  # what operations need besides their results, as a factor on the results


@runtime_checkable
class Sink(Protocol):
    """Takes chunks of outputs (passes, rows, ...) and turns them into something."""

    def update(self, outputs: tuple[Tensor, ...], passes: range) -> None: ...

    def prediction(self, *, seed: int) -> Prediction: ...


class Collector:
    """A sink that keeps the outputs themselves, written once into their place."""

    def __init__(self, num_samples: int) -> None:
        self.num_samples = num_samples
        self.values: tuple[Tensor, ...] | None = None

    def update(self, outputs: tuple[Tensor, ...], passes: range) -> None:
        if self.values is None:
            self.values = tuple(output.new_empty(self.num_samples, *output.shape[1:]) for output in outputs)
        for kept, output in zip(self.values, outputs, strict=True):
            kept[passes.start : passes.stop] = output

    def prediction(self, *, seed: int) -> Prediction:
        raise SettingError("a run that collects samples has no prediction")


@dataclass
class _Block:
    """Some rows of a run, their frontier and what is known of them so far."""

    inputs: list[Tensor]
    rows: Tensor | None  # their indexes in the request, where rows draw for themselves
    sink: Sink
    passes: int = 0
    prepared: list[Tensor] | None = None


@dataclass
class Run:
    """One request in progress. Belongs to one owner at a time.

    Attributes:
        num_samples: passes that were asked for.
        seed: of its noise.
        rows: number of rows.
    """

    inputs: list[Tensor]
    num_samples: int
    seed: int
    masks: str
    rows: int
    make_sink: Callable[[], Sink]
    blocks: list[_Block] = field(default_factory=list)
    budget: int = 0  # bytes, read once: what is free is asked of the system

    @property
    def passes(self) -> int:
        """Passes computed so far, for every row."""
        return min((block.passes for block in self.blocks), default=0)

    @property
    def done(self) -> bool:
        """Whether all passes are computed."""
        return bool(self.blocks) and self.passes >= self.num_samples

    def prediction(self) -> Prediction:
        """The prediction from the passes computed so far.

        Raises:
            SettingError: fewer than two passes are computed, so that there is no spread; or an interruption has left
                some rows with more passes than others.
        """
        if self.passes < 2:
            raise SettingError(
                f"{self.passes} passes are computed so far and a spread needs at least 2: advance the run further."
            )
        most = max(block.passes for block in self.blocks)
        if most > self.passes:
            raise SettingError(
                f"{self.passes} passes are computed of some rows and {most} of others, since the run was interrupted: "
                "advance it further."
            )
        predictions = [block.sink.prediction(seed=self.seed) for block in self.blocks]
        whole = concatenate(predictions)
        return whole if self.rows else whole[:0]

    def samples(self) -> tuple[Tensor, ...]:
        """The collected outputs (samples, rows, ...) of a run whose sink is a `Collector`."""
        kept: list[Any] = [block.sink for block in self.blocks]
        parts = list(zip(*(collector.values for collector in kept), strict=True))
        return tuple((part[0] if len(part) == 1 else torch.cat(part, 1))[:, : self.rows] for part in parts)


class Sampler:
    """Advances runs on one engine, under a budget of memory."""

    def __init__(self, engine: Engine, batched: Sequence[bool], max_memory: int | None) -> None:
        self.engine, self.batched, self.max_memory = engine, tuple(batched), max_memory
        self._asked, self._free = -math.inf, 0  # when the system was asked for its free memory, and its answer

    def start(
        self, inputs: list[Tensor], *, rows: int, num_samples: int, seed: int, masks: str, make_sink: Callable[[], Sink]
    ) -> Run:
        """A run for checked inputs; computes nothing."""
        return Run(inputs, num_samples, seed, masks, rows, make_sink)

    def advance(self, runs: Sequence[Run], budget: int | None) -> None:
        """Compute the next `budget` passes of every run, all that are left if None; together where that is possible."""
        with plain():
            self._advance(list({id(run): run for run in runs}.values()), budget)

    def _advance(self, runs: list[Run], budget: int | None) -> None:
        for run in runs:
            if not run.blocks:
                run.budget = self._budget()
                run.blocks = self._blocks(run)
        waiting = [run for run in runs if not run.done]
        if len(waiting) == 1:
            self._alone(waiting[0], budget)
            return
        groups: dict[Any, list[Run]] = {}
        for run in waiting:
            groups.setdefault(self._group(run), []).append(run)
        for group in groups.values():
            for together in self._fitting(group):
                if len(together) > 1:
                    self._together(together, budget)
                else:
                    self._alone(together[0], budget)

    def _fitting(self, group: list[Run]) -> Iterator[list[Run]]:
        """Runs of one group, so many together as fit the budget with one pass."""
        if len(group) == 1:
            yield group
            return
        most = max(1, group[0].budget // max(int(self.engine.bytes_per_pass(group[0].inputs) * _HEADROOM), 1))
        together: list[Run] = []
        for run in group:
            if together and sum(other.rows for other in together) + run.rows > most:
                yield together
                together = []
            together.append(run)
        yield together

    def _group(self, run: Run) -> Any:
        if not (self.engine.merges and self.engine.joins) or len(run.blocks) > 1 or run.rows == 0:
            return id(run)
        shapes = tuple(tuple(x.shape[batched:]) for x, batched in zip(run.inputs, self.batched, strict=True))
        if not all(self.batched):
            return id(run)
        return run.seed, run.masks, run.passes, shapes

    # ---- rows into blocks

    def _blocks(self, run: Run) -> list[_Block]:
        inputs = [self._padded(x) if batched else x for x, batched in zip(run.inputs, self.batched, strict=True)]
        count = max(run.rows, 1)
        most = count
        if self.engine.merges and count > 1:
            most = max(1, run.budget // max(int(self.engine.bytes_per_pass(inputs) * _HEADROOM), 1))
        blocks = []
        for start in range(0, count, most):
            stop = min(start + most, count)
            part = [x[start:stop] if batched else x for x, batched in zip(inputs, self.batched, strict=True)]
            rows = torch.arange(start, stop, device="cpu") if run.masks == "independent" else None
            blocks.append(_Block(part, rows, run.make_sink()))
        return blocks

    @staticmethod
    def _padded(x: Tensor) -> Tensor:
        """An empty batch becomes one row of zeros, whose answer is cut off again."""
        return x if x.shape[0] else x.new_zeros(1, *x.shape[1:])

    def _budget(self) -> int:
        if self.max_memory is not None:
            return self.max_memory
        now = time.monotonic()
        if now - self._asked > _STALE:
            self._asked, self._free = now, free_memory(getattr(self.engine, "device", torch.device("cpu")))
        return self._free // 4

    # ---- passes into chunks

    def _alone(self, run: Run, budget: int | None) -> None:
        todo = run.num_samples - run.passes
        target = run.passes + (todo if budget is None else min(todo, budget))
        for block in run.blocks:
            self._compute([block], run.seed, max(0, target - block.passes), run.budget)
            if block.passes >= run.num_samples:
                block.prepared, block.inputs = None, []
            elif len(run.blocks) > 1:
                block.prepared = None  # the frontiers of all blocks together may be more than the budget

    def _together(self, runs: list[Run], budget: int | None) -> None:
        """Rows of several runs as one batch, for as many passes as all of them still want; then each goes on alone."""
        shared = min(run.num_samples for run in runs) - runs[0].passes
        todo = shared if budget is None else min(shared, budget)
        self._compute([run.blocks[0] for run in runs], runs[0].seed, todo, runs[0].budget)
        left = None if budget is None else budget - todo
        unfinished = [run for run in runs if not run.done]
        if unfinished and left != 0:
            self._advance(unfinished, left)

    def _compute(self, blocks: list[_Block], seed: int, todo: int, budget: int) -> None:
        """The next `todo` passes of blocks that stand at the same pass."""
        if todo == 0:
            return
        inputs = [
            torch.cat([block.inputs[i] for block in blocks]) if batched and len(blocks) > 1 else blocks[0].inputs[i]
            for i, batched in enumerate(self.batched)
        ]
        rows = None
        if blocks[0].rows is not None:
            rows = torch.cat([block.rows for block in blocks if block.rows is not None])
        counts = [self._count(block) for block in blocks]
        for block in blocks:
            if block.prepared is None:
                block.prepared = self.engine.prepare(block.inputs, budget)
        prepared = self.engine.join([block.prepared for block in blocks if block.prepared is not None])
        start, stop = blocks[0].passes, blocks[0].passes + todo
        chunk = min(todo, self._chunk(inputs, sum(counts), budget))
        while start < stop:
            passes = range(start, min(start + chunk, stop))
            try:
                outputs = self.engine.passes(inputs, prepared, passes=passes, seed=seed, rows=rows)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                if chunk > 1:
                    chunk //= 2
                    continue
                outputs = self._halved(inputs, passes, seed, rows, budget, error)
            edges = [0, *itertools.accumulate(counts)]
            for block, low, high in zip(blocks, edges, edges[1:], strict=False):
                part = outputs if len(blocks) == 1 else tuple(output[:, low:high] for output in outputs)
                block.sink.update(part, passes)
                block.passes = passes.stop
            start = passes.stop

    def _halved(
        self,
        inputs: list[Tensor],
        passes: range,
        seed: int,
        rows: Tensor | None,
        budget: int,
        error: BaseException,
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
            some = [x[part] if batched else x for x, batched in zip(inputs, self.batched, strict=True)]
            numbers = None if rows is None else rows[part]
            try:
                prepared = self.engine.prepare(some, budget)
                halves.append(self.engine.passes(some, prepared, passes=passes, seed=seed, rows=numbers))
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as again:
                if not is_out_of_memory(again):
                    raise
                halves.append(self._halved(some, passes, seed, numbers, budget, again))
        return tuple(torch.cat(parts, 1) for parts in zip(*halves, strict=True))

    def _count(self, block: _Block) -> int:
        return next((x.shape[0] for x, batched in zip(block.inputs, self.batched, strict=True) if batched), 1)

    def _chunk(self, inputs: Sequence[Tensor], rows: int, budget: int) -> int:
        """How many passes to compute at once."""
        if not self.engine.merges:
            return 1
        each = max(int(self.engine.bytes_per_pass(inputs) * rows), 1)
        return max(1, min(int(budget / _HEADROOM) // each, max(_CACHE_SHARE // each, 1)))


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """Inside, what the caller has switched on around us (autocast, inference mode) is off."""
    with contextlib.ExitStack() as off:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                off.enter_context(torch.autocast(device, enabled=False))
        if torch.is_inference_mode_enabled():
            off.enter_context(torch.inference_mode(False))
        off.enter_context(torch.no_grad())
        yield


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo") as facts:
            for line in facts:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 4 * 2**30  # where the system does not tell


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed. PyTorch's CPU allocator has no class of its own for it, its name in the text."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
