"""The Open Inference Protocol's endpoints: each with and without a trailing slash, and nothing is redirected.

Those of a model also take `/versions/{version}` after its name. Routes with fixed words come before those with names,
so `/v2/models/stats` is no model.
"""

import asyncio
from collections.abc import Callable
from enum import Enum
from typing import Any, TypeVar

import orjson
from fastapi import APIRouter, Request, Response

from service.compression import read_body, respond_with
from service.dependencies import ADMIN, Models
from service.errors import InvalidRequestError, NotReadyError
from service.model import ServedModel
from service.nonfinite import finite_only
from service.registry import Registry
from service.routes.answering import respond
from service.routes.direct import DirectRoute
from service.v2 import metadata
from service.v2.answers import HEADER_LENGTH, Writer
from service.v2.parameters import flag, parse_object, read_parameters
from service.v2.requests import read
from service.v2.statistics import model_statistics

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])

_LARGE = 2**16  # bytes of a body that is read in a thread of its own, beside the event loop
_JSON = "application/json"
_ANY = {"type": "object", "additionalProperties": True}
_BYTES = {"type": "string", "format": "binary"}
_EITHER = {"application/json": {"schema": _ANY}, "application/octet-stream": {"schema": _BYTES}}
_OPTIONAL = {"requestBody": {"required": False, "content": {"application/json": {"schema": _ANY}}}}
_ERROR = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}

_FAILURES: dict[int | str, dict[str, Any]] = {
    "default": {"description": "Any failure.", "content": {"application/json": {"schema": _ERROR}}}
}
_TAGS: list[str | Enum] = ["open inference protocol"]
router = APIRouter(prefix="/v2", tags=_TAGS, responses=_FAILURES)
predictions = APIRouter(prefix="/v2", tags=_TAGS, responses=_FAILURES, route_class=DirectRoute)  # where time counts


def _route(verb: str, path: str, **options: Any) -> Callable[[Endpoint], Endpoint]:
    """Register an endpoint under each of its addresses; the documentation shows the shortest."""
    paths = [path]
    if path.startswith("/models/{name}"):
        paths.append(path.replace("{name}", "{name}/versions/{version}"))

    def register(endpoint: Endpoint) -> Endpoint:
        for each in paths:
            for address in (each, f"{each}/"):
                add = router.api_route(address, methods=[verb], include_in_schema=address == path, **options)
                endpoint = add(endpoint)
        return endpoint

    return register


@_route("GET", "", summary="Name, version and extensions of this server")
async def server() -> dict[str, Any]:
    """Server metadata."""
    return metadata.server_metadata()


@_route("GET", "/health/live", summary="Whether the process is of use")
async def live(models: Models) -> dict[str, bool]:
    """200 while the inference thread runs, whatever it is doing."""
    if (trouble := models.scheduler.trouble) is not None:
        raise NotReadyError(f"{trouble} Restart this server.")
    return {"live": True}


@_route("GET", "/health/ready", summary="Whether to send requests here")
async def ready(models: Models) -> Response:
    """200 once every model is loaded and warm, and until the server begins to stop; 503 otherwise."""
    try:
        models.check_ready()
    except NotReadyError as error:  # clients read the member `ready` here, whatever the status
        return Response(orjson.dumps({"error": str(error), "ready": False}), 503, {"Retry-After": "1"}, _JSON)
    return Response(b'{"ready":true,"live":true}', media_type=_JSON)


@_route("GET", "/models", summary="The names of the models")
async def list_models(models: Models) -> dict[str, Any]:
    """As KServe lists them."""
    return {"models": list(models.models)}


@_route("GET", "/models/stats", summary="Statistics of all models")
async def all_statistics(models: Models) -> dict[str, Any]:
    """Counts and times of what was answered, model by model."""
    return {"model_stats": [model_statistics(model) for model in models.models.values() if model.mc is not None]}


@_route("GET", "/models/{name}", summary="Inputs and outputs of a model")
async def show_model(name: str, request: Request, models: Models) -> dict[str, Any]:
    """Model metadata; `parameters` has the class names and what else can be asked for."""
    model = _find(request, models)
    return metadata.model_metadata(
        model, [each["version"] for each in models.versions(name) if each["state"] == "READY"]
    )


