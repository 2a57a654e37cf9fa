"""The one thread that computes on a device, and what it does next.

Work arrives as generators: each `next` is one slice of work, a `return` is the result. The thread gives every waiting
piece of work one slice in turn, so a small request is not held up by a large one, and drops work nobody waits for any
more. The event loop only waits for futures.
"""

import asyncio
import contextlib
import functools
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from service.errors import NotReadyError, OverloadedError
from service.settings import raise_limit

log = logging.getLogger("service.scheduler")

Result = TypeVar("Result")
Steps = Generator[None, None, Result]


@dataclass(eq=False)
class _Work(Generic[Result]):
    steps: Steps[Result]
    future: "asyncio.Future[Result]"
    loop: asyncio.AbstractEventLoop

    def step(self) -> Callable[[], None] | None:
        """Do one slice. When nothing is left to do, what tells the caller so; else None."""
        if self.future.done():  # cancelled: nobody waits
            self.steps.close()
            return lambda: None
        try:
            next(self.steps)
        except StopIteration as stop:
            return functools.partial(self._tell, self.future.set_result, stop.value)
        except Exception as error:
            return functools.partial(self._tell, self.future.set_exception, error)
        return None

    def abandon(self, error: Exception) -> None:
        """End the work with `error` instead of a result."""
        self.steps.close()
        self._tell(self.future.set_exception, error)

    def _tell(self, settle: Callable[[Any], None], outcome: Any) -> None:
        def on_loop() -> None:
            if not self.future.done():
                settle(outcome)

        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self.loop.call_soon_threadsafe(on_loop)


class Scheduler:
    """Owner of the thread. `start`, any number of `finish`, `stop`."""

    def __init__(self, *, max_pending: int, threads: int | None = None) -> None:
        self._max_pending = max_pending
        self._threads = threads
        self._waiting: deque[_Work[Any]] = deque()
        self._unfinished = 0  # waiting, and the one in hand
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._compute, name="mcdrop-inference", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether the thread runs; if it does not, the process is of no use."""
        return self._thread.is_alive()

    @property
    def pending(self) -> int:
        """How much work waits or is in hand."""
        return self._unfinished

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

    async def finish(self, steps: Steps[Result]) -> Result:
        """The result of `steps`, computed on the thread. Cancelling the caller ends the work after its present slice.

        Raises OverloadedError when too much work waits, and whatever `steps` raises.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        work = _Work(steps, future, loop)
        with self._changed:
            if self._stopping:
                raise NotReadyError("The server is stopping. Send the request to another one, or again later.")
            if self._unfinished >= self._max_pending:
                raise OverloadedError(
                    f"{self._unfinished} requests are waiting, as many as this server holds. Try again in a moment, "
                    f"or raise {raise_limit('max_pending')}."
                )
            self._unfinished += 1
            self._waiting.append(work)
            self._changed.notify()
        return await future

    def _compute(self) -> None:
        threads = self._threads or _threads_within_quota()
        if threads is not None:
            torch.set_num_threads(threads)
        log.info("computing with %d CPU threads", torch.get_num_threads())
        try:
            while (work := self._next()) is not None:
                tell = work.step()
                with self._changed:
                    if tell is None:
                        self._waiting.append(work)
                    else:
                        self._unfinished -= 1  # before the caller hears of it, who may come again at once
                if tell is not None:
                    tell()
        finally:
            for work in self._waiting:
                work.abandon(NotReadyError("The server stopped before this request was finished. Send it again."))

    def _next(self) -> _Work[Any] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._stopping)
            return None if self._stopping else self._waiting.popleft()


def _threads_within_quota() -> int | None:
    """CPU threads under a container's CPU limit, or None without one: more threads than that are throttled.

    One CPU is left to the event loop. OMP_NUM_THREADS, where set, is left alone.
    """
    if "OMP_NUM_THREADS" in os.environ:
        return None
    limit = Path("/sys/fs/cgroup/cpu.max")  # cgroup v2: "quota period" in microseconds, or "max period"
    try:
        quota, period = limit.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else max(1, int(quota) // int(period) - 1)
