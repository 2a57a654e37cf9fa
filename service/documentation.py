"""The OpenAPI document, written anew for what is served now: the inputs of each model, and examples that were answered.

What a request may hold follows from models and settings, so the document says it: names, versions, shapes, ranges and
limits. What a schema cannot say (rows x passes, sizes that two inputs have in common) is said in words.
"""

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from mcdrop.graph.inputs import InputSpec
from service.model import Example, ServedModel
from service.registry import Registry
from service.security import Keys, is_open
from service.settings import Settings
from service.v2.datatypes import DATATYPES
from service.v2.outputs import output_names
from service.wire import PredictRequest, available_outputs

PREDICTING = ("/predict", "/stream")
CHANGING = ("/load", "/unload")
DEFAULT = ("/v1/predict", "/v1/stream")
FAILURES = {
    "400": "The body is not JSON, or not what its Content-Encoding says.",
    "401": "A key is needed, and none or a wrong one was given.",
    "403": "The key does not allow this, or nothing does.",
    "404": "There is no such model or version.",
    "408": "The body did not arrive in time.",
    "413": "The body is larger than the server reads.",
    "415": "The body comes in a form that the server does not read.",
    "422": "The request is well formed and wrong, or asks for more than the server allows.",
    "429": "The server is full; Retry-After says when to try again.",
    "500": "A fault of the server, which its log explains; or values that are not finite, where that is refused.",
    "501": "The server could do this, but was not started to.",
    "503": "The model is being loaded, the server is about to stop, or memory does not suffice.",
    "504": "The deadline came before the answer.",
}
_OF_GET = ("503",)
_OF_NAMES = ("404", "503")
_OF_CHANGES = ("403", "404", "422", "501", "503")
_OF_PREDICTIONS = ("400", "404", "408", "413", "415", "422", "429", "500", "503", "504")


def document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document of what is served at this moment."""
    registry: Registry = app.state.registry
    made = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    made["components"]["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer", "description": "One of the server's keys."},
        "admin_key": {"type": "http", "scheme": "bearer", "description": "One of its admin keys."},
    }
    ready = [model for model in registry.models.values() if model.mc is not None]
    for path, operations in made["paths"].items():
        for verb, operation in operations.items():
            _name_failures(operation, path, verb)
            _name_keys(operation, path, app.state.keys, registry.settings)
            for parameter in operation.get("parameters", ()):
                _name_served(parameter, ready, registry)
    for path in made["paths"]:
        models = [model for model in ready if path not in DEFAULT or model.name == registry.default]
        if path.endswith(PREDICTING):
            _describe_predicting(made["paths"][path]["post"], models)
        elif path.endswith("/infer"):
            _describe_infer(made["paths"][path]["post"], models)
    return made


def _name_keys(operation: dict[str, Any], path: str, keys: Keys, settings: Settings) -> None:
    """Which key an operation needs."""
    opened = is_open(path, open_health=settings.open_health, open_metrics=settings.open_metrics)
    changes = path.endswith(CHANGING) and keys.any_admin
    if changes or (keys.needed and not opened):
        operation["security"] = [{"admin_key" if changes else "key": []}]
        content = operation["responses"]["default"]["content"]
        operation["responses"]["401"] = {"description": FAILURES["401"], "content": content}


def _name_failures(operation: dict[str, Any], path: str, verb: str) -> None:
    """The statuses that this operation may end in, each in the shape of `default`."""
    content = operation["responses"]["default"]["content"]
    if path.endswith((*PREDICTING, "/infer")):
        statuses: Iterable[str] = _OF_PREDICTIONS
    elif verb == "post":
        statuses = _OF_CHANGES if path.endswith(CHANGING) else ("400", "408", "413", "415", "503")
        statuses = {*statuses, "400", "413"} if path.startswith("/v2") else statuses
    else:
        statuses = _OF_NAMES if "{name}" in path else _OF_GET
    if path.startswith("/v2"):
        statuses = {"400" if status == "422" else status for status in statuses}
    for status in sorted(statuses):
        operation["responses"].setdefault(status, {"description": FAILURES[status], "content": content})


def _name_served(parameter: dict[str, Any], ready: list[ServedModel], registry: Registry) -> None:
    """The names and versions that a path may hold."""
    if parameter["in"] != "path" or not ready:
        return
    if parameter["name"] == "name":
        parameter["schema"]["enum"] = [model.name for model in ready]
    if parameter["name"] == "version":
        listed = [entry for model in ready for entry in registry.versions(model.name)]
        parameter["schema"]["enum"] = list(
            dict.fromkeys(entry["version"] for entry in listed if entry["state"] == "READY")
        )


def _describe_predicting(operation: dict[str, Any], models: list[ServedModel]) -> None:
    """The requests that these models answer, and examples of both."""
    if not models:
        return
    asked = operation["requestBody"]["content"]["application/json"]
    schemas = [_request(model) for model in models]
    asked["schema"] = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
    examples = {model.name: model.example for model in models if model.example is not None}
    asked["examples"] = {name: {"value": example.request} for name, example in examples.items()}
    answered = operation["responses"]["200"]["content"].get("application/json")
    if answered is not None:
        answered["examples"] = {name: {"value": example.answer} for name, example in examples.items()}


def _request(model: ServedModel) -> dict[str, Any]:
    """The schema of a request to one model."""
    settings, specs = model.settings, model.loaded.signature.inputs
    schema = copy.deepcopy(PredictRequest.model_json_schema())
    schema["title"] = f"A request to {model.name}"
    fields = schema["properties"]
    arrays = {spec.name: _array(spec, settings.max_rows) for spec in specs}
    named = {"type": "object", "properties": arrays, "required": list(arrays), "additionalProperties": False}
    fields["inputs"] = {
        "description": fields["inputs"]["description"],
        "anyOf": [*arrays.values(), named] if len(arrays) == 1 else [named],
    }
    fields["num_samples"]["anyOf"][0] |= {"minimum": 2, "maximum": settings.max_num_samples}
    fields["seed"]["anyOf"][0] |= {"minimum": -(2**63), "maximum": 2**64 - 1}
    fields["outputs"]["items"] = {"enum": list(available_outputs(model.loaded))}
    fields["quantiles"]["anyOf"][0]["items"] |= {"exclusiveMinimum": 0, "exclusiveMaximum": 1}
    return schema


def _array(spec: InputSpec, max_rows: int) -> dict[str, Any]:
    """Nested lists of one input's shape."""
    schema = _element(spec.dtype)
    for axis, size in reversed(list(enumerate(spec.shape))):
        least, most = (size, size) if isinstance(size, int) else spec.bounds.get(size, (0, None))
        if axis == 0 and spec.batched:
            least, most = 0, max_rows
        schema = {"type": "array", "items": schema, "minItems": least}
        if most is not None:
            schema["maxItems"] = most
    return {**schema, "title": str(spec)}


