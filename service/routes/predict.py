"""A prediction with its uncertainty."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import APIRouter, Request, Response

from mcdrop.sampling import Run
from service.dependencies import ERRORS, Models
from service.errors import ClientGoneError, MediaTypeError
from service.model import ServedModel
from service.registry import Registry
from service.wire import PredictAnswer, PredictRequest, decode, encode

Result = TypeVar("Result")

_LARGE = 2**16  # bytes of JSON that are read in a thread of their own, beside the event loop

router = APIRouter(tags=["predict"], responses=ERRORS)

BODY = {"required": True, "content": {"application/json": {"schema": PredictRequest.model_json_schema()}}}
ANSWER: dict[int | str, dict[str, Any]] = {200: {"model": PredictAnswer, "description": "The prediction."}}


@router.post(
    "/v1/predict",
    summary="Predict with the default model",
    responses=ANSWER,
    openapi_extra={"requestBody": BODY},
)
async def predict_default(request: Request, models: Models) -> Response:
    """With the only model, or the one named default."""
    return await _predict(None, request, models)


@router.post(
    "/v1/models/{name}/predict",
    summary="Predict with a model by name",
    responses=ANSWER,
    openapi_extra={"requestBody": BODY},
)
async def predict(name: str, request: Request, models: Models) -> Response:
    """Mean, variance and entropy of `num_samples` stochastic passes, and what `outputs` names besides."""
    return await _predict(name, request, models)


async def _predict(name: str | None, request: Request, models: Registry) -> Response:
    """Never computes: the scheduler's thread does, so the event loop stays free."""
    model = models.get(name)
    _check_media_type(request)
    body = await request.body()
    asked, run = await asyncio.to_thread(_read, model, body) if len(body) > _LARGE else _read(model, body)
    answer = await _unless_gone(request, models.scheduler.finish(model.answer(run, asked, encode)))
    return Response(answer, media_type="application/json")


def _read(model: ServedModel, body: bytes) -> tuple[PredictRequest, Run]:
    """What is asked, and a run for it; takes a while for many numbers."""
    asked = decode(body)
    return asked, model.start(asked)


def _check_media_type(request: Request) -> None:
    """Only what a browser does not send to a foreign server unasked."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise MediaTypeError(f"The body's Content-Type is {kind or 'missing'}. Send Content-Type: application/json.")
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding != "identity":
        raise MediaTypeError(f"The body's Content-Encoding is {coding}. Send the JSON as it is.")


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`, which is cancelled as soon as the client closes the connection."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(request.receive())  # after the body, nothing comes but http.disconnect
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError("The client closed the connection, so its prediction was given up.")
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
