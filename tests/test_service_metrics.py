"""What is counted, under which names and labels, and what the access log says."""

import asyncio
import contextlib
import json
import math
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse
from starlette.types import Receive, Scope, Send

import mcdrop
from metering import everything
from raw import connected, head
from service.app import create_app
from service.errors import ClientGoneError, OverloadedError, problem
from service.metrics import OUTCOMES, Metrics
from serving import add_version, live, settings

INSECTS, ROW = "/v1/models/insects/predict", [0.0, 0.0, 0.0, 0.0]
NAMES = [
    "mcdrop_requests_total",
    "mcdrop_request_duration_seconds",
    "mcdrop_queue_duration_seconds",
    "mcdrop_compute_duration_seconds",
    "mcdrop_rows_total",
    "mcdrop_passes_total",
    "mcdrop_executions_total",
    "mcdrop_batch_cost",
    "mcdrop_batch_requests",
    "mcdrop_batch_release_total",
    "mcdrop_pending_requests",
    "mcdrop_pending_cost",
    "mcdrop_inflight_requests",
    "mcdrop_cancelled_samples_total",
    "mcdrop_nonfinite_outputs_total",
    "mcdrop_model_ready",
    "mcdrop_model_load_seconds",
    "mcdrop_build_info",
    "process_resident_memory_bytes",
    "process_open_fds",
    "process_cpu_seconds_total",
    "mcdrop_process_threads",
]  # other people's dashboards and alerts depend on them

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(text: str) -> Samples:
    """Every number of a scrape by its name and labels."""
    found = {}
    for family in parse(text):
        for sample in family.samples:
            found[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
    return found


def of(metrics: Metrics) -> Samples:
    return samples(metrics.text("")[0].decode())


def value(found: Samples, name: str, **labels: str) -> float:
    return found.get((name, tuple(sorted(labels.items()))), 0.0)


def test_the_promised_names_are_there():
    found = of(everything())
    names = {name for name, _ in found}
    assert [name for name in NAMES if name not in names and f"{name}_bucket" not in names] == []


def test_each_method_counts_what_it_says():
    found = of(everything())
    model = {"model": "m", "version": "1"}
    assert value(found, "mcdrop_requests_total", outcome="ok", **model) == 1
    assert value(found, "mcdrop_accepted_requests_total", **model) == 1
    assert value(found, "mcdrop_http_requests_total", method="GET", route="/", status="200") == 1
    assert (value(found, "mcdrop_rows_total", **model), value(found, "mcdrop_passes_total", **model)) == (3, 64)
    assert value(found, "mcdrop_executions_total", **model) == 1
    assert value(found, "mcdrop_batch_release_total", reason="idle") == 1
    sums = {"batch_cost": 192, "batch_requests": 2, "request_duration_seconds": 0.02, "queue_duration_seconds": 0.001,
            "compute_duration_seconds": 0.004, "answer_entropy_nats": 0.3, "answer_mutual_information_nats": 0.1,
            "answer_confidence": 0.9}  # fmt: skip
    assert {name: value(found, f"mcdrop_{name}_sum", **model) for name in sums} == sums
    assert [value(found, f"mcdrop_pending_{name}") for name in ("requests", "cost")] == [5, 900]
    assert value(found, "mcdrop_inflight_requests") == 2
    assert value(found, "mcdrop_cancelled_samples_total", model="m") == 40
    assert value(found, "mcdrop_nonfinite_outputs_total", model="m") == 7
    assert value(found, "mcdrop_model_ready", **model) == 1
    assert value(found, "mcdrop_model_load_seconds", **model) == 1.5
    assert value(found, "mcdrop_model_load_failures_total", model="m") == 1
    build = {"version": mcdrop.__version__, "torch": torch.__version__}
    (labels,) = (dict(labels) for name, labels in found if name == "mcdrop_build_info")
    assert labels.items() >= build.items()
    assert value(found, "process_resident_memory_bytes") > 10e6


def test_openmetrics_is_spoken_where_it_is_asked_for():
    content, kind = everything().text("application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text; version=1.0.0")
    assert list(parse_openmetrics(content.decode()))


def test_histograms_of_arrays_count_each_number():
    """Against a count by hand; what is not finite has no place in a histogram."""
    metrics, entropies = Metrics(), np.array([[0.0, 0.05], [0.3, 0.31], [math.nan, 9.0]])
    metrics.uncertainty("m", "1", {"entropy": entropies, "confidence": np.ones((3, 2))})
    metrics.uncertainty("m", "1", {"entropy": np.zeros((0, 2)), "label": []})
    found, model = of(metrics), {"model": "m", "version": "1"}
    counts = {le: value(found, "mcdrop_answer_entropy_nats_bucket", le=le, **model) for le in ("0.05", "0.3", "+Inf")}
    flat = entropies[np.isfinite(entropies)].astype(np.float64)
    assert counts == {le: np.sum(flat <= float(le)) for le in counts}
    assert value(found, "mcdrop_answer_entropy_nats_sum", **model) == pytest.approx(flat.sum())
    assert value(found, "mcdrop_answer_confidence_count", **model) == 6


def test_entropies_of_values_are_kept_apart():
    """They may be negative and minus infinity, and their sum is no counter."""
    metrics = Metrics()
    metrics.uncertainty("m", "1", {"entropy": np.array([-2.5, 1.2, -math.inf])})
    found = of(metrics)
    assert value(found, "mcdrop_answer_differential_entropy_nats_bucket", model="m", version="1", le="-2.0") == 1
    assert value(found, "mcdrop_answer_differential_entropy_nats_bucket", model="m", version="1", le="+Inf") == 2
    assert not [name for name, _ in found if name.startswith("mcdrop_answer_entropy")]
    assert ("mcdrop_answer_differential_entropy_nats_sum", ()) not in found


# ---- over HTTP


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with live(max_body_bytes=5000, max_inflight_body_bytes=5000, body_timeout=1) as client:
        yield client


def scrape(http: httpx.Client) -> Samples:
    answer = http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return samples(answer.text)


@pytest.mark.parametrize(
    ("path", "content", "labels"),
    [
        (INSECTS, {"inputs": [ROW]}, {"model": "insects", "version": "3", "outcome": "ok"}),
        (INSECTS, {"inputs": [[1.0]]}, {"model": "insects", "version": "3", "outcome": "invalid"}),
        (INSECTS, {"inputs": [ROW] * 500}, {"model": "insects", "version": "3", "outcome": "invalid"}),
        ("/v1/models/whatever-a-client-writes/predict", {}, {"model": "", "version": "", "outcome": "invalid"}),
        ("/v1/predict", {}, {"model": "", "version": "", "outcome": "invalid"}),
    ],
)
def test_every_prediction_request_counts_once(http, path, content, labels):
    before = scrape(http)
    http.post(path, json=content)
    after = scrape(http)
    changed = {key: after[key] - before.get(key, 0) for key in after if key[0] == "mcdrop_requests_total"}
    assert {key: n for key, n in changed.items() if n} == {("mcdrop_requests_total", tuple(sorted(labels.items()))): 1}
    model = {"model": labels["model"], "version": labels["version"]}
    name = "mcdrop_request_duration_seconds_count"
    assert value(after, name, **model) - value(before, name, **model) == 1


def test_a_request_counts_for_the_version_that_answers_it(tmp_path):
    add_version(tmp_path, "number", 2)  # its description says version 1
    with live(models=tmp_path) as http:
        http.post("/v1/models/number/predict", json={"inputs": [[1.0, 2.0]]})
        http.post("/v1/models/number/predict", json={"inputs": "nonsense"})
        found = scrape(http)
    labels = {"model": "number", "version": "2"}
    assert value(found, "mcdrop_accepted_requests_total", **labels) == 1
    assert value(found, "mcdrop_requests_total", **labels, outcome="ok") == 1
    assert value(found, "mcdrop_requests_total", **labels, outcome="invalid") == 1


def test_what_clients_write_is_no_label(http):
    for number in range(20):
        http.get(f"/secret/{number}")
        http.get(f"/v1/models/secret-{number}")
        http.post(f"/v1/models/secret-{number}/predict", json={})
        http.request("PROPFIND", "/")
    found = scrape(http)
    assert "secret" not in str(found)
    routes = {dict(labels)["route"] for name, labels in found if name == "mcdrop_http_requests_total"}
    assert {"", "/", "/v1/models/{name}", "/v1/models/{name}/predict", "/v1/predict", "/metrics"} >= routes
    assert value(found, "mcdrop_http_requests_total", method="other", route="/", status="405") >= 20


def test_a_client_that_leaves_counts_as_cancelled(http):
    with connected(http) as connection:
        connection.sendall(head(INSECTS, "Content-Type: application/json", "Content-Length: 50") + b"{")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    labels = {"model": "insects", "version": "3", "outcome": "cancelled"}
    counted = (value(scrape(http), "mcdrop_requests_total", **labels) for _ in range(100))
    assert 1 in counted


def ask(app: Any, error: BaseException | None) -> Samples:
    """One prediction request to an application whose models end it in `error`, and what was counted."""

    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        scope["route"] = app.routes[-1]
        if error is not None:
            raise error
        await send({"type": "http.response.start", "status": 200, "headers": []})
        problem(OverloadedError("midway"), scope)  # a stream tells its failure after it has begun
        await send({"type": "http.response.body", "body": b""})

    app.add_middleware(lambda inner: fail)
    app.user_middleware.append(app.user_middleware.pop(0))  # innermost

    async def request() -> None:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            with contextlib.suppress(asyncio.CancelledError):  # a server that ends cancels what is left
                await client.post(INSECTS, json={})

    app.add_api_route("/v1/models/{name}/predict", lambda name: None, methods=["POST"])
    asyncio.run(request())
    return of(app.state.metrics)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (OverloadedError("full"), "rejected"),
        (ClientGoneError("gone"), "cancelled"),
        (MemoryError(), "oom"),
        (torch.OutOfMemoryError("gpu"), "oom"),
        (RuntimeError("a bug"), "error"),
        (asyncio.CancelledError(), "error"),
        (None, "rejected"),
    ],
)
def test_each_end_has_its_word(error, outcome):
    found = ask(create_app(settings(default_model="insects", log_level="error")), error)
    ended = {dict(labels)["outcome"]: n for (name, labels), n in found.items() if name == "mcdrop_requests_total"}
    assert ended == {outcome: 1}
    assert outcome in OUTCOMES


