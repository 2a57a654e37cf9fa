"""The inference thread: batches, turns, deadlines, failures, clients that leave, an end in order."""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Generator
from typing import Any

import pytest
import torch

from mcdrop.answering.runs import Run
from mcdrop.errors import InputError, PassMemoryError
from scheduling import Model, assert_right, running, submitted
from service.app import create_app
from service.errors import DeadlineError, NotReadyError, OverloadedError
from service.jobs import Job
from service.scheduler import Scheduler
from serving import settings


def steps(count: int) -> Generator[None, None, int]:
    """Other work of `count` slices."""
    for _ in range(count):
        yield
    return count


async def held(scheduler: Scheduler, model: Model) -> "asyncio.Future[bytes]":
    """A job in hand that lasts until the gate opens, so that what is submitted meanwhile waits together."""
    model.gate.clear()
    model.entered.clear()
    job = model.job()
    scheduler.submit(job)
    await asyncio.to_thread(model.entered.wait, 30)
    model.log.clear()
    return job.future


# ---- batches


def test_a_request_costs_no_more_than_until_its_deadline():
    model = Model()

    async def talk() -> None:
        assert model.job(8, 10**6).cost > 100
        assert 9 < model.job(8, 10**6, deadline=time.monotonic() + 10).cost <= 10
        assert model.job(8, 10**6, deadline=time.monotonic() - 1).cost == 0

    asyncio.run(talk())


def test_a_request_without_rows_is_predicted_to_take_what_one_row_takes(monkeypatch):
    model, predicted = Model(), []
    monkeypatch.setattr(model.pace, "learn", lambda seconds, *_, **__: predicted.append(seconds))

    async def talk(scheduler: Scheduler) -> None:
        without, one = model.job(0), model.job(1)
        assert without.cost == one.cost > 0
        await submitted(scheduler, without)
        await submitted(scheduler, one)

    with running() as scheduler:
        asyncio.run(talk(scheduler))
    assert predicted[0] == predicted[1] > 0


@pytest.mark.parametrize("seeds", [(0, 0, 0, 0), (1, 2, 3, 4), (0, 1, 0, 1)])
def test_what_waits_is_computed_together_and_each_gets_its_own(seeds):
    model = Model()

    async def talk(scheduler: Scheduler) -> None:
        first = await held(scheduler, model)
        jobs = [
            model.job(rows, passes, seed=seed, value=number)
            for number, (rows, passes, seed) in enumerate(zip((1, 2, 1, 3), (10, 10, 5, 40), seeds, strict=True))
        ]
        model.gate.set()
        answers = await submitted(scheduler, *jobs)
        await first
        for number, (answer, job, seed) in enumerate(zip(answers, jobs, seeds, strict=True)):
            assert_right(answer, job, value=number, seed=seed)

    with running() as scheduler:
        asyncio.run(talk(scheduler))
    assert [rows for rows, _ in model.log[1:2]] == [[1, 2, 1, 3]]


def test_a_batch_stays_below_its_limits():
    model = Model()

    async def talk(scheduler: Scheduler) -> None:
        first = await held(scheduler, model)
        jobs = [model.job(rows) for rows in (3, 3, 3, 1, 2)]
        model.gate.set()
        for answer, job in zip(await submitted(scheduler, *jobs), jobs, strict=True):
            assert_right(answer, job)
        await first

    with running() as scheduler:
        asyncio.run(talk(scheduler))
    assert [rows for rows, _ in model.log[1:]] == [[3, 3, 1], [3, 2]]


def test_an_exact_job_is_computed_alone():
    model = Model()

    async def talk(scheduler: Scheduler) -> None:
        first = await held(scheduler, model)
        jobs = [model.job(), model.job(2, exact=True), model.job()]
        model.gate.set()
        for answer, job in zip(await submitted(scheduler, *jobs), jobs, strict=True):
            assert_right(answer, job)
        await first

    with running() as scheduler:
        asyncio.run(talk(scheduler))
    assert sorted(len(rows) for rows, _ in model.log[1:]) == [1, 1, 2]  # two rows by themselves, and a pair


