"""Conversations with a server, driven by hand: no network, and a clock that moves only while something waits."""

import contextlib
import json
from dataclasses import dataclass, field

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcdrop.client import (
    APIConnectionError,
    APIError,
    APITimeoutError,
    BadRequest,
    DeadlineExceeded,
    InternalServer,
    NotFound,
    Overloaded,
)
from mcdrop.errors import InputError
from mcdrop.wire import api, exchange
from mcdrop.wire.answers import RemotePrediction
from mcdrop.wire.api import Reply
from mcdrop.wire.exchange import Ask, Pause, Server
from mcdrop.wire.retries import Deadline
from mcdrop.wire.tensors_wire import split
from stub_server import Fault, Stub, breaks, cut_short, says

ROWS = np.array([[1, 2], [3, 4]], np.float32)


@dataclass
class Drive:
    """Does what a conversation says. Each request takes `seconds`; waits pass at once, and are kept."""

    stub: Stub
    server: Server = field(default_factory=lambda: Server("http://s"))
    seconds: float = 0.25
    now: float = 0.0
    waits: list[float] = field(default_factory=list)
    asks: list[Ask] = field(default_factory=list)

    def predict(self, inputs=ROWS, *, timeout=60.0, useful=float("inf"), **options) -> RemotePrediction:
        deadline = Deadline(timeout, useful, lambda: self.now)
        talk = exchange.predict(api.asked(inputs, **options), self.server, deadline)
        try:
            step = next(talk)
            while True:
                if isinstance(step, Pause):
                    self.waits.append(step.seconds)
                    self.now += step.seconds
                    step = next(talk)
                    continue
                self.asks.append(step)
                self.now += self.seconds
                with httpx.Client(transport=self.stub.transport) as http:
                    try:
                        response = http.request(step.method, step.url, content=step.content, headers=step.headers)
                    except httpx.HTTPError as error:
                        step = talk.throw(error)
                        continue
                step = talk.send(Reply(response.status_code, response.headers, response.content))
        except StopIteration as done:
            return done.value

    @property
    def posts(self) -> list[Ask]:
        return [ask for ask in self.asks if ask.method == "POST"]


def with_faults(*faults: Fault, **server: object) -> Drive:
    return Drive(Stub(faults=list(faults)), Server("http://s", **server))


def deadline_of(ask: Ask) -> int:
    header, _ = split(ask.content, ask.headers.get("Inference-Header-Content-Length"))
    return header.get("parameters", header)["deadline_ms"]


# ---- binary, and JSON where that is not offered


def test_the_first_call_learns_and_the_second_only_asks():
    drive = Drive(Stub())
    prediction = drive.predict(seed=7)
    np.testing.assert_array_equal(prediction.mean, ROWS)
    assert prediction.mean.flags.writeable
    assert prediction.mean.flags.aligned
    assert np.isneginf(prediction.entropy).all()  # which JSON could not say
    assert (prediction.model, prediction.version, prediction.num_samples, prediction.seed) == ("m", "1", 3, 7)
    assert prediction.class_names == ("ant", "bee")
    assert prediction.request_id == drive.posts[0].headers["X-Request-Id"]
    assert (prediction.timings.queue_ms, prediction.timings.compute_ms) == (0.5, 2.0)
    assert prediction.timings.total_ms == pytest.approx(1000)  # of four requests
    assert drive.stub.paths == ["/v2", "/v1/models", "/v2/models/m", "/v2/models/m/infer"]
    drive.predict()
    assert drive.stub.paths[4:] == ["/v2/models/m/infer"]


def test_a_binary_request_is_what_the_protocol_says():
    drive = Drive(Stub())
    drive.predict([[1, 2]], model="m", num_samples=5, quantiles=[0.1, 0.9], outputs=["std"], determinism="exact")
    (ask,) = drive.posts
    header, rest = split(ask.content, ask.headers["Inference-Header-Content-Length"])
    assert drive.stub.paths == ["/v2", "/v2/models/m", "/v2/models/m/infer"]
    assert header == {
        "inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}],
        "outputs": [{"name": name} for name in ("mean", "variance", "entropy", "std", "quantiles")],
        "parameters": {
            "num_samples": 5, "determinism": "exact", "binary_data_output": True,
            "quantiles": "0.1,0.9", "deadline_ms": 59500,
        },
    }  # fmt: skip
    assert bytes(rest) == np.array([1, 2], "<f4").tobytes()


def test_a_seed_is_sent_only_if_the_caller_gives_one():
    for binary in (True, False):
        drive = Drive(Stub(binary=binary))
        drive.predict()
        drive.predict(seed=0)
        assert [b'"seed"' in ask.content for ask in drive.posts] == [False, True]


