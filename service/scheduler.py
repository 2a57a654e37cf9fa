"""The one thread that computes on a device, and what it does next.

Jobs arrive from the event loop and wait in one of two queues: fresh, or begun. The thread computes a slice of fresh
work and a slice of begun work in turn, so that small requests overtake a large one and a stream of small ones does not
starve it. A slice takes the job in front and those behind it that can be computed together with it, as long as the
predicted seconds stay within a limit; nobody waits while the thread is free. Every job gets exactly one answer, and
what it costs is given back when it has it.
"""

import asyncio
import contextlib
import functools
import logging
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from mcdrop.errors import InputError
from mcdrop.memory import is_out_of_memory
from service.errors import DeadlineError, NotReadyError, OverloadedError
from service.jobs import Job
from service.pace import JOINING, SLICE_SECONDS, power_of_two
from service.settings import raise_limit
from service.watch import Watch

log = logging.getLogger("service.scheduler")

Result = TypeVar("Result")
Steps = Generator[None, None, Result]


@dataclass(eq=False)
class Errand:
    """Other work for the thread, such as warming a model up: each `next` is a slice of it."""

    steps: Steps[Any]
    future: "asyncio.Future[Any]"


class Scheduler:
    """Owner of the thread. `start`, any number of `submit` and `run`, `stop`."""

    def __init__(
        self,
        *,
        max_pending: int,
        max_pending_seconds: float = float("inf"),
        stuck_seconds: float = float("inf"),
        watch: Watch | None = None,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        self._max_pending, self._max_cost = max_pending, max_pending_seconds
        self._stuck_seconds = stuck_seconds
        self._watch = watch
        self._prepare = prepare
        self._fresh: deque[Job] = deque()
        self._begun: deque[Job | Errand] = deque()
        self._in_hand: list[Job | Errand] = []
        self._pending: set[Job] = set()  # submitted and without an answer
        self._cost = 0.0  # predicted seconds of those
        self._changed = threading.Condition()
        self._stopping = False
        self._broken: str | None = None
        self._slice_began: float | None = None
        self._begun_is_next = False
        self._reason = "idle"  # why the slice in hand has no more jobs: none waits that suits, or it is full
        self._thread = threading.Thread(target=self._compute, name="mcdrop-inference", daemon=True)

    # ---- for the event loop

    @property
    def pending(self) -> int:
        """Jobs that wait or are in hand."""
        return len(self._pending)

    @property
    def cost(self) -> float:
        """Predicted seconds of what is pending."""
        return self._cost

    @property
    def in_hand(self) -> int:
        """Jobs and other work that are computed right now."""
        return len(self._in_hand)

    @property
    def trouble(self) -> str | None:
        """Why the process is of no use any more, or None."""
        began = self._slice_began
        if not self._thread.is_alive():
            return "The inference thread has ended."
        if self._broken is not None:
            return self._broken
        if began is not None and (seconds := time.monotonic() - began) > self._stuck_seconds:
            return f"The inference thread has been busy with one slice of work for {seconds:.0f} s."
        return None

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout: float = 10) -> None:
        """Let the slice in hand end, answer everything else with NotReadyError, and end the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def submit(self, job: Job) -> None:
        """Take a job in; its future will be settled, unless it is withdrawn.

        Raises OverloadedError when too much waits, NotReadyError when the server is stopping.
        """
        with self._changed:
            if self._stopping:
                raise NotReadyError("The server is stopping. Send the request to another one, or again later.")
            self._check_room(job)
            self._pending.add(job)
            self._cost += job.cost
            self._fresh.append(job)
            self._changed.notify()
        if self._watch is not None:
            self._watch.submitted(job)

    def withdraw(self, job: Job) -> None:
        """Nobody waits for this job any more: it costs nothing from now on, but for the slice that is in hand."""
        job.future.cancel()
        with self._changed:
            in_hand = job in self._in_hand
            if job not in self._pending:
                return
            self._let_go(job)
            for queue in (self._fresh, self._begun):
                with contextlib.suppress(ValueError):
                    queue.remove(job)
        if not in_hand:
            self._saved(job)

    async def run(self, steps: Steps[Result]) -> Result:
        """The result of other work, computed slice by slice between jobs."""
        errand = Errand(steps, asyncio.get_running_loop().create_future())
        with self._changed:
            if self._stopping:
                raise NotReadyError("The server is stopping.")
            self._begun.append(errand)
            self._changed.notify()
        result: Result = await errand.future
        return result

    def _check_room(self, job: Job) -> None:
        seconds = max(1, min(60, round(self._cost)))
        if len(self._pending) >= self._max_pending:
            raise OverloadedError(
                f"{len(self._pending)} requests are waiting, as many as this server holds. Try again in {seconds} s, "
                f"or raise {raise_limit('max_pending')}.",
                retry_after=seconds,
            )
        if self._pending and self._cost + job.cost > self._max_cost:
            raise OverloadedError(
                f"What is waiting here takes {self._cost:.1f} s and this request {job.cost:.1f} s, more than this "
                f"server holds. Try again in {seconds} s, or raise {raise_limit('max_pending_seconds')}.",
                retry_after=seconds,
            )

    # ---- on the thread

    def _compute(self) -> None:
        if self._prepare is not None:
            self._prepare()
        try:
            while (batch := self._next()) is not None:
                with torch.no_grad():
                    self._slice(batch)
        finally:
            self._end()

    def _next(self) -> list[Job] | Errand | None:
        """What to compute now; None at the end. Drops what nobody waits for and what has come too late."""
        while True:
            with self._changed:
                self._in_hand = []
                self._slice_began = None
                self._changed.wait_for(lambda: self._fresh or self._begun or self._stopping)
                if self._stopping:
                    return None
                late = self._late()
                batch = None if late else self._choose()
                if batch is not None:
                    self._in_hand = [batch] if isinstance(batch, Errand) else list(batch)
                    self._slice_began = time.monotonic()
                    return batch
            self._expire(late)

    def _late(self) -> list[Job]:
        now = time.monotonic()
        late = [
            job for queue in (self._fresh, self._begun) for job in queue if isinstance(job, Job) and job.expired(now)
        ]
        for job in late:
            (self._fresh if job in self._fresh else self._begun).remove(job)
        self._in_hand = list(late)
        return late

    def _choose(self) -> list[Job] | Errand:
        from_begun = bool(self._begun) and (self._begun_is_next or not self._fresh)
        queue: deque[Any] = self._begun if from_begun else self._fresh
        self._begun_is_next = not from_begun
        lead = queue.popleft()
        if isinstance(lead, Errand):
            return lead
        batch = [lead]
        self._reason = "idle"
        if lead.future.done():
            return batch
        limit = max(SLICE_SECONDS, JOINING * _predicted(batch))
        for job in list(queue):
            if isinstance(job, Errand) or job.key != lead.key or job.future.done():
                continue
            more = [*batch, job]
            if sum(each.run.rows for each in more) <= lead.pace.most_rows and _predicted(more) <= limit:
                queue.remove(job)
                batch = more
            else:
                self._reason = "full"
        return batch

    def _slice(self, batch: list[Job] | Errand) -> None:
        if isinstance(batch, Errand):
            self._run_errand(batch)
            return
        gone = [job for job in batch if job.future.done()]
        batch = [job for job in batch if not job.future.done()]
        told: list[tuple[Job, Any]] = []
        if batch:
            try:
                self._advance(batch)
            except Exception as error:
                told += self._blame(batch, error)
            else:
                told += self._outcomes(batch)
        settled = {job for job, _ in told}
        with self._changed:
            gone += [job for job in batch if job not in settled and job.future.done()]
            self._begun.extend(job for job in batch if job not in settled and job not in gone)
            for job in (*settled, *gone):
                self._let_go(job)
            self._in_hand = []
        for job in gone:
            self._saved(job)
        self._tell(told)

    def _advance(self, batch: list[Job]) -> None:
        lead, now = batch[0], time.monotonic()
        for job in batch:
            if job.began is None:
                job.began = now
                if self._watch is not None:
                    self._watch.started(job)
        seconds = SLICE_SECONDS
        if lead.deadline is not None and lead.allow_partial:
            seconds = min(seconds, max(lead.deadline - now, 1e-3))
        prefix, each = _costs(batch)
        wanted, fitting = max(job.todo for job in batch), seconds / max(each, 1e-9)
        passes = wanted if wanted <= fitting else power_of_two(fitting)
        before = {job: job.run.passes for job in batch}
        lead.mc.advance([job.run for job in batch], passes, () if lead.exact else lead.pace.batch_sizes)
        if lead.mc.device.type == "cuda":
            torch.cuda.synchronize(lead.mc.device)  # launched is not computed
        took = time.monotonic() - now
        computed = {job: job.run.passes - before[job] for job in batch}
        predicted = prefix + each * max(computed.values())
        lead.pace.learn(predicted, took, shape=lead.shape)
        for job in batch:
            job.computed += took
        if self._watch is not None:
            samples = sum(job.run.rows * n for job, n in computed.items())
            self._watch.computed(
                batch, passes=max(computed.values()), samples=samples, seconds=took, reason=self._reason
            )

    def _outcomes(self, batch: list[Job]) -> list[tuple[Job, Any]]:
        """Answers of the jobs that are done, and of those that cannot be."""
        told: list[tuple[Job, Any]] = []
        for job in batch:
            try:
                if not job.step():
                    continue
                if job.done:
                    told.append((job, job.finish(job.result(), job)))
                elif job.estimate is not None and job.news():
                    self._on_loop(job, functools.partial(job.estimate, job.finish(job.result(), job)))
            except Exception as error:
                told.append((job, error))
        return told

    def _blame(self, batch: list[Job], error: Exception) -> list[tuple[Job, Any]]:
        """Whose error it is: that of a job alone; of several, each is computed again by itself once."""
        if "CUDA error" in str(error) and not is_out_of_memory(error):
            self._broken = f"The device has failed and needs a new process: {error}"
        if len(batch) == 1:
            return [(batch[0], _explained(error))]
        log.warning(
            "%d requests failed together (%s: %s); each is tried alone", len(batch), type(error).__name__, error
        )
        told: list[tuple[Job, Any]] = []
        for job in batch:
            try:
                job.alone = True
                job.restart()
            except Exception as again:
                told.append((job, again))
        return told

    def _expire(self, late: list[Job]) -> None:
        """Answer those whose deadline has come: with the best so far, or not at all."""
        told: list[tuple[Job, Any]] = []
        for job in late:
            try:
                best = job.best() if job.allow_partial else None
                if best is None:
                    raise DeadlineError(
                        f"The deadline came {'before' if job.began is None else 'while'} this prediction was computed. "
                        "Allow more time, ask for fewer passes, or set allow_partial for the best answer so far."
                    )
                job.partial = True
                told.append((job, job.finish(best, job)))
            except Exception as error:
                told.append((job, error))
        with self._changed:
            for job in late:
                self._let_go(job)
            self._in_hand = []
        for job in late:
            self._saved(job)
        self._tell(told)

    def _run_errand(self, errand: Errand) -> None:
        future = errand.future
        if future.done():
            errand.steps.close()
            return
        try:
            next(errand.steps)
        except StopIteration as stop:
            self._tell([(errand, stop.value)])
        except Exception as error:
            self._tell([(errand, error)])
        else:
            with self._changed:
                self._begun.append(errand)

    def _end(self) -> None:
        """Answer whatever is left."""
        error = NotReadyError("The server stopped before this request was finished. Send it again.")
        with self._changed:
            self._stopping = True
            left = list(self._pending)
            errands = [item for item in (*self._begun, *self._in_hand) if isinstance(item, Errand)]
            for job in left:
                self._let_go(job)
        for errand in errands:
            errand.steps.close()
        told: list[tuple[Job | Errand, Any]] = [(job, error) for job in left]
        self._tell(told + [(errand, error) for errand in errands])

    # ---- telling

    def _let_go(self, job: Job) -> None:
        """Give back what a job holds. With the lock held, once per job."""
        if job in self._pending:
            self._pending.remove(job)
            self._cost = self._cost - job.cost if self._pending else 0.0

    def _saved(self, job: Job) -> None:
        if self._watch is not None:
            self._watch.saved(job)

    def _tell(self, told: Iterable[tuple[Job | Errand, Any]]) -> None:
        """Settle futures on their loops, all of one loop in one call."""
        by_loop = defaultdict(list)
        for job, outcome in told:
            by_loop[job.future.get_loop()].append((job.future, outcome))
        for loop, settled in by_loop.items():
            _call(loop, functools.partial(_settle, settled))

    def _on_loop(self, job: Job, call: Callable[[], Any]) -> None:
        _call(job.future.get_loop(), lambda: job.future.done() or call())


def _costs(jobs: Sequence[Job]) -> tuple[float, float]:
    """Predicted seconds of the prefixes that are missing, and of a pass, of jobs that are computed together."""
    lead = jobs[0]
    if lead.exact:
        return lead.pace.prefix(1, lead.shape), lead.pace.each(1, lead.shape)
    side_by_side: dict[Any, int] = defaultdict(int)
    for job in jobs:
        side_by_side[job.run.seed, job.run.masks] += job.run.computed_rows
    missing = sum(job.run.computed_rows for job in jobs if not job.run.begun)
    each = sum(lead.pace.each(rows, lead.shape) for rows in side_by_side.values())
    return lead.pace.prefix(missing, lead.shape), each


def _predicted(jobs: Sequence[Job]) -> float:
    """Predicted seconds until all of these jobs are at their next level."""
    prefix, each = _costs(jobs)
    return prefix + each * max(job.todo for job in jobs)


def _settle(settled: list[tuple["asyncio.Future[Any]", Any]]) -> None:
    for future, outcome in settled:
        if future.done():
            continue
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)


def _call(loop: asyncio.AbstractEventLoop, call: Callable[[], Any]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
        loop.call_soon_threadsafe(call)


def _explained(error: Exception) -> Exception:
    if isinstance(error, IndexError):  # what an embedding raises; the rules for inputs do not know its size
        explained = InputError(
            f"The network cannot compute with these inputs: {error}. "
            "Whole numbers that select something (token ids) have to be in its range."
        )
        explained.__cause__ = error
        return explained
    return error