# ---- the log, and the time of an answer


def test_answers_say_how_long_they_took(http):
    answer = http.post(INSECTS, json={"inputs": [ROW]})
    entries = dict(entry.split(";dur=") for entry in answer.headers["server-timing"].split(", "))
    assert list(entries) == ["queue", "compute", "total"]
    assert 0 < float(entries["compute"]) <= float(entries["total"])
    assert float(entries["queue"]) >= 0


def test_the_access_log_can_be_json(capfd):
    with live(log_level="info", log_format="json") as http:
        answer = http.post(INSECTS, json={"inputs": [ROW]}, headers={"x-request-id": "mine"})
        http.get("/v1/models/x%0Ay")
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    access = [line for line in lines if line["logger"] == "service.access"]
    assert answer.status_code == 200
    first, second = access
    assert first["ms"] > 0
    assert first["time"].endswith("+00:00")
    wanted = {"request_id": "mine", "method": "POST", "path": INSECTS, "route": "/v1/models/{name}/predict",
              "status": 200, "model": "insects", "level": "info"}  # fmt: skip
    assert first.items() >= wanted.items()
    assert (second["status"], second["model"], second["path"]) == (404, "", "/v1/models/x%0Ay")
    assert {"uvicorn.error", "service.registry"} <= {line["logger"] for line in lines}


def test_the_log_is_lines_to_read_unless_asked_otherwise(capfd):
    with live(log_level="info") as http:
        http.get("/v1/models", headers={"x-request-id": "mine"})
    (line,) = (line for line in capfd.readouterr().err.splitlines() if "[mine]" in line)
    assert "GET /v1/models 200" in line
