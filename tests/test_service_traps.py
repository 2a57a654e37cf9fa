"""Traps that model servers fall into, as far as no other file has the test: threads, shapes, faults, configuration."""

import asyncio
import importlib
import inspect
import json
import pkgutil
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute

from mcdrop.predictor import MCDropout
from mcdrop.wire.options import KEEP_ALIVE
from scheduling import Model, assert_right, running
from service import routes as package
from service.app import create_app
from service.errors import NotReadyError
from service.server import LAST_WORDS, Server
from service.wire import PredictRequest, encode
from serving import add_version, live, model, models_folder, settings
from v2_requests import insects, outputs

ROW = [0.1, -0.5, 2.0, 1.5]
DOCKERFILE = (Path(__file__).parents[1] / "Dockerfile").read_text(encoding="utf-8")
PLAIN = "/v1/models/insects/predict"


def talk(app: FastAPI, conversation: Callable[[httpx.AsyncClient], Awaitable[Any]]) -> Any:
    """A conversation with an application that is started, loaded, and stopped in the end, all in this thread's loop."""

    async def begin() -> Any:
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server", timeout=60) as http,
            asyncio.timeout(60),
        ):
            await app.state.loading
            return await conversation(http)

    return asyncio.run(begin())


# ---- the event loop, threads, memory


def test_everything_but_predictions_is_answered_while_the_device_computes():
    """The inference thread is held in the middle of its work for as long as the questions take."""
    app, held, released = create_app(settings()), threading.Event(), threading.Event()

    def hold() -> Iterator[None]:
        held.set()
        assert released.wait(60)
        yield

    async def ask(http: httpx.AsyncClient) -> None:
        holding = asyncio.ensure_future(app.state.registry.scheduler.run(hold()))
        await asyncio.to_thread(held.wait, 60)
        waiting = asyncio.ensure_future(http.post(PLAIN, json={"inputs": [ROW]}))
        for path in ("/health/live", "/health/ready", "/metrics", "/v2/health/live", "/v2/models/stats", "/v1/models"):
            for _ in range(5):
                assert (await http.get(path)).status_code == 200
        assert not waiting.done()
        released.set()
        assert (await waiting).status_code == 200
        await holding

    talk(app, ask)


def test_one_thread_computes_whatever_is_asked(monkeypatch):
    """Warming up, both protocols, streams, many at once: always the same thread."""
    threads: set[tuple[str, int]] = set()
    advance = MCDropout.advance

    def watched(self: MCDropout, *arguments: Any) -> None:
        threads.add((threading.current_thread().name, threading.get_ident()))
        advance(self, *arguments)

    monkeypatch.setattr(MCDropout, "advance", watched)
    with live() as http, ThreadPoolExecutor(8) as pool:
        asked = [(PLAIN, {"inputs": [ROW] * (1 + n % 3)}) for n in range(8)]
        asked += [("/v1/models/insects/stream", {"inputs": [ROW]}), ("/v2/models/insects/infer", insects())]
        assert {answer.status_code for answer in pool.map(lambda each: http.post(each[0], json=each[1]), asked)} == {
            200
        }
    assert [name for name, _ in threads] == ["mcdrop-inference"]


def test_no_endpoint_is_sent_to_a_pool_of_threads():
    """FastAPI runs plain functions, also those that endpoints depend on, in up to 40 threads."""
    modules = [
        importlib.import_module(f"service.routes.{each.name}") for each in pkgutil.iter_modules(package.__path__)
    ]
    routers = [each for module in modules for each in vars(module).values() if isinstance(each, APIRouter)]
    routes = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
    assert len(routes) > 40
    calls = [each.call for route in routes for each in (route.dependant, *route.dependant.dependencies)]
    assert [call for call in calls if not inspect.iscoroutinefunction(call)] == []


def test_the_network_sees_few_sizes_of_batch():
    """Requests of any size, alone and together, are filled up to sizes that were warmed before the server was ready."""
    app = create_app(settings(models=models_folder() / "one"))
    seen: set[int] = set()

    async def ask(http: httpx.AsyncClient) -> tuple[int, ...]:
        served = app.state.registry.models["insects"]
        engine = served.mc._sampler.engine
        prepare = engine.prepare

        def watched(inputs: Sequence[torch.Tensor], budget: int | None = None) -> Any:
            seen.add(inputs[0].shape[0])
            return prepare(inputs, budget)

        engine.prepare = watched
        for rows in range(1, 20):
            assert (await http.post(PLAIN, json={"inputs": [ROW] * rows})).status_code == 200
        many = [http.post(PLAIN, json={"inputs": [ROW] * (1 + n % 7), "seed": n % 3}) for n in range(40)]
        assert {answer.status_code for answer in await asyncio.gather(*many)} == {200}
        return tuple(served.pace.batch_sizes)

    sizes = talk(app, ask)
    assert len(seen) > 2
    assert seen <= set(sizes)
    assert all(size & (size - 1) == 0 for size in sizes)


