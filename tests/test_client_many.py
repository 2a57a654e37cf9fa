"""Streams and many rows: what is opened is closed, what is sent comes back in order, and no thread or task is left."""

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from mcdrop.client import (
    APIConnectionError,
    APITimeoutError,
    AsyncClient,
    Client,
    InternalServer,
    Overloaded,
    UnprocessableRequest,
)
from mcdrop.errors import InputError, SettingError
from mcdrop.wire.answers import RemotePrediction, Timings, joined
from mcdrop.wire.tensors_wire import split
from stub_server import Body, Stub, breaks, cut_short, estimate, event, says, streams

ROWS = np.arange(22, dtype=np.float32).reshape(11, 2)
EVENTS = (estimate("estimate", 2), b": heartbeat\n\n", estimate("estimate", 4), estimate("result", 8))


def client_of(stub: Stub, **settings: Any) -> Client:
    return Client("http://s", http_client=httpx.Client(transport=stub.transport), **settings)


def run(stub: Stub, talk: Callable[[AsyncClient], Any], **settings: Any) -> Any:
    async def inner() -> Any:
        async with (
            httpx.AsyncClient(transport=stub.transport) as http,
            AsyncClient("http://s", http_client=http, **settings) as client,
        ):
            before = asyncio.all_tasks()
            try:
                return await talk(client)
            finally:
                assert asyncio.all_tasks() == before

    return asyncio.run(inner())


# ---- streams


def test_a_stream_sharpens_and_is_closed_at_its_end():
    body = Body(*EVENTS, b"event: estimate\ndata: never read\n\n")
    stub = Stub(faults=[streams(body)])
    found = list(client_of(stub).stream(ROWS, num_samples=8, outputs=["std"], timeout=5))
    assert [prediction.num_samples for prediction in found] == [2, 4, 8]
    assert found[-1].mean.tolist() == [[0.5, 8]]
    assert found[-1].standard_errors["mean"].shape == (1, 2)
    assert found[-1].timings.total_ms > 0
    assert body.closed
    (request,) = stub.seen
    assert (request.url.path, request.headers["accept"]) == ("/v1/stream", "text/event-stream")
    asked = json.loads(request.content)
    assert (asked["num_samples"], asked["outputs"]) == (8, ["std"])
    assert 4000 < asked["deadline_ms"] <= 5000


def test_a_stream_of_a_named_model():
    stub = Stub(faults=[streams(Body(*EVENTS))])
    assert len(list(client_of(stub).stream(ROWS, model="m"))) == 3
    assert stub.paths == ["/v1/models/m/stream"]


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_a_stream_may_come_in_any_pieces(size):
    whole = b"".join(EVENTS)
    body = Body(*(whole[start : start + size] for start in range(0, len(whole), size)))
    assert len(list(client_of(Stub(faults=[streams(body)])).stream(ROWS))) == 3


def test_leaving_the_loop_closes_the_stream():
    body = Body(*EVENTS)
    for _ in client_of(Stub(faults=[streams(body)])).stream(ROWS):
        break
    assert body.closed


def test_an_error_event_is_the_typed_error():
    problem = event("error", status=503, detail="It broke.", code="out-of-memory", request_id="r1")
    body = Body(EVENTS[0], problem)
    found = []
    with pytest.raises(Exception, match="It broke") as caught:
        for prediction in client_of(Stub(faults=[streams(body)])).stream(ROWS):
            found.append(prediction)
    assert (len(found), body.closed) == (1, True)
    assert (type(caught.value).__name__, caught.value.code, caught.value.request_id) == (
        "NotReady", "out-of-memory", "r1"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        (EVENTS[:1], "ended before its result"),
        ((EVENTS[0], httpx.ReadError("cut")), "cut"),
        ((b"event: result\ndata: {}\n\n",), "not an mcdrop server's"),
        ((b"event: result\ndata: [\n\n",), "not an mcdrop server's"),
        ((b"event: error\ndata: 1\n\n",), "not an mcdrop server's"),
    ],
)
def test_a_stream_that_breaks_is_a_connection_error(pieces, message):
    body = Body(*pieces)
    stub = Stub(faults=[streams(body)])
    with pytest.raises(APIConnectionError, match=message):
        list(client_of(stub).stream(ROWS))
    assert body.closed
    assert len(stub.seen) == 1


