"""Every failure over HTTP: its status, its code, its sentence, and one shape for all."""

import asyncio
import inspect
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send
from torch import nn

from mcdrop.errors import McdropError
from mcdrop.predictor import MCDropout
from service import errors
from service.app import create_app
from service.metrics import Metrics
from service.middleware import Door
from service.wire import PredictRequest, decode
from serving import live, model, settings

ROW = [0.1, -0.5, 2.0, 1.5]
INSECTS, STREAM = "/v1/models/insects/predict", "/v1/models/insects/stream"
JSON = {"content-type": "application/json"}
LIMITS = {"max_rows": 10, "max_num_samples": 100, "max_cost": 300, "max_body_bytes": 5000, "max_answer_values": 1000}


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with live(**LIMITS) as client:
        yield client


def check(answer: httpx.Response, status: int, code: str, *fragments: str) -> dict[str, Any]:
    """The one shape, and the useful part of the sentence."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert list(problem) == ["type", "title", "status", "detail", "code", "request_id"]
    assert (problem["status"], problem["code"]) == (status, code)
    assert problem["type"] == f"urn:mcdrop:problem:{code}"
    assert problem["title"]
    assert problem["request_id"] == answer.headers["x-request-id"]
    for fragment in fragments:
        assert fragment in problem["detail"]
    return problem


@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"inputs": [[NaN]]}', b'{"inputs": [[1e999]]}', b'{"inputs": [[1,]]}', b"\xff", b"[" * 5000]
)
def test_what_is_no_json_is_400(http, body):
    check(http.post(INSECTS, content=body, headers=JSON), 400, "malformed-json", "The body is not JSON", '"inputs"')


@pytest.mark.parametrize("body", [b"[]", b"3", b"null", b'"inputs"'])
def test_json_that_is_no_object_is_422(http, body):
    check(http.post(INSECTS, content=body, headers=JSON), 422, "invalid-request", "expected an object")


@pytest.mark.parametrize(
    ("request_", "code", "fragments"),
    [
        ({}, "invalid-request", ["inputs", "required"]),
        ({"inputs": [ROW], "num_sample": 5}, "invalid-request", ["num_sample", "num_samples"]),
        ({"inputs": [ROW], "num_samples": "5"}, "invalid-request", ["num_samples"]),
        ({"inputs": [ROW], "num_samples": True}, "invalid-request", ["num_samples"]),
        ({"inputs": [ROW], "seed": 1.5}, "invalid-request", ["seed"]),
        ({"inputs": [ROW], "outputs": "std"}, "invalid-request", ["outputs"]),
        ({"inputs": [ROW], "outputs": ["sdt"]}, "invalid-request", ["'sdt'", "std", "mutual_information"]),
        ({"inputs": [ROW], "outputs": ["__class__"]}, "invalid-request", ["__class__"]),
        ({"inputs": [ROW], "quantiles": [0.5, 7]}, "invalid-setting", ["quantiles"]),
        ({"inputs": [ROW], "quantiles": []}, "invalid-request", ["quantiles"]),
        ({"inputs": [ROW], "num_samples": 0}, "invalid-setting", ["num_samples"]),
        ({"inputs": [ROW], "num_samples": -3}, "invalid-setting", ["num_samples"]),
        ({"inputs": [ROW], "num_samples": 1}, "invalid-setting", ["num_samples"]),
        ({"inputs": ROW}, "invalid-input", ["1 axes", "float32[batch, 4]"]),
        ({"inputs": [[1.0, 2.0]]}, "invalid-input", ["size 2", "float32[batch, 4]"]),
        ({"inputs": [ROW, [1.0]]}, "invalid-input", ["differ in length"]),
        ({"inputs": [[None, 0, 0, 0]]}, "invalid-input", ["float32[batch, 4]"]),
        ({"inputs": [["a", "b", "c", "d"]]}, "invalid-input", ["strings"]),
        ({"inputs": [[1e39, 0, 0, 0]]}, "invalid-input", ["beyond what float32 can hold"]),
        ({"inputs": None}, "invalid-input", ["float32[batch, 4]"]),
        ({"inputs": "abc"}, "invalid-input", ["float32[batch, 4]"]),
        ({"inputs": {"nope": [ROW]}}, "invalid-input", ["nope", "float32[batch, 4]"]),
        ({"inputs": [ROW] * 11}, "limit-exceeded", ["11 rows", "allows 10", "max_rows (MCDROP_MAX_ROWS)"]),
        (
            {"inputs": [ROW], "num_samples": 101},
            "limit-exceeded",
            ["101 passes", "allows 100", "max_num_samples (MCDROP_MAX_NUM_SAMPLES)"],
        ),
        (
            {"inputs": [ROW] * 10, "num_samples": 31},
            "limit-exceeded",
            ["310 rows x passes", "allows 300", "max_cost (MCDROP_MAX_COST)"],
        ),
        (
            {"inputs": [ROW] * 10, "num_samples": 30, "outputs": ["samples"]},
            "limit-exceeded",
            ["allows 1000", "max_answer_values (MCDROP_MAX_ANSWER_VALUES)"],
        ),
        (  # three numbers, by four fields, two passes and as many levels
            {"inputs": [ROW], "num_samples": 2, "quantiles": [0.5] * 400},
            "limit-exceeded",
            ["1218 numbers", "allows 1000", "max_answer_values (MCDROP_MAX_ANSWER_VALUES)"],
        ),
    ],
)
def test_what_is_well_formed_but_wrong_is_422(http, request_, code, fragments):
    check(http.post(INSECTS, json=request_), 422, code, *fragments)


@pytest.mark.parametrize(
    "body",
    [
        b'{"inputs":1,"outputs":[' + b",".join([b"1"] * 10**5) + b"]}",
        b'{"inputs":1,"quantiles":[' + b",".join([b"null"] * 10**5) + b"]}",
        b'{"inputs":1,' + b",".join(b'"%x":1' % number for number in range(10**5)) + b"}",
        b'{"inputs":1,"' + b"x" * 10**6 + b'":1}',
    ],
    ids=["outputs", "quantiles", "names", "a long name"],
)
def test_what_is_wrong_many_times_is_said_once(body):
    """A sentence for each of the sixteen million faults of a small compressed body took all memory there was."""
    with pytest.raises(errors.InvalidRequestError) as told:
        decode(body)
    assert len(str(told.value)) < 500


def test_of_many_unknown_outputs_some_are_named(http):
    answer = http.post(INSECTS, json={"inputs": [ROW], "outputs": [f"no-{number}" for number in range(200)]})
    check(answer, 422, "invalid-request", "no 'no-0', 'no-1', 'no-2', 'no-3', 'no-4' and 195 more. It has mean")


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)
PATHS = [(), ("inputs",), ("inputs", 0), ("inputs", 0, 0), *((name,) for name in PredictRequest.model_fields)]


def answer_is_sound(answer: httpx.Response) -> None:
    """Either what was asked for, or a problem that is the client's."""
    if answer.status_code == 504:  # of a deadline that is made up
        check(answer, 504, "deadline-exceeded")
    elif answer.status_code == 200:
        assert answer.headers["content-type"].startswith(("application/json", "text/event-stream"))
        assert b"event: error" not in answer.content or b"deadline-exceeded" in answer.content
    else:
        assert 400 <= answer.status_code < 500, answer.text
        check(answer, answer.status_code, answer.json()["code"])


