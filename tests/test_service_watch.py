"""What happens to jobs shows in the metrics: queue, slices, uncertainty of answers, what was spared."""

import asyncio
import re
import time

import httpx
import pytest

from serving import live

ROW = [0.1, -0.5, 2.0, 1.5]
PATH = "/v1/models/insects/predict"


@pytest.fixture
def http():
    with live(max_num_samples=10**9, max_cost=10**12, max_pending_seconds=1e9) as http:
        yield http


def becomes(expected: float, http: httpx.Client, name: str, **labels: str) -> bool:
    """Whether `value` is this before long: an answer is looked at just after it has left."""
    until = time.monotonic() + 30
    while value(http, name, **labels) < expected and time.monotonic() < until:
        time.sleep(0.01)
    return value(http, name, **labels) == expected


def value(http: httpx.Client, name: str, **labels: str) -> float:
    """The sum of the series that have these labels."""
    total = 0.0
    for line in http.get("/metrics").text.splitlines():
        if match := re.fullmatch(rf"{name}(?:\{{(.*)\}})? (\S+)", line):
            found = dict(re.findall(r'(\w+)="([^"]*)"', match[1] or ""))
            if labels.items() <= found.items():
                total += float(match[2])
    return total


def test_requests_and_slices_are_counted(http):
    before = value(http, "mcdrop_executions_total", model="insects")
    for rows in (1, 2, 3):
        assert http.post(PATH, json={"inputs": [ROW] * rows, "num_samples": 16}).status_code == 200
    assert value(http, "mcdrop_accepted_requests_total", model="insects", version="3") == 3
    assert becomes(3, http, "mcdrop_requests_total", model="insects", outcome="ok")
    assert value(http, "mcdrop_executions_total", model="insects") - before >= 3
    assert value(http, "mcdrop_rows_total", model="insects") >= 6
    assert becomes(6 * 16, http, "mcdrop_batch_cost_sum", model="insects")
    assert value(http, "mcdrop_queue_duration_seconds_count", model="insects") == 3
    assert value(http, "mcdrop_batch_release_total") >= 3


def test_the_uncertainty_of_answers_shows(http):
    http.post(PATH, json={"inputs": [ROW] * 5, "num_samples": 16})
    for name in ("entropy_nats", "mutual_information_nats", "confidence"):
        assert becomes(5, http, f"mcdrop_answer_{name}_count", model="insects")
    http.post("/v1/models/slope/predict", json={"inputs": [[1.0, 2.0]] * 4})
    assert becomes(4, http, "mcdrop_answer_differential_entropy_nats_bucket", model="slope", le="+Inf")


def test_answers_of_requests_together_are_seen_once_each():
    async def talk(url: str) -> None:
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=60) as client:
            asks = [client.post(PATH, json={"inputs": [ROW] * 2, "num_samples": 16}) for _ in range(30)]
            assert {answer.status_code for answer in await asyncio.gather(*asks)} == {200}

    with live() as http:
        asyncio.run(talk(str(http.base_url)))
        assert becomes(60, http, "mcdrop_answer_confidence_count", model="insects")


def test_numbers_that_json_cannot_hold_are_counted(http):
    http.post("/v1/models/slope/predict", json={"inputs": [[0.0, 0.0]]})  # no variance: an entropy of minus infinity
    assert becomes(1, http, "mcdrop_nonfinite_outputs_total", model="slope")


def test_what_was_spared_is_counted(http):
    asked = {"inputs": [ROW] * 64, "num_samples": 10**8, "deadline_ms": 300}
    assert http.post(PATH, json=asked).status_code == 504
    assert value(http, "mcdrop_cancelled_samples_total", model="insects") > 10**8
    assert becomes(1, http, "mcdrop_requests_total", model="insects", outcome="timeout")
    assert value(http, "mcdrop_pending_cost") == 0
    assert value(http, "mcdrop_pending_requests") == 0