def test_a_stream_is_opened_again_as_long_as_nothing_came(monkeypatch):
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    stub = Stub(faults=[says(429, {"retry-after": "3"}), breaks(), streams(Body(*EVENTS))])
    assert len(list(client_of(stub).stream(ROWS))) == 3
    assert waits[0] == 3
    stub = Stub(faults=[says(422, detail="no such output", code="invalid-request")])
    with pytest.raises(UnprocessableRequest, match="no such output"):
        list(client_of(stub).stream(ROWS))


def test_a_stream_ends_at_its_deadline():
    class Endless(Body):
        def __iter__(self) -> Iterator[bytes]:
            while True:
                yield b": heartbeat\n\n"

    body = Endless()
    with pytest.raises(APITimeoutError, match="went on for too long"):
        list(client_of(Stub(faults=[streams(body)])).stream(ROWS, timeout=0.05))
    assert body.closed


def test_streams_check_their_arguments_when_called():
    with pytest.raises(InputError, match=r"\['std'\]"):
        client_of(Stub()).stream(ROWS, outputs="std")


def test_streams_of_asyncio():
    whole, left = Body(*EVENTS), Body(*EVENTS)
    broken = Body(EVENTS[0], event("error", status=500, detail="It broke."))

    async def talk(client: AsyncClient) -> list[int]:
        found = [prediction.num_samples async for prediction in client.stream(ROWS)]
        async with contextlib.aclosing(client.stream(ROWS)) as stream:
            async for _ in stream:
                break
        with pytest.raises(InternalServer, match="It broke"):
            [_ async for _ in client.stream(ROWS)]
        return found

    assert run(Stub(faults=[streams(body) for body in (whole, left, broken)]), talk) == [2, 4, 8]
    assert [body.closed for body in (whole, left, broken)] == [True] * 3


# ---- many rows


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("concurrency", [1, 3])
def test_rows_come_back_in_order(binary, concurrency):
    stub = Stub(binary=binary)
    with client_of(stub) as client:
        prediction = client.predict_many(ROWS, batch_size=2, concurrency=concurrency, seed=5)
    np.testing.assert_array_equal(prediction.mean, ROWS)
    assert (len(prediction), prediction.num_samples, prediction.version) == (11, 3, "1")
    requests = [request for request in stub.seen if request.method == "POST"]
    assert len(requests) == 6
    assert sorted(prediction.raw["request_ids"], key=str) == sorted(
        [request.headers["x-request-id"] for request in requests] if binary else [None] * 6, key=str
    )
    assert prediction.timings.compute_ms == (12 if binary else None)


def test_asyncio_does_the_same():
    async def later() -> AsyncIterator[Any]:
        for start in range(0, 11, 4):
            yield ROWS[start : start + 4]

    async def talk(client: AsyncClient) -> list[RemotePrediction]:
        return [
            await client.predict_many(ROWS, batch_size=2, concurrency=3),
            await client.predict_many(later(), concurrency=2),
            await client.predict_many(later(), batch_size=3),
            await client.predict_many(iter([ROWS[:5], ROWS[5:]])),
        ]

    for prediction in run(Stub(), talk):
        np.testing.assert_array_equal(prediction.mean, ROWS)


@pytest.mark.parametrize(
    ("inputs", "requests"),
    [
        (ROWS.tolist(), 3),
        (torch.tensor(ROWS), 3),
        ({"x": ROWS}, 3),
        ((batch for batch in (ROWS[:6], ROWS[6:])), 4),
        (np.zeros((0, 2)), 1),
    ],
    ids=["lists", "tensor", "dict", "batches", "empty"],
)
def test_rows_may_be_what_people_have(inputs, requests):
    stub = Stub()
    prediction = client_of(stub).predict_many(inputs, batch_size=4)
    assert len(prediction) == (11 if requests > 1 else 0)
    assert sum(request.method == "POST" for request in stub.seen) == requests