def test_errors_quantiles_and_pairs_of_samples():
    prediction = Drive(Stub()).predict(outputs=["standard_errors", "samples"], quantiles=[0.25, 0.75])
    np.testing.assert_array_equal(prediction.standard_errors["mean"], ROWS / 8)
    assert prediction.quantile_levels == (0.25, 0.75)
    assert prediction.quantiles.shape == (2, 2, 2)
    assert prediction.samples.shape == (2, 3, 2, 2)
    np.testing.assert_array_equal(prediction.samples[1], -prediction.samples[0])


def test_json_where_the_server_has_no_v2():
    drive = Drive(Stub(binary=False))
    prediction = drive.predict(allow_partial=True, determinism="exact")
    np.testing.assert_array_equal(prediction.mean, ROWS)
    assert np.isnan(prediction.entropy).all()
    assert json.loads(drive.posts[0].content) == {
        "inputs": ROWS.tolist(), "allow_partial": True, "determinism": "exact", "deadline_ms": 59750,
    }  # fmt: skip
    drive.predict(model="m")
    assert drive.stub.paths == ["/v2", "/v1/predict", "/v1/models/m/predict"]


def test_a_named_version_stands_in_the_address():
    drive = Drive(Stub(version="3"))
    assert drive.predict(model="m", version="3").version == "3"
    assert drive.stub.paths[1:] == ["/v2/models/m/versions/3", "/v2/models/m/versions/3/infer"]
    assert api.stream(api.asked(ROWS, model="m", version="a/b")).path == "/v1/models/m/versions/a%2Fb/stream"
    assert api.show_model("m", "3").path == "/v1/models/m/versions/3"
    with pytest.raises(InputError, match="give model= too"):
        drive.predict(version="3")


def test_json_without_a_default_model_so_that_the_server_says_what_to_do():
    drive = Drive(Stub(default=None))
    drive.predict()
    assert drive.stub.paths == ["/v2", "/v1/models", "/v1/predict"]


def test_json_for_a_model_that_takes_what_bytes_cannot_say():
    drive = Drive(Stub(inputs={"x": "BYTES"}))
    drive.predict()
    assert drive.stub.paths[-1] == "/v1/predict"


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_of_v2_is_no_lack_of_it(status):
    class Closed(Stub):
        def __call__(self, request):
            self.seen.append(request)
            return httpx.Response(status, json={"error": "no key"})

    drive = Drive(Closed())
    with pytest.raises(PermissionError, match="no key"):
        drive.predict()
    assert drive.server.binary is None


# ---- what was learned may be old


def test_a_new_version_is_noticed_by_its_answer():
    drive = Drive(Stub())
    drive.predict()
    drive.stub.version, drive.stub.class_names = "2", ("cat", "dog")
    prediction = drive.predict()
    assert (prediction.version, prediction.class_names) == ("2", ("cat", "dog"))
    drive.predict()
    assert drive.stub.paths[4:] == ["/v2/models/m/infer", "/v2/models/m", "/v2/models/m/infer"]


def test_a_refusal_of_inputs_makes_the_client_look_again():
    drive = Drive(Stub())
    drive.predict()
    drive.stub.inputs = {"image": "FP64"}
    np.testing.assert_array_equal(drive.predict().mean, ROWS)
    assert drive.stub.paths[4:] == ["/v2/models/m/infer", "/v1/models", "/v2/models/m", "/v2/models/m/infer"]


def test_a_just_refusal_is_raised_and_not_repeated():
    drive = Drive(Stub())
    with pytest.raises(BadRequest, match="the inputs are"):
        drive.predict({"y": ROWS})
    assert len(drive.posts) == 1
    drive.predict()
    with pytest.raises(BadRequest):
        drive.predict({"y": ROWS})
    assert len(drive.posts) == 3


def test_inputs_that_do_not_fit_are_refused_here():
    drive = Drive(Stub(inputs={"left": "FP32", "right": "INT64"}))
    with pytest.raises(InputError, match="got one array. Give a dict with left, right"):
        drive.predict()
    with pytest.raises(InputError, match="'right' has dtype float32; expected whole numbers"):
        drive.predict({"left": ROWS, "right": ROWS})
    assert drive.posts == []


def test_a_model_that_is_gone_is_not_found():
    drive = Drive(Stub())
    with pytest.raises(NotFound, match="nothing at /v2/models/other"):
        drive.predict(model="other")


# ---- again


