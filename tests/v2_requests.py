"""Requests of the Open Inference Protocol written by hand, and models of unusual inputs to send them to."""

import atexit
import functools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mcdrop.predictor import MCDropout
from serving import models_folder

LENGTH = "Inference-Header-Content-Length"
ADMIN_KEY = "an-admin-key-for-tests"
ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}
ROW = [0.1, -0.5, 2.0, 1.5]
INSECTS = "/v2/models/insects/infer"


class Words(nn.Module):
    """Token ids of any length, and which of them count."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 8)
        self.dropout = nn.Dropout(0.5)
        self.outer = nn.Linear(8, 2)

    def forward(self, ids: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.dropout(self.embedding(ids)) * counts.unsqueeze(-1)
        return self.outer(hidden)


class Spread(nn.Module):
    """A mean and a log variance, in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(2, 8), nn.Linear(8, 2)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        both: torch.Tensor = self.outer(self.dropout(self.inner(x)))
        return both[:, :1], both[:, 1:]


@functools.cache
def unusual_folder() -> Path:
    """`words` (token classification, int64 and bool inputs of free length), `spread` (a pair in float64), `field`
    (regression of a map of free height and width)."""
    folder = Path(tempfile.mkdtemp(prefix="mcdrop-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    torch.manual_seed(0)
    lengths = {"ids": {1: "length<=16"}, "counts": {1: "length<=16"}}
    words = {"ids": torch.zeros(2, 3, dtype=torch.int64), "counts": torch.ones(2, 3, dtype=torch.bool)}
    MCDropout(Words(), words, task="classification", dynamic=lengths).save(folder / "words")
    MCDropout(Spread(), torch.rand(2, 2), task="heteroscedastic", dtype=torch.float64).save(folder / "spread")
    area = {"x": {2: "height<=9", 3: "width<=9"}}
    field = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Dropout(0.5), nn.Conv2d(2, 1, 1))
    MCDropout(field, {"input": torch.rand(2, 1, 3, 4)}, task="regression",
              dynamic={"input": area["x"]}).save(folder / "field")  # fmt: skip
    return folder


@functools.cache
def everything_folder() -> Path:
    """These and the three of `serving`, side by side."""
    folder = Path(tempfile.mkdtemp(prefix="mcdrop-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for source in (models_folder(), unusual_folder()):
        for model in source.iterdir():
            shutil.copytree(model, folder / model.name)
    return folder


def tensor(name: str, shape: list[int], datatype: str, data: Any) -> dict[str, Any]:
    """An input as JSON."""
    return {"name": name, "shape": shape, "datatype": datatype, "data": data}


def insects(
    data: Any = (ROW,), shape: list[int] | None = None, datatype: str = "FP32", **members: Any
) -> dict[str, Any]:
    """A request to the model `insects`."""
    return {"inputs": [tensor("input", shape or [len(data), 4], datatype, data)], **members}


def binary_body(content: dict[str, Any], *buffers: bytes) -> tuple[bytes, dict[str, str]]:
    """A request whose inputs without data are the buffers, and its headers."""
    header = json.dumps(content).encode()
    return header + b"".join(buffers), {LENGTH: str(len(header))}


def binary(name: str, array: NDArray[Any], datatype: str, **parameters: Any) -> dict[str, Any]:
    """An input that follows as a buffer."""
    size = {"binary_data_size": array.nbytes}
    return {"name": name, "shape": list(array.shape), "datatype": datatype, "parameters": size | parameters}


def outputs(answer: httpx.Response) -> dict[str, NDArray[Any]]:
    """The output tensors of an answer, JSON and binary ones, read by hand."""
    assert answer.status_code == 200, answer.text
    length = int(answer.headers.get(LENGTH, len(answer.content)))
    content, rest = json.loads(answer.content[:length], parse_constant=refuse), answer.content[length:]
    found = {}
    kinds = {"FP32": "<f4", "FP64": "<f8", "INT64": "<i8"}
    for output in content["outputs"]:
        kind = np.dtype(kinds[output["datatype"]])
        size = output.get("parameters", {}).get("binary_data_size")
        if size is None:
            array = np.array(output["data"], dtype=kind)
        else:
            assert "data" not in output
            array, rest = np.frombuffer(rest[:size], kind), rest[size:]
        found[output["name"]] = array.reshape(output["shape"])
    assert rest == b""
    is_binary = any("binary_data_size" in output.get("parameters", {}) for output in content["outputs"])
    assert answer.headers["content-type"] == ("application/octet-stream" if is_binary else "application/json")
    assert (LENGTH in answer.headers) == is_binary
    return found


def refuse(word: str) -> None:
    raise AssertionError(f"{word} in JSON")


def check_error(answer: httpx.Response, status: int, *fragments: str) -> str:
    """The protocol's only shape of an error."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    content = answer.json()
    assert list(content) == ["error"]
    for fragment in fragments:
        assert fragment in content["error"]
    return str(content["error"])