def test_axes_behind_the_first_are_joined_along_rows():
    prediction = client_of(Stub()).predict_many(
        ROWS, batch_size=3, outputs=["standard_errors", "samples"], quantiles=[0.1, 0.9]
    )
    np.testing.assert_array_equal(prediction.standard_errors["mean"], ROWS / 8)
    np.testing.assert_array_equal(prediction.quantiles, np.stack([ROWS, ROWS + 1]))
    np.testing.assert_array_equal(prediction.samples, np.stack([[ROWS] * 3, [-ROWS] * 3]))


def test_parts_with_fewer_passes_are_said():
    parts = [
        RemotePrediction(
            "m", version, passes, 0, {"mean": np.ones(2), "samples": np.ones((passes, 2))}, partial=partial
        )
        for version, passes, partial in (("1", 5, False), ("2", 3, True))
    ]
    whole = joined(parts, seconds=1.5)
    assert (whole.version, whole.num_samples, whole.partial) == ("1, 2", 3, True)
    assert whole.samples.shape == (3, 4)
    assert whole.timings == Timings(1500, None, None, 0)


def test_batches_are_taken_only_as_they_are_sent():
    ahead: list[int] = []
    stub = Stub(binary=False)

    def batches() -> Iterator[Any]:
        for index in range(20):
            answered = sum(request.method == "POST" for request in stub.seen)
            ahead.append(index - answered)
            yield ROWS[:1]

    client_of(stub).predict_many(batches(), concurrency=2)
    assert max(ahead) <= 2


def test_no_more_than_concurrency_are_under_way():
    together: list[int] = []
    under_way = threading.Semaphore(3)

    class Counting(Stub):
        def __call__(self, request: httpx.Request) -> httpx.Response:
            assert under_way.acquire(blocking=False)
            together.append(3 - under_way._value)
            time.sleep(0.005)
            try:
                return super().__call__(request)
            finally:
                under_way.release()

    client_of(Counting(binary=False), binary=False).predict_many(ROWS, batch_size=1, concurrency=3)
    assert max(together) == 3


def test_the_first_error_is_raised_and_nothing_is_left_running():
    threads = threading.active_count()
    stub = Stub(binary=False, faults=[lambda _: None, says(422, detail="row 3 is bad", code="invalid-input")])
    with pytest.raises(UnprocessableRequest, match="row 3 is bad"):
        client_of(stub).predict_many(ROWS, batch_size=1, concurrency=2)
    assert threading.active_count() == threads
    assert len(stub.seen) <= 6


def test_an_error_ends_the_waits_of_the_others():
    stub = Stub(faults=[says(503, {"retry-after": "50"}), says(422, detail="bad")])
    started = time.monotonic()
    with pytest.raises(UnprocessableRequest, match="bad"):
        client_of(stub, binary=False).predict_many(ROWS, batch_size=6, concurrency=2)
    assert time.monotonic() - started < 10

    async def talk(client: AsyncClient) -> None:
        with pytest.raises(UnprocessableRequest, match="bad"):
            await client.predict_many(ROWS, batch_size=6, concurrency=2)

    run(Stub(faults=[says(503, {"retry-after": "50"}), says(422, detail="bad")]), talk, binary=False)
    assert time.monotonic() - started < 10


def test_an_error_of_the_callers_own_batches_is_raised():
    def batches() -> Iterator[Any]:
        yield ROWS
        raise OSError("the disk is gone")

    threads = threading.active_count()
    with pytest.raises(OSError, match="the disk is gone"):
        client_of(Stub()).predict_many(batches())
    assert threading.active_count() == threads


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"inputs": iter([])}, InputError, "no batch to predict"),
        ({"inputs": 3}, InputError, "of type int; expected arrays, or batches"),
        ({"inputs": np.float32(3)}, InputError, "one number"),
        ({"inputs": ROWS, "batch_size": 0}, SettingError, "batch_size is 0"),
        ({"inputs": ROWS, "concurrency": 2.5}, SettingError, "concurrency is 2.5"),
        ({"inputs": ROWS, "outputs": "std"}, InputError, r"\['std'\]"),
    ],
)
def test_what_means_nothing_is_refused(arguments, error, message):
    stub = Stub()
    with pytest.raises(error, match=message):
        client_of(stub).predict_many(arguments.pop("inputs"), **arguments)
    assert stub.seen == []