def _element(dtype: torch.dtype) -> dict[str, Any]:
    """One value. Where numbers are taken, true and false are 1 and 0, and the other way round."""
    if dtype is torch.bool:
        return {"enum": [True, False, 1, 0]}
    if dtype.is_complex:
        return {}
    if dtype.is_floating_point:
        info = torch.finfo(dtype)
        beyond = info.max + info.max * info.eps / (2 - info.eps) / 2  # half a step further, what rounds to infinity
        if math.isinf(beyond):  # float64, whose infinity no JSON can spell
            return {"type": ["number", "boolean"]}
        return {"type": ["number", "boolean"], "exclusiveMinimum": -beyond, "exclusiveMaximum": beyond}
    whole = torch.iinfo(dtype)
    return {"type": ["integer", "boolean"], "minimum": whole.min, "maximum": whole.max}


def _describe_infer(operation: dict[str, Any], models: list[ServedModel]) -> None:
    """The tensors that these models take and give, by the protocol's names."""
    if not models:
        return
    inputs = sorted({spec.name for model in models for spec in model.loaded.signature.inputs})
    outputs = sorted({name for model in models for name in output_names(model.loaded)})
    most = max(len(model.loaded.signature.inputs) for model in models)
    parameters = {"type": ["object", "null"], "additionalProperties": {"type": ["string", "number", "boolean"]}}
    tensor = {
        "type": "object",
        "required": ["name", "shape", "datatype"],
        "properties": {
            "name": {"enum": inputs},
            "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}, "maxItems": 32},
            "datatype": {"enum": list(DATATYPES)},
            "parameters": parameters,
            "data": {"type": "array", "description": "Row-major, flat or nested; absent where a buffer follows."},
        },
    }
    wanted = {
        "type": "object",
        "required": ["name"],
        "properties": {"name": {"enum": outputs}, "parameters": parameters},
    }
    schema: Mapping[str, Any] = {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": ["string", "null"]},
            "parameters": parameters,
            "inputs": {"type": "array", "items": tensor, "minItems": 1, "maxItems": most},
            "outputs": {"type": ["array", "null"], "items": wanted, "uniqueItems": True},
        },
    }
    asked = operation["requestBody"]["content"]["application/json"]
    asked["schema"] = schema
    examples = {model.name: _infer_example(model.loaded.signature.inputs, model.example) for model in models}
    asked["examples"] = {name: {"value": example} for name, example in examples.items() if example is not None}


def _infer_example(specs: Sequence[InputSpec], example: Example | None) -> dict[str, Any] | None:
    """The request of a model's example in the protocol's form; none where JSON cannot carry its inputs."""
    names = {datatype.dtype: datatype.name for datatype in DATATYPES.values() if datatype.in_json}
    if example is None or any(spec.dtype not in names for spec in specs):
        return None
    given = example.request["inputs"]
    arrays = given if isinstance(given, dict) else {specs[0].name: given}
    inputs = [
        {"name": spec.name, "shape": list(np.shape(data)), "datatype": names[spec.dtype], "data": data}
        for spec, data in ((spec, arrays[spec.name]) for spec in specs)
    ]
    return {"inputs": inputs, "parameters": {name: example.request[name] for name in ("num_samples", "seed")}}
