"""The scheduler as a state machine: in whatever order things happen, each job has one answer, and costs go to zero."""

import asyncio
import threading
import time
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mcdrop.answering.runs import Run
from scheduling import Model, assert_right
from service.errors import DeadlineError, NotReadyError, OverloadedError
from service.jobs import Job
from service.scheduler import Scheduler

MOST = 12  # jobs pending
POISON = 666.0


class Machine(RuleBasedStateMachine):
    """Submit, hold, cancel, fail, expire, stop; the loop runs in a thread of its own, as in a server."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.model = Model()
        for size in (1, 2, 4, 8):
            self.model.pace.measure(size, prefix=1e-3 * size, each=1e-3 * size)  # many slices
        self.model.fault = self.fault
        self.broken = False
        self.scheduler = Scheduler(max_pending=MOST)
        self.scheduler.start()
        self.stopped = False
        self.jobs: list[tuple[Job, float, int]] = []
        self.answers: dict[Job, int] = {}
        self.withdrawn: set[Job] = set()

    def fault(self, runs: list[Run]) -> None:
        if any(float(run.inputs[0][0, 0]) == POISON for run in runs):
            raise RuntimeError("poisoned")
        if self.broken and sum(run.rows for run in runs) > 4:
            raise MemoryError("no room")

    def on_loop(self, call: Any) -> Any:
        async def run() -> Any:
            return call()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(30)

    @rule(
        rows=st.integers(1, 20),
        passes=st.integers(2, 300),
        seed=st.integers(0, 1),
        value=st.sampled_from([0.0, 1.0, POISON]),
        exact=st.booleans(),
        kind=st.sampled_from(["plain", "stream", "deadline", "partial"]),
    )
    def submit(self, rows: int, passes: int, seed: int, value: float, exact: bool, kind: str) -> None:
        estimates: list[Any] = []
        keywords: dict[str, Any] = {
            "plain": {},
            "stream": {"estimate": estimates.append},
            "deadline": {"deadline": time.monotonic() + 0.002},
            "partial": {"deadline": time.monotonic() + 0.002, "allow_partial": True},
        }[kind]

        def call() -> Job | None:
            job = self.model.job(rows, passes, seed=seed, value=value, exact=exact, **keywords)
            self.answers[job] = 0
            job.future.add_done_callback(lambda _: self.answers.__setitem__(job, self.answers[job] + 1))
            try:
                self.scheduler.submit(job)
            except OverloadedError:
                assert self.scheduler.pending >= MOST
                return None
            except NotReadyError:
                assert self.stopped
                return None
            return job

        job = self.on_loop(call)
        if job is not None:
            self.jobs.append((job, value, seed))

    @rule(number=st.integers(0, 30))
    def withdraw(self, number: int) -> None:
        if self.jobs:
            job = self.jobs[number % len(self.jobs)][0]
            self.on_loop(lambda: self.scheduler.withdraw(job))
            self.withdrawn.add(job)

    @rule(values=st.lists(st.sampled_from([0.0, 1.0, POISON]), min_size=2, max_size=5), stream=st.booleans())
    def crowd(self, values: list[float], stream: bool) -> None:
        self.model.gate.clear()
        for value in (0.0, *values):
            self.submit(1, 20, 0, value, False, "stream" if stream else "plain")
        self.model.gate.set()

    @rule(rows=st.integers(1, 20))
    def withdraw_in_hand(self, rows: int) -> None:
        self.model.gate.clear()
        self.model.entered.clear()
        self.submit(rows, 300, 0, 0.0, False, "plain")
        self.model.entered.wait(0.01)
        for job in list(self.scheduler._in_hand):
            self.on_loop(lambda job=job: self.scheduler.withdraw(job))
            self.withdrawn.add(job)
        self.model.gate.set()

    @rule()
    def hold(self) -> None:
        self.model.gate.clear()

    @rule()
    def release(self) -> None:
        self.model.gate.set()

    @rule(broken=st.booleans())
    def memory(self, broken: bool) -> None:
        self.broken = broken

    @rule(seconds=st.sampled_from([0.0, 0.001, 0.005]))
    def wait(self, seconds: float) -> None:
        time.sleep(seconds)

    @rule()
    def stop(self) -> None:
        self.model.gate.set()
        self.scheduler.stop()
        self.stopped = True

    @invariant()
    def bounded(self) -> None:
        assert 0 <= self.scheduler.pending <= MOST
        assert self.scheduler.cost >= -1e-9

    def teardown(self) -> None:
        self.model.gate.set()
        try:
            for job, value, seed in self.jobs:
                self.check(job, value, seed)
            assert self.scheduler.pending == 0
            assert self.scheduler.cost == 0
        finally:
            self.scheduler.stop()
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.thread.join()
            self.loop.close()

    def check(self, job: Job, value: float, seed: int) -> None:
        """One answer, and the right one."""

        async def outcome() -> Any:
            async with asyncio.timeout(30):
                await asyncio.wait([job.future])
                await asyncio.sleep(0)  # callbacks
            return None if job.future.cancelled() else job.future.exception() or job.future.result()

        found = asyncio.run_coroutine_threadsafe(outcome(), self.loop).result(60)
        assert self.answers[job] == 1
        if found is None:
            assert job in self.withdrawn
        elif isinstance(found, NotReadyError):
            assert self.stopped
        elif isinstance(found, DeadlineError):
            assert job.deadline is not None
        elif isinstance(found, MemoryError):
            assert job.rows > 4
        elif isinstance(found, RuntimeError):
            assert value == POISON
        else:
            assert value != POISON
            assert_right(found, job, value=value, seed=seed, passes=found.num_samples)
            assert found.num_samples == job.num_samples or job.partial


TestMachine = Machine.TestCase
TestMachine.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
