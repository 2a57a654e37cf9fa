"""An outcome as the protocol's response: JSON, and after it the buffers of those tensors that are wanted as bytes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from service.nonfinite import count_nonfinite
from service.outcome import Outcome
from service.v2.datatypes import of_array
from service.v2.outputs import select, tensors
from service.v2.requests import InferRequest

HEADER_LENGTH = "Inference-Header-Content-Length"


@dataclass
class Writer:
    """Writes the answer to one request. Called once, on whichever thread; `headers` says afterwards how to read it."""

    request: InferRequest
    header_length: int | None = None  # bytes of JSON, where buffers follow

    def __call__(self, outcome: Outcome) -> bytes:
        chosen = select(tensors(outcome), self.request.wanted, self.request.binary)
        outputs, buffers = [], []
        for name, (array, as_bytes) in chosen.items():
            entry, buffer = _output(name, array, as_bytes)
            outputs.append(entry)
            buffers.append(buffer)
        answer: dict[str, Any] = {"model_name": outcome.model, "model_version": outcome.version}
        if self.request.id is not None:
            answer["id"] = self.request.id
        answer["parameters"] = _parameters(outcome, [array for array, _ in chosen.values()])
        answer["outputs"] = outputs
        text = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
        if any(as_bytes for _, as_bytes in chosen.values()):
            self.header_length = len(text)
        return b"".join([text, *buffers])

    @property
    def media_type(self) -> str:
        """Exactly what clients compare with."""
        return "application/json" if self.header_length is None else "application/octet-stream"

    @property
    def headers(self) -> dict[str, str]:
        """Where the JSON ends, when something follows it."""
        return {} if self.header_length is None else {HEADER_LENGTH: str(self.header_length)}


def _output(name: str, array: NDArray[Any], as_bytes: bool) -> tuple[dict[str, Any], bytes]:
    datatype = of_array(array)
    entry: dict[str, Any] = {"name": name, "shape": list(array.shape), "datatype": datatype.name}
    if not as_bytes:  # NaN and infinities become null, since JSON has neither
        return {**entry, "data": np.ascontiguousarray(array).ravel()}, b""
    buffer = array.astype(datatype.layout, copy=False).tobytes()
    return {**entry, "parameters": {"binary_data_size": len(buffer)}}, buffer


def _parameters(outcome: Outcome, arrays: list[NDArray[Any]]) -> dict[str, Any]:
    parameters: dict[str, Any] = {
        "num_samples": outcome.num_samples,
        "seed": outcome.seed,
        "queue_ms": round(outcome.queue_ms, 3),
        "compute_ms": round(outcome.compute_ms, 3),
        "nonfinite_count": count_nonfinite(arrays),
    }
    if outcome.quantile_levels:
        parameters["quantile_levels"] = ",".join(map(str, outcome.quantile_levels))
    if outcome.partial:
        parameters["partial"] = True
    return parameters
