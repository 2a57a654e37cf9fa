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

__all__ = ["Block", "Collector", "Run", "Share", "Sink"]


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
class Block:
    """Some rows of a run, their frontier and what is known of them so far."""

    inputs: list[Tensor]
    count: int
    numbers: Tensor | None  # of the rows in their request, where rows draw for themselves
    sink: Sink
    passes: int = 0
    prepared: list[Tensor] | None = None


class Share(NamedTuple):
    """The prediction of several runs that were computed as one, and which of its rows are this run's.

    `derived` is one dict for all of them: what one has made of the whole, others need not make again.
    """

    whole: Prediction
    rows: slice
    derived: dict[Any, Any]


@dataclass(eq=False)
class Run:
    """One request in progress. Belongs to one owner at a time.

    Attributes:
        num_samples: passes that were asked for.
        seed: of its noise.
        rows: number of rows.
        kind: what the prediction has to contain; runs of one kind can be computed as one, None stands apart.
        exact: computed by itself in chunks that depend on nothing else, so that its bits are always the same.
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
    blocks: list[Block] = field(default_factory=list)
    budget: int = 0  # bytes, read once: what is free is asked of the system
    share: Share | None = None

    @property
    def computed_rows(self) -> int:
        """Rows that a pass takes: an empty batch is computed as one row, and its answer cut off."""
        return max(self.rows, 1)

    @property
    def passes(self) -> int:
        """Passes computed so far, for every row."""
        if self.share is not None:
            return self.num_samples
        return min((block.passes for block in self.blocks), default=0)

    @property
    def done(self) -> bool:
        """Whether all passes are computed."""
        return self.passes >= self.num_samples

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