def test_numbers_in_json_are_exact_and_short():
    """Each float32 with the fewest digits that give it back, and at most three times the bytes that it has itself."""
    values = np.random.default_rng(0).uniform(0, 1, (1000, 100)).astype(np.float32)
    served = create_app(settings()).state.registry.models["insects"]
    served.mc = model("one")
    run = served.start(PredictRequest(inputs=[ROW]))
    served.mc.advance(run)
    outcome = served._outcome(run.prediction(), ["mean"], served.mc, None)
    outcome.fields["mean"] = values
    written = encode(outcome)
    np.testing.assert_array_equal(np.array(json.loads(written)["mean"], np.float32), values)
    assert len(written) < 3.2 * values.nbytes


def test_out_of_memory_is_told_to_the_one_request_and_not_to_be_tried_again():
    app, short = create_app(settings()), [True]

    async def ask(http: httpx.AsyncClient) -> None:
        mc = app.state.registry.models["insects"].mc
        advance = mc.advance

        def failing(*arguments: Any) -> None:
            if short[0]:
                raise torch.OutOfMemoryError("a device that is full")
            advance(*arguments)

        mc.advance = failing
        answer = await http.post(PLAIN, json={"inputs": [ROW]})
        assert (answer.status_code, answer.json()["code"]) == (503, "out-of-memory")
        assert answer.headers["x-should-retry"] == "false"
        assert (await http.get("/health/live")).status_code == 200
        short[0] = False
        assert (await http.post(PLAIN, json={"inputs": [ROW]})).status_code == 200

    talk(app, ask)


# ---- batches


def test_a_fault_of_the_scheduler_itself_leaves_nobody_waiting():
    """Choosing what to compute next fails, which belongs to no job: all are answered, and the server is not live."""

    async def ask() -> None:
        of = Model()
        of.gate.clear()
        with running() as scheduler:
            jobs = [of.job(seed=seed) for seed in range(3)]
            scheduler.submit(jobs[0])
            assert await asyncio.to_thread(of.entered.wait, 60)
            for job in jobs[1:]:
                job.pace = None  # type: ignore[assignment]  # whatever asks it fails
                scheduler.submit(job)
            of.gate.set()
            async with asyncio.timeout(60):
                found = await asyncio.gather(*(job.future for job in jobs), return_exceptions=True)
            assert_right(found[0], jobs[0])
            assert [type(each) for each in found[1:]] == [NotReadyError] * 2
            while scheduler.trouble is None:
                await asyncio.sleep(0)
            with pytest.raises(NotReadyError):
                scheduler.submit(of.job())

    asyncio.run(ask())


def test_a_thread_that_cannot_begin_answers_what_waits():
    async def ask() -> None:
        def fails() -> None:
            raise OSError("no threads")

        with running(prepare=fails) as scheduler:
            job = Model().job()
            try:
                scheduler.submit(job)
            except NotReadyError:  # it has ended already
                return
            async with asyncio.timeout(60):
                with pytest.raises(NotReadyError):
                    await job.future

    asyncio.run(ask())


def test_requests_of_every_kind_at_once_get_what_each_gets_alone():
    """Models, shapes, seeds, passes, outputs, protocols side by side: none gets a field or a number of another."""
    slope, pair = "/v1/models/slope/predict", "/v1/models/pair/predict"
    asked: list[tuple[str, dict[str, Any]]] = [
        *((PLAIN, {"inputs": [[n, 1.0, 0.0, -n]], "seed": n % 2, "num_samples": 10 + n % 3}) for n in range(6)),
        (PLAIN, {"inputs": [ROW] * 3, "outputs": ["samples"], "num_samples": 10}),
        (PLAIN, {"inputs": [ROW], "quantiles": [0.1, 0.9]}),
        (PLAIN, {"inputs": [ROW], "quantiles": [0.5]}),
        (PLAIN, {"inputs": [ROW], "determinism": "exact"}),
        (slope, {"inputs": [[1.0, 2.0]]}),
        (slope, {"inputs": [[2.0, 1.0]] * 2, "outputs": ["standard_errors"]}),
        (pair, {"inputs": {"left": [[1.0, 2.0, 3.0]], "right": [[0.0, 1.0, 0.0]]}}),
    ]
    with live() as http, ThreadPoolExecutor(len(asked)) as pool:

        def ask(each: tuple[str, dict[str, Any]]) -> dict[str, Any]:
            answer: dict[str, Any] = http.post(each[0], json=each[1]).json()
            return answer

        alone = [ask(each) for each in asked]
        tensors = outputs(http.post("/v2/models/insects/infer", json=insects()))
        for _ in range(5):
            binary = pool.submit(http.post, "/v2/models/insects/infer", json=insects())
            for found, wanted in zip(pool.map(ask, asked), alone, strict=True):
                assert_near(found, wanted)
            assert_near(outputs(binary.result()), tensors)


