"""A job: one accepted request, what is left to compute of it, and its one answer.

A request with many rows is computed in parts, one after the other. Where estimates are wanted on the way, because they
are streamed or a deadline may come, all parts advance from level to level of passes, so that an estimate always has the
same passes for each row; else each part is finished at once.
"""

import asyncio
import itertools
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Protocol

from mcdrop.answering.runs import Run, Share
from mcdrop.prediction import Prediction, concatenate
from mcdrop.predictor import MCDropout
from service.outcome import Outcome
from service.pace import Pace
from service.tally import Tally

FIRST_LEVEL = 8  # passes of the first estimate; each next one has twice as many


class Owner(Protocol):
    """Whose job it is: a served model."""

    name: str
    version: str
    tally: Tally


class Finish(Protocol):
    """Turns what was computed into the bytes of an answer. Runs on the inference thread."""

    def __call__(self, result: Prediction | Share, job: "Job") -> bytes: ...


@dataclass(eq=False, repr=False)
class Job:
    """Belongs to the inference thread, once submitted; `future` to the event loop."""

    model: Owner
    mc: MCDropout
    pace: Pace
    start: Callable[[], Run]  # the request's run, made anew
    finish: Finish
    future: "asyncio.Future[bytes]"
    arrived: float  # time.monotonic()
    deadline: float | None = None  # time.monotonic()
    allow_partial: bool = False
    estimate: Callable[[bytes], None] | None = None  # is told each estimate, on the event loop
    alone: bool = False  # not to be computed together with others
    check: Callable[[], None] | None = None  # what takes computing to find wrong; called once, before the first pass

    cost: float = 0.0  # predicted seconds, until its deadline at most
    began: float | None = None  # when computing began
    computed: float = 0.0  # seconds of the inference thread so far
    partial: bool = False
    answered: tuple[Prediction | Share, Outcome] | None = None  # what the answer is made of, once it is written
    parts: list[Run] = field(default_factory=list)
    levels: list[int] = field(default_factory=list)  # of passes, ascending
    _level: int = 0
    _part: int = 0
    _kept: Prediction | None = None  # the last estimate of all parts
    _told: int = 0  # passes of the last estimate that was told
    _full_cost: float = 0.0  # as it was in the beginning

    def __post_init__(self) -> None:
        self.restart()
        self.cost = sum(
            self.pace.prefix(part.computed_rows, self.shape)
            + part.num_samples * self.pace.each(part.computed_rows, self.shape)
            for part in self.parts
        )
        if self.deadline is not None:  # when it ends, whatever is left then
            self.cost = min(self.cost, max(self.deadline - time.monotonic(), 0.0))
        self._full_cost = self.cost

    def restart(self) -> None:
        """Forget what was computed."""
        whole = self.start()
        self.rows, self.num_samples, self.exact = whole.rows, whole.num_samples, whole.exact
        self.shape: Hashable = tuple(x.shape[1:] for x in whole.inputs)
        self.parts = self.mc.split(whole, 1 if whole.exact else self.pace.most_rows)
        self.levels = [whole.num_samples]
        if self.estimate is not None or self.allow_partial:
            doublings = itertools.takewhile(
                lambda n: n < whole.num_samples, (FIRST_LEVEL << k for k in itertools.count())
            )
            self.levels = [*doublings, whole.num_samples]
        self._level = self._part = 0
        self._kept = None

    @property
    def left(self) -> int:
        """Rows x passes that are still to be computed."""
        return sum(part.left for part in self.parts)

    def give_back(self) -> float:
        """Predicted seconds that rows which have left will not take any more; the cost is less by that from now on."""
        if not self.run.looks:
            return 0.0
        saved = max(0.0, self.cost - self._full_cost * self.left / max(self.rows * self.num_samples, 1))
        self.cost -= saved
        return saved

    # ---- what comes next

    @property
    def run(self) -> Run:
        """The part that is next."""
        return self.parts[self._part]

    @property
    def todo(self) -> int:
        """Passes until the next level, or until rows may leave."""
        passes = self.run.passes
        return max(1, min(self.levels[self._level], self.run.stop_after(passes)) - passes)

    @property
    def key(self) -> Hashable:
        """Jobs with equal keys may be computed together."""
        if self.alone or self.exact or len(self.parts) > 1 or self.run.rows == 0:
            return id(self)
        todo = self.todo if self.run.looks else None  # rows leave at the end of a slice, which is predicted for all
        return id(self.mc), self.shape, self.estimate is not None, self.run.passes, todo

    def step(self) -> bool:
        """Move on after passes were computed. Whether an estimate of all rows is new."""
        if not self.run.done and self.run.passes < self.levels[self._level]:
            return False
        if len(self.parts) > 1 and len(self.levels) > 1:
            self.run.pause()  # the frontiers of all parts may be more than fits
        waiting = [number for number, part in enumerate(self.parts) if not part.done]
        if later := [number for number in waiting if number > self._part]:
            self._part = later[0]
            return False
        self._part = waiting[0] if waiting else 0
        passes = self.run.passes if waiting else self.num_samples
        while self._level < len(self.levels) and passes >= self.levels[self._level]:
            self._level += 1
        if len(self.parts) > 1 and self.allow_partial:
            self._kept = concatenate([part.prediction() for part in self.parts])
        return True

    @property
    def done(self) -> bool:
        """Whether everything is computed."""
        return self._level == len(self.levels)

    # ---- what is known

    def result(self) -> Prediction | Share:
        """From the passes computed so far, the same number for each row."""
        if len(self.parts) == 1 and self.run.share is not None:
            return self.run.share
        return concatenate([part.prediction() for part in self.parts])

    def news(self) -> bool:
        """Whether there is an estimate from more passes than the last one told."""
        before, self._told = self._told, max(self._told, self.run.passes)
        return self.estimate is not None and self._told > before

    def best(self) -> Prediction | None:
        """The best that can be said now, or None when there is nothing."""
        if len(self.parts) > 1:
            return self._kept
        return self.run.prediction() if self.run.passes >= 2 else None

    def expired(self, now: float) -> bool:
        """Whether the deadline has come."""
        return self.deadline is not None and now >= self.deadline

    @property
    def queue_ms(self) -> float:
        """Milliseconds from arrival to the first computation."""
        return ((time.monotonic() if self.began is None else self.began) - self.arrived) * 1000
