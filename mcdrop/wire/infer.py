"""The same API over the Open Inference Protocol with binary tensors: requests and answers as bytes.

A binary request names its tensors and their data types, so the model's metadata have to be known: `Description`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from mcdrop.errors import InputError
from mcdrop.wire import tensors_wire
from mcdrop.wire.answers import RemotePrediction, Timings
from mcdrop.wire.api import Asked, Call, Reply, quote

EXTENSION = "binary_tensor_data"
HEADER_LENGTH = "Inference-Header-Content-Length"
ALWAYS = ("mean", "variance", "entropy", "label")  # in every answer, as far as the model has them


@dataclass(frozen=True)
class Description:
    """What a request needs to know of a model; `version` is the one that answered, None before it is known."""

    inputs: tuple[tuple[str, str], ...]  # name and data type
    outputs: tuple[str, ...]
    class_names: tuple[str, ...] | None = None
    version: str | None = None

    @property
    def is_sendable(self) -> bool:
        """Whether every input can be written as bytes."""
        return all(kind in tensors_wire.DATATYPES or kind == tensors_wire.BF16 for _, kind in self.inputs)


def server_extensions() -> Call[tuple[str, ...]]:
    """GET /v2: what the server can do besides the protocol itself."""
    return Call("GET", "/v2", lambda reply, _: tuple(orjson.loads(reply.content).get("extensions", ())))


def describe(model: str, version: str | None) -> Call[Description]:
    """GET /v2/models/{m}, or of one version."""
    return Call("GET", _path(model, version), lambda reply, _: _description(orjson.loads(reply.content)))


def predict(asked: Asked, model: str, described: Description) -> Call[RemotePrediction]:
    """POST /v2/models/{m}/infer. Raises InputError for inputs that do not fit the description."""
    written = [tensors_wire.write(name, array, kind) for name, array, kind in _tensors(asked, described)]
    header: dict[str, Any] = {"inputs": [item for item, _ in written]}
    if asked.outputs or asked.quantiles is not None:
        names = [name for name in ALWAYS if name in described.outputs]
        names += [*asked.outputs, *(("quantiles",) if asked.quantiles is not None else ())]
        header["outputs"] = [{"name": name} for name in dict.fromkeys(names)]
    parameters: dict[str, Any] = {**asked.options, "binary_data_output": True}
    if asked.quantiles is not None:
        parameters["quantiles"] = ",".join(map(repr, asked.quantiles))
    buffers = [buffer for _, buffer in written]

    def body(deadline_ms: int) -> tuple[bytes, Mapping[str, str]]:
        content, length = tensors_wire.join(
            {**header, "parameters": {**parameters, "deadline_ms": deadline_ms}}, buffers
        )
        return content, {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(length)}

    def read(reply: Reply, timings: Timings) -> RemotePrediction:
        return read_answer(reply, timings, described.class_names)

    return Call("POST", f"{_path(model, asked.version)}/infer", read, body, accept="application/octet-stream, */*")


def read_answer(reply: Reply, timings: Timings, class_names: tuple[str, ...] | None) -> RemotePrediction:
    """From an answer whose tensors are bytes, JSON, or some of each. The arrays are copies and may be written to."""
    header, rest = tensors_wire.split(reply.content, reply.headers.get(HEADER_LENGTH.lower()))
    binary = tensors_wire.read_all(header["outputs"], rest)
    arrays = {
        item["name"]: binary[item["name"]].copy() if item["name"] in binary else _from_json(item)
        for item in header["outputs"]
    }
    said = header.get("parameters", {})
    levels = said.get("quantile_levels", "")
    if timings.compute_ms is None:
        timings = replace(timings, queue_ms=said.get("queue_ms"), compute_ms=said.get("compute_ms"))
    return RemotePrediction(
        model=header["model_name"],
        version=header.get("model_version", ""),
        num_samples=said["num_samples"],
        seed=said["seed"],
        fields=_fields(arrays),
        class_names=class_names,
        quantile_levels=tuple(float(level) for level in levels.split(",")) if levels else (),
        partial=bool(said.get("partial", False)),
        request_id=reply.request_id,
        timings=timings,
        raw=header,
    )


def _description(answer: Any) -> Description:
    names = answer.get("parameters", {}).get("class_names")
    versions: Sequence[str] = answer.get("versions") or ()
    return Description(
        inputs=tuple((item["name"], item["datatype"]) for item in answer["inputs"]),
        outputs=tuple(item["name"] for item in answer.get("outputs", ())),
        class_names=None if names is None else tuple(names),
        version=versions[0] if len(versions) == 1 else None,
    )


def _tensors(asked: Asked, described: Description) -> list[tuple[str, NDArray[Any], str]]:
    """Name, values and data type of each input. A name that the model does not have is the server's to refuse."""
    kinds = dict(described.inputs)
    if isinstance(asked.inputs, dict):
        given = asked.inputs
    elif len(kinds) == 1:
        given = {next(iter(kinds)): asked.inputs}
    else:
        raise InputError(f"the model has {len(kinds)} inputs and got one array. Give a dict with {', '.join(kinds)}.")
    tensors = []
    for name, array in given.items():
        kind = kinds.get(name) or tensors_wire.datatype_of(array)
        tensors.append((name, tensors_wire.fit(array, kind, name), kind))
    return tensors


def _from_json(item: Mapping[str, Any]) -> NDArray[Any]:
    """An output that came as JSON: null is NaN."""
    kind = item["datatype"]
    return np.array(item["data"], np.float32 if kind == tensors_wire.BF16 else tensors_wire.DATATYPES[kind]).reshape(
        item["shape"]
    )


def _fields(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """Tensors as the fields of a prediction: `standard_errors.*` as a dict, a pair of samples as one array."""
    fields: dict[str, Any] = {}
    for name, array in arrays.items():
        field, _, part = name.partition(".")
        if part:
            fields.setdefault(field, {})[part] = array
        else:
            fields[name] = array
    if isinstance(fields.get("samples"), dict):
        fields["samples"] = np.stack([fields["samples"]["mean"], fields["samples"]["log_variance"]])
    return fields


def _path(model: str, version: str | None) -> str:
    return f"/v2/models/{quote(model)}" + ("" if version is None else f"/versions/{quote(version)}")
