"""`determinism: exact` over HTTP: the same bits alone, under load, and whatever rows stand beside a row."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest

from serving import live, models_folder
from v2_requests import INSECTS, binary, binary_body, outputs

ROWS = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
PLAIN, STREAM = "/v1/models/insects/predict", "/v1/models/insects/stream"
ASKED = {"num_samples": 50, "seed": 11, "determinism": "exact"}
FIELDS = ("mean", "variance", "entropy", "mutual_information")


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with live(models=models_folder() / "one") as client:
        yield client


def native(http: httpx.Client, rows: np.ndarray) -> list[Any]:
    """By JSON, whose digits name each float32 exactly."""
    answer = http.post(PLAIN, json={"inputs": rows.tolist(), "outputs": ["mutual_information"], **ASKED})
    assert answer.status_code == 200, answer.text
    return _rows(answer.json())


def streamed(http: httpx.Client, rows: np.ndarray) -> list[Any]:
    """The last event of a stream."""
    answer = http.post(STREAM, json={"inputs": rows.tolist(), "outputs": ["mutual_information"], **ASKED})
    return _rows(json.loads(answer.text.partition("event: result\ndata: ")[2]))


def by_v2(http: httpx.Client, rows: np.ndarray) -> list[Any]:
    """As bytes."""
    wanted = [{"name": name, "parameters": {"binary_data": True}} for name in FIELDS]
    content = {"inputs": [binary("input", rows, "FP32")], "outputs": wanted, "parameters": ASKED}
    body, headers = binary_body(content, rows.tobytes())
    return _rows(outputs(http.post(INSECTS, content=body, headers=headers)))


def _rows(found: Any) -> list[Any]:
    """Row by row, the bits of every field."""
    arrays = [np.asarray(found[name], np.float32) for name in FIELDS]
    return [[array[row].tobytes() for array in arrays] for row in range(len(arrays[0]))]


@pytest.mark.parametrize("ask", [native, streamed, by_v2])
def test_the_bits_are_the_same_alone_under_load_and_in_any_batch(http, ask):
    alone = [native(http, ROWS[row : row + 1])[0] for row in range(len(ROWS))]
    assert ask(http, ROWS) == alone
    assert ask(http, ROWS[::-1]) == alone[::-1]
    assert ask(http, ROWS[2:5]) == alone[2:5]

    def load(number: int) -> int:
        rows = ROWS[: 1 + number % 6].tolist()
        return http.post(PLAIN, json={"inputs": rows, "num_samples": 40 + number, "seed": number % 3}).status_code

    with ThreadPoolExecutor(12) as pool:
        others = [pool.submit(load, number) for number in range(40)]
        asked = [pool.submit(ask, http, ROWS[: 1 + number % 6]) for number in range(12)]
        found = [each.result() for each in asked]
        assert {other.result() for other in others} == {200}
    for rows in found:
        assert rows == alone[: len(rows)]
