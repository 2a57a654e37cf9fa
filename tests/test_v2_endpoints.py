"""The Open Inference Protocol's other endpoints: what a server says about itself, and every address with every verb."""

import asyncio
from typing import Any

import httpx
import pytest

import mcdrop
from mcdrop.errors import SettingError
from mcdrop.predictor import MCDropout
from service.app import create_app
from service.repository import find_models
from serving import CLASSES, live, models_folder, settings
from v2_requests import ADMIN, INSECTS, check_error, insects

MODEL = "/v2/models/insects"
GETS = ["/v2", "/v2/health/live", "/v2/health/ready", "/v2/models", "/v2/models/stats",
        *(f"{MODEL}{version}{rest}" for version in ("", "/versions/3") for rest in ("", "/ready", "/config", "/stats")),
        ]  # fmt: skip
POSTS = [INSECTS, f"{MODEL}/versions/3/infer", "/v2/repository/index", "/v2/repository/models/insects/load",
         "/v2/repository/models/insects/unload"]  # fmt: skip
VERBS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"]


@pytest.fixture
def http(everything: httpx.Client) -> httpx.Client:
    return everything


def ask(app: Any, path: str) -> httpx.Response:
    """GET from an application that was never started: nothing is loaded."""

    async def request() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
            return await client.get(path)

    return asyncio.run(request())


# ---- addresses and verbs


@pytest.mark.parametrize("slash", ["", "/"])
@pytest.mark.parametrize("path", GETS + POSTS)
def test_every_address_with_every_verb(http, path, slash):
    """The right verb is answered, with and without a slash, without a redirect; others are told which one is right."""
    right = "GET" if path in GETS else "POST"
    for verb in VERBS:
        answer = http.request(verb, path + slash, content=b"" if verb == right else b"{", follow_redirects=False)
        if verb != right:
            assert answer.status_code == 405
            assert answer.headers["allow"] == right
            assert verb == "HEAD" or check_error(answer, 405, verb, right)
        elif path.endswith(("load", "infer")):
            check_error(answer, 401 if path.endswith("load") else 400)
        else:
            assert answer.status_code == 200
            assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    "path",
    ["/v2/nope", "/v2//", "/v2/health", "/v2/models/insects/nope", "/v2/models/insects/versions", "/v2/repository",
     "/v2/models/insects/trace/setting", "/v2/models//infer", "/v2/%00", "/v2/models/insects/infer/x"],
)  # fmt: skip
@pytest.mark.parametrize("verb", ["GET", "POST", "DELETE"])
def test_what_is_not_there_is_404_in_the_protocols_shape(http, path, verb):
    check_error(http.request(verb, path), 404, "There is nothing at")


@pytest.mark.parametrize("rest", ["", "/ready", "/config", "/stats", "/versions/1", "/versions/1/stats"])
@pytest.mark.parametrize("name", ["nope", "a%2Fb", "é"])
def test_an_unknown_model_is_404(http, name, rest):
    check_error(http.get(f"/v2/models/{name}{rest}"), 404)
    check_error(http.post(f"/v2/models/{name}/infer"), 404)


@pytest.mark.parametrize("rest", ["", "/ready", "/config", "/stats"])
def test_an_unknown_version_is_404(http, rest):
    check_error(http.get(f"{MODEL}/versions/4{rest}"), 404, "no version '4'", "3")
    check_error(http.post(f"{MODEL}/versions/4/infer", json=insects()), 404, "no version '4'")


def test_outside_errors_keep_their_shape(http):
    for path in ("/v1/nope", "/v2x", "/v"):
        assert http.get(path).headers["content-type"] == "application/problem+json"


def test_no_model_can_be_named_like_an_address(tmp_path):
    MCDropout.load(models_folder() / "slope").save(tmp_path / "stats")
    with pytest.raises(SettingError, match="'stats'"):
        find_models(settings(models=tmp_path))


# ---- server