@pytest.mark.parametrize("binary", [True, False])
def test_the_same_request_is_sent_again_under_the_same_id(binary):
    drive = with_faults(says(503), breaks(), binary=binary)
    drive.server.models.clear()
    prediction = drive.predict(model="m")
    np.testing.assert_array_equal(prediction.mean, ROWS)
    assert prediction.timings.retries == 2
    assert [ask.headers["x-retry-count"] for ask in drive.posts] == ["0", "1", "2"]
    assert len({ask.headers["X-Request-Id"] for ask in drive.posts}) == 1
    assert 0.375 <= drive.waits[0] <= 0.5
    assert 0.75 <= drive.waits[1] <= 1


@pytest.mark.parametrize("fault", [breaks(), breaks(httpx.ConnectError), breaks(httpx.ReadError), cut_short])
def test_a_connection_that_dies_is_tried_again(fault):
    drive = with_faults(fault)
    assert len(drive.predict()) == 2
    assert len(drive.waits) == 1


def test_the_servers_wait_is_kept_to_the_letter():
    drive = with_faults(says(429, {"retry-after": "20"}), says(503, {"retry-after-ms": "125", "retry-after": "1"}))
    drive.predict()
    assert drive.waits == [20, 0.125]


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (says(400, error="no"), BadRequest),
        (says(501, error="no"), InternalServer),
        (says(504, error="no"), DeadlineExceeded),
        (says(503, {"x-should-retry": "false"}, error="no"), APIError),
        (says(429, {"retry-after": "300"}, error="no"), Overloaded),
        (breaks(httpx.LocalProtocolError), APIConnectionError),
    ],
)
def test_what_would_fail_again_is_raised_at_once(fault, error):
    drive = with_faults(fault, binary=False)
    with pytest.raises(error):
        drive.predict()
    assert len(drive.posts) == 1


def test_the_last_failure_is_raised():
    drive = with_faults(says(500), breaks(), says(429, {"retry-after-ms": "10"}, error="busy"))
    with pytest.raises(Overloaded, match="busy") as caught:
        drive.predict()
    assert (caught.value.retry_after, caught.value.request_id) == (0.01, None)
    assert with_faults(says(500), max_retries=0, binary=False).server.max_retries == 0
    with pytest.raises(InternalServer):
        with_faults(says(500), max_retries=0).predict()


# ---- one deadline


def test_each_attempt_tells_the_server_what_is_left():
    drive = with_faults(says(503, {"retry-after": "2"}), says(503, {"retry-after": "3"}), binary=False)
    drive.predict(timeout=10)
    assert [deadline_of(ask) for ask in drive.posts] == [10000, 7750, 4500]
    assert [ask.seconds for ask in drive.posts] == [10, 7.75, 4.5]


def test_a_deadline_of_the_callers_is_told_and_the_answer_waited_for():
    drive = with_faults(says(503, {"retry-after": "1"}), binary=False)
    drive.predict(timeout=10, useful=4)
    assert [deadline_of(ask) for ask in drive.posts] == [4000, 2750]
    assert [ask.seconds for ask in drive.posts] == [10, 8.75]


@pytest.mark.parametrize(("timeout", "useful"), [(5, float("inf")), (60, 5)])
def test_no_wait_outlasts_the_deadline(timeout, useful):
    drive = with_faults(says(429, {"retry-after": "6"}, error="busy"), binary=False)
    with pytest.raises(Overloaded, match="busy"):
        drive.predict(timeout=timeout, useful=useful)
    assert drive.waits == []


def test_learning_counts_towards_the_deadline():
    drive = Drive(Stub(), seconds=1)
    with pytest.raises(APITimeoutError, match="http://s/v2/models/m/infer.*timeout="):
        drive.predict(timeout=3)
    assert drive.stub.paths[-1] == "/v2/models/m"


FAULTS = st.lists(
    st.one_of(
        st.sampled_from([breaks(), cut_short, says(500), says(502), says(503)]),
        st.floats(0, 130).map(lambda seconds: says(429, {"retry-after-ms": str(1000 * seconds)})),
    ),
    max_size=8,
)


@given(FAULTS, st.integers(0, 8), st.floats(0.01, 100), st.floats(0, 3))
def test_a_call_never_outlasts_its_deadline_by_more_than_one_request(faults, max_retries, timeout, seconds):
    drive = with_faults(*faults, max_retries=max_retries, binary=False)
    drive.seconds = seconds
    with contextlib.suppress(APIError):
        drive.predict(timeout=timeout)
    assert drive.now - (drive.seconds if drive.asks else 0) < timeout
    assert len(drive.posts) <= max_retries + 1
    told = [deadline_of(ask) for ask in drive.posts]
    assert told == sorted(told, reverse=True)
