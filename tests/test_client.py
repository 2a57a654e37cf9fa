"""The client against a real server, and against what is no server of ours."""

import asyncio
import math
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import numpy as np
import pytest
import torch

from mcdrop.client import (
    APIConnectionError,
    APIError,
    APIStatusError,
    APITimeoutError,
    AsyncClient,
    BadRequest,
    Client,
    InternalServer,
    NotFound,
    NotReady,
    Overloaded,
    PayloadTooLarge,
    UnprocessableRequest,
)
from mcdrop.errors import InputError, McdropError, SettingError
from mcdrop.wire import api_errors
from service.server import listen, serving
from serving import CLASSES, model, settings

ROWS = np.array([[0.1, -0.5, 2.0, 1.5], [3.0, 0.0, -1.0, 0.25]], np.float32)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(settings(default_model="insects", max_rows=100, max_body_bytes=100_000)) as url:
        yield url


@pytest.mark.parametrize("binary", [True, False])
def test_whole_numbers_of_numpy_are_whole_numbers(url, binary):
    with Client(url, binary=binary) as client:
        prediction = client.predict(ROWS, num_samples=np.int32(8), seed=np.int64(3))
        assert (prediction.num_samples, prediction.seed) == (8, 3)
        with pytest.raises(SettingError, match="64 bits"):
            client.predict(ROWS, seed=2**64)


def test_a_stream_of_the_version_that_is_named(url):
    with Client(url) as client:
        assert [each.version for each in client.stream(ROWS, model="insects", version="3", num_samples=8)][-1] == "3"
        with pytest.raises(NotFound, match="no version"):
            list(client.stream(ROWS, model="insects", version="9"))


