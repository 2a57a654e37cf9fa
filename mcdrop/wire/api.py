"""The HTTP API as its clients see it: requests and answers in JSON.

What `mcdrop.client` is made of; nothing here opens a connection.
"""

import math
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Generic, TypeVar

import numpy as np
import orjson
from numpy.typing import NDArray

from mcdrop.errors import InputError, SettingError
from mcdrop.wire.answers import RemotePrediction, Timings
from mcdrop.wire.api_errors import APIConnectionError, status_error

Result = TypeVar("Result")
JSON: Mapping[str, str] = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Reply:
    """What came back for a request; `stream` is the open response where the body is read as it arrives."""

    status: int
    headers: Mapping[str, str]  # by lower-case name, or insensitive to case
    content: bytes = b""
    stream: Any = None

    @property
    def request_id(self) -> str | None:
        return self.headers.get("x-request-id")


@dataclass(frozen=True)
class Call(Generic[Result]):
    """One request, and how its answer is read.

    `body` gives the bytes and their headers for the milliseconds that an answer is of use; it is called for each
    attempt. `read` turns an answer into the result.
    """

    method: str
    path: str
    read: Callable[[Reply, Timings], Result]
    body: Callable[[int], tuple[bytes, Mapping[str, str]]] | None = None
    accept: str = "application/json"
    retry: bool = True

    def result(self, reply: Reply, timings: Timings) -> Result:
        """What the answer means; raises APIConnectionError for one that is not mcdrop's."""
        try:
            return self.read(reply, timings)
        except orjson.JSONDecodeError as error:
            raise APIConnectionError(
                f"The answer from {self.path} is not JSON ({error}). Is this the address of an mcdrop server?"
            ) from error
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise APIConnectionError(
                f"The answer from {self.path} is not an mcdrop server's ({type(error).__name__}: {error})."
            ) from error


@dataclass(frozen=True)
class Asked:
    """What a caller wants predicted, checked as far as this is possible without the server."""

    inputs: NDArray[Any] | dict[str, NDArray[Any]]
    model: str | None = None
    version: str | None = None
    outputs: tuple[str, ...] = ()
    quantiles: tuple[float, ...] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)  # what else was given, by the server's names


def asked(
    inputs: Any,
    *,
    num_samples: int | None = None,
    seed: int | None = None,
    outputs: Sequence[str] = (),
    quantiles: Sequence[float] | None = None,
    model: str | None = None,
    version: str | None = None,
    allow_partial: bool = False,
    determinism: str | None = None,
    tolerance: float | None = None,
    certified: bool = False,
    until: str | None = None,
) -> Asked:
    """Raises InputError and SettingError for what no server can be sent. What is left out is the server's to decide."""
    if isinstance(outputs, str):
        raise InputError(f"outputs is the string {outputs!r}; expected a list of names: [{outputs!r}].")
    if version is not None and model is None:
        raise InputError(f"version is {version!r} without a model; give model= too.")
    arrays: Any
    if isinstance(inputs, Mapping):
        arrays = {name: as_array(value, name) for name, value in inputs.items()}
    else:
        arrays = as_array(inputs, "inputs")
    options = {
        "num_samples": _whole("num_samples", num_samples),
        "seed": _whole("seed", seed),
        "allow_partial": allow_partial or None,
        "determinism": determinism,
        "tolerance": None if tolerance is None else _half_width(tolerance),
        "certified": certified or None,
        "until": until,
    }
    return Asked(
        arrays,
        model,
        version,
        tuple(outputs),
        None if quantiles is None else _levels(quantiles),
        {name: value for name, value in options.items() if value is not None},
    )


def _whole(name: str, value: Any) -> Any:
    """A number of NumPy's as Python's; what else is wrong with it, the server says."""
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise SettingError(f"{name} is {value}; expected a whole number of at most 64 bits.")
    return value


