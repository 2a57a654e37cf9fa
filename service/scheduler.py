"""The one thread that computes on a device, and what it does next.

Jobs arrive from the event loop and wait in a backlog; the thread computes a slice at a time of what the backlog gives
out, and nobody waits while it is free. Every job gets exactly one answer, and what it costs is given back when it has
it.
"""

import asyncio
import functools
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import torch

from mcdrop.errors import InputError
from mcdrop.surroundings.memory import is_out_of_memory
from service.backlog import Backlog, Batch, Errand, Result, Steps
from service.errors import DeadlineError, NotReadyError, OverloadedError
from service.jobs import Job
from service.pace import SLICE_SECONDS, power_of_two
from service.settings import raise_limit
from service.telling import call_unless_done, settle
from service.watch import Watch

log = logging.getLogger("service.scheduler")

_REST = 0.005  # seconds without work after which the thread looks at what it has answered
_AT_REST = 8  # answers it looks at before it looks for work again


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
        self._backlog = Backlog()
        self._in_hand: list[Job | Errand] = []
        self._pending: set[Job] = set()  # submitted and without an answer
        self._cost = 0.0  # predicted seconds of those
        self._changed = threading.Condition()
        self._stopping = False
        self._broken: str | None = None
        self._slice_began: float | None = None
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
            self._backlog.add(job)
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
            self._backlog.remove(job)
        if not in_hand:
            self._saved(job)

    async def run(self, steps: Steps[Result]) -> Result:
        """The result of other work, computed slice by slice between jobs."""
        errand = Errand(steps, asyncio.get_running_loop().create_future())
        with self._changed:
            if self._stopping:
                raise NotReadyError("The server is stopping.")
            self._backlog.add(errand)
            self._changed.notify()
        result: Result = await errand.future
        return result

    def check_count(self) -> None:
        """Raise OverloadedError when so much waits that no job whatever would be taken in."""
        if len(self._pending) >= self._max_pending:
            seconds = self._seconds_left()
            raise OverloadedError(
                f"{len(self._pending)} requests are waiting, as many as this server holds. Try again in {seconds} s, "
                f"or raise {raise_limit('max_pending')}.",
                retry_after=seconds,
            )

    def _seconds_left(self) -> int:
        """Until what waits is computed."""
        return max(1, min(60, round(self._cost)))

    def _check_room(self, job: Job) -> None:
        self.check_count()
        if self._pending and self._cost + job.cost > self._max_cost:
            seconds = self._seconds_left()
            raise OverloadedError(
                f"What is waiting here takes {self._cost:.1f} s and this request {job.cost:.1f} s, more than this "
                f"server holds. Try again in {seconds} s, or raise {raise_limit('max_pending_seconds')}.",
                retry_after=seconds,
            )

    # ---- on the thread

    def _compute(self) -> None:
        try:
            if self._prepare is not None:
                self._prepare()
            while (work := self._next()) is not None:
                with torch.no_grad():
                    if isinstance(work, Errand):
                        self._run_errand(work)
                    else:
                        self._compute_slice(work)
        except Exception:  # of no job: a fault of the server, which has to be started again
            log.exception("the inference thread has ended")
        finally:
            self._end()

    def _next(self) -> Batch | Errand | None:
        """What to compute now; None at the end. Answers what has come too late."""
        while True:
            with self._changed:
                self._in_hand = []
                self._slice_began = None
                is_behind = self._watch is not None and self._watch.is_behind
                rest = _REST if is_behind else None
                is_wanted = self._changed.wait_for(lambda: self._backlog or self._stopping, rest)
            if self._watch is not None and not is_wanted:
                self._watch.catch_up(_AT_REST)
                continue
            with self._changed:
                if self._stopping:
                    return None
                if not self._backlog:
                    continue
                now = time.monotonic()
                late = self._backlog.take_late(now)
                if not late:
                    work = self._backlog.take_next()
                    self._in_hand = [work] if isinstance(work, Errand) else list(work.jobs)
                    self._slice_began = now
                    return work
                self._in_hand = list(late)
            self._expire(late)

    def _compute_slice(self, batch: Batch) -> None:
        gone = [job for job in batch.jobs if job.future.done()]
        jobs = [job for job in batch.jobs if not job.future.done()]
        told = self._refused(jobs)
        refused = {job for job, _ in told}
        if sound := [job for job in jobs if job not in refused]:
            try:
                self._advance(batch, sound)
            except Exception as error:
                told += self._blame(sound, error)
            else:
                told += self._outcomes(sound)
        settled = {job for job, _ in told}
        with self._changed:
            for job in jobs:
                if job in settled:
                    continue
                if job.future.done():
                    gone.append(job)
                else:
                    self._cost -= job.give_back()
                    self._backlog.add(job)
            for job in (*settled, *gone):
                self._let_go(job)
            self._in_hand = []
        for job in gone:
            self._saved(job)
        self._answer(told)

    @staticmethod
    def _refused(jobs: list[Job]) -> list[tuple[Job, Any]]:
        """Those that begin now and fail their check, with what is wrong."""
        refused: list[tuple[Job, Any]] = []
        for job in jobs:
            if job.began is None and job.check is not None:
                try:
                    job.check()
                except Exception as error:
                    refused.append((job, _explained(error)))
        return refused

    def _advance(self, batch: Batch, jobs: list[Job]) -> None:
        lead, now = jobs[0], time.monotonic()
        for job in jobs:
            if job.began is None:
                job.began = now
                if self._watch is not None:
                    self._watch.started(job)
        seconds = SLICE_SECONDS
        if lead.deadline is not None and lead.allow_partial:
            seconds = min(seconds, max(lead.deadline - now, 1e-3))
        fitting = seconds / max(batch.each, 1e-9)
        passes = batch.todo if batch.todo <= fitting else power_of_two(fitting)
        before = {job: (job.run.passes, job.run.work) for job in jobs}
        lead.mc.advance([job.run for job in jobs], passes, () if lead.exact else lead.pace.batch_sizes)
        if lead.mc.device.type == "cuda":
            torch.cuda.synchronize(lead.mc.device)  # launched is not computed
        took = time.monotonic() - now
        most = max(job.run.passes - before[job][0] for job in jobs)
        lead.pace.learn(batch.prefix + batch.each * most, took, shape=lead.shape)
        for job in jobs:
            job.computed += took
        if self._watch is not None:
            samples = sum(job.run.work - before[job][1] for job in jobs)
            reason = "full" if batch.is_full else "idle"
            self._watch.computed(jobs, passes=most, samples=samples, seconds=took, reason=reason)

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
                    call_unless_done(job.future, functools.partial(job.estimate, job.finish(job.result(), job)))
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
                    hint = "send fewer rows" if job.allow_partial else "set allow_partial for the best answer so far"
                    raise DeadlineError(
                        f"The deadline came {'before' if job.began is None else 'while'} this prediction was computed. "
                        f"Allow more time, ask for fewer passes, or {hint}."
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
        self._answer(told)

    def _run_errand(self, errand: Errand) -> None:
        future = errand.future
        if future.done():
            errand.steps.close()
            return
        try:
            next(errand.steps)
        except StopIteration as stop:
            settle([(future, stop.value)])
        except Exception as error:
            settle([(future, error)])
        else:
            with self._changed:
                self._backlog.add(errand)

    def _end(self) -> None:
        """Answer whatever is left."""
        error = NotReadyError("The server stopped before this request was finished. Send it again.")
        with self._changed:
            self._stopping = True
            left = list(self._pending)
            errands = [item for item in (*self._backlog, *self._in_hand) if isinstance(item, Errand)]
            for job in left:
                self._let_go(job)
        for errand in errands:
            errand.steps.close()
        settle([(job.future, error) for job in left])
        settle([(errand.future, error) for errand in errands])

    # ---- with the lock held, and without

    def _let_go(self, job: Job) -> None:
        """Give back what a job holds. With the lock held, once per job."""
        if job in self._pending:
            self._pending.remove(job)
            self._cost = self._cost - job.cost if self._pending else 0.0

    def _answer(self, told: list[tuple[Job, Any]]) -> None:
        """Give jobs their outcomes, and only then look at them: nobody waits for that."""
        settle((job.future, outcome) for job, outcome in told)
        if self._watch is not None:
            for job, outcome in told:
                if not isinstance(outcome, Exception):
                    self._watch.answered(job)

    def _saved(self, job: Job) -> None:
        if self._watch is not None:
            self._watch.saved(job)


def _explained(error: Exception) -> Exception:
    if isinstance(error, IndexError):  # what an embedding raises; the rules for inputs do not know its size
        explained = InputError(
            f"The network cannot compute with these inputs: {error}. "
            "Whole numbers that select something (token ids) have to be in its range."
        )
        explained.__cause__ = error
        return explained
    return error