def test_the_server_says_what_it_is(http):
    assert http.get("/v2").json() == {
        "name": "mcdrop",
        "version": mcdrop.__version__,
        "extensions": ["binary_tensor_data", "model_configuration", "model_repository", "parameters", "statistics"],
    }


def test_health(http):
    assert http.get("/v2/health/live").json() == {"live": True}
    assert http.get("/v2/health/ready").json() == {"ready": True, "live": True}
    assert http.get(f"{MODEL}/ready").json() == {"name": "insects", "ready": True}


def test_before_models_are_loaded_nothing_is_ready():
    app = create_app(settings())
    check_error(ask(app, "/v2/health/live"), 503, "inference thread")
    ready = ask(app, "/v2/health/ready")
    assert (ready.status_code, ready.json()["ready"], ready.headers["retry-after"]) == (503, False, "1")
    assert "insects, pair, slope" in ready.json()["error"]
    for rest in ("", "/ready", "/config", "/stats"):
        check_error(ask(app, MODEL + rest), 503, "still being loaded")
    assert ask(app, "/v2/models/stats").json() == {"model_stats": []}


# ---- models


def test_models_are_listed(http):
    (names,) = http.get("/v2/models").json().values()
    assert sorted(names) == ["field", "insects", "pair", "slope", "spread", "words"]


