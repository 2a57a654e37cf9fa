"""A server without a model: exact bytes of the protocol over httpx's mock transport, and faults on request.

It predicts nothing: the mean of a row is the row, its variance 0, its entropy minus infinity.
"""

import json
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

from mcdrop.wire.tensors_wire import join, read_all, split, write

Fault = Callable[[httpx.Request], httpx.Response | None]


class Body(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body in pieces, which remembers whether it was closed."""

    def __init__(self, *pieces: bytes | Exception) -> None:
        self.pieces = pieces
        self.closed = False

    def __iter__(self) -> Iterator[bytes]:
        for piece in self.pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self:
            yield piece

    def close(self) -> None:
        self.closed = True

    async def aclose(self) -> None:
        self.closed = True


@dataclass
class Stub:
    """`faults` are asked first, in turn, about requests for predictions; None lets a request through."""

    binary: bool = True
    version: str = "1"
    class_names: tuple[str, ...] | None = ("ant", "bee")
    inputs: dict[str, str] = field(default_factory=lambda: {"x": "FP32"})
    default: str | None = "m"
    faults: list[Fault] = field(default_factory=list)
    seen: list[httpx.Request] = field(default_factory=list)

    @property
    def paths(self) -> list[str]:
        return [request.url.path for request in self.seen]

    @property
    def transport(self) -> httpx.MockTransport:
        return httpx.MockTransport(self)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.seen.append(request)
        path = request.url.path
        if request.method == "POST" and self.faults:
            response = self.faults.pop(0)(request)
            if response is not None:
                return response
        if path == "/v2" and self.binary:
            return httpx.Response(200, json={"name": "s", "version": "1", "extensions": ["binary_tensor_data"]})
        if path == "/v1/models":
            return httpx.Response(200, json={"default": self.default, "models": [{"name": "m"}]})
        if path in ("/v2/models/m", f"/v2/models/m/versions/{self.version}"):
            return httpx.Response(200, json=self._metadata())
        if path.startswith("/v2/models/m") and path.endswith("/infer"):
            return self._infer(request)
        if path in ("/v1/predict", "/v1/models/m/predict"):
            return httpx.Response(200, json=self._answer(json.loads(request.content)["inputs"]))
        return httpx.Response(404, json={"error": f"nothing at {path}", "detail": f"nothing at {path}"})

    def _metadata(self) -> dict[str, Any]:
        outputs = [{"name": name, "datatype": "FP32", "shape": [-1]} for name in ("mean", "variance", "entropy")]
        return {
            "name": "m",
            "versions": [self.version],
            "platform": "stub",
            "inputs": [{"name": name, "datatype": kind, "shape": [-1, 2]} for name, kind in self.inputs.items()],
            "outputs": outputs,
            "parameters": {"class_names": self.class_names},
        }

    def _infer(self, request: httpx.Request) -> httpx.Response:
        header, rest = split(request.content, request.headers["inference-header-content-length"])
        arrays = read_all(header["inputs"], rest)
        if {item["name"]: item["datatype"] for item in header["inputs"]} != self.inputs:
            return httpx.Response(400, json={"error": f"the inputs are {self.inputs}"})
        rows = next(iter(arrays.values())).astype(np.float32)
        found = {"mean": rows, "variance": 0 * rows, "entropy": np.full(len(rows), -np.inf, np.float32)}
        wanted = [item["name"] for item in header.get("outputs", [])]
        if "standard_errors" in wanted:
            found["standard_errors.mean"] = rows / 8
        if "samples" in wanted:
            found |= {"samples.mean": np.stack([rows] * 3), "samples.log_variance": np.stack([-rows] * 3)}
        if "quantiles" in wanted:
            found["quantiles"] = np.stack([rows, rows + 1])
        written = [write(name, array) for name, array in found.items()]
        asked = header["parameters"]
        answer = {
            "model_name": "m",
            "model_version": self.version,
            "parameters": {"num_samples": 3, "seed": asked.get("seed", 0), "queue_ms": 0.5, "compute_ms": 2.0},
            "outputs": [described for described, _ in written],
        }
        if "quantiles" in asked:
            answer["parameters"]["quantile_levels"] = asked["quantiles"]
        content, length = join(answer, [buffer for _, buffer in written])
        headers = {"inference-header-content-length": str(length), "x-request-id": request.headers["x-request-id"]}
        return httpx.Response(200, content=content, headers=headers)

    def _answer(self, rows: list[Any]) -> dict[str, Any]:
        zeros = np.zeros_like(rows).tolist()
        return {
            "model": "m", "version": self.version, "num_samples": 3, "seed": 0,
            "mean": rows, "variance": zeros, "entropy": [None] * len(rows),
        }  # fmt: skip


def says(status: int, headers: dict[str, str] | None = None, **content: Any) -> Fault:
    """A fault: this answer."""
    return lambda _: httpx.Response(status, headers=headers, json=content)


def breaks(error: type[httpx.TransportError] = httpx.RemoteProtocolError) -> Fault:
    """A fault: the connection dies before a response."""

    def fault(request: httpx.Request) -> httpx.Response:
        raise error("the connection broke", request=request)

    return fault


def cut_short(request: httpx.Request) -> httpx.Response:
    """A fault: the connection dies within a response."""
    return httpx.Response(200, stream=Body(b"{", httpx.ReadError("the connection broke", request=request)))


def streams(body: Body) -> Fault:
    """A stream of events, as if it were a fault."""
    return lambda _: httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=body)


def event(name: str, **content: Any) -> bytes:
    """One server-sent event."""
    return f"event: {name}\ndata: {json.dumps(content)}\n\n".encode()


def estimate(name: str, num_samples: int) -> bytes:
    """An event with the prediction after so many passes."""
    return event(
        name, model="m", version="1", num_samples=num_samples, seed=0,
        mean=[[0.5, num_samples]], variance=[[0.0, 0.0]], entropy=[0.1], standard_errors={"mean": [[0.1, 0.1]]},
    )  # fmt: skip
