"""The HTTP API as its clients see it: requests and results.

What `mcdrop.client` is made of; nothing here opens a connection.
"""

import urllib.parse
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import httpx
import numpy as np
import orjson
from numpy.typing import NDArray

from mcdrop.api_errors import APIConnectionError, status_error
from mcdrop.errors import InputError

Result = TypeVar("Result")


@dataclass(frozen=True)
class RemotePrediction:
    """A prediction from a server; each array has one entry per row of the input.

    `mean`, `variance` and `entropy` (nats) are float32; a value that JSON cannot hold arrives as NaN, among them the
    entropy of a regression without variance, which is minus infinity. Fields asked for by `outputs=` are attributes
    too (`prediction.std`) and stand in `fields`; `standard_errors` is a dict of arrays by name, `quantiles` an array
    whose first axis goes with `quantile_levels`. `raw` is the answer as it came.
    """

    model: str
    version: str
    num_samples: int
    seed: int
    fields: Mapping[str, Any]
    class_names: tuple[str, ...] | None = None
    quantile_levels: tuple[float, ...] = ()
    request_id: str | None = None
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __getattr__(self, name: str) -> Any:
        fields: Mapping[str, Any] = self.__dict__.get("fields", {})  # empty while unpickling
        if name in fields:
            return fields[name]
        raise AttributeError(
            f"this prediction has no {name!r}, it has {', '.join(fields)}. Ask for more with outputs=[...]."
        )

    def __len__(self) -> int:
        return len(self.fields["mean"])


@dataclass(frozen=True)
class Call(Generic[Result]):
    """One request, and how its answer is read."""

    method: str
    path: str
    read: Callable[[Any, str | None], Result]  # the answer's JSON and its request id
    content: bytes | None = None

    def headers(self) -> dict[str, str]:
        """New for each call: the server logs and returns the request id."""
        headers = {"X-Request-Id": uuid.uuid4().hex, "Accept": "application/json"}
        return headers if self.content is None else {**headers, "Content-Type": "application/json"}

    def result(self, response: httpx.Response) -> Result:
        """What the answer means; raises APIStatusError, or APIConnectionError for one that is not mcdrop's."""
        request_id = response.headers.get("x-request-id")
        try:
            answer = orjson.loads(response.content)
        except orjson.JSONDecodeError as error:
            if response.status_code >= 400:  # from something in between
                raise status_error(response, {}) from None
            raise APIConnectionError(
                f"The answer from {self.path} is not JSON ({error}). Is this the address of an mcdrop server?"
            ) from error
        if response.status_code >= 400:
            raise status_error(response, answer if isinstance(answer, dict) else {})
        try:
            return self.read(answer, request_id)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise APIConnectionError(
                f"The answer from {self.path} is not an mcdrop server's ({type(error).__name__}: {error})."
            ) from error


def predict(
    inputs: Any,
    num_samples: int | None,
    seed: int | None,
    outputs: Sequence[str],
    quantiles: Sequence[float] | None,
    model: str | None,
) -> Call[RemotePrediction]:
    """POST /v1/predict, or of the model that is named. Raises InputError for inputs that JSON cannot carry."""
    if isinstance(outputs, str):
        raise InputError(f"outputs is the string {outputs!r}; expected a list of names: [{outputs!r}].")
    if isinstance(inputs, Mapping):
        arrays: Any = {name: _array(value, name) for name, value in inputs.items()}
    else:
        arrays = _array(inputs, "inputs")
    options = {
        "num_samples": num_samples,
        "seed": seed,
        "outputs": list(outputs) or None,
        "quantiles": None if quantiles is None else [float(level) for level in quantiles],
    }
    request = {"inputs": arrays, **{name: value for name, value in options.items() if value is not None}}
    path = "/v1/predict" if model is None else f"/v1/models/{_quote(model)}/predict"
    return Call("POST", path, _read_prediction, orjson.dumps(request, option=orjson.OPT_SERIALIZE_NUMPY))


def list_models() -> Call[list[dict[str, Any]]]:
    """GET /v1/models."""
    return Call("GET", "/v1/models", lambda answer, _: list(answer["models"]))


def show_model(name: str) -> Call[dict[str, Any]]:
    """GET /v1/models/{name}."""
    return Call("GET", f"/v1/models/{_quote(name)}", lambda answer, _: dict(answer))


def probe_ready() -> Call[bool]:
    """GET /health/ready."""
    return Call("GET", "/health/ready", lambda answer, _: bool(answer["status"] == "ready"))


def _array(value: Any, name: str) -> NDArray[Any]:
    if hasattr(value, "detach"):  # a tensor, without importing PyTorch
        value = value.detach().cpu()
    try:
        array = np.ascontiguousarray(value)
    except (ValueError, TypeError) as error:
        raise InputError(f"{name} is no regular array of numbers: {error}") from error
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise InputError(f"{name} holds NaN or infinity; every value has to be finite.")
    elif array.dtype.kind not in "biu":
        raise InputError(f"{name} has dtype {array.dtype}; expected numbers or bool.")
    wide = np.dtype(np.float64) if array.dtype.itemsize > 8 else array.dtype  # no JSON writer knows long doubles
    return array.astype(wide.newbyteorder("="), copy=False)


def _read_prediction(answer: Any, request_id: str | None) -> RemotePrediction:
    fields = {name: value for name, value in answer.items() if name not in ("model", "version", "num_samples", "seed")}
    names = fields.pop("class_names", None)
    levels = fields.pop("quantile_levels", ())
    return RemotePrediction(
        model=answer["model"],
        version=answer["version"],
        num_samples=answer["num_samples"],
        seed=answer["seed"],
        fields={name: _read_field(value) for name, value in fields.items()},
        class_names=None if names is None else tuple(names),
        quantile_levels=tuple(levels),
        request_id=request_id,
        raw=answer,
    )


def _read_field(value: Any) -> Any:
    """Nested lists as float32 (null as NaN), whole numbers as int64."""
    if isinstance(value, dict):
        return {name: _read_field(item) for name, item in value.items()}
    array = np.array(value)
    return array if array.dtype.kind in "iub" and array.size else np.array(value, dtype=np.float32)


def _quote(name: str) -> str:
    return urllib.parse.quote(name, safe="")