# ---- turns


def test_a_small_request_overtakes_a_large_one_and_does_not_starve_it():
    model, order, waiting = Model(), [], threading.Semaphore(1)

    async def talk(scheduler: Scheduler) -> None:
        large = model.job(80, 4000)
        large.future.add_done_callback(lambda _: order.append("large"))
        scheduler.submit(large)
        for _ in range(20):
            scheduler.submit(small := model.job())
            waiting.release()
            await small.future
            order.append("small")
        model.fault = lambda runs: None
        waiting.release()
        assert_right(await large.future, large)

    def fault(runs: list[Run]) -> None:
        """But for its first, a slice of the large one lasts until another small one waits."""
        if runs[0].rows > 1:
            assert waiting.acquire(timeout=60)

    model.fault = fault
    with running() as scheduler:
        asyncio.run(talk(scheduler))
    assert order == ["small"] * 20 + ["large"]
    turns = "".join("L" if rows[0] > 1 else "s" for rows, _ in model.log)
    assert turns.strip("L") == "L".join("s" * 20)  # and none waited for more than one slice of the large one


def test_a_slice_takes_no_more_passes_than_fit():
    model = Model()

    async def talk(scheduler: Scheduler) -> None:
        job = model.job(8, 5000)
        assert_right((await submitted(scheduler, job))[0], job)

    with running() as scheduler:
        asyncio.run(talk(scheduler))
    first = model.log[0][1]
    assert first is not None
    assert first * 8e-4 <= 0.05 < 4 * first * 8e-4


# ---- deadlines


def test_late_work_is_never_started():
    model = Model()

    async def talk(scheduler: Scheduler) -> None:
        first = await held(scheduler, model)
        late = model.job(deadline=time.monotonic() + 0.05)
        scheduler.submit(late)
        await asyncio.sleep(0.1)
        model.gate.set()
        with pytest.raises(DeadlineError, match="before this prediction was computed"):
            await late.future
        await first

    with running() as scheduler:
        asyncio.run(talk(scheduler))
    assert len(model.log) == 1


def late_after(slices: int, model: Model, job: Job) -> None:
    """The deadline of a job comes with that many slices, and not before."""

    def fault(runs: list[Run]) -> None:
        if len(model.log) == slices:
            job.deadline = time.monotonic()

    model.fault = fault


@pytest.mark.parametrize("rows", [1, 20])
def test_the_best_so_far_when_the_deadline_comes(rows):
    model = Model()

    async def talk(scheduler: Scheduler) -> None:
        job = model.job(rows, 10**6, allow_partial=True)
        late_after(5, model, job)
        (answer,) = await submitted(scheduler, job)
        assert job.partial
        assert 2 <= answer.num_samples < 10**6
        assert_right(answer, job, passes=answer.num_samples)

    with running() as scheduler:
        asyncio.run(talk(scheduler))
    assert len(model.log) == 5


def test_a_deadline_before_any_pass_says_what_else_would_help():
    model = Model()

    async def talk(scheduler: Scheduler) -> None:
        past = time.monotonic() - 1
        partial, whole = (model.job(1, 10**6, deadline=past, allow_partial=allowed) for allowed in (True, False))
        errors = await submitted(scheduler, partial, whole)
        assert [type(error) for error in errors] == [DeadlineError, DeadlineError]
        assert "ask for fewer passes, or send fewer rows." in str(errors[0])
        assert "ask for fewer passes, or set allow_partial" in str(errors[1])

    with running() as scheduler:
        asyncio.run(talk(scheduler))


