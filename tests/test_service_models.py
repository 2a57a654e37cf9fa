"""Models over HTTP: what is listed, versions by name, and loading and unloading while clients ask."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.loading import beside
from serving import add_version, damage, live

ASKED = {"inputs": [[0.5, 0.5]]}

KEY = "key-of-the-admin"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    add_version(tmp_path, "count", 1)
    return tmp_path


@contextlib.contextmanager
def controlled(folder: Path, **changes: Any) -> Iterator[httpx.Client]:
    """A client that may load and unload."""
    with live(models=folder, enable_model_control=True, admin_keys=KEY, **changes) as http:
        http.headers["Authorization"] = f"Bearer {KEY}"
        yield http


def predict(http: httpx.Client, path: str = "/v1/models/count/predict") -> tuple[str, float]:
    """The version that answers and what it says."""
    answer = http.post(path, json=ASKED)
    assert answer.status_code == 200, answer.text
    return answer.json()["version"], answer.json()["mean"][0][0]


def fails(answer: httpx.Response, status: int, code: str, detail: str) -> None:
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert detail in answer.json()["detail"]


def test_a_version_is_asked_and_described_by_name(repository):
    add_version(repository, "count", 2)
    with live(models=repository, versions="all") as http:
        assert predict(http) == predict(http, "/v1/predict") == ("2", 2.0)
        for version in ("1", "2"):
            path = f"/v1/models/count/versions/{version}"
            assert predict(http, f"{path}/predict") == (version, float(version))
            shown = http.get(path).json()
            assert shown["version"] == version
            assert http.post(f"{path}/predict", json=shown["example"]).status_code == 200
        shown = http.get("/v1/models/count").json()
        assert shown["version"] == "2"
        assert shown["versions"] == [{"version": v, "state": "READY", "reason": ""} for v in ("1", "2")]
        for answer in (
            http.get("/v1/models/count/versions/3"),
            http.post("/v1/models/count/versions/3/predict", json=ASKED),
        ):
            fails(answer, 404, "unknown-model", "no version '3'")


def test_models_are_loaded_replaced_and_unloaded(repository):
    with controlled(repository) as http:
        add_version(repository, "count", 2)
        loaded = http.post("/v1/models/count/load")
        assert (loaded.status_code, loaded.json()) == (
            200,
            {
                "name": "count",
                "versions": [
                    {"version": "1", "state": "UNAVAILABLE", "reason": "another version took its place"},
                    {"version": "2", "state": "READY", "reason": ""},
                ],
            },
        )
        assert predict(http) == ("2", 2.0)
        add_version(repository, "another", 3)
        assert http.post("/v1/models/another/load", json={}).status_code == 200
        assert [model["name"] for model in http.get("/v1/models").json()["models"]] == ["another", "count"]
        assert predict(http, "/v1/models/another/predict") == ("3", 3.0)
        assert predict(http, "/v1/predict") == ("2", 2.0)  # the default stays
        unloaded = http.post("/v1/models/count/unload")
        assert unloaded.json()["versions"][1] == {"version": "2", "state": "UNAVAILABLE", "reason": "unloaded"}
        fails(http.post("/v1/models/count/predict", json=ASKED), 404, "unknown-model", "is not served: unloaded")
        fails(http.get("/v1/models/count"), 404, "unknown-model", "is not served: unloaded")
        fails(http.post("/v1/models/nope/load"), 404, "unknown-model", "There are: another, count")
        fails(http.post("/v1/models/nope/unload"), 404, "unknown-model", "no model 'nope'")
        assert http.get("/health/ready").json()["models"] == ["another"]
        damage(add_version(repository, "count", 3))
        fails(http.post("/v1/models/count/load"), 422, "load-failed", "weights.safetensors")
        fails(http.get("/v1/models/count"), 404, "unknown-model", "or save the model again. Load it first")


def test_the_open_inference_protocol_loads_and_unloads_too(repository):
    infer = {"inputs": [{"name": "input", "shape": [1, 2], "datatype": "FP32", "data": [0.5, 0.5]}]}
    with controlled(repository) as http:
        add_version(repository, "count", 2)
        for body in (b"", b"{}", b'{"parameters": {}}'):
            answer = http.post("/v2/repository/models/count/load", content=body)
            assert (answer.status_code, answer.content) == (200, b"{}")
        answer = http.post("/v2/models/count/infer", json=infer).json()
        assert (answer["model_version"], answer["outputs"][0]["data"]) == ("2", [2.0])
        assert http.get("/v2/models/count").json()["versions"] == ["2"]
        index = {entry["version"]: entry["state"] for entry in http.post("/v2/repository/index").json()}
        assert index == {"1": "UNAVAILABLE", "2": "READY"}
        unload = {"parameters": {"unload_dependents": False}}
        assert http.post("/v2/repository/models/count/unload", json=unload).status_code == 200
        assert list(http.get("/v2/models/count/ready").json()) == ["error"]
        assert http.post("/v2/models/count/infer", json=infer).status_code == 404
        assert http.post("/v2/repository/index", json={"ready": True}).json() == []
        assert http.post("/v2/repository/models/nope/load").status_code == 404
        damage(add_version(repository, "count", 3))
        failed = http.post("/v2/repository/models/count/load")
        assert (failed.status_code, list(failed.json())) == (400, ["error"])
        assert "it is cut off" in failed.json()["error"]


def test_a_failed_reload_is_an_answer_and_the_server_stays_ready(repository):
    with controlled(repository) as http:
        damage(add_version(repository, "count", 2))
        fails(http.post("/v1/models/count/load"), 422, "load-failed", "version 1 is served as before: ")
        assert http.get("/health/ready").status_code == 200
        assert predict(http) == ("1", 1.0)
        first, second = http.get("/v1/models/count").json()["versions"]
        assert (first["state"], second["state"]) == ("READY", "UNAVAILABLE")
        assert "the last reload failed" in first["reason"]
        assert "it is cut off" in second["reason"]


@pytest.mark.parametrize("verb", ["load", "unload"])
def test_verbs_are_not_offered_unless_that_is_set(repository, verb):
    with live(models=repository, admin_keys=KEY) as http:
        http.headers["Authorization"] = f"Bearer {KEY}"
        fails(http.post(f"/v1/models/count/{verb}"), 501, "not-offered", "MCDROP_ENABLE_MODEL_CONTROL")
        assert predict(http) == ("1", 1.0)


def test_examples_of_the_documentation_follow_what_is_served(repository):
    with controlled(repository) as http:
        add_version(repository, "another", 3)
        http.post("/v1/models/another/load")
        add_version(repository, "count", 2)
        http.post("/v1/models/count/load")
        operation = http.get("/openapi.json").json()["paths"]["/v1/models/{name}/predict"]["post"]
        asked = operation["requestBody"]["content"]["application/json"]["examples"]
        answered = operation["responses"]["200"]["content"]["application/json"]["examples"]
        assert list(asked) == ["another", "count"]
        for name, example in asked.items():
            answer = http.post(f"/v1/models/{name}/predict", json=example["value"]).json()
            shown = answered[name]["value"]
            assert (answer["version"], answer["mean"]) == (shown["version"], shown["mean"])
        http.post("/v1/models/another/unload")
        operation = http.get("/openapi.json").json()["paths"]["/v1/models/{name}/predict"]["post"]
        assert list(operation["requestBody"]["content"]["application/json"]["examples"]) == ["count"]


def test_under_load_every_answer_is_of_one_version_while_it_is_replaced(repository):
    """Four clients ask without pause; versions 2 and 3 come, a damaged one between them. Nothing is refused."""
    over = threading.Event()

    def keep_asking(_: int) -> list[tuple[str, float]]:
        answers = []
        with httpx.Client(base_url=url, trust_env=False, timeout=30) as own:
            while not over.is_set():
                answers.append(predict(own))
        return answers

    with controlled(repository) as http, ThreadPoolExecutor(4) as pool:
        url = http.base_url
        clients = [pool.submit(keep_asking, i) for i in range(4)]
        try:
            for number in (2, 3):
                damage(folder := add_version(repository, "count", number))
                fails(http.post("/v1/models/count/load"), 422, "load-failed", f"version {number - 1} is served")
                folder.rename(repository / f".damaged-{number}")
                add_version(repository, "count", number)
                for _ in range(3):
                    assert http.post("/v1/models/count/load").status_code == 200
                    assert http.get("/health/ready").status_code == 200
                assert predict(http) == (str(number), float(number))
        finally:
            over.set()
        answers = [client.result() for client in clients]
    for seen in answers:
        assert all(float(version) == mean for version, mean in seen)
        numbers = [int(version) for version, _ in seen]
        assert numbers == sorted(numbers)  # each client waits for its answer, so none sees an old version again
    assert {version for seen in answers for version, _ in seen} == {"1", "2", "3"}


def test_reading_happens_in_a_thread_of_its_own_and_its_errors_arrive():
    def fail() -> None:
        raise LookupError("gone")

    async def check() -> None:
        thread = await beside(threading.current_thread)
        assert (thread.name, thread.daemon) == ("mcdrop-loader", True)
        with pytest.raises(LookupError, match="gone"):
            await beside(fail)
        waiting = threading.Event()
        given_up = asyncio.create_task(beside(waiting.wait))
        await asyncio.sleep(0)
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        waiting.set()

    asyncio.run(check())
