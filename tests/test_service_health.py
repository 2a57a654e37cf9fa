"""Probes, the listing of models, and documentation that works without internet."""

import asyncio
import re
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from service.app import create_app
from serving import CLASSES, live, models_folder, settings


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with live() as client:
        yield client


def ask(app: FastAPI, method: str, path: str, **arguments: object) -> httpx.Response:
    """One request to an application that was never started: nothing is loaded."""

    async def request() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
            return await client.request(method, path, **arguments)

    return asyncio.run(request())


def test_a_started_server_is_live_and_ready(http):
    assert http.get("/health/live").json() == {"status": "live"}
    ready = http.get("/health/ready")
    assert (ready.status_code, ready.json()) == (200, {"status": "ready", "models": ["insects", "pair", "slope"]})


def test_before_models_are_loaded_the_server_is_not_ready():
    app = create_app(settings())
    ready = ask(app, "GET", "/health/ready")
    assert (ready.status_code, ready.json()["code"]) == (503, "not-ready")
    assert "insects, pair, slope" in ready.json()["detail"]
    assert ready.headers["retry-after"] == "1"
    predict = ask(app, "POST", "/v1/models/insects/predict", json={"inputs": [[0, 0, 0, 0]]})
    assert (predict.status_code, predict.json()["code"]) == (503, "not-ready")
    assert "insects is still being loaded" in predict.json()["detail"]
    unknown = ask(app, "POST", "/v1/models/nope/predict", json={"inputs": [[0, 0, 0, 0]]})
    assert unknown.status_code == 404
    listed = ask(app, "GET", "/v1/models").json()["models"]
    assert {"name": "insects", "ready": False} in listed


def test_without_its_inference_thread_a_server_is_not_live():
    assert ask(create_app(settings()), "GET", "/health/live").status_code == 503


def test_a_server_about_to_stop_is_not_ready():
    app = create_app(settings())
    app.state.registry.draining = True
    ready = ask(app, "GET", "/health/ready")
    assert (ready.status_code, ready.json()["code"]) == (503, "not-ready")
    assert "about to stop" in ready.json()["detail"]


def test_a_model_that_cannot_be_loaded_is_told():
    app = create_app(settings())
    app.state.registry.failure = ValueError("its weights are cut off")
    assert "its weights are cut off" in ask(app, "GET", "/health/ready").json()["detail"]


def test_the_root_points_to_everything(http):
    pointers = http.get("/").json()
    assert pointers["name"] == "mcdrop"
    assert pointers["predict"] == "/v1/models/{name}/predict"
    for path in (pointers["models"], pointers["docs"], pointers["openapi"], *pointers["health"]):
        assert http.get(path).status_code == 200


def test_models_are_listed(http):
    listed = http.get("/v1/models").json()
    assert listed["default"] is None
    assert {"name": "insects", "ready": True, "version": "3", "task": "classification"} in listed["models"]
    assert [model["name"] for model in listed["models"]] == ["insects", "pair", "slope"]


def test_a_model_says_what_it_takes_and_gives(http):
    shown = http.get("/v1/models/insects").json()
    assert shown["inputs"] == [
        {"name": "input", "dtype": "float32", "shape": [-1, 4], "spec": "input: float32[batch, 4]"}
    ]
    assert shown["class_names"] == list(CLASSES)
    assert shown["defaults"] == {"num_samples": 20, "seed": 5, "masks": "shared"}
    assert shown["limits"]["max_rows"] == settings().max_rows
    assert {"mean", "variance", "entropy", "mutual_information", "samples"} <= set(shown["outputs"])
    assert all(shown["outputs"].values())
    (site,) = shown["sites"]
    assert (site["kind"], site["p"], site["active"]) == ("dropout", 0.5, True)
    assert http.post("/v1/models/insects/predict", json=shown["example"]).status_code == 200
    assert [spec["name"] for spec in http.get("/v1/models/pair").json()["inputs"]] == ["left", "right"]


def test_the_documentation_loads_nothing_from_elsewhere(http):
    page = http.get("/docs")
    assert page.status_code == 200
    assert re.findall(r"https?://", page.text) == []
    assets = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(assets) >= 2
    for asset in assets:
        assert http.get(asset).status_code == 200, asset
    assert '"validatorUrl": null' in page.text


