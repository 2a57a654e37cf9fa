"""What waits to be computed, and what of it comes next.

Jobs wait in one of two queues: fresh, or begun. A slice of each is chosen in turn, so that small requests overtake a
large one and a stream of small ones does not starve it. With the job in front go those behind it that can be computed
together with it, as long as the predicted seconds stay within a limit.
"""

import asyncio
from collections import deque
from collections.abc import Generator, Hashable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from service.jobs import Job
from service.pace import JOINING, SLICE_SECONDS

Result = TypeVar("Result")
Steps = Generator[None, None, Result]


@dataclass(eq=False)
class Errand:
    """Other work for the thread, such as warming a model up: each `next` is a slice of it."""

    steps: Steps[Any]
    future: "asyncio.Future[Any]"


class Batch:
    """Jobs that are computed together, and what their next slice is predicted to cost.

    Attributes:
        jobs: at least one, the lead first.
        todo: passes until all are at their next level.
        prefix, each: predicted seconds of the prefixes that are missing, and of one pass.
        is_full: whether a job that suits had to stay behind.
    """

    def __init__(self, lead: Job) -> None:
        self.jobs: list[Job] = [lead]
        self.todo, self.rows, self.is_full = lead.todo, lead.run.computed_rows, False
        self._pace, self._shape = lead.pace, lead.shape
        at_once = 1 if lead.exact else self.rows
        self._missing = 0 if lead.run.begun else at_once
        self._side_by_side: dict[Hashable, int] = {_masks(lead): at_once}
        self.each = self._pace.each(at_once, self._shape)
        self._limit = max(SLICE_SECONDS, JOINING * self.seconds)

    @property
    def prefix(self) -> float:
        """Predicted seconds of what is computed once for each row."""
        return self._pace.prefix(self._missing, self._shape)

    @property
    def seconds(self) -> float:
        """Predicted seconds until all jobs are at their next level."""
        return self.prefix + self.each * self.todo

    def join(self, job: Job) -> bool:
        """Take a job in that suits the lead, if the slice has room for it."""
        rows, pace = job.run.computed_rows, self._pace
        before = self._side_by_side.get(_masks(job), 0)
        each = self.each - pace.each(before, self._shape) + pace.each(before + rows, self._shape)
        missing = self._missing + (0 if job.run.begun else rows)
        todo = max(self.todo, job.todo)
        seconds = pace.prefix(missing, self._shape) + each * todo
        if self.rows + rows > pace.most_rows or seconds > self._limit:
            self.is_full = True
            return False
        self.jobs.append(job)
        self._side_by_side[_masks(job)] = before + rows
        self._missing, self.each, self.todo, self.rows = missing, each, todo, self.rows + rows
        return True

    @property
    def has_room(self) -> bool:
        """Whether one more row could be taken in."""
        return self.rows < self._pace.most_rows


class Backlog:
    """Two queues. Not for several threads at once: the scheduler holds its lock."""

    def __init__(self) -> None:
        self._fresh: deque[Job] = deque()
        self._begun: deque[Job | Errand] = deque()
        self._begun_is_next = False

    def __bool__(self) -> bool:
        return bool(self._fresh or self._begun)

    def __iter__(self) -> Iterator[Job | Errand]:
        yield from self._fresh
        yield from self._begun

    def add(self, work: Job | Errand) -> None:
        """Behind all that wait like it."""
        if isinstance(work, Job) and work.began is None:
            self._fresh.append(work)
        else:
            self._begun.append(work)

    def remove(self, job: Job) -> None:
        """Take a job out, wherever it is."""
        for queue in (self._fresh, self._begun):
            if job in queue:  # an error of `remove` would write the job out, tensors and all
                queue.remove(job)

    def take_late(self, now: float) -> list[Job]:
        """Take out the jobs whose deadline has come."""
        late = [job for job in self if isinstance(job, Job) and job.expired(now)]
        for job in late:
            self.remove(job)
        return late

    def take_next(self) -> Batch | Errand:
        """Take out what is to be computed now. There has to be something."""
        from_begun = bool(self._begun) and (self._begun_is_next or not self._fresh)
        queue: deque[Any] = self._begun if from_begun else self._fresh
        self._begun_is_next = not from_begun
        lead = queue.popleft()
        if isinstance(lead, Errand):
            return lead
        batch, key = Batch(lead), lead.key
        if not lead.future.done():
            stay: list[Any] = []
            while queue and batch.has_room:
                work = queue.popleft()
                suits = isinstance(work, Job) and not work.future.done() and work.key == key
                if not (suits and batch.join(work)):
                    stay.append(work)
            queue.extendleft(reversed(stay))
        return batch


def _masks(job: Job) -> Hashable:
    """Runs with equal ones share their passes; others are computed side by side."""
    return job.run.seed, job.run.masks
