"""Requests whose rows stop by a rule: over HTTP, by the client, in streams and from the command line."""

import asyncio
import itertools
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from engines import turned
from mcdrop.answering.runs import Run
from mcdrop.cli import main
from mcdrop.client import AsyncClient, Client, UnprocessableRequest
from mcdrop.outputs.tasks import Task
from mcdrop.streaming.adaptive import AdaptiveSink
from mcdrop.streaming.moments import accumulator
from mcdrop.streaming.stopping import Rule
from scheduling import Model, running, submitted
from service.jobs import Job
from service.server import serving
from serving import model, models_folder, settings
from test_service_stream import events

ROWS = (
    np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32) * np.linspace(0.1, 5, 9, dtype=np.float32)[:, None]
)
RULES: list[dict[str, Any]] = [{"tolerance": 0.05}, {"tolerance": 0.08, "certified": True}, {"until": "label"}]
BASE: dict[str, Any] = {"num_samples": 700, "seed": 2}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(settings(default_model="insects", max_num_samples=10**9, max_cost=10**12)) as url:
        yield url


@pytest.fixture(scope="module")
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, trust_env=False, timeout=60) as http:
        yield http


def assert_library(answer: Any, rule: dict[str, Any], rows: np.ndarray = ROWS) -> None:
    """Arrays by name, or what has them as attributes, are what the library says."""
    wanted = model("one")(rows, **BASE, **rule)
    found = answer if isinstance(answer, dict) else {**answer.fields, "num_samples": answer.num_samples}
    assert np.array_equal(found["passes"], wanted.passes)
    assert np.array_equal(found["converged"], wanted.converged)
    assert found["num_samples"] == wanted.num_samples
    for name in ("mean", "variance", "entropy", "label"):
        np.testing.assert_allclose(found[name], getattr(wanted, name), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_json_has_what_the_library_says(http: httpx.Client, rule: dict[str, Any]) -> None:
    answer = http.post("/v1/predict", json={"inputs": ROWS.tolist(), **BASE, **rule}).json()
    assert_library(answer, rule)
    assert list(answer)[:10] == [
        *("model", "version", "num_samples", "seed", "mean", "variance", "entropy", "label", "passes", "converged"),
    ]
    assert len(set(answer["passes"])) > 1


def test_answers_without_a_rule_say_nothing_of_rows(http: httpx.Client) -> None:
    answer = http.post("/v1/predict", json={"inputs": ROWS.tolist(), **BASE}).json()
    assert not {"passes", "converged"} & set(answer)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("binary", [True, False])
def test_the_client_has_what_the_library_says(url: str, rule: dict[str, Any], binary: bool) -> None:
    with Client(url, binary=binary) as client:
        prediction = client.predict(ROWS, outputs=["std"], **BASE, **rule)
        assert_library(prediction, rule)
        assert (prediction.passes.dtype, prediction.converged.dtype) == (np.int64, np.bool_)
        many = client.predict_many(ROWS, batch_size=2, concurrency=3, progress=False, **BASE, **rule)
    assert_library(many, rule)


def test_the_open_inference_protocol_takes_rules_as_parameters(http: httpx.Client) -> None:
    given = {"name": "input", "shape": [9, 4], "datatype": "FP32", "data": ROWS.ravel().tolist()}
    asked = {"inputs": [given], "parameters": {**BASE, "tolerance": 0.05}, "outputs": [{"name": "mean"}]}
    answer = http.post("/v2/models/insects/infer", json=asked).json()
    wanted = model("one")(ROWS, **BASE, tolerance=0.05)
    tensors = {output["name"]: output for output in answer["outputs"]}
    assert list(tensors) == ["mean", "passes", "converged"]
    assert tensors["passes"]["data"] == wanted.passes.tolist()
    assert tensors["converged"]["data"] == wanted.converged.tolist()
    assert [tensors[name]["datatype"] for name in tensors] == ["FP32", "INT64", "BOOL"]
    refused = http.post("/v2/models/insects/infer", json={**asked, "parameters": {"tolerance": "small"}})
    assert (refused.status_code, "tolerance" in refused.json()["error"]) == (400, True)


@pytest.mark.parametrize(
    ("asked", "code", "message"),
    [
        ({"tolerance": 0.02}, "invalid-setting", "takes at least 150 passes"),
        ({"tolerance": 0}, "invalid-request", "tolerance"),
        ({"until": "mean"}, "invalid-request", "until"),
        ({"tolerance": 0.05, "until": "label", "num_samples": 500}, "invalid-setting", "give one of them"),
        ({"tolerance": 0.05, "num_samples": 500, "outputs": ["samples"]}, "invalid-setting", "no common shape"),
        ({"until": "label", "num_samples": 500, "quantiles": [0.5]}, "invalid-setting", "no common shape"),
    ],
)
def test_requests_that_make_no_sense(http: httpx.Client, url: str, asked: Any, code: str, message: str) -> None:
    answer = http.post("/v1/predict", json={"inputs": ROWS.tolist(), **asked})
    assert (answer.status_code, answer.json()["code"]) == (422, code)
    assert message in answer.json()["detail"]
    with Client(url, binary=False) as client, pytest.raises(UnprocessableRequest, match=message):
        client.predict(ROWS, **asked)


def test_a_regression_is_refused_a_certified_tolerance(http: httpx.Client) -> None:
    asked = {"inputs": [[1.0, 2.0]], "num_samples": 500, "tolerance": 0.1}
    assert http.post("/v1/models/slope/predict", json=asked).json()["converged"] == [True]
    answer = http.post("/v1/models/slope/predict", json={**asked, "certified": True})
    assert (answer.status_code, "bounds are known" in answer.json()["detail"]) == (422, True)


def test_requests_side_by_side_get_what_each_gets_alone(http: httpx.Client) -> None:
    """With equal rules, with others, and with none; of one row and of several, seeds equal and not."""
    asked = [
        {**BASE, **(RULES[number % 4] if number % 4 < 3 else {}), "seed": 2 if number % 3 else number}
        for number in range(24)
    ]
    rows = [ROWS[number % 5 : number % 5 + 1 + number % 4] for number in range(24)]

    def ask(number: int) -> dict[str, Any]:
        body = {"inputs": rows[number].tolist(), **asked[number]}
        answer: dict[str, Any] = http.post("/v1/predict", json=body).json()
        return answer

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask, range(24)))
    for answer, given, settings_ in zip(answers, rows, asked, strict=True):
        wanted = model("one")(given, **settings_)
        assert answer["num_samples"] == wanted.num_samples
        assert wanted.passes is None or answer["passes"] == wanted.passes.tolist()
        np.testing.assert_allclose(answer["mean"], wanted.mean, rtol=1e-4, atol=1e-6)


