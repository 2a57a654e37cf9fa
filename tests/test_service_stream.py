"""Estimates that sharpen, over HTTP: the order of events, the last one, failures on the way, who leaves."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest

from raw import connected, head
from service.app import create_app
from service.errors import NonFiniteError
from service.nonfinite import finite_only
from service.outcome import Outcome
from serving import live, models_folder, settings

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


def test_a_named_version_streams(http):
    path = "/v1/models/insects/versions/{}/stream"
    found = events(http, path.format(3), {"inputs": [ROW], "num_samples": 20})
    assert (found[-1][0], found[-1][1]["version"]) == ("result", "3")
    answer = http.post(path.format(4), json={"inputs": [ROW]})
    assert (answer.status_code, answer.json()["code"]) == (404, "unknown-model")


def test_what_is_wrong_at_once_is_no_stream(http):
    answer = http.post(STREAM, json={"inputs": [[1]]})
    assert answer.status_code == 422
    assert answer.json()["code"] == "invalid-input"
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


def test_values_that_json_cannot_hold_can_be_an_error_of_the_stream():
    """Zeros give 0 in every pass, so the entropy is minus infinity from the first estimate to the last."""
    zeros, values = {"inputs": [[0.0, 0.0]], "num_samples": 40}, {"inputs": [[1.0, 2.0]], "num_samples": 40}
    with live(models=models_folder() / "slope", nonfinite="error") as http:
        answer = http.post("/v1/models/slope/stream", json=zeros)
        assert (answer.status_code, answer.json()["code"]) == (500, "nonfinite-answer")
        assert events(http, "/v1/models/slope/stream", values)[-1][0] == "result"


def test_an_estimate_that_json_cannot_hold_is_left_out():
    """The passes agree at first: what the last estimate can say is said."""
    write = finite_only(lambda outcome: b"written", settings(nonfinite="error"))
    outcome = Outcome("m", "1", 8, 0, {"mean": np.zeros(2), "entropy": np.array([1.0, -np.inf])}, final=False)
    assert write(outcome) == b""
    assert write(replace(outcome, fields={"mean": np.zeros(2)})) == b"written"
    with pytest.raises(NonFiniteError, match="entropy holds 1 values"):
        write(replace(outcome, final=True))


def test_streams_and_refusals_count_in_the_statistics_of_their_model():
    def durations() -> dict[str, int]:
        stats = http.get("/v2/models/insects/stats").json()["model_stats"][0]["inference_stats"]
        return {name: stats[name]["count"] for name in ("success", "fail", "queue")}

    with live(max_rows=2) as http:
        events(http, STREAM, {"inputs": [ROW], "num_samples": 20})
        assert durations() == {"success": 1, "fail": 0, "queue": 1}
        for path in (STREAM, PLAIN):
            assert http.post(path, json={"inputs": [ROW] * 3}).status_code == 422
        assert durations() == {"success": 1, "fail": 2, "queue": 1}
        assert http.post(PLAIN, json={"inputs": [ROW]}).status_code == 200
        assert durations() == {"success": 2, "fail": 2, "queue": 2}


def test_who_leaves_before_the_first_estimate_is_noticed_at_once():
    """The first estimate would never come: the thread is held, as by another request, until the client is gone."""
    app = create_app(settings())
    released, body = threading.Event(), b'{"inputs": [[0, 0, 0, 0]]}'

    held = threading.Event()

    def hold() -> Iterator[None]:
        held.set()
        assert released.wait(60)
        yield

    async def talk() -> list[Any]:
        async with app.router.lifespan_context(app):
            await app.state.loading
            scheduler = app.state.registry.scheduler
            holding = asyncio.ensure_future(scheduler.run(hold()))
            await asyncio.to_thread(held.wait, 60)
            messages = iter([{"type": "http.request", "body": body, "more_body": False}])
            sent: list[Any] = []

            async def receive() -> Any:
                message = next(messages, None)
                while message is None and not scheduler.pending:
                    await asyncio.sleep(0)
                return message or {"type": "http.disconnect"}

            async def send(message: Any) -> None:
                sent.append(message)

            scope = {"type": "http", "method": "POST", "path": STREAM, "raw_path": STREAM.encode(), "query_string": b"",
                     "root_path": "", "headers": [(b"content-type", b"application/json")], "http_version": "1.1",
                     "scheme": "http", "state": {}, "server": ("server", 80), "client": ("client", 1)}  # fmt: skip
            async with asyncio.timeout(30):
                await app(scope, receive, send)
            assert scheduler.pending == 0
            released.set()
            await holding
            return sent

    assert asyncio.run(talk())[0]["status"] == 499


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


@pytest.mark.parametrize("is_begun", [True, False], ids=["in the middle", "before the first event"])
def test_who_leaves_a_stream_is_counted_as_gone(is_begun):
    """Without the heartbeats that find it out by themselves; each row alone, so that the first estimate takes long."""
    exact = {} if is_begun else {"determinism": "exact"}
    with live(max_num_samples=10**9, max_cost=10**13, max_pending_seconds=1e9) as http:
        body = json.dumps({"inputs": [ROW] * 2000, "num_samples": 10**6, **exact}).encode()
        with connected(http) as connection:
            connection.sendall(head(STREAM, "Content-Type: application/json", f"Content-Length: {len(body)}") + body)
            while "mcdrop_pending_requests 1.0" not in http.get("/metrics").text:
                pass
            if is_begun:
                assert connection.recv(10).startswith(b"HTTP/1.1 2")
        gone = 'mcdrop_requests_total{model="insects",outcome="cancelled",version="3"} 1.0'
        until = time.monotonic() + 20
        while gone not in (text := http.get("/metrics").text) and time.monotonic() < until:
            pass
        assert gone in text
        assert "mcdrop_pending_requests 0.0" in text


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