def test_without_partial_answers_a_deadline_is_an_error():
    model = Model()

    async def talk(scheduler: Scheduler) -> None:
        job = model.job(1, 10**6)
        late_after(2, model, job)
        (error,) = await submitted(scheduler, job)
        assert isinstance(error, DeadlineError)
        assert "while this prediction was computed" in str(error)

    with running() as scheduler:
        asyncio.run(talk(scheduler))
    assert len(model.log) == 2


# ---- estimates


@pytest.mark.parametrize("rows", [1, 20])
def test_estimates_on_the_way(rows):
    model, estimates = Model(), []

    async def talk(scheduler: Scheduler) -> None:
        job = model.job(rows, 50, estimate=estimates.append)
        (answer,) = await submitted(scheduler, job)
        assert_right(answer, job)
        for estimate in estimates:
            assert_right(estimate, job, passes=estimate.num_samples)

    with running() as scheduler:
        asyncio.run(talk(scheduler))
    assert [estimate.num_samples for estimate in estimates] == [8, 16, 32]


# ---- who leaves


def test_who_leaves_while_waiting_costs_nothing_from_then_on():
    model = Model()

    async def talk(scheduler: Scheduler) -> None:
        first = await held(scheduler, model)
        job = model.job(8, 1000)
        before = scheduler.cost
        scheduler.submit(job)
        assert scheduler.cost > before
        scheduler.withdraw(job)
        assert scheduler.cost == pytest.approx(before)
        assert scheduler.pending == 1
        model.gate.set()
        await first

    with running() as scheduler:
        asyncio.run(talk(scheduler))
    assert len(model.log) == 1


def test_who_leaves_is_not_written_out(monkeypatch):
    """A job holds its inputs: hundreds that were written into errors kept the event loop busy for seconds."""

    def written(job: Job) -> str:
        raise AssertionError("written out")

    model = Model()
    monkeypatch.setattr(Job, "__repr__", written)

    async def talk(scheduler: Scheduler) -> None:
        first = await held(scheduler, model)
        scheduler.submit(job := model.job())
        scheduler.withdraw(job)
        model.gate.set()
        await first

    with running() as scheduler:
        asyncio.run(talk(scheduler))


def test_who_leaves_while_computing_costs_one_slice_more():
    model = Model()

    async def talk(scheduler: Scheduler) -> None:
        model.gate.clear()
        job = model.job(8, 10**9)
        scheduler.submit(job)
        await asyncio.to_thread(model.entered.wait, 30)
        scheduler.withdraw(job)
        assert scheduler.cost == 0
        model.gate.set()
        other = model.job()
        assert_right((await submitted(scheduler, other))[0], other)
        assert scheduler.pending == 0

    with running() as scheduler:
        asyncio.run(talk(scheduler))
    assert [rows for rows, _ in model.log] == [[8], [1]]


# ---- failures


def poison(runs: list[Run]) -> None:
    if any(float(run.inputs[0][0, 0]) == 666 for run in runs):
        raise RuntimeError("poisoned")


def test_the_poisonous_one_in_a_batch_is_found():
    model = Model()
    model.fault = poison

    async def talk(scheduler: Scheduler) -> None:
        first = await held(scheduler, model)
        jobs = [model.job(value=value) for value in (0.0, 666.0, 1.0)]
        model.gate.set()
        answers = await submitted(scheduler, *jobs)
        await first
        assert_right(answers[0], jobs[0])
        assert_right(answers[2], jobs[2], value=1)
        assert isinstance(answers[1], RuntimeError)

    with running() as scheduler:
        asyncio.run(talk(scheduler))
        assert scheduler.trouble is None
    assert [rows for rows, _ in model.log] == [[1], [1, 1, 1], [1], [1], [1]]  # each again by itself, once


