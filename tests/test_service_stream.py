"""Estimates that sharpen, over HTTP: the order of events, the last one, failures on the way, who leaves."""

import asyncio
import json
import time
from typing import Any

import httpx
import pytest

from serving import live

ROW = [0.1, -0.5, 2.0, 1.5]
STREAM, PLAIN = "/v1/models/insects/stream", "/v1/models/insects/predict"


def events(http: httpx.Client, path: str, request: dict[str, Any]) -> list[tuple[str, Any]]:
    """Every event of a stream, comments as ("", text)."""
    found = []
    with http.stream("POST", path, json=request) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        text = response.read().decode()
    for block in text.split("\n\n")[:-1]:
        if block.startswith(":"):
            found.append(("", block))
            continue
        name, data = block.split("\n")
        assert name.startswith("event: ")
        assert data.startswith("data: ")
        found.append((name[7:], json.loads(data[6:])))
    return found


@pytest.fixture(scope="module")
def http():
    with live(max_num_samples=10**9, max_cost=10**12, max_pending_seconds=1e9, stream_heartbeat=0.02) as http:
        yield http


@pytest.mark.parametrize("rows", [1, 3, 300])
def test_estimates_then_the_plain_answer(http, rows):
    request = {"inputs": [ROW] * rows, "num_samples": 100, "seed": 3, "outputs": ["std"]}
    found = [event for event in events(http, STREAM, request) if event[0]]
    assert [name for name, _ in found] == ["estimate"] * (len(found) - 1) + ["result"]
    passes = [data["num_samples"] for _, data in found]
    assert passes == sorted(set(passes))
    assert passes[-1] == 100
    assert len(passes) > 2
    plain = http.post(PLAIN, json={**request, "outputs": ["std", "standard_errors"]}).json()
    last = found[-1][1]
    assert last.keys() == plain.keys()
    for name in ("mean", "variance", "entropy", "std"):
        for one, other in zip(_flat(last[name]), _flat(plain[name]), strict=True):
            assert one == pytest.approx(other, rel=1e-4, abs=1e-6)


def test_standard_errors_become_smaller(http):
    found = events(http, STREAM, {"inputs": [ROW], "num_samples": 4000})
    errors = [data["standard_errors"]["mean"][0][0] for name, data in found if name]
    assert errors[-1] < errors[0] / 4


def test_the_default_model_streams_too():
    with live(default_model="slope") as http:
        found = events(http, "/v1/stream", {"inputs": [[1.0, 2.0]], "num_samples": 20})
        assert found[-1][0] == "result"


def test_what_is_wrong_at_once_is_no_stream(http):
    answer = http.post(STREAM, json={"inputs": [[1]]})
    assert answer.status_code == 422
    assert answer.json()["code"] == "input-error" or "code" in answer.json()
    assert http.post("/v1/models/nobody/stream", json={"inputs": [[1]]}).status_code == 404


def test_a_deadline_on_the_way_is_an_error_event(http):
    found = events(http, STREAM, {"inputs": [ROW] * 64, "num_samples": 10**8, "deadline_ms": 1500})
    assert found[-1][0] == "error"
    assert found[-1][1]["code"] == "deadline-exceeded"
    assert found[-1][1]["status"] == 504
    assert "result" not in [name for name, _ in found]


def test_a_deadline_with_partial_answers_ends_in_the_best_so_far(http):
    found = events(http, STREAM, {"inputs": [ROW], "num_samples": 10**8, "deadline_ms": 600, "allow_partial": True})
    assert found[-1][0] == "result"
    assert found[-1][1]["partial"] is True
    assert 2 <= found[-1][1]["num_samples"] < 10**8


def test_silence_is_filled(http):
    found = events(http, STREAM, {"inputs": [ROW] * 300, "num_samples": 10**8, "deadline_ms": 900})
    assert ("", ": heartbeat") in found


def test_who_leaves_a_stream_ends_its_work(http):
    with http.stream("POST", STREAM, json={"inputs": [ROW] * 64, "num_samples": 10**8}) as response:
        next(response.iter_bytes())
    started = time.monotonic()
    while time.monotonic() - started < 20:
        if http.post(PLAIN, json={"inputs": [ROW]}).json().get("mean"):
            return
    raise AssertionError("the next request was not answered")


def test_many_streams_at_once():
    async def one(client: httpx.AsyncClient, seed: int) -> str:
        async with client.stream("POST", STREAM, json={"inputs": [ROW], "num_samples": 64, "seed": seed}) as response:
            return (await response.aread()).decode()

    async def talk(url: str) -> list[str]:
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=60) as client:
            return await asyncio.gather(*(one(client, seed) for seed in range(20)))

    with live() as http:
        texts = asyncio.run(talk(str(http.base_url)))
    assert all(text.count("event: result") == 1 and "event: error" not in text for text in texts)


def _flat(values: Any) -> list[float]:
    return [values] if not isinstance(values, list) else [number for value in values for number in _flat(value)]
