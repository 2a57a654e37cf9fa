"""What the chaos tier asks: good requests with the library's own answers, and bad ones with what they deserve."""

import gzip
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch
from torch import nn

from chaos_wire import Answer, post
from mcdrop.predictor import MCDropout
from serving import add_version, models_folder

TOLERANCE = 1e-4  # absolute, of means
LENGTH = "Inference-Header-Content-Length"
BOMB = 256 * 2**20  # bytes that a small body stands for


@dataclass(frozen=True)
class Ask:
    """One request. `check` says what is wrong with an answer of 200; `statuses` are the failures that it may meet."""

    kind: str
    path: str
    body: bytes
    check: Callable[[Answer], str | None]
    headers: Mapping[str, str] = field(default_factory=dict)
    statuses: frozenset[int] = frozenset({429})

    def wire(self, request_id: str) -> bytes:
        """The bytes to send."""
        return post(self.path, self.body, request_id, self.headers)


def build_repository(folder: Path) -> Path:
    """`insects` and `slope`, tiny, `glyphs`, a small convolutional network, and `numbered`, which is to be reloaded."""
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(1, 8, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Dropout(0.5), nn.Linear(256, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 10)),
    )
    glyphs = MCDropout(network, torch.rand(2, 1, 28, 28), task="classification", name="glyphs", num_samples=50)
    glyphs.save(folder / "glyphs" / "1")
    for source, name, version in (("one", "insects", "3"), ("slope", "slope", "1")):
        MCDropout.load(models_folder() / source).save(folder / name / version)
    add_version(folder, "numbered", 1)
    return folder


def good_requests(repository: Path) -> list[Ask]:
    """Of many sizes, seeds, numbers of passes and ways to ask."""
    rng = np.random.default_rng(0)
    asks: list[Ask] = []
    for name, version, shape in (("insects", "3", (4,)), ("glyphs", "1", (1, 28, 28)), ("slope", "1", (2,))):
        model = MCDropout.load(repository / name / version)
        sizes = (1, 1, 1, 2, 7, 33, 120) if name != "glyphs" else (1, 1, 1, 3, 12, 40)
        for seed in (None, *range(1, 12)):
            for rows in sizes:
                x = rng.normal(size=(rows, *shape)).astype(np.float32).round(3)
                passes = None if seed is None else int(rng.integers(5, 150))
                mean = np.asarray(model(x, num_samples=passes, seed=seed).mean)
                asks += _ways(name, x, passes, seed, mean)
    return asks


def _ways(name: str, x: np.ndarray, passes: int | None, seed: int | None, mean: np.ndarray) -> Iterator[Ask]:
    """The same request by each of the ways to send it."""
    options = {key: value for key, value in (("num_samples", passes), ("seed", seed)) if value is not None}
    native = f"/v1/models/{name}/predict"
    plain = {"inputs": x.tolist(), **options}
    check = _native(mean)
    yield Ask("json", native, _json(plain), check)
    yield Ask("gzip", native, gzip.compress(_json(plain), 1), check, {"Content-Encoding": "gzip"})
    yield Ask("stream", f"/v1/models/{name}/stream", _json(plain), _streamed(mean))
    yield Ask("late", native, _json({**plain, "deadline_ms": 40}), check, statuses=frozenset({429, 504}))
    yield Ask("errors", native, _json({**plain, "outputs": ["standard_errors"], "quantiles": [0.1, 0.9]}), check)
    if len(x) <= 3:
        yield Ask("exact", native, _json({**plain, "determinism": "exact"}), check)
    tensor = {"name": "input", "shape": list(x.shape), "datatype": "FP32"}
    infer = f"/v2/models/{name}/infer"
    in_json = {"inputs": [{**tensor, "data": x.ravel().tolist()}], "parameters": options}
    yield Ask("v2 json", infer, _json(in_json), _inferred(mean))
    sized = {**tensor, "parameters": {"binary_data_size": x.nbytes}}
    head = _json({"inputs": [sized], "parameters": {**options, "binary_data_output": True}})
    for _ in range(2):  # the way of most clients
        yield Ask("v2 binary", infer, head + x.tobytes(), _inferred(mean), {LENGTH: str(len(head))})


def large_request(repository: Path) -> Ask:
    """One of which a few hundred fill the queue."""
    x = np.random.default_rng(1).normal(size=(400, 4)).astype(np.float32).round(2)
    mean = np.asarray(MCDropout.load(repository / "insects" / "3")(x, num_samples=300, seed=1).mean)
    body = _json({"inputs": x.tolist(), "num_samples": 300, "seed": 1})
    return Ask("large", "/v1/models/insects/predict", body, _native(mean))


def versioned_request() -> Ask:
    """One whose answer is the number of the version that gave it: 1 or 2."""

    def check(answer: Answer) -> str | None:
        content = orjson.loads(answer.body)
        right = content["version"] in "12" and abs(content["mean"][0][0] - int(content["version"])) < TOLERANCE
        return None if right else f"version {content['version']} answers {content['mean']}"

    return Ask("versions", "/v1/models/numbered/predict", _json({"inputs": [[1.0, 2.0]]}), check)