@pytest.mark.parametrize("error", [PassMemoryError("no room"), MemoryError(), torch.OutOfMemoryError("no room")])
def test_memory_that_one_request_lacks_harms_no_other(error):
    model = Model()

    def fault(runs: list[Run]) -> None:
        if sum(run.rows for run in runs) > 2:
            raise error

    model.fault = fault

    async def talk(scheduler: Scheduler) -> None:
        first = await held(scheduler, model)
        jobs = [model.job(1), model.job(2), model.job(5)]
        model.gate.set()
        answers = await submitted(scheduler, *jobs)
        await first
        assert_right(answers[0], jobs[0])
        assert_right(answers[1], jobs[1])
        assert answers[2] is error

    with running() as scheduler:
        asyncio.run(talk(scheduler))


def test_an_answer_that_cannot_be_written_is_an_error_of_that_request():
    model = Model()

    async def talk(scheduler: Scheduler) -> None:
        job, other = model.job(), model.job()

        def broken(result: Any, job: Any) -> Any:
            raise ValueError("cannot be written")

        job.finish = broken
        error, answer = await submitted(scheduler, job, other)
        assert isinstance(error, ValueError)
        assert_right(answer, other)

    with running() as scheduler:
        asyncio.run(talk(scheduler))


def test_token_ids_out_of_range_are_the_callers_fault():
    model = Model()

    def fault(runs: list[Run]) -> None:
        raise IndexError("index out of range in self")

    model.fault = fault

    async def talk(scheduler: Scheduler) -> None:
        (error,) = await submitted(scheduler, model.job())
        assert isinstance(error, InputError)
        assert "token ids" in str(error)

    with running() as scheduler:
        asyncio.run(talk(scheduler))


def test_a_device_that_has_failed_is_no_longer_live():
    model = Model()

    def fault(runs: list[Run]) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    model.fault = fault

    async def talk(scheduler: Scheduler) -> None:
        await submitted(scheduler, model.job())

    with running() as scheduler:
        assert scheduler.trouble is None
        asyncio.run(talk(scheduler))
        assert "The device has failed" in str(scheduler.trouble)


def test_a_thread_that_is_stuck_is_no_longer_live():
    model = Model()

    async def talk(scheduler: Scheduler) -> None:
        first = await held(scheduler, model)
        await asyncio.sleep(0.1)
        assert "busy with one slice" in str(scheduler.trouble)
        model.gate.set()
        await first

    with running(stuck_seconds=0.05) as scheduler:
        asyncio.run(talk(scheduler))
        until = time.monotonic() + 30
        while scheduler.trouble is not None and time.monotonic() < until:
            time.sleep(0.01)  # until the thread has left the slice
        assert scheduler.trouble is None


# ---- room


def test_a_full_queue_refuses_at_once():
    model = Model()

    async def talk(scheduler: Scheduler) -> None:
        first = await held(scheduler, model)
        scheduler.submit(second := model.job())
        with pytest.raises(OverloadedError, match=r"2 requests are waiting.*max_pending \(MCDROP_MAX_PENDING\)"):
            scheduler.submit(model.job())
        model.gate.set()
        await asyncio.gather(first, second.future)
        await submitted(scheduler, model.job())

    with running(max_pending=2) as scheduler:
        asyncio.run(talk(scheduler))


def test_a_queue_that_takes_too_long_refuses_at_once_and_says_for_how_long():
    model = Model()

    async def talk(scheduler: Scheduler) -> None:
        first = await held(scheduler, model)
        scheduler.submit(large := model.job(8, 4000))
        with pytest.raises(OverloadedError, match="max_pending_seconds") as caught:
            scheduler.submit(model.job(8, 4000))
        assert caught.value.retry_after == 3
        model.gate.set()
        scheduler.withdraw(large)
        await first

    with running(max_pending_seconds=4) as scheduler:
        asyncio.run(talk(scheduler))


def test_a_request_that_is_more_than_the_queue_holds_is_served_when_there_is_no_other():
    model = Model()

    async def talk(scheduler: Scheduler) -> None:
        job = model.job(8, 100)
        assert_right((await submitted(scheduler, job))[0], job)

    with running(max_pending_seconds=1e-6) as scheduler:
        asyncio.run(talk(scheduler))


