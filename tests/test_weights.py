"""Tensors come back with their values, ties and memory layout."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mcdrop.disk.strictjson import Refused
from mcdrop.disk.weights import STORABLE, load_weights, save_weights

CPU = torch.device("cpu")


def round_trip(weights: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    table = json.loads(json.dumps(save_weights(path, weights)))
    return load_weights(path.read_bytes(), table, device=CPU)


@pytest.mark.parametrize("dtype", STORABLE.values(), ids=STORABLE)
def test_every_dtype_and_shape(dtype: torch.dtype, tmp_path: Path) -> None:
    weights = {"scalar": torch.ones((), dtype=dtype), "empty": torch.ones(0, 3, dtype=dtype)}
    weights["matrix"] = torch.arange(6).reshape(2, 3).to(dtype)
    back = round_trip(weights, tmp_path / "w")
    for name, weight in weights.items():
        assert back[name].dtype is dtype
        assert back[name].shape == weight.shape
        assert back[name].tolist() == weight.tolist()


def test_tied_weights_stay_tied_and_are_stored_once(tmp_path: Path) -> None:
    weight = torch.rand(100, 10)
    back = round_trip({"encoder": weight, "decoder": weight, "view": weight.view(100, 10)}, tmp_path / "w")
    assert back["encoder"].data_ptr() == back["decoder"].data_ptr() == back["view"].data_ptr()
    assert (tmp_path / "w").stat().st_size < 2 * weight.nbytes


def test_views_of_one_memory_are_stored_apart_without_the_rest(tmp_path: Path) -> None:
    memory = torch.rand(1000, 4)
    weights = {"head": memory[:2], "tail": memory[1:3], "column": memory[:4, 1], "turned": memory[:2].t()}
    back = round_trip(weights, tmp_path / "w")
    assert all(torch.equal(back[name], weight) for name, weight in weights.items())
    assert (tmp_path / "w").stat().st_size < 1000


@pytest.mark.parametrize(
    "weight",
    [
        torch.rand(4, 3, 2, 2).to(memory_format=torch.channels_last),
        torch.rand(4, 1, 2, 2).to(memory_format=torch.channels_last),
        torch.rand(3, 5).t(),
        torch.rand(2, 1, 3).transpose(0, 2),
    ],
)
def test_dense_weights_keep_their_strides(weight: Tensor, tmp_path: Path) -> None:
    back = round_trip({"w": weight}, tmp_path / "w")["w"]
    assert back.stride() == weight.stride()
    assert torch.equal(back, weight)


def test_expanded_and_strided_weights_become_plain(tmp_path: Path) -> None:
    weights = {"expanded": torch.rand(1, 3).expand(4, 3), "strided": torch.rand(4, 6)[:, ::2]}
    back = round_trip(weights, tmp_path / "w")
    assert all(torch.equal(back[name], weight) and back[name].is_contiguous() for name, weight in weights.items())


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.zeros(2, dtype=torch.complex128), "tensor of complex128"),
        (torch.eye(2).to_sparse(), "torch.sparse_coo tensor"),
        (torch.empty(2, device="meta"), "on meta"),
    ],
)
def test_what_cannot_be_stored_is_named(weight: Tensor, message: str, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=f"the weight 'w' .*{message}"):
        save_weights(tmp_path / "w", {"w": weight})


ENTRY = {"tensor": "w", "dtype": "float32", "shape": [2, 3]}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([], "should be an object"),
        ({"w": []}, "should have tensor, dtype and shape"),
        ({"w": {**ENTRY, "more": 1}}, "should have tensor, dtype and shape"),
        ({"w": {**ENTRY, "tensor": "v"}}, "which the file does not have"),
        ({"w": {**ENTRY, "tensor": 3}}, "a tensor should be a text"),
        ({"w": {**ENTRY, "dtype": "float16"}}, "is torch.float32 \\[2, 3\\], not torch.float16"),
        ({"w": {**ENTRY, "dtype": "object"}}, "unknown dtype 'object'"),
        ({"w": {**ENTRY, "shape": [3, 2]}}, "not torch.float32 \\[3, 2\\]"),
        ({"w": {**ENTRY, "shape": [2, -3]}}, "something else than sizes"),
        ({"w": {**ENTRY, "shape": "23"}}, "should be a list"),
        ({"w": {**ENTRY, "stride": [10**9, 1]}}, "strides \\[1000000000, 1\\] do not fit"),
        ({"w": {**ENTRY, "stride": [0, 0]}}, "do not fit"),
        ({"w": {**ENTRY, "stride": [1]}}, "do not fit"),
        ({"w": ENTRY, "v": {**ENTRY, "stride": [1, 2]}}, "other strides than its twin"),
        ({}, "the tensor 'w' belongs to no weight"),
    ],
)
def test_a_table_that_does_not_fit_the_file(table: Any, message: str, tmp_path: Path) -> None:
    save_weights(tmp_path / "w", {"w": torch.rand(2, 3)})
    with pytest.raises(Refused, match=message):
        load_weights((tmp_path / "w").read_bytes(), table, device=CPU)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data[:20],
        lambda data: b"\xff" * 8 + data[8:],
        lambda data: data + b"more",
        lambda data: data.replace(b'"F32"', b'"F64"'),
        lambda data: data.replace(b"[0,24]", b"[8,32]"),
    ],
)
def test_a_damaged_file(damage: Any, tmp_path: Path) -> None:
    path = tmp_path / "w"
    table = save_weights(path, {"w": torch.rand(2, 3)})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(Refused, match="it cannot be read"):
        load_weights(path.read_bytes(), table, device=CPU)


def test_overwriting_the_file_does_not_change_what_was_loaded(tmp_path: Path) -> None:
    weight = torch.rand(1000)
    back = round_trip({"w": weight}, tmp_path / "w")["w"]
    with (tmp_path / "w").open("r+b") as file:
        file.write(b"\xff" * 5000)
    assert torch.equal(back, weight)