def test_rows_that_are_computed_in_parts(http: httpx.Client) -> None:
    """More rows than the server computes together: each stops by itself."""
    rows = np.tile(ROWS, (70, 1))
    for extra in ({}, {"allow_partial": True, "deadline_ms": 60_000}, {"determinism": "exact"}):
        answer = http.post("/v1/predict", json={"inputs": rows.tolist(), **BASE, "tolerance": 0.05, **extra}).json()
        assert_library(answer, {"tolerance": 0.05}, rows)


def test_a_stream_sharpens_until_every_row_is_done(http: httpx.Client, url: str) -> None:
    request = {"inputs": ROWS.tolist(), **BASE, "tolerance": 0.05}
    found = [event for event in events(http, "/v1/stream", request) if event[0]]
    assert [name for name, _ in found] == ["estimate"] * (len(found) - 1) + ["result"]
    assert len(found) > 2
    passes = [data["passes"] for _, data in found]
    assert all(a <= b for first, later in itertools.pairwise(passes) for a, b in zip(first, later, strict=True))
    assert sum(found[0][1]["converged"]) == 0
    assert_library(found[-1][1], {"tolerance": 0.05})
    with Client(url) as client:
        *_, last = client.stream(ROWS, **BASE, tolerance=0.05)
    assert_library(last, {"tolerance": 0.05})


def test_the_asynchronous_client_takes_rules_too(url: str) -> None:
    async def ask() -> Any:
        async with AsyncClient(url) as client:
            return await client.predict(ROWS, **BASE, until="label")

    assert_library(asyncio.run(ask()), {"until": "label"})


def test_a_deadline_answers_with_what_is_done(http: httpx.Client) -> None:
    request = {"inputs": ROWS.tolist(), "num_samples": 10**8, "tolerance": 0.00005}
    answer = http.post("/v1/predict", json={**request, "deadline_ms": 700, "allow_partial": True}).json()
    assert answer["partial"] is True
    assert not all(answer["converged"])
    late = {passes for passes, is_done in zip(answer["passes"], answer["converged"], strict=True) if not is_done}
    assert late == {answer["num_samples"]}
    assert 2 <= answer["num_samples"] < 10**8
    late = http.post("/v1/predict", json={**request, "deadline_ms": 50})
    assert (late.status_code, late.json()["code"]) == (504, "deadline-exceeded")


# ---- the scheduler