# ---- other work, and the end


def test_other_work_has_its_turns():
    model, threads, order = Model(), [], []

    def work() -> Generator[None, None, str]:
        threads.append(threading.current_thread().name)
        yield
        order.append("work")
        return "done"

    def broken() -> Generator[None, None, None]:
        yield
        order.append("broken")
        raise KeyError("mine")

    async def talk(scheduler: Scheduler) -> None:
        model.gate.clear()
        job = model.job(8, 2000)
        finish = job.finish
        job.finish = lambda result, job: (order.append("job"), finish(result, job))[1]
        scheduler.submit(job)
        await asyncio.to_thread(model.entered.wait, 30)
        errands = [asyncio.ensure_future(scheduler.run(steps)) for steps in (work(), broken())]
        await asyncio.sleep(0)  # they wait now
        model.gate.set()
        results = await asyncio.gather(*errands, return_exceptions=True)
        assert results[0] == "done"
        assert isinstance(results[1], KeyError)
        assert_right(await job.future, job)

    with running() as scheduler:
        asyncio.run(talk(scheduler))
    assert order == ["work", "broken", "job"]
    assert threads == ["mcdrop-inference"]


def test_stopping_answers_what_waits_and_refuses_what_comes():
    model = Model()

    async def talk(scheduler: Scheduler) -> None:
        first = await held(scheduler, model)
        jobs = [model.job(8, 10**9), model.job()]
        for job in jobs:
            scheduler.submit(job)
        errand = asyncio.ensure_future(scheduler.run(steps(10**9)))
        await asyncio.sleep(0)
        stopping = asyncio.ensure_future(asyncio.to_thread(scheduler.stop))
        with pytest.raises(NotReadyError, match="is stopping"):
            async with asyncio.timeout(30):
                while True:
                    await asyncio.sleep(0.01)
                    scheduler.submit(model.job())
        model.gate.set()
        await stopping
        async with asyncio.timeout(30):
            outcomes = await asyncio.gather(*(job.future for job in jobs), errand, return_exceptions=True)
        assert all(isinstance(outcome, NotReadyError) for outcome in outcomes)
        await first

    with running() as scheduler:
        asyncio.run(talk(scheduler))


def test_an_unused_scheduler_stops():
    Scheduler(max_pending=1).stop()


def test_a_client_that_leaves_ends_its_computation():
    """A run that would take for ever is given up once the connection closes, and the next client is served."""
    app = create_app(settings(max_num_samples=10**12, max_cost=10**12))
    path = "/v1/models/insects/predict"
    body = b'{"inputs": [[0, 0, 0, 0]], "num_samples": %d}'

    async def post(num_samples: int, left: Callable[[], Coroutine[Any, Any, Any]]) -> list[Any]:
        messages = iter([{"type": "http.request", "body": body % num_samples, "more_body": False}])
        sent: list[Any] = []

        async def receive() -> Any:
            message = next(messages, None)
            if message is None:
                await left()
                return {"type": "http.disconnect"}
            return message

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"",
                 "root_path": "", "headers": headers, "http_version": "1.1", "scheme": "http", "state": {},
                 "server": ("server", 80), "client": ("client", 1)}  # fmt: skip
        await app(scope, receive, send)
        return sent

    async def talk() -> None:
        async with app.router.lifespan_context(app):
            await app.state.loading
            scheduler = app.state.registry.scheduler

            async def everybody_had_a_turn() -> None:
                await scheduler.run(steps(3))

            async def never() -> None:
                await asyncio.Event().wait()

            gone = await post(10**12, everybody_had_a_turn)
            assert gone[0]["status"] == 499
            answered = await post(4, never)
            assert answered[0]["status"] == 200
            await everybody_had_a_turn()
            assert scheduler.pending == 0

    asyncio.run(talk())