def test_asynchronous_batches_take_the_asynchronous_client():
    async def later() -> AsyncIterator[Any]:
        yield ROWS

    with pytest.raises(SettingError, match="use AsyncClient"):
        client_of(Stub()).predict_many(later())


@pytest.mark.parametrize(
    ("progress", "terminal", "shown"), [(None, False, 0), (None, True, 1), (True, False, 1), (False, True, 0)]
)
def test_a_progress_bar_only_when_asked_or_in_a_terminal(progress, terminal, shown, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal, raising=False)
    client_of(Stub()).predict_many(ROWS, batch_size=2, progress=progress)
    assert ("6/6" in capsys.readouterr().err) == bool(shown)


# ---- asking again, seen from the clients


def test_both_clients_wait_as_told(monkeypatch):
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    faults = [says(429, {"retry-after": "0.01"}), cut_short, says(503, {"retry-after-ms": "10"})]
    prediction = client_of(Stub(faults=list(faults)), max_retries=3).predict(ROWS)
    assert (len(prediction), prediction.timings.retries, len(waits)) == (11, 3, 3)
    assert (waits[0], waits[2]) == (0.01, 0.01)
    faults.pop(1)
    assert len(run(Stub(faults=faults), lambda client: client.predict(ROWS))) == 11


def test_cancelling_leaves_nothing_behind():
    async def talk(client: AsyncClient) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await client.predict(ROWS)

    run(Stub(faults=[says(503, {"retry-after": "30"})]), talk)


def test_an_answer_that_trickles_is_given_up():
    class Endless(Body):
        def __iter__(self) -> Iterator[bytes]:
            while True:
                yield b" "

        async def __aiter__(self) -> AsyncIterator[bytes]:
            while True:
                await asyncio.sleep(0)
                yield b" "

    for faults in ([streams(Endless())], [streams(Endless())]):
        with pytest.raises(APITimeoutError, match="in time"):
            client_of(Stub(faults=faults), binary=False).predict(ROWS, timeout=0.05)

    async def talk(client: AsyncClient) -> None:
        with pytest.raises(APITimeoutError, match="in time"):
            await client.predict(ROWS, timeout=0.05)

    run(Stub(faults=[streams(Endless())]), talk, binary=False)


def test_overload_is_told_with_its_wait():
    async def talk(client: AsyncClient) -> None:
        with pytest.raises(Overloaded) as caught:
            await client.predict(ROWS)
        assert caught.value.retry_after == 500

    run(Stub(faults=[says(429, {"retry-after": "500"}, error="full")]), talk)


# ---- settings


def test_a_key_is_sent_with_every_request(monkeypatch):
    monkeypatch.setenv("MCDROP_API_KEY", "from-environment")
    for key, sent in ((None, "Bearer from-environment"), ("mine", "Bearer mine"), ("", None)):
        stub = Stub()
        client_of(stub, api_key=key).predict(ROWS)
        assert {request.headers.get("authorization") for request in stub.seen} == {sent}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"api_key": "a\nb"}, "api_key holds characters"),
        ({"api_key": "schlüssel"}, "api_key holds characters"),
        ({"timeout": 0}, "timeout is 0; expected seconds"),
        ({"timeout": float("inf")}, "timeout is inf"),
        ({"max_retries": -1}, "max_retries is -1"),
        ({"max_retries": True}, "max_retries is True"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    for kind in (Client, AsyncClient):
        with pytest.raises(SettingError, match=message) as caught:
            kind("http://s", **settings)
        assert "schlüssel" not in str(caught.value)


def test_a_partial_answer_is_due_before_the_caller_gives_up():
    stub = Stub()
    client_of(stub).predict(ROWS, allow_partial=True, timeout=10)
    request = stub.seen[-1]
    header, _ = split(request.content, request.headers["inference-header-content-length"])
    assert 8000 < header["parameters"]["deadline_ms"] <= 9000
    with pytest.raises(SettingError, match="deadline is -1"):
        client_of(stub).predict(ROWS, deadline=-1)


def test_connections_are_given_up_before_the_server_does():
    with Client("http://s") as client:
        assert client._http._transport._pool._keepalive_expiry < 75