def adaptive_job(model: Model, rows: list[float], most: int, tolerance: float) -> Job:
    """Rows whose passes are their value times 1 and -1 by turns; the answer is the prediction."""
    rule = Rule(most, tolerance=tolerance, task="raw")

    def start() -> Run:
        def sink() -> Any:
            return AdaptiveSink(rule, accumulator(Task("raw"), num_samples=most))

        return model.sampler.start(
            [torch.tensor(rows).view(-1, 1)], rows=len(rows), num_samples=most, seed=0, masks="shared",
            make_sink=sink, kind=rule, looks=rule.looks,
        )  # fmt: skip

    def finish(result: Any, job: Job) -> Any:
        return result if not isinstance(result, tuple) else result.whole[result.rows]

    future = asyncio.get_running_loop().create_future()
    return Job(model, model, model.pace, start, finish, future, arrived=time.monotonic())  # type: ignore[arg-type]


def test_a_run_that_stops_early_returns_its_cost() -> None:
    async def main() -> None:
        model = Model(turned)
        with running() as scheduler:
            model.gate.clear()
            job = adaptive_job(model, [0.0, 0.0, 2.0, 0.0], 10**5, 0.2)
            scheduler.submit(job)
            await asyncio.to_thread(model.entered.wait, 60)
            full = scheduler.cost
            assert full == job.cost == pytest.approx(4e-4 + 10**5 * 4e-4)
            held = threading.Event()

            def hold(runs: list[Run]) -> None:
                if len(model.log) == 2:
                    held.set()
                    model.gate.clear()

            model.fault = hold
            model.entered.clear()
            model.gate.set()
            await asyncio.to_thread(held.wait, 60)
            assert scheduler.cost == pytest.approx(full / 4, rel=0.01), "three of four rows have left"
            model.gate.set()
            prediction: Any = await asyncio.wait_for(job.future, 60)
            assert prediction.passes.tolist() == [64, 64, 544, 64]
            assert scheduler.cost == 0

    asyncio.run(main())


def test_slices_end_where_rows_may_leave_and_take_the_others_along() -> None:
    async def main() -> None:
        model = Model(turned)
        with running() as scheduler:
            jobs = [adaptive_job(model, [1.0, 0.0], 1000, 0.2), adaptive_job(model, [2.0], 1000, 0.2)]
            first, second = await submitted(scheduler, *jobs)
        assert (first.passes.tolist(), second.passes.tolist()) == ([144, 64], [544])
        assert sum(budget or 0 for _, budget in model.log) in (544, 544 + 144)

    asyncio.run(main())


# ---- the command line


@pytest.mark.parametrize("suffix", ["npz", "json", "csv"])
def test_the_command_writes_what_the_library_says(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], url: str, suffix: str
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("rows.npy", ROWS)
    wanted = model("one")(ROWS, **BASE, tolerance=0.05)
    where = [[str(models_folder() / "one")], ["--url", url]]
    for number, place in enumerate(where):
        name = f"{number}.{suffix}"
        command = f"rows.npy --num-samples 700 --seed 2 --tolerance 0.05 -o {name}"
        assert main(["predict", *place, *command.split()]) == 0
        assert read(name) == (wanted.passes.tolist(), wanted.converged.tolist())
    told = capsys.readouterr().out
    least, most, mean = wanted.passes.min(), wanted.passes.max(), wanted.passes.mean()
    assert told.count(f"9 rows, {least} to {most} passes ({mean:.0f} on average") == 2


def read(name: str) -> tuple[list[int], list[bool]]:
    if name.endswith("npz"):
        arrays = np.load(name)
        return arrays["passes"].tolist(), arrays["converged"].tolist()
    with open(name, encoding="utf-8") as file:
        if name.endswith("json"):
            content = json.load(file)
            return content["passes"], content["converged"]
        header, *lines = [line.strip().split(",") for line in file]
    columns = dict(zip(header, zip(*lines, strict=True), strict=True))
    return [int(each) for each in columns["passes"]], [each == "True" for each in columns["converged"]]


def test_the_command_shows_rows_that_did_not_get_there(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    np.save("rows.npy", ROWS)
    assert main(["predict", str(models_folder() / "one"), "rows.npy", "--num-samples", "144", "--until", "label"]) == 0
    told = capsys.readouterr().out
    late = int((~model("one")(ROWS, num_samples=144, until="label").converged).sum())
    assert late > 0
    assert f"{late} rows not converged" in " ".join(told.split())
    assert {"yes", "no"} <= set(told.split())
    assert main(["predict", str(models_folder() / "one"), "rows.npy", "--certified"]) == 1
    assert "give tolerance too" in capsys.readouterr().err
