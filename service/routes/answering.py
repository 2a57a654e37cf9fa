"""From a request to its answer: what every protocol's endpoints share.

Never computes: the scheduler's thread does, so the event loop stays free.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any

from fastapi import Request

from service.errors import ClientGoneError
from service.jobs import Job
from service.model import ServedModel
from service.outcome import Outcome
from service.registry import Registry
from service.wire import PredictRequest

GONE = "The client closed the connection, so its prediction was given up."
_UNWATCHED = 0.01  # seconds before a connection is watched: less than a slice, and most answers are there by then


async def respond(
    request: Request, registry: Registry, model: ServedModel, asked: PredictRequest, write: Callable[[Outcome], bytes]
) -> bytes:
    """The answer, in the protocol that `write` speaks. Work is dropped as soon as the client closes the connection."""
    with _submitted(request, registry, model, asked, write) as (job, answered):
        gone: asyncio.Future[Any] | None = None

        def watch() -> None:
            nonlocal gone
            gone = asyncio.ensure_future(request.receive())  # after the body, nothing comes but http.disconnect
            gone.add_done_callback(lambda _: _give_up(job))

        timer = asyncio.get_running_loop().call_later(_UNWATCHED, watch)
        try:
            answer = await job.future
            request.state.timings = {"queue": job.queue_ms, "compute": job.computed * 1000}
            answered(job)
            return answer
        finally:
            timer.cancel()
            if gone is not None:
                gone.cancel()


def _give_up(job: Job) -> None:
    if not job.future.done():
        job.future.set_exception(ClientGoneError(GONE))


async def estimates(
    request: Request, registry: Registry, model: ServedModel, asked: PredictRequest, write: Callable[[Outcome], bytes]
) -> AsyncGenerator[bytes | None]:
    """Answers from more and more passes, the last from all; None after a while of silence. Closing it ends the work."""
    told: asyncio.Queue[bytes] = asyncio.Queue()

    def tell(estimate: bytes) -> None:
        if estimate:  # empty where `finite_only` leaves one out
            told.put_nowait(estimate)

    silence = registry.settings.stream_heartbeat
    with _submitted(request, registry, model, asked, write, tell) as (job, answered):
        while not job.future.done() or not told.empty():
            waiting = asyncio.ensure_future(told.get())
            try:
                await asyncio.wait({waiting, job.future}, timeout=silence, return_when=asyncio.FIRST_COMPLETED)
                if waiting.done():
                    yield waiting.result()
                elif not job.future.done():
                    yield None
            finally:
                waiting.cancel()
        answer = job.future.result()
        answered(job)
        yield answer


@contextlib.contextmanager
def _submitted(
    request: Request,
    registry: Registry,
    model: ServedModel,
    asked: PredictRequest,
    write: Callable[[Outcome], bytes],
    estimate: Callable[[bytes], None] | None = None,
) -> Iterator[tuple[Job, Callable[[Job], None]]]:
    """The request's job, submitted and in the end given up, and what to call once it is answered."""
    request.state.served = model.name, model.version
    with _counted(model, request.state.arrived) as answered:
        registry.scheduler.check_count()  # before its tensors are made
        job = model.job(asked, write, arrived=request.state.arrived, estimate=estimate)
        registry.scheduler.submit(job)
        try:
            yield job, answered
        finally:
            registry.scheduler.withdraw(job)


@contextlib.contextmanager
def _counted(model: ServedModel, arrived: float) -> Iterator[Callable[[Job], None]]:
    """One request in the model's statistics: a success once what this gives is called, else a failure.

    Refusals are failures, and so is whoever leaves.
    """
    succeeded = False

    def answered(job: Job) -> None:
        nonlocal succeeded
        succeeded = True
        model.tally.success(int(job.queue_ms * 1e6), int(job.computed * 1e9), job.rows)

    try:
        yield answered
    finally:
        if not succeeded:
            model.tally.fail(int((time.monotonic() - arrived) * 1e9))
