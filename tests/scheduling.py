"""Jobs on an engine that a test can hold, break and watch, for tests of the scheduler."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from engines import ArithmeticEngine, Law, counted_from_seed
from mcdrop.answering.runs import Run
from mcdrop.answering.sampling import Sampler
from mcdrop.outputs.tasks import Task
from mcdrop.streaming.moments import accumulator
from service.jobs import Job
from service.pace import Pace
from service.scheduler import Scheduler
from service.tally import Tally


class Steady(Pace):
    """Learns nothing from slices that a test has held."""

    def learn(self, predicted: float, seconds: float, *, shape: Any = None) -> None:
        pass


class Model:
    """What a job needs of an MCDropout. `gate` holds every advance, `fault(runs)` may raise, `log` has what ran."""

    name, version = "test", "1"
    device = torch.device("cpu")

    def __init__(self, law: Law = counted_from_seed) -> None:
        self.sampler = Sampler(ArithmeticEngine(law), [True], 10**9)
        self.pace, self.tally = Steady(), Tally()
        for size in (1, 2, 4, 8):
            self.pace.measure(size, prefix=1e-4 * size, each=1e-4 * size)
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.fault: Callable[[list[Run]], None] = lambda runs: None
        self.log: list[tuple[list[int], int | None]] = []  # rows of the runs of each advance, and passes at most

    def split(self, run: Run, rows: int) -> list[Run]:
        return self.sampler.split(run, rows)

    def advance(self, runs: list[Run], budget: int | None, batch_sizes: Sequence[int]) -> None:
        self.entered.set()
        assert self.gate.wait(60)
        self.log.append(([run.rows for run in runs], budget))
        self.fault(runs)
        self.sampler.advance(runs, budget, batch_sizes)

    def job(
        self,
        rows: int = 1,
        num_samples: int = 10,
        *,
        seed: int = 0,
        value: float = 0.0,
        exact: bool = False,
        **keywords: Any,
    ) -> Job:
        """A job whose answer is the prediction itself. Inside a running event loop."""

        def start() -> Run:
            def sink() -> Any:
                return accumulator(Task("raw"), num_samples=num_samples)

            x = torch.full((rows, 2), value)
            return self.sampler.start(
                [x], rows=rows, num_samples=num_samples, seed=seed, masks="shared", make_sink=sink, kind=(), exact=exact
            )

        def finish(result: Any, job: Job) -> Any:
            return result if not isinstance(result, tuple) else result.whole[result.rows]

        future = asyncio.get_running_loop().create_future()
        keywords = {"arrived": time.monotonic(), **keywords}
        return Job(self, self, self.pace, start, finish, future, **keywords)  # type: ignore[arg-type]


def assert_right(answer: Any, job: Job, *, value: float = 0.0, seed: int = 0, passes: int | None = None) -> None:
    """The prediction is that of `passes` passes (all if None)."""
    count = job.num_samples if passes is None else passes
    assert answer.num_samples == count
    assert answer.mean.shape == (job.rows, 2)
    times = torch.arange(float(count)) + value + seed
    torch.testing.assert_close(answer.mean, times.mean().expand(job.rows, 2), check_dtype=False)
    torch.testing.assert_close(answer.variance, times.var().expand(job.rows, 2), check_dtype=False)


@contextmanager
def running(max_pending: int = 100, **keywords: Any) -> Iterator[Scheduler]:
    """A scheduler that is stopped at the end and holds nothing then."""
    scheduler = Scheduler(max_pending=max_pending, **keywords)
    scheduler.start()
    try:
        yield scheduler
    finally:
        scheduler.stop()
        assert scheduler.trouble is not None
        assert scheduler.pending == 0
        assert scheduler.cost == 0


async def submitted(scheduler: Scheduler, *jobs: Job) -> list[Any]:
    """Submit and wait for the outcomes, results or exceptions."""
    for job in jobs:
        scheduler.submit(job)
    async with asyncio.timeout(60):
        return await asyncio.gather(*(job.future for job in jobs), return_exceptions=True)