def _half_width(value: Any) -> float:
    """A tolerance. JSON would have null for one that is not finite, and null asks for no rule at all."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise SettingError(f"tolerance is {value!r}; expected a half-width above 0, in the unit of the output.")
    return float(value)


def _levels(value: Any) -> tuple[float, ...]:
    try:
        return tuple(float(level) for level in value)
    except (TypeError, ValueError) as error:
        raise SettingError(f"quantiles is {value!r}; expected levels between 0 and 1, as in (0.05, 0.95).") from error


def predict(asked: Asked) -> Call[RemotePrediction]:
    """POST /v1/predict, or of the model that is named."""
    return Call("POST", _path(asked, "predict"), read_prediction, _json_body(asked))


def stream(asked: Asked) -> Call[Reply]:
    """POST /v1/stream, or of the model that is named; `read_event` reads what follows."""
    return Call("POST", _path(asked, "stream"), lambda reply, _: reply, _json_body(asked), accept="text/event-stream")


def list_models() -> Call[list[dict[str, Any]]]:
    """GET /v1/models."""
    return Call("GET", "/v1/models", lambda reply, _: list(orjson.loads(reply.content)["models"]))


def default_model() -> Call[str | None]:
    """GET /v1/models: the model that answers where none is named, if there is one."""
    return Call("GET", "/v1/models", lambda reply, _: orjson.loads(reply.content).get("default"))


def show_model(name: str, version: str | None = None) -> Call[dict[str, Any]]:
    """GET /v1/models/{name}, or of one version."""
    return Call("GET", _model_path(name, version), lambda reply, _: dict(orjson.loads(reply.content)))


def probe_ready() -> Call[bool]:
    """GET /health/ready."""
    return Call("GET", "/health/ready", lambda reply, _: orjson.loads(reply.content)["status"] == "ready", retry=False)


def read_prediction(reply: Reply, timings: Timings) -> RemotePrediction:
    """From the JSON of an answer."""
    return _prediction(orjson.loads(reply.content), reply.request_id, timings)


def read_event(name: str, data: str, reply: Reply, timings: Timings, path: str) -> RemotePrediction | None:
    """The prediction in one event of a stream, None for an event of another kind; raises what an `error` event says."""
    if name not in ("estimate", "result", "error"):
        return None
    content = orjson.loads(data)
    if name == "error":
        raise status_error(int(content.get("status", 500)), {"x-request-id": reply.request_id or ""}, content, path)
    return _prediction(content, reply.request_id, timings)


def as_array(value: Any, name: str) -> NDArray[Any]:
    """Numbers in the order of this machine, from an array, a tensor or nested lists. Raises InputError."""
    if hasattr(value, "detach"):  # a tensor, without importing PyTorch
        value = value.detach().cpu()
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value  # which NumPy does not have
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise InputError(f"{name} is no regular array of numbers: {error}") from error
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise InputError(f"{name} holds NaN or infinity; every value has to be finite.")
    elif array.dtype.kind not in "biu":
        raise InputError(f"{name} has dtype {array.dtype}; expected numbers or bool.")
    wide = np.dtype(np.float64) if array.dtype.itemsize > 8 else array.dtype  # no JSON writer knows long doubles
    return np.asarray(array, wide.newbyteorder("="), order="C")


def quote(name: str) -> str:
    """A name as one part of a path."""
    return urllib.parse.quote(name, safe="")


def _path(asked: Asked, verb: str) -> str:
    if asked.model is None:
        return f"/v1/{verb}"
    return f"{_model_path(asked.model, asked.version)}/{verb}"


def _model_path(name: str, version: str | None) -> str:
    return f"/v1/models/{quote(name)}" + ("" if version is None else f"/versions/{quote(version)}")


def _json_body(asked: Asked) -> Callable[[int], tuple[bytes, Mapping[str, str]]]:
    request = {"inputs": asked.inputs, **asked.options}
    if asked.outputs:
        request["outputs"] = asked.outputs
    if asked.quantiles is not None:
        request["quantiles"] = asked.quantiles

    def body(deadline_ms: int) -> tuple[bytes, Mapping[str, str]]:
        return orjson.dumps({**request, "deadline_ms": deadline_ms}, option=orjson.OPT_SERIALIZE_NUMPY), JSON

    return body


def _prediction(answer: Any, request_id: str | None, timings: Timings) -> RemotePrediction:
    fields = {name: value for name, value in answer.items() if name not in ("model", "version", "num_samples", "seed")}
    names = fields.pop("class_names", None)
    levels = fields.pop("quantile_levels", ())
    partial = fields.pop("partial", False)
    return RemotePrediction(
        model=answer["model"],
        version=answer["version"],
        num_samples=answer["num_samples"],
        seed=answer["seed"],
        fields={name: _field(value) for name, value in fields.items()},
        class_names=None if names is None else tuple(names),
        quantile_levels=tuple(levels),
        partial=bool(partial),
        request_id=request_id,
        timings=timings,
        raw=answer,
    )


def _field(value: Any) -> Any:
    """Nested lists as float32 (null as NaN), whole numbers as int64."""
    if isinstance(value, dict):
        return {name: _field(item) for name, item in value.items()}
    array = np.array(value)
    return array if array.dtype.kind in "iub" and array.size else np.array(value, dtype=np.float32)
