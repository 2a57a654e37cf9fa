"""A prediction with its uncertainty."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response

from service.compression import read_body, respond_with
from service.dependencies import ERRORS, Models
from service.errors import MediaTypeError
from service.nonfinite import finite_only
from service.registry import Registry
from service.routes.answering import respond
from service.routes.direct import DirectRoute
from service.settings import Settings
from service.wire import PredictAnswer, PredictRequest, decode, encode

_LARGE = 2**16  # bytes of JSON that are read in a thread of their own, beside the event loop

router = APIRouter(tags=["predict"], responses=ERRORS, route_class=DirectRoute)

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


@router.post(
    "/v1/models/{name}/versions/{version}/predict",
    summary="Predict with one version of a model",
    responses=ANSWER,
    openapi_extra={"requestBody": BODY},
)
async def predict_version(name: str, version: str, request: Request, models: Models) -> Response:
    """The same, of the version that is named instead of the newest."""
    return await _predict(name, request, models, version)


async def _predict(name: str | None, request: Request, models: Registry, version: str | None = None) -> Response:
    model = models.get(name, version)
    asked = await read(request, models.settings)
    answer = await respond(request, models, model, asked, finite_only(encode, models.settings))
    return await respond_with(request, answer, media_type="application/json", settings=models.settings)


async def read(request: Request, settings: Settings) -> PredictRequest:
    """What is asked. Large bodies are read beside the event loop."""
    _check_media_type(request)
    body = await read_body(request, settings)
    return await asyncio.to_thread(decode, body) if len(body) > _LARGE else decode(body)


def _check_media_type(request: Request) -> None:
    """Only what a browser does not send to a foreign server unasked."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise MediaTypeError(f"The body's Content-Type is {kind or 'missing'}. Send Content-Type: application/json.")