@given(st.sampled_from([INSECTS, STREAM]), st.sampled_from(PATHS), JSON_VALUES)
@hypothesis_settings(max_examples=300, deadline=None)
def test_any_value_anywhere_in_a_request_is_answered_or_refused(http, address, path, value):
    holder: Any = {"content": {"inputs": [list(ROW)], "num_samples": 2}}
    place, key = holder, "content"
    for step in path:
        place, key = place[key], step
    place[key] = value
    content = json.dumps(holder["content"]).encode("utf-8", "surrogatepass")
    answer_is_sound(http.post(address, content=content, headers=JSON))


@given(st.binary(max_size=60), st.sampled_from(["", "gzip", "deflate", "br"]), st.integers(0, 80), st.booleans())
@hypothesis_settings(max_examples=200, deadline=None)
def test_any_bytes_are_answered_or_refused(http, noise, coding, cut, is_valid_before):
    """Noise alone, and a valid request that is cut somewhere and goes on as noise."""
    valid = json.dumps({"inputs": [ROW], "num_samples": 2}).encode()
    body = valid[:cut] + noise if is_valid_before else noise
    answer_is_sound(http.post(INSECTS, content=body, headers={**JSON, "content-encoding": coding}))


def test_a_request_at_every_limit_is_answered(http):
    assert http.post(INSECTS, json={"inputs": [ROW] * 10, "num_samples": 30}).status_code == 200
    assert http.post(INSECTS, json={"inputs": [ROW] * 3, "num_samples": 100}).status_code == 200


@pytest.mark.parametrize("headers", [JSON, {}])
def test_an_unknown_model_is_404_before_the_body_is_judged(http, headers):
    path = "/v1/models/nope/predict"
    check(http.post(path, content=b"{", headers=headers), 404, "unknown-model", "'nope'", "insects, pair, slope")
    check(http.get("/v1/models/nope"), 404, "unknown-model", "'nope'")


@pytest.mark.parametrize("path", ["/nope", "/v1", "/v1/models/", "/v1/predict/", "/docs/static/nope.js", "/redoc"])
def test_what_does_not_exist_is_404(http, path):
    check(http.get(path), 404, "not-found", path)


def test_a_wrong_verb_is_405(http):
    answer = http.get(INSECTS)
    check(answer, 405, "method-not-allowed", "POST")
    assert answer.headers["allow"] == "POST"


