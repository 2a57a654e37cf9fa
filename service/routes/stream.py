"""A prediction that sharpens, as server-sent events.

event: estimate     data: the answer from the passes so far, with standard errors
event: result       data: the answer, the same as without a stream; the last event
event: error        data: a problem, when it fails on the way; the last event
: heartbeat         now and then, where there is nothing to say for long
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from service.dependencies import ERRORS, Models
from service.errors import ClientGoneError, problem
from service.nonfinite import finite_only
from service.registry import Registry
from service.routes.answering import GONE, estimates
from service.routes.predict import BODY, read
from service.wire import encode

router = APIRouter(tags=["predict"], responses=ERRORS)

_EVENT = {
    "type": "object",
    "required": ["event", "data"],
    "properties": {
        "event": {"enum": ["estimate", "result", "error"]},
        "data": {"type": "string", "description": "JSON: the answer so far, the answer, or a problem."},
    },
}
EVENTS: dict[int | str, dict[str, Any]] = {
    200: {"description": "Server-sent events.", "content": {"text/event-stream": {"schema": _EVENT}}}
}
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # so that nothing in between collects them


@router.post(
    "/v1/stream",
    summary="Estimates that sharpen, by the default model",
    responses=EVENTS,
    response_class=StreamingResponse,
    openapi_extra={"requestBody": BODY},
)
async def stream_default(request: Request, models: Models) -> Response:
    """With the only model, or the one named default."""
    return await _stream(None, request, models)


@router.post(
    "/v1/models/{name}/stream",
    summary="Estimates that sharpen, by a model by name",
    responses=EVENTS,
    response_class=StreamingResponse,
    openapi_extra={"requestBody": BODY},
)
async def stream(name: str, request: Request, models: Models) -> Response:
    """Events `estimate`, each from twice as many passes as the one before, and `result`, which is the plain answer."""
    return await _stream(name, request, models)


@router.post(
    "/v1/models/{name}/versions/{version}/stream",
    summary="Estimates that sharpen, by one version of a model",
    responses=EVENTS,
    response_class=StreamingResponse,
    openapi_extra={"requestBody": BODY},
)
async def stream_version(name: str, version: str, request: Request, models: Models) -> Response:
    """The same, of the version that is named instead of the newest."""
    return await _stream(name, request, models, version)


async def _stream(name: str | None, request: Request, models: Registry, version: str | None = None) -> Response:
    model = models.get(name, version)
    asked = await read(request, models.settings)
    answers = estimates(request, models, model, asked, finite_only(encode, models.settings))
    first = await _first(answers, request)  # what fails before it is answered as usual
    return StreamingResponse(_events(first, answers, request), headers=HEADERS, media_type="text/event-stream")


async def _first(answers: AsyncGenerator[bytes | None], request: Request) -> bytes | None:
    """What comes first. Until then nothing else notices that the client leaves, which gives the work up."""
    waiting: asyncio.Future[bytes | None] = asyncio.ensure_future(anext(answers))
    gone = asyncio.ensure_future(request.receive())  # after the body, nothing comes but http.disconnect
    try:
        either: set[asyncio.Future[Any]] = {waiting, gone}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            raise ClientGoneError(GONE)
        return waiting.result()
    finally:
        waiting.cancel()
        gone.cancel()
        await asyncio.wait({waiting})  # until the work is given up


async def _events(first: bytes | None, answers: AsyncGenerator[bytes | None], request: Request) -> AsyncIterator[bytes]:
    """One event late, since only the end tells which answer is the last."""
    async with contextlib.aclosing(answers):
        held: bytes | None = None
        try:
            if first is None:
                yield b": heartbeat\n\n"
            else:
                held = first
            async for answer in answers:
                if answer is None:
                    yield b": heartbeat\n\n"
                    continue
                if held is not None:
                    yield _event(b"estimate", held)
                held = answer
            if held is not None:
                yield _event(b"result", held)
        except asyncio.CancelledError:  # the client has left, or the server stops; for the count alone
            problem(ClientGoneError(GONE), request.scope)
            raise
        except Exception as error:
            if held is not None:
                yield _event(b"estimate", held)
            yield _event(b"error", bytes(problem(error, request.scope).body))


def _event(name: bytes, data: bytes) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name, data)
