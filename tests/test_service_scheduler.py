"""The inference thread: turns, failures, clients that leave, an end in order."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from service.app import create_app
from service.errors import NotReadyError, OverloadedError
from service.scheduler import Scheduler
from serving import settings


@contextmanager
def running(max_pending: int = 10) -> Iterator[Scheduler]:
    scheduler = Scheduler(max_pending=max_pending)
    scheduler.start()
    try:
        yield scheduler
    finally:
        scheduler.stop()
        assert not scheduler.alive


def steps(name: str, count: int, log: list[str]) -> Generator[None, None, str]:
    """Work of `count` slices."""
    for _ in range(count):
        log.append(name)
        yield
    return name


def held(gate: threading.Event) -> Generator[None, None, None]:
    """Work of one slice that ends when the gate opens."""
    assert gate.wait(30)
    return
    yield


def together(*work: Coroutine[Any, Any, Any]) -> list[Any]:
    async def gather() -> list[Any]:
        return await asyncio.gather(*work, return_exceptions=True)

    return asyncio.run(gather())


def test_results_come_back_and_everybody_has_a_turn():
    gate, log = threading.Event(), []

    async def ask(scheduler: Scheduler) -> list[Any]:
        first = asyncio.ensure_future(scheduler.finish(held(gate)))
        rest = [
            asyncio.ensure_future(scheduler.finish(steps(name, n, log))) for name, n in [("large", 5), ("small", 1)]
        ]
        await asyncio.sleep(0)  # all three are in the queue before the first one ends
        gate.set()
        return await asyncio.gather(first, *rest)

    with running() as scheduler:
        assert asyncio.run(ask(scheduler)) == [None, "large", "small"]
        assert scheduler.pending == 0
    assert log == ["large", "small", "large", "large", "large", "large"]


def test_the_work_is_done_on_the_one_thread_of_the_scheduler():
    names: list[str] = []

    def work() -> Generator[None, None, None]:
        names.append(threading.current_thread().name)
        yield

    with running() as scheduler:
        together(scheduler.finish(work()), scheduler.finish(work()))
    assert names == ["mcdrop-inference"] * 2


def test_a_failure_is_the_callers_alone():
    def broken() -> Generator[None, None, None]:
        yield
        raise KeyError("mine")

    log: list[str] = []
    with running() as scheduler:
        failure, result = together(scheduler.finish(broken()), scheduler.finish(steps("other", 3, log)))
        assert isinstance(failure, KeyError)
        assert result == "other"
        assert scheduler.alive


def test_work_that_nobody_waits_for_is_dropped():
    closed = threading.Event()
    started = threading.Event()

    def endless() -> Generator[None, None, None]:
        try:
            while True:
                started.set()
                yield
        finally:
            closed.set()

    async def leave(scheduler: Scheduler) -> str:
        task = asyncio.ensure_future(scheduler.finish(endless()))
        await asyncio.to_thread(started.wait, 30)
        task.cancel()
        return await scheduler.finish(steps("next", 1, []))

    with running() as scheduler:
        assert asyncio.run(leave(scheduler)) == "next"
        assert closed.wait(30)


def test_a_result_that_comes_just_after_the_caller_left_hurts_nobody():
    gate, complaints = threading.Event(), []

    async def leave_late(scheduler: Scheduler) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        task = asyncio.ensure_future(scheduler.finish(held(gate)))
        await asyncio.sleep(0)  # lets the task run up to its wait
        gate.set()
        scheduler.stop()  # blocks the loop until the thread has sent the result
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with running() as scheduler:
        asyncio.run(leave_late(scheduler))
    assert complaints == []


def test_a_full_queue_refuses_at_once():
    gate = threading.Event()

    async def crowd(scheduler: Scheduler) -> None:
        waiting = [asyncio.ensure_future(scheduler.finish(held(gate))) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match=r"2 requests are waiting.*max_pending \(MCDROP_MAX_PENDING\)"):
            await scheduler.finish(held(gate))
        gate.set()
        await asyncio.gather(*waiting)
        assert await scheduler.finish(steps("again", 1, [])) == "again"

    with running(max_pending=2) as scheduler:
        asyncio.run(crowd(scheduler))


def test_stopping_answers_what_waits_and_refuses_what_comes():
    gate = threading.Event()

    async def stop(scheduler: Scheduler) -> None:
        waiting = [
            asyncio.ensure_future(scheduler.finish(held(gate))),
            asyncio.ensure_future(scheduler.finish(forever())),
        ]
        await asyncio.sleep(0)
        stopping = asyncio.ensure_future(asyncio.to_thread(scheduler.stop))
        gate.set()
        await stopping
        async with asyncio.timeout(30):
            done, cut = await asyncio.gather(*waiting, return_exceptions=True)
        assert done is None or isinstance(done, NotReadyError)
        assert isinstance(cut, NotReadyError)
        with pytest.raises(NotReadyError, match="is stopping"):
            await scheduler.finish(held(gate))

    def forever() -> Generator[None, None, None]:
        while True:
            yield

    with running() as scheduler:
        asyncio.run(stop(scheduler))


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
                await scheduler.finish(steps("last in the queue", 2, []))

            async def never() -> None:
                await asyncio.Event().wait()

            gone = await post(10**12, everybody_had_a_turn)
            assert gone[0]["status"] == 499
            answered = await post(4, never)
            assert answered[0]["status"] == 200
            await everybody_had_a_turn()
            assert scheduler.pending == 0

    asyncio.run(talk())