def test_metadata(http):
    found = http.get(MODEL).json()
    assert found == http.get(f"{MODEL}/versions/3").json()
    assert list(found) == ["name", "versions", "platform", "inputs", "outputs", "parameters"]
    assert (found["name"], found["versions"], found["platform"]) == ("insects", ["3"], "mcdrop")
    assert found["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 4]}]
    assert found["outputs"] == [
        {"name": "mean", "datatype": "FP32", "shape": [-1, 3]},
        {"name": "variance", "datatype": "FP32", "shape": [-1, 3]},
        {"name": "entropy", "datatype": "FP32", "shape": [-1]},
        {"name": "label", "datatype": "INT64", "shape": [-1]},
    ]
    parameters = found["parameters"]
    assert parameters["class_names"] == list(CLASSES)
    assert (parameters["task"], parameters["num_samples"], parameters["seed"]) == ("classification", 20, 5)
    shapes = {each["name"]: (each["datatype"], each["shape"]) for each in parameters["optional_outputs"]}
    assert {"mean", "standard_errors"}.isdisjoint(shapes)
    assert shapes["std"] == shapes["standard_errors.mean"] == shapes["vote_shares"] == ("FP32", [-1, 3])
    assert shapes["mutual_information"] == shapes["standard_errors.entropy"] == ("FP32", [-1])
    assert shapes["quantiles"] == shapes["samples"] == ("FP32", [-1, -1, 3])


def test_sizes_that_may_vary_are_minus_one(http):
    words = http.get("/v2/models/words").json()
    assert words["inputs"] == [
        {"name": "ids", "datatype": "INT64", "shape": [-1, -1]},
        {"name": "counts", "datatype": "BOOL", "shape": [-1, -1]},
    ]
    assert {each["name"]: each["shape"] for each in words["outputs"]} == {
        "mean": [-1, -1, 2], "variance": [-1, -1, 2], "entropy": [-1, -1], "label": [-1, -1]
    }  # fmt: skip
    optional = {each["name"]: each["shape"] for each in words["parameters"]["optional_outputs"]}
    assert (optional["std"], optional["confidence"], optional["samples"]) == ([-1, -1, 2], [-1, -1], [-1, -1, -1, 2])
    spread = http.get("/v2/models/spread").json()
    optional = {each["name"]: each["shape"] for each in spread["parameters"]["optional_outputs"]}
    assert optional["samples.log_variance"] == [-1, -1, 1]
    assert [(each["datatype"], each["shape"]) for each in spread["outputs"]] == [("FP64", [-1, 1])] * 3
    field = http.get("/v2/models/field").json()
    assert [each["shape"] for each in field["outputs"]] == [[-1, -1, -1, -1]] * 3


def test_config_leaves_the_batch_out(http):
    assert http.get(f"{MODEL}/config").json() == {
        "name": "insects",
        "platform": "mcdrop",
        "backend": "mcdrop",
        "max_batch_size": 4096,
        "input": [{"name": "input", "data_type": "TYPE_FP32", "dims": [4]}],
        "output": [
            {"name": "mean", "data_type": "TYPE_FP32", "dims": [3]},
            {"name": "variance", "data_type": "TYPE_FP32", "dims": [3]},
            {"name": "entropy", "data_type": "TYPE_FP32", "dims": []},
            {"name": "label", "data_type": "TYPE_INT64", "dims": []},
        ],
        "dynamic_batching": {},
    }
    words = http.get("/v2/models/words/config").json()
    assert [(each["data_type"], each["dims"]) for each in words["input"]] == [("TYPE_INT64", [-1]), ("TYPE_BOOL", [-1])]


def test_statistics_count_what_was_answered():
    with live(models=models_folder() / "one") as http:
        before = http.get(f"{MODEL}/stats").json()["model_stats"][0]
        assert (before["inference_count"], before["last_inference"]) == (0, 0)
        for rows in (1, 3):
            assert http.post(INSECTS, json=insects([[0.0] * 4] * rows)).status_code == 200
        (found,) = http.get("/v2/models/stats").json()["model_stats"]
        assert found == http.get(f"{MODEL}/versions/3/stats").json()["model_stats"][0]
    assert (found["name"], found["version"], found["inference_count"]) == ("insects", "3", 4)
    assert found["last_inference"] > 1_700_000_000_000
    assert found["execution_count"] >= 1
    durations = found["inference_stats"]
    assert set(durations) == {
        "success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss"
    }  # fmt: skip
    assert durations["success"]["count"] == 2
    assert durations["success"]["ns"] >= durations["compute_infer"]["ns"] > 0
    assert durations["cache_hit"] == {"count": 0, "ns": 0}
    assert {"batch_size", "compute_input", "compute_infer", "compute_output"} == set(found["batch_stats"][0])


# ---- repository


@pytest.mark.parametrize("body", [b"", b"{}", b' {"ready": true} ', b'{"ready": false}', b'{"other": [1]}'])
def test_the_repository_index_takes_any_body_or_none(http, body):
    found = http.post("/v2/repository/index", content=body).json()
    names = {"insects", "pair", "slope", "words", "spread", "field"}
    assert {entry["name"]: (entry["version"], entry["state"], entry["reason"]) for entry in found} == {
        name: ("3" if name == "insects" else "1", "READY", "") for name in names
    }


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"ready": 1}', b"\xff"])
def test_another_body_is_400(http, body):
    check_error(http.post("/v2/repository/index", content=body), 400)


@pytest.mark.parametrize("verb", ["load", "unload"])
def test_models_are_not_changed_unless_the_server_offers_it(http, verb):
    path = f"/v2/repository/models/insects/{verb}"
    for body in (b"", b"{}", b'{"parameters": {}}'):
        check_error(http.post(path, content=body), 401, "key")
        check_error(http.post(path, content=body, headers=ADMIN), 501, "enable_model_control")
    for body in (b"{", b"[]", b'{"parameters": 3}', b'{"parameters": {"a": [1]}}'):
        check_error(http.post(path, content=body, headers=ADMIN), 400)
    assert http.get(f"{MODEL}/ready").status_code == 200


def test_a_model_is_not_loaded_with_another_configuration(http):
    body = {"parameters": {"config": "{}", "file:1/model.onnx": "x" * 1_000_000}}
    check_error(
        http.post("/v2/repository/models/insects/load", json=body, headers=ADMIN), 400, "'config'", "as they lie"
    )


def test_unloading_may_mention_dependents(http):
    body = {"parameters": {"unload_dependents": False}}
    check_error(http.post("/v2/repository/models/insects/unload", json=body, headers=ADMIN), 501)
