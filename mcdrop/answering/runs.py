"""Runs: requests in progress. A `Sampler` advances them.

A run is made without computing anything, can be asked for its prediction at any time, and dropped at any time. Its rows
may be cut into blocks, which are computed one after the other; and runs that are finished in one go may be computed as
one, of which each then has its share.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from mcdrop.errors import SettingError
from mcdrop.prediction import Prediction, concatenate

__all__ = ["Block", "Collector", "LeavingSink", "Run", "Share", "Sink"]


@runtime_checkable
class Sink(Protocol):
    """Takes chunks of outputs (passes, rows, ...) and turns them into something."""

    def update(self, outputs: tuple[Tensor, ...], passes: range) -> None: ...

    def prediction(self, *, seed: int) -> Prediction: ...


@runtime_checkable
class LeavingSink(Sink, Protocol):
    """A sink whose rows leave when they have had enough passes."""

    def leave(self) -> Tensor | None:
        """Which of the rows that were here go on, (kept,); None: all of them. Asked after every look of the run."""


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
class Block:
    """Some rows of a run, their frontier and what is known of them so far."""

    inputs: list[Tensor]
    count: int  # rows; 0 once all have left
    numbers: Tensor | None  # of the rows in their request, where rows draw for themselves
    sink: Sink
    leaving: LeavingSink | None = None  # the sink, where rows may leave
    passes: int = 0
    prepared: list[Tensor] | None = None
    counted: Tensor | None = None  # which rows the sink takes, where those that left cannot be cut off; None: all
    work: int = 0  # rows x passes computed


class Share(NamedTuple):
    """The prediction of several runs that were computed as one, and which of its rows are this run's.

    `derived` is one dict for all of them: what one has made of the whole, others need not make again.
    """

    whole: Prediction
    rows: slice
    derived: dict[Any, Any]

    @property
    def num_samples(self) -> int:
        """Passes of this run's rows, of the one that took most."""
        passes = self.whole.passes
        return self.whole.num_samples if passes is None else int(passes[self.rows].max())

    @property
    def work(self) -> int:
        """Rows x passes of this run's rows."""
        rows: int = self.rows.stop - self.rows.start
        passes = self.whole.passes
        return rows * self.whole.num_samples if passes is None else int(passes[self.rows].sum())


@dataclass(eq=False)
class Run:
    """One request in progress. Belongs to one owner at a time.

    Attributes:
        num_samples: passes that were asked for; where rows may leave, the most of each.
        seed: of its noise.
        rows: number of rows.
        kind: what the prediction has to contain; runs of one kind can be computed as one, None stands apart.
        exact: computed by itself in chunks that depend on nothing else, so that its bits are always the same.
        looks: passes after which rows may leave, ascending, where the sinks let them; the last is `num_samples`.
        share: where the prediction is, once this run has been computed as one with others.
    """

    inputs: list[Tensor]
    num_samples: int
    seed: int
    masks: str
    rows: int
    make_sink: Callable[[], Sink]
    kind: Hashable = None
    numbers: Tensor | None = None  # of its rows in the request; None counts from 0
    exact: bool = False
    looks: tuple[int, ...] = ()
    blocks: list[Block] = field(default_factory=list)
    budget: int = 0  # bytes, read once: what is free is asked of the system
    share: Share | None = None

    @property
    def computed_rows(self) -> int:
        """Rows that the next pass takes: an empty batch is computed as one row, and its answer cut off."""
        if self.looks and self.blocks:
            return sum(block.count for block in self._unfinished)
        return max(self.rows, 1)

    @property
    def balanced(self) -> bool:
        """Whether its masks are balanced over blocks of passes."""
        return self.masks == "balanced"

    @property
    def passes(self) -> int:
        """Passes computed so far of every row that is not done; once all are, of the row that took most."""
        if self.share is not None:
            return self.share.num_samples
        most = max((block.passes for block in self.blocks), default=0)
        return min((block.passes for block in self._unfinished), default=most)

    @property
    def _unfinished(self) -> list[Block]:
        return [block for block in self.blocks if block.count and block.passes < self.num_samples]

    @property
    def done(self) -> bool:
        """Whether all passes are computed, or all rows have left."""
        return self.share is not None or (bool(self.blocks) and not self._unfinished)

    @property
    def left(self) -> int:
        """Rows x passes that are still to be computed, at most."""
        if self.share is not None:
            return 0
        if not self.blocks:
            return self.rows * self.num_samples
        return sum(block.count * (self.num_samples - block.passes) for block in self._unfinished)

    @property
    def work(self) -> int:
        """Rows x passes computed so far."""
        if self.share is not None:
            return self.share.work
        return sum(block.work for block in self.blocks)

    def stop_after(self, passes: int) -> int:
        """The number of passes, more than these, up to which all rows stay together: the next look, or the end."""
        return next((look for look in self.looks if look > passes), self.num_samples)

    def prediction(self) -> Prediction:
        """The prediction from the passes computed so far.

        Raises:
            SettingError: fewer than two passes are computed, so that there is no spread; or an interruption has left
                some rows with more passes than others.
        """
        if self.share is not None:
            return self.share.whole[self.share.rows]
        if self.passes < 2:
            raise SettingError(
                f"{self.passes} passes are computed so far and a spread needs at least 2: advance the run further."
            )
        most = max((block.passes for block in self.blocks if block.count), default=self.passes)
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

    @property
    def begun(self) -> bool:
        """Whether what is computed once per row is at hand."""
        return any(block.prepared is not None for block in self.blocks)

    def pause(self) -> None:
        """Give back the memory of what is computed once per row; the next advance computes it again."""
        for block in self.blocks:
            block.prepared = None

    def numbers_of(self, start: int, stop: int) -> Tensor | None:
        """The numbers of some rows in their request, where rows draw for themselves; else None."""
        if self.masks != "independent":
            return None
        if self.numbers is None:
            return torch.arange(start, stop, device="cpu")
        return self.numbers[start:stop]