def test_another_media_type_is_415(http):
    body = json.dumps({"inputs": [ROW]}).encode()
    check(http.post(INSECTS, content=body), 415, "unsupported-media-type", "missing", "application/json")
    form = {"content-type": "application/x-www-form-urlencoded"}
    check(http.post(INSECTS, content=body, headers=form), 415, "unsupported-media-type", "x-www-form-urlencoded")
    with_charset = {"content-type": "Application/JSON; charset=utf-8"}
    assert http.post(INSECTS, content=body, headers=with_charset).status_code == 200


@pytest.mark.parametrize("size", [5001, 200_000])
def test_a_body_over_the_limit_is_413(http, size):
    answer = http.post(INSECTS, content=b" " * size, headers=JSON)
    check(answer, 413, "body-too-large", f"{size} bytes", "at most 5000", "max_body_bytes (MCDROP_MAX_BODY_BYTES)")


def test_bytes_are_counted_where_no_length_is_declared(http):
    def chunks() -> Iterator[bytes]:
        for _ in range(60):
            yield b" " * 100

    check(http.post(INSECTS, content=chunks(), headers=JSON), 413, "body-too-large", "more than 5000", "at most 5000")


def test_a_body_of_exactly_the_limit_is_read(http):
    body = json.dumps({"inputs": [ROW]}).encode()
    assert http.post(INSECTS, content=body.ljust(5000), headers=JSON).status_code == 200


def test_a_client_that_asks_first_is_refused_before_it_sends():
    """curl sends `Expect: 100-continue` with large bodies: nothing may be read before the answer."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()

    async def receive() -> Any:
        raise AssertionError("read the body")

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-length", b"11"), (b"expect", b"100-continue")]
    scope = {"type": "http", "method": "POST", "path": "/", "headers": headers}
    asyncio.run(Door(app, settings=settings(max_body_bytes=10), metrics=Metrics())(scope, receive, send))
    assert sent[0]["status"] == 413


def test_what_nobody_foresaw_is_500_and_says_nothing_of_itself(caplog):
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("a secret path")

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(Door(app, settings=settings(max_body_bytes=10), metrics=Metrics()))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as http:
            return await http.get("/", headers={"x-request-id": "mine"})

    answer = asyncio.run(ask())
    check(answer, 500, "internal-error", "mine")
    assert "secret" not in answer.text
    assert "a secret path" in caplog.text
    assert "[mine]" in caplog.text


def test_a_client_that_leaves_while_it_sends_is_no_failure_of_the_server(caplog):
    """Its body breaks off: nothing to answer, nothing to report as a bug."""
    app = create_app(settings())
    registry = app.state.registry
    registry.models["insects"].mc = model("one")
    messages = iter([{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}])
    sent: list[Any] = []

    async def receive() -> Any:
        return next(messages)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": INSECTS, "raw_path": INSECTS.encode(), "query_string": b"",
             "root_path": "", "headers": [(b"content-type", b"application/json")], "http_version": "1.1",
             "scheme": "http", "server": ("server", 80), "client": ("client", 1)}  # fmt: skip
    asyncio.run(app(scope, receive, send))
    assert sent[0]["status"] == 499
    assert caplog.text == ""


@pytest.mark.parametrize("path", ["/health/live", "/health/ready"])
def test_balancers_may_probe_by_head(http, path):
    answer = http.head(path)
    assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize("path", ["/health/live", "/nope"])
def test_a_valid_request_id_is_kept(http, path):
    assert http.get(path, headers={"x-request-id": "abc-1.2:3"}).headers["x-request-id"] == "abc-1.2:3"


@pytest.mark.parametrize("given", ["", "a b", "a" * 129, "<script>", "é".encode()])
def test_another_request_id_is_replaced(http, given):
    first = http.get("/health/live", headers={"x-request-id": given}).headers["x-request-id"]
    second = http.get("/health/live", headers={"x-request-id": given}).headers["x-request-id"]
    assert first
    assert first not in (given, second)


def test_every_error_of_the_service_has_its_row_and_its_own_code():
    own = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if cls.__module__ == errors.__name__]
    own = [cls for cls in own if issubclass(cls, McdropError)]
    assert own
    assert [cls.__name__ for cls in own if cls not in errors.TABLE] == []
    assert len({cls.code for cls in own}) == len(own)


def test_what_only_the_network_can_judge_is_422_too(tmp_path):
    """A token id beyond the embedding: well-formed for the rules of the input, impossible for the network."""
    network = nn.Sequential(nn.Embedding(10, 4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(12, 2))
    ids = torch.zeros(2, 3, dtype=torch.int64)
    MCDropout(network, ids, task="classification").save(tmp_path / "words")
    with live(models=tmp_path) as http:
        assert http.post("/v1/predict", json={"inputs": [[0, 9, 3]]}).status_code == 200
        check(http.post("/v1/predict", json={"inputs": [[0, 10, 3]]}), 422, "invalid-input", "token ids")
        check(http.post("/v1/predict", json={"inputs": [[0, 1.5, 3]]}), 422, "invalid-input", "whole numbers")
        assert http.post("/v1/predict", json={"inputs": [[0, 9, 3]]}).status_code == 200