def test_every_example_of_the_documentation_works(http):
    document = http.get("/openapi.json").json()
    operation = document["paths"]["/v1/models/{name}/predict"]["post"]
    asked = operation["requestBody"]["content"]["application/json"]["examples"]
    answered = operation["responses"]["200"]["content"]["application/json"]["examples"]
    assert set(asked) == set(answered) == {"insects", "pair", "slope"}
    for name, example in asked.items():
        answer = http.post(f"/v1/models/{name}/predict", json=example["value"]).json()
        shown = answered[name]["value"]
        assert list(answer) == list(shown)
        np.testing.assert_allclose(answer["mean"], shown["mean"], rtol=1e-5)
        np.testing.assert_allclose(answer["variance"], shown["variance"], rtol=1e-5)


def test_every_example_of_the_open_inference_protocol_works(http):
    """The same requests as tensors, with the same answers."""
    paths = http.get("/openapi.json").json()["paths"]
    native = paths["/v1/models/{name}/predict"]["post"]["responses"]["200"]["content"]["application/json"]["examples"]
    asked = paths["/v2/models/{name}/infer"]["post"]["requestBody"]["content"]["application/json"]["examples"]
    assert set(asked) == set(native)
    for name, example in asked.items():
        answer = http.post(f"/v2/models/{name}/infer", json=example["value"]).json()
        wanted = np.ravel(native[name]["value"]["mean"])
        np.testing.assert_allclose(answer["outputs"][0]["data"], wanted, rtol=1e-5)


def test_streams_have_the_same_examples(http):
    paths = http.get("/openapi.json").json()["paths"]
    predict, stream = (paths[f"/v1/models/{{name}}/{verb}"]["post"]["requestBody"] for verb in ("predict", "stream"))
    assert stream == predict


def test_the_document_says_what_each_model_takes(http):
    """Shapes, ranges and limits of models and settings, names and versions that are served, statuses by operation."""
    paths = http.get("/openapi.json").json()["paths"]
    operation = paths["/v1/models/{name}/versions/{version}/predict"]["post"]
    assert {each["name"]: each["schema"]["enum"] for each in operation["parameters"]} == {
        "name": ["insects", "pair", "slope"], "version": ["3", "1"]
    }  # fmt: skip
    asked = operation["requestBody"]["content"]["application/json"]["schema"]["anyOf"]
    insects, pair, _ = (schema["properties"] for schema in asked)
    rows, named = insects["inputs"]["anyOf"]
    assert (rows["maxItems"], rows["items"]["minItems"], rows["items"]["maxItems"]) == (settings().max_rows, 4, 4)
    assert 3.402823e38 < rows["items"]["items"]["exclusiveMaximum"] < 3.402824e38
    assert named["required"] == ["input"]
    assert [each["required"] for each in pair["inputs"]["anyOf"]] == [["left", "right"]]
    assert insects["num_samples"]["anyOf"][0] == {"type": "integer", "minimum": 2, "maximum": 10_000}
    assert "mutual_information" in insects["outputs"]["items"]["enum"]
    assert "mutual_information" not in pair["outputs"]["items"]["enum"]
    assert {"200", "422", "429", "504", "default"} <= set(operation["responses"])
    assert "422" not in paths["/v2/models/{name}/infer"]["post"]["responses"]


def test_the_short_path_is_documented_with_the_default_model():
    with live(models=models_folder() / "one") as http:
        document = http.get("/openapi.json").json()
        (example,) = document["paths"]["/v1/predict"]["post"]["requestBody"]["content"]["application/json"][
            "examples"
        ].values()
        assert http.post("/v1/predict", json=example["value"]).status_code == 200


def test_every_operation_documents_failures(http):
    for path, operations in http.get("/openapi.json").json()["paths"].items():
        for operation in operations.values():
            native = ("application/problem+json", ["type", "title", "status", "detail", "code", "request_id"])
            kind, members = ("application/json", ["error"]) if path.startswith("/v2") else native
            schema = operation["responses"]["default"]["content"][kind]["schema"]
            assert list(schema["properties"]) == members, path
            assert operation["summary"]