@contextmanager
def foreign(status: int, body: bytes, headers: dict[str, str]) -> Iterator[str]:
    """A server that is none of ours and answers everything alike."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            for name, value in {"content-length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_a_prediction_has_the_librarys_fields_and_numbers(url):
    with Client(url, binary=False) as client:
        prediction = client.predict(ROWS, num_samples=30, seed=7, outputs=["std", "mutual_information"])
    expected = model("one")(ROWS, num_samples=30, seed=7)
    for name in ("mean", "variance", "entropy", "std", "mutual_information"):
        value = getattr(prediction, name)
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, getattr(expected, name), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(prediction.label, expected.label)
    assert prediction.label.dtype == np.int64
    assert (prediction.model, prediction.version, prediction.num_samples, prediction.seed) == ("insects", "3", 30, 7)
    assert prediction.class_names == CLASSES
    assert len(prediction) == 2
    assert prediction.request_id
    assert prediction.raw["model"] == "insects"


def test_quantiles_errors_and_samples_are_arrays(url):
    with Client(url) as client:
        prediction = client.predict(
            ROWS, num_samples=32, outputs=["standard_errors", "samples"], quantiles=[0.1, 0.5], model="insects"
        )
    assert prediction.quantile_levels == (0.1, 0.5)
    assert prediction.quantiles.shape == (2, 2, 3)
    assert prediction.samples.shape == (32, 2, 3)
    assert prediction.standard_errors["mean"].shape == (2, 3)


def test_a_field_that_was_not_asked_for_is_told(url):
    with Client(url) as client:
        prediction = client.predict(ROWS)
    with pytest.raises(AttributeError, match=r"no 'std'.*outputs="):
        _ = prediction.std
    assert pickle.loads(pickle.dumps(prediction)).mean.tolist() == prediction.mean.tolist()


@pytest.mark.parametrize(
    "inputs",
    [
        ROWS.tolist(),
        ROWS.astype(">f8"),
        torch.tensor(ROWS),
        torch.tensor(ROWS, requires_grad=True),
        ROWS[:, ::-1][:, ::-1],
    ],
    ids=["lists", "big-endian", "tensor", "grad", "strided"],
)
def test_inputs_may_be_what_people_have(url, inputs):
    with Client(url) as client:
        np.testing.assert_allclose(client.predict(inputs).mean, client.predict(ROWS).mean, rtol=1e-6)


def test_several_inputs_go_by_name(url):
    with Client(url) as client:
        prediction = client.predict({"left": np.ones((1, 3)), "right": np.zeros((1, 3))}, model="pair", seed=1)
    expected = model("pair")((np.ones((1, 3), np.float32), np.zeros((1, 3), np.float32)), seed=1)
    np.testing.assert_allclose(prediction.mean, expected.mean, rtol=1e-5)


def test_null_is_nan(url):
    with Client(url, binary=False) as client:
        assert np.isnan(client.predict(np.zeros((1, 2)), model="slope").entropy).all()


def test_an_empty_batch(url):
    with Client(url) as client:
        assert len(client.predict(np.zeros((0, 4)))) == 0


def test_models_and_readiness(url):
    with Client(url) as client:
        assert client.ready() is True
        assert [model["name"] for model in client.models()] == ["insects", "pair", "slope"]
        assert client.model("insects")["class_names"] == list(CLASSES)


def test_many_at_once_by_asyncio(url):
    async def ask() -> list[np.ndarray]:
        async with AsyncClient(url) as client:
            assert await client.ready() is True
            assert len(await client.models()) == 3
            assert (await client.model("pair"))["task"] == "raw"
            answers = await asyncio.gather(*(client.predict(ROWS[:1], seed=seed) for seed in range(8)))
            return [answer.mean for answer in answers]

    means = asyncio.run(ask())
    with Client(url) as client:
        for seed, mean in enumerate(means):
            np.testing.assert_allclose(mean, client.predict(ROWS[:1], seed=seed).mean, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "error", "code"),
    [
        ({"inputs": ROWS, "model": "nope"}, NotFound, "unknown-model"),
        ({"inputs": ROWS, "model": "a/b"}, NotFound, "not-found"),
        ({"inputs": ROWS[:, :2]}, UnprocessableRequest, "invalid-input"),
        ({"inputs": ROWS, "outputs": ["nope"]}, UnprocessableRequest, "invalid-request"),
        ({"inputs": np.zeros((101, 4))}, UnprocessableRequest, "limit-exceeded"),
        ({"inputs": np.full((9000, 4), 0.125)}, PayloadTooLarge, "body-too-large"),
    ],
)
def test_what_the_server_refuses_is_a_typed_error(url, arguments, error, code):
    with Client(url, binary=False) as client, pytest.raises(error) as caught:
        client.predict(arguments.pop("inputs"), **arguments)
    failure = caught.value
    assert (failure.code, failure.status) == (code, int(failure.status))
    assert failure.request_id
    copy = pickle.loads(pickle.dumps(failure))
    assert (type(copy), str(copy), copy.code, copy.status, copy.request_id) == (
        error, str(failure), code, failure.status, failure.request_id
    )  # fmt: skip


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, BadRequest),
        (404, NotFound),
        (418, APIStatusError),
        (429, Overloaded),
        (500, InternalServer),
        (502, InternalServer),
        (503, NotReady),
    ],
)
def test_every_status_has_its_class_whoever_answers(status, error):
    headers = {"retry-after": "7"}
    options = {"max_retries": 0, "binary": False}
    with foreign(status, b"<html>", headers) as url, Client(url, **options) as client, pytest.raises(error) as caught:
        client.predict(ROWS)
    assert type(caught.value) is error
    assert (caught.value.status, caught.value.retry_after) == (status, 7.0)
    assert f"HTTP {status}" in str(caught.value)


def test_the_tree_of_errors():
    for error in api_errors.STATUS_ERRORS.values():
        assert issubclass(error, APIStatusError)
    assert issubclass(APIStatusError, APIError)
    assert issubclass(APITimeoutError, APIConnectionError)
    assert issubclass(APIConnectionError, APIError)
    assert issubclass(APIError, McdropError)
    for error in (APIError, APIConnectionError, APITimeoutError, APIStatusError, *api_errors.STATUS_ERRORS.values()):
        copy = pickle.loads(pickle.dumps(error("why")))
        assert (type(copy), str(copy)) == (error, "why")
        assert error.__name__ in (api_errors.__doc__ or "")
    assert issubclass(UnprocessableRequest, BadRequest)


@pytest.mark.parametrize("error", api_errors.STATUS_ERRORS.values())
def test_what_an_error_knows_survives_pickling(error):
    known = {"status": 499, "code": "a-code", "request_id": "r1", "retry_after": 1.5}
    copy = pickle.loads(pickle.dumps(error("why", **known)))
    assert (type(copy), str(copy), vars(copy)) == (error, "why", known)


def test_importing_the_client_is_fast():
    program = (
        "import time, asyncio, numpy, httpx, orjson\n"
        "began = time.process_time()\n"
        "import mcdrop.client\n"
        "print(time.process_time() - began)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.5  # of processor time beyond its three libraries; 0.05 s on an idle machine


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"{}", b'{"model": 1}'])
def test_an_answer_that_is_no_prediction_is_a_connection_error(body):
    with foreign(200, body, {}) as url, Client(url) as client, pytest.raises(APIConnectionError, match="/v1/predict"):
        client.predict(ROWS)


def test_no_server_is_a_connection_error():
    with listen("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
    with Client(f"http://127.0.0.1:{port}", max_retries=0) as client:
        assert client.ready() is False
        with pytest.raises(APIConnectionError, match=f"127.0.0.1:{port}.*Is the server running"):
            client.predict(ROWS)


def test_no_answer_in_time_is_a_timeout():
    with listen("127.0.0.1", 0) as silent:
        client = Client(f"http://127.0.0.1:{silent.getsockname()[1]}")
        with client, pytest.raises(APITimeoutError, match="timeout="):
            client.predict(ROWS, timeout=0.05)


@pytest.mark.parametrize(
    ("inputs", "fragment"),
    [(np.array([[np.nan]]), "NaN or infinity"), ([["a"]], "expected numbers"), ([[1], [1, 2]], "no regular array")],
)
def test_inputs_that_json_cannot_carry_are_refused_before_sending(inputs, fragment):
    with Client("http://127.0.0.1:1") as client, pytest.raises(InputError, match=fragment):
        client.predict(inputs)


@pytest.mark.parametrize(
    "option",
    [{"tolerance": each} for each in (math.nan, math.inf, True, "x", [0.1])]
    + [{"quantiles": each} for each in (0.5, ["x"])],
)
def test_numbers_that_a_request_cannot_carry_are_refused_before_sending(option):
    """NaN would arrive as null, which asks for no tolerance: a prediction without one, and no word about it."""
    with (
        Client("http://127.0.0.1:1", binary=False) as client,
        pytest.raises(SettingError, match=f"{next(iter(option))} is"),
    ):
        client.predict(ROWS, **option)


def test_outputs_is_a_list():
    with Client("http://127.0.0.1:1") as client, pytest.raises(InputError, match=r"\['std'\]"):
        client.predict(ROWS, outputs="std")


def test_the_address_comes_from_the_environment(url, monkeypatch):
    monkeypatch.setenv("MCDROP_BASE_URL", f"{url}/")
    with Client() as client:
        assert client.ready()
    with pytest.raises(SettingError, match="base_url is 'localhost:8000'"):
        Client("localhost:8000")


def test_a_client_object_of_the_callers_is_used_and_left_open(url):
    seen: list[str] = []
    with httpx.Client(event_hooks={"request": [lambda request: seen.append(request.headers["x-request-id"])]}) as http:
        with Client(url, http_client=http) as client:
            prediction = client.predict(ROWS)
        assert seen[-1] == prediction.request_id
        assert not http.is_closed


def test_importing_the_client_loads_little_besides_numpy_and_httpx():
    program = (
        "import sys, numpy, httpx; before = {*sys.modules}; import mcdrop.client; "
        "print(*sorted({name.partition('.')[0] for name in {*sys.modules} - before}))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    heavy = {"asyncio", "concurrent", "fastapi", "pydantic", "rich", "safetensors", "service", "torch", "uvicorn"}
    assert "mcdrop" in result.stdout.split()
    assert not heavy & set(result.stdout.split())