@_route("GET", "/models/{name}/ready", summary="Whether a model answers")
async def model_ready(name: str, request: Request, models: Models) -> dict[str, Any]:
    """200 once it is loaded and warm."""
    return {"name": _find(request, models).name, "ready": True}


@_route("GET", "/models/{name}/config", summary="A model's configuration as Triton has it")
async def model_config(name: str, request: Request, models: Models) -> dict[str, Any]:
    """The model configuration extension."""
    return metadata.model_config(_find(request, models))


@_route("GET", "/models/{name}/stats", summary="Statistics of a model")
async def statistics(name: str, request: Request, models: Models) -> dict[str, Any]:
    """The statistics extension."""
    return {"model_stats": [model_statistics(_find(request, models))]}


@predictions.post(
    "/models/{name}/infer",
    summary="Predict, with tensors as JSON or binary data",
    responses={200: {"description": "The output tensors.", "content": _EITHER}},
    openapi_extra={"requestBody": {"required": True, "content": _EITHER}},
)
@predictions.post("/models/{name}/infer/", include_in_schema=False)
async def infer(name: str, request: Request, models: Models) -> Response:
    """Mean, variance and entropy over stochastic passes, and what `outputs` names instead."""
    model = _find(request, models)
    body = await read_body(request, models.settings)
    given = request.headers.get(HEADER_LENGTH)
    if len(body) > _LARGE:
        asked = await asyncio.to_thread(read, body, given, model.loaded, models.settings)
    else:
        asked = read(body, given, model.loaded, models.settings)
    writer = Writer(asked)
    content = await respond(request, models, model, asked.asked, finite_only(writer, models.settings))
    return await respond_with(
        request, content, media_type=writer.media_type, settings=models.settings, headers=writer.headers
    )


@predictions.post("/models/{name}/versions/{version}/infer", include_in_schema=False)
@predictions.post("/models/{name}/versions/{version}/infer/", include_in_schema=False)
async def infer_version(name: str, version: str, request: Request, models: Models) -> Response:
    """The same, of the version that is named instead of the newest."""
    return await infer(name, request, models)


@_route("POST", "/repository/index", summary="Every model and version with its state", openapi_extra=_OPTIONAL)
async def index(request: Request, models: Models) -> list[dict[str, str]]:
    """READY answers requests; the body may be empty, or ask for those only by `{"ready": true}`."""
    content = await _optional_object(request, models)
    is_ready = flag(content, "ready", False)
    return [entry for entry in models.index() if entry["state"] == "READY" or not is_ready]


@_route(
    "POST",
    "/repository/models/{name}/load",
    summary="Load a model, or load it again",
    openapi_extra=_OPTIONAL,
    dependencies=ADMIN,
)
async def load(name: str, request: Request, models: Models) -> dict[str, Any]:
    """Answers when the model is served. Parameters that would replace its configuration or files are refused."""
    given = sorted(read_parameters(await _optional_object(request, models), "the request"))
    if given:
        raise InvalidRequestError(f"parameter {given[0]!r}: models are loaded as they lie in the repository.")
    await models.load_model(name)
    return {}


@_route(
    "POST",
    "/repository/models/{name}/unload",
    summary="Stop serving a model",
    openapi_extra=_OPTIONAL,
    dependencies=ADMIN,
)
async def unload(name: str, request: Request, models: Models) -> dict[str, Any]:
    """Requests in progress are answered. No model depends on another, so `unload_dependents` changes nothing."""
    read_parameters(await _optional_object(request, models), "the request")
    await models.unload_model(name)
    return {}


def _find(request: Request, models: Registry) -> ServedModel:
    """The model in the address, of the version in it where there is one."""
    return models.get(request.path_params["name"], request.path_params.get("version"))


async def _optional_object(request: Request, models: Registry) -> dict[str, Any]:
    body = await read_body(request, models.settings)
    return parse_object(body, "an object or an empty body") if body.strip() else {}