def bad_requests() -> list[Ask]:
    """NaN in every costume, and bodies that are no requests."""
    row, infer, native = [0.1, -0.5, 2.0, 1.5], "/v2/models/insects/infer", "/v1/models/insects/predict"
    nan = np.full((1, 4), np.nan, np.float32)

    def binary(**changes: Any) -> bytes:
        tensor = {"name": "input", "shape": [1, 4], "datatype": "FP32", "parameters": {"binary_data_size": 16}}
        return _json({"inputs": [{**tensor, **changes}]})

    def bad(kind: str, path: str, body: bytes, *statuses: int, **headers: str) -> Ask:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return Ask(kind, path, body, lambda _: "it was answered", named, frozenset({*statuses, 429}))

    def split(kind: str, head: bytes, rest: bytes) -> Ask:
        return bad(kind, infer, head + rest, 400, 413, **{LENGTH: str(len(head))})

    return [
        bad("NaN", native, b'{"inputs": [[NaN, 0, 0, 0]]}', 400),
        bad("NaN", native, b'{"inputs": [[1e999, 0, 0, 0]]}', 400, 422),
        bad("NaN", native, b'{"inputs": [[null, 0, 0, 0]]}', 422),
        bad("NaN", native, b'{"inputs": [["NaN", 0, 0, 0]]}', 422),
        split("NaN", binary(), nan.tobytes()),
        split("NaN", binary(), (nan * -np.inf).tobytes()),
        split("malformed", binary(), b"short"),
        split("malformed", binary(shape=[2**40, 4]), b""),
        split("malformed", binary(shape=[-1, 4]), nan.tobytes()),
        split("malformed", binary(datatype="BYTES"), nan.tobytes()),
        bad("malformed", infer, b"{}", 400, **{LENGTH: "99"}),
        bad("malformed", native, b"", 400),
        bad("malformed", native, b"[" * 100_000, 400),
        bad("malformed", native, b"\xff\xfe{}", 400),
        bad("malformed", native, _json({"inputs": [row], "num_samples": 10**15}), 422),
        bad("malformed", native, _json({"inputs": [row, row[:3]]}), 422),
        bad("malformed", native, _json({"inputs": [row], "surprise": 1}), 422),
        bad("malformed", native, _json({"inputs": [row]}), 415, Content_Type="text/plain"),
        bad("malformed", native, _json({"inputs": [row]}), 415, Content_Encoding="br"),
        bad("malformed", native, b"not gzip", 400, Content_Encoding="gzip"),
        bad("malformed", "/v1/models/nobody/predict", _json({"inputs": [row]}), 404),
    ]


def bombs() -> list[Ask]:
    """Bodies that unpack to hundreds of megabytes."""
    packed = gzip.compress(bytes(BOMB), 1)

    def bomb(path: str) -> Ask:
        coded = {"Content-Encoding": "gzip"}
        return Ask("bomb", path, packed, lambda _: "it was answered", coded, frozenset({413, 429}))

    return [bomb("/v1/models/insects/predict"), bomb("/v2/models/insects/infer")]


def _json(content: Any) -> bytes:
    return json.dumps(content).encode()


def _compare(found: Any, mean: np.ndarray) -> str | None:
    array = np.asarray(found, np.float64)
    if array.shape != mean.shape:
        return f"a mean of shape {array.shape} instead of {mean.shape}"
    worst = float(np.abs(array - mean).max(initial=0))
    return None if worst <= TOLERANCE else f"a mean that is off by {worst:.2e}"


def _native(mean: np.ndarray) -> Callable[[Answer], str | None]:
    return lambda answer: _compare(orjson.loads(answer.body)["mean"], mean)


def _streamed(mean: np.ndarray) -> Callable[[Answer], str | None]:
    def check(answer: Answer) -> str | None:
        events = [block.split(b"\ndata: ", 1) for block in answer.body.split(b"\n\n") if block[:1] not in (b":", b"")]
        names, contents = [event[0] for event in events], [orjson.loads(event[1]) for event in events]
        if names[-1:] != [b"event: result"] or set(names[:-1]) - {b"event: estimate"}:
            return f"events {names}: {contents[-1:]}"
        return _compare(contents[-1]["mean"], mean)

    return check


def _inferred(mean: np.ndarray) -> Callable[[Answer], str | None]:
    def check(answer: Answer) -> str | None:
        length = int(answer.headers.get(LENGTH.lower(), len(answer.body)))
        output = orjson.loads(answer.body[:length])["outputs"][0]
        if length < len(answer.body):
            size = output["parameters"]["binary_data_size"]
            found: Any = np.frombuffer(answer.body[length : length + size], "<f4")
        else:
            found = np.array(output["data"])
        return _compare(found.reshape(output["shape"]), mean) if output["name"] == "mean" else f"{output['name']} first"

    return check