def test_models_that_take_the_same_rows_are_not_taken_for_each_other(tmp_path):
    """Three versions of one model, which predicts its version; requests for all of them wait, and go on at once."""
    for number in (1, 2, 3):
        add_version(tmp_path, "count", number)
    app, released = create_app(settings(models=tmp_path, versions="all")), threading.Event()
    held = threading.Event()

    def hold() -> Iterator[None]:
        held.set()
        assert released.wait(60)
        yield

    async def ask(http: httpx.AsyncClient) -> list[float]:
        scheduler = app.state.registry.scheduler
        holding = asyncio.ensure_future(scheduler.run(hold()))
        await asyncio.to_thread(held.wait, 60)
        paths = [f"/v1/models/count/versions/{1 + number % 3}/predict" for number in range(12)]
        asked = [asyncio.ensure_future(http.post(path, json={"inputs": [[0.5, 0.5]]})) for path in paths]
        while scheduler.pending < len(asked):
            await asyncio.sleep(0)
        released.set()
        answers = [(await each).json() for each in asked]
        await holding
        assert [answer["version"] for answer in answers] == ["1", "2", "3"] * 4
        return [answer["mean"][0][0] for answer in answers]

    assert talk(app, ask) == [1.0, 2.0, 3.0] * 4


def test_limits_of_one_are_limits():
    with live(models=models_folder() / "one", max_rows=1, max_num_samples=2, max_cost=2, max_pending=1) as http:
        assert http.post(PLAIN, json={"inputs": [ROW], "num_samples": 2}).json()["num_samples"] == 2
        assert http.post(PLAIN, json={"inputs": [ROW] * 2, "num_samples": 2}).status_code == 422
        assert http.post(PLAIN, json={"inputs": [ROW], "num_samples": 3}).status_code == 422


# ---- HTTP


def test_uvicorn_is_configured_for_inference():
    """Admission is the application's; connections rest longer than clients keep them; the end comes."""
    config = Server(create_app(settings()), settings(shutdown_timeout=7), on_ready=lambda: None).config
    assert config.limit_concurrency is None
    assert config.workers == 1
    assert config.timeout_keep_alive > 60 + 5
    assert config.timeout_keep_alive > KEEP_ALIVE
    assert config.timeout_graceful_shutdown == 7 + LAST_WORDS
    assert settings().shutdown_timeout == 30


def test_the_container_runs_the_server_itself():
    """A shell in between would swallow SIGTERM."""
    lines = DOCKERFILE.splitlines()
    assert lines[-2:] == ['ENTRYPOINT ["mcdrop"]', 'CMD ["serve"]']
    assert not [line for line in lines if line.startswith(("SHELL", "ENTRYPOINT mcdrop"))]


@pytest.mark.parametrize("changes", [{}, {"api_keys": "a-key", "open_health": False}, {"api_keys": "a-key"}])
def test_the_containers_check_needs_no_key(changes):
    command = json.loads(re.findall(r"^HEALTHCHECK .*\\\n    CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)[0])
    command[0] = sys.executable
    with live(models=models_folder() / "one", **changes) as http:
        port = str(http.base_url.port)
        done = subprocess.run(command, env={"MCDROP_PORT": port}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, shlex.join(command) + done.stderr
    done = subprocess.run(command, env={"MCDROP_PORT": port}, capture_output=True, text=True, check=False)
    assert done.returncode != 0


def assert_near(found: Any, wanted: Any) -> None:
    """Equal in names and lengths, and near in numbers."""
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for name in wanted:
            assert_near(found[name], wanted[name])
    elif isinstance(wanted, list | np.ndarray) and not (len(wanted) and isinstance(wanted[0], str)):
        np.testing.assert_allclose(np.array(found, float), np.array(wanted, float), rtol=1e-4, atol=1e-6)
    else:
        assert found == wanted
