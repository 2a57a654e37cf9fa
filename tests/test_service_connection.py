"""Slow and huge clients: each limit, the answer that names it, and that nobody else is harmed."""

import contextlib
import json
import socket
import time
from collections.abc import Iterator

import httpx
import pytest

from mcdrop.errors import SettingError
from raw import connected, everything, head
from serving import live, settings

INSECTS = "/v1/models/insects/predict"
JSON = "Content-Type: application/json"
BODY = b'{"inputs": [[0, 0, 0, 0]]}'
PATIENCE = 0.4  # seconds; long beside what the server takes, short beside a test


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    limits = {"max_header_bytes": 2000, "max_body_bytes": 100_000, "max_inflight_body_bytes": 100_000}
    with live(header_timeout=PATIENCE, body_timeout=PATIENCE, **limits) as client:
        yield client


def answered(raw: bytes, status: int, code: str, *fragments: str) -> None:
    """The one answer in `raw`, complete, in the shape of every failure."""
    start, _, body = raw.partition(b"\r\n\r\n")
    assert start.startswith(f"HTTP/1.1 {status} ".encode()), raw
    assert b"\r\nconnection: close\r\n" in start + b"\r\n"
    problem = json.loads(body)
    assert (problem["status"], problem["code"]) == (status, code)
    assert f"x-request-id: {problem['request_id']}".encode() in start
    for fragment in fragments:
        assert fragment in problem["detail"]


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (head("/v2/models/insects/infer", "Content-Length: many"), 400),
        (head("/v2?x=1", "X-Slow: 1")[:-2], 408),
        (head("/v2/models", "X-Large: " + "a" * 3000)[:-2], 431),
        (head("/v2/models/insects/infer", "Content-Length: 5") + b"{", 408),
    ],
)
def test_under_v2_such_failures_have_the_shape_of_the_protocol(http, sent, status):
    with connected(http) as connection:
        connection.sendall(sent)
        start, _, body = everything(connection).partition(b"\r\n\r\n")
    assert start.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"\r\ncontent-type: application/json\r\n" in start + b"\r\n"
    assert list(json.loads(body)) == ["error"]


def test_the_address_before_does_not_count(http):
    """On one connection, first the protocol, then something that is none."""
    with connected(http) as connection:
        connection.sendall(head("/v2", method="GET"))
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        connection.sendall(b"\x16\x03\x01")
        answered(everything(connection), 400, "malformed-http")


def test_the_status_of_overload_can_be_chosen():
    """Two bodies that are too much together: the one that completes the limit is refused, the other answered."""
    with live(max_body_bytes=5000, max_inflight_body_bytes=5000, overload_status=503) as http:
        with connected(http) as first:
            first.sendall(head(INSECTS, JSON, "Content-Length: 4000") + b" " * 3999)
            answers = (http.post(INSECTS, content=b" " * 3000, headers=dict([JSON.split(": ")])) for _ in range(100))
            refused = next(answer for answer in answers if answer.status_code != 400)  # until the first has arrived
        assert (refused.status_code, refused.json()["status"], refused.json()["code"]) == (503, 503, "overloaded")
        assert refused.headers["retry-after"] == "1"


@pytest.mark.parametrize("begun", [b"G", b"\r\n", head(INSECTS, "X-Slow: 1")[:-2]])
def test_headers_that_do_not_come_are_408(http, begun):
    with connected(http) as connection:
        connection.sendall(begun)
        answered(everything(connection), 408, "request-timeout", "header_timeout (MCDROP_HEADER_TIMEOUT)")


def test_headers_that_drip_are_408_all_the_same(http):
    """Every byte would start a timer of idleness anew; this one counts from the first."""
    with connected(http) as connection:
        connection.settimeout(PATIENCE / 8)
        connection.sendall(b"GET /")
        began, raw = time.monotonic(), b""
        while not raw and time.monotonic() - began < 20 * PATIENCE:
            connection.sendall(b"a")
            try:
                raw = connection.recv(65536)
            except TimeoutError:
                continue
        answered(raw, 408, "request-timeout")


def test_a_connection_without_a_word_is_closed(http):
    with connected(http) as connection:
        assert everything(connection) == b""


def test_a_connection_rests_between_requests(http):
    with connected(http) as connection:
        for _ in range(2):
            connection.sendall(head("/health/live", method="GET"))
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
            time.sleep(2 * PATIENCE)  # longer than headers may take


@pytest.mark.parametrize("length", [f"Content-Length: {len(BODY)}", "Transfer-Encoding: chunked"])
def test_a_body_that_does_not_come_is_408(http, length):
    with connected(http) as connection:
        connection.sendall(head(INSECTS, JSON, length) + (b"5\r\n" if "chunked" in length else b"") + BODY[:5])
        answered(everything(connection), 408, "request-timeout", "5 bytes", "body_timeout (MCDROP_BODY_TIMEOUT)")


def test_a_body_that_nobody_reads_does_not_come_for_ever(http):
    """The answer does not need it; the connection is closed when the rest is not there in time."""
    with connected(http) as connection:
        connection.sendall(head("/v1/models/nope/predict", JSON, "Content-Length: 1000") + b"{")
        assert everything(connection).startswith(b"HTTP/1.1 404 ")


def test_slow_clients_keep_nobody_waiting(http):
    with connected(http) as first, connected(http) as second:
        first.sendall(b"POST")
        second.sendall(head(INSECTS, JSON, "Content-Length: 100"))
        assert http.post(INSECTS, json={"inputs": [[0, 0, 0, 0]]}).status_code == 200


@pytest.mark.parametrize("end", [b"", b"\r\n\r\n"])
def test_large_headers_are_431(http, end):
    with connected(http) as connection:
        connection.sendall(head("/", method="GET")[:-2] + b"X-Large: " + b"x" * 3000 + end)
        answered(everything(connection), 431, "headers-too-large", "2000 bytes", "max_header_bytes (MCDROP_MAX_HEADER")


def test_large_addresses_are_431(http):
    answer = http.get("/" + "x" * 3000)
    assert (answer.status_code, answer.json()["code"]) == (431, "headers-too-large")


def test_what_is_no_http_is_400_in_the_shape_of_every_failure(http):
    with connected(http) as connection:
        connection.sendall(b"\x16\x03\x01\x02\x00\x01\r\n\r\n")
        answered(everything(connection), 400, "malformed-http", "HTTP/1.1, without TLS")


def test_bodies_together_are_limited(http):
    """One holds most of what there is; a second gets 429 at once, and another try when the first has ended."""
    large = json.dumps({"inputs": [[0, 0, 0, 0]]}).encode().ljust(60_000)
    with connected(http) as connection:
        connection.sendall(head(INSECTS, JSON, f"Content-Length: {len(large) + 1}") + large)
        for _ in range(100):  # until the first has arrived
            second = http.post(INSECTS, content=large, headers={"content-type": "application/json"})
            if not second.is_success:
                break
        assert (second.status_code, second.json()["code"]) == (429, "overloaded")
        assert "max_inflight_body_bytes (MCDROP_MAX_INFLIGHT_BODY_BYTES)" in second.json()["detail"]
        assert int(second.headers["retry-after"]) >= 1
        connection.sendall(b" ")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
    for _ in range(3):
        assert http.post(INSECTS, content=large, headers={"content-type": "application/json"}).status_code == 200


@contextlib.contextmanager
def megabytes(room: int) -> Iterator[socket.socket]:
    """A connection on which an answer of megabytes is asked for; the client has room for `room` bytes at a time."""
    with live(body_timeout=PATIENCE) as http, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
        connection.settimeout(30)
        connection.connect((http.base_url.host, http.base_url.port))
        asked = {"inputs": [[0.1, 0.2, 0.3, 0.4]] * 300, "num_samples": 1000, "outputs": ["samples"]}
        body = json.dumps(asked).encode()
        connection.sendall(head(INSECTS, JSON, f"Content-Length: {len(body)}", "Connection: close") + body)
        yield connection


def length(answer: bytes) -> tuple[int, int]:
    """Bytes of the answer's body as they came, and as the headers promise them."""
    start, _, body = answer.partition(b"\r\n\r\n")
    return len(body), int(start.partition(b"content-length: ")[2].partition(b"\r\n")[0])


def test_an_answer_that_is_not_taken_is_cut_off():
    with megabytes(2**12) as connection:
        taken = connection.recv(1000)
        time.sleep(4 * PATIENCE)
        came, promised = length(taken + everything(connection))
    assert promised > 5_000_000
    assert came < promised


def test_an_answer_that_is_taken_slowly_is_complete():
    """It takes longer than the limit, and never stops for as long."""
    with megabytes(2**18) as connection:
        taken, began = bytearray(), time.monotonic()
        while part := connection.recv(2**20, socket.MSG_WAITALL):
            taken += part
            time.sleep(PATIENCE / 5)
        assert time.monotonic() - began > PATIENCE
    came, promised = length(bytes(taken))
    assert came == promised


def test_an_offer_of_http_2_is_declined_and_the_body_read(http):
    """Java's client sends one with each request; httptools would forget the body."""
    offer = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk")
    with connected(http) as connection:
        connection.sendall(head(INSECTS, JSON, f"Content-Length: {len(BODY)}", *offer) + BODY)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_requests_sent_ahead_are_all_answered(http):
    once = head(INSECTS, JSON, f"Content-Length: {len(BODY)}") + BODY
    last = head("/health/live", "Connection: close", method="GET")
    with connected(http) as connection:
        connection.sendall(once * 3 + last)
        assert everything(connection).count(b"HTTP/1.1 200 ") == 4


def test_a_request_begun_ahead_waits_for_the_answer_before_it(http):
    """The first takes longer than headers may, and its answer must not be cut off for what follows it."""
    long = json.dumps({"inputs": [[0, 0, 0, 0]] * 20, "num_samples": 10_000, "determinism": "exact"}).encode()
    first, second = head(INSECTS, JSON, f"Content-Length: {len(long)}") + long, head("/", method="GET")
    with connected(http) as connection:
        began = time.monotonic()
        connection.sendall(first + second[:9])
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        assert time.monotonic() - began > PATIENCE


def test_the_limits_have_to_fit_together():
    with pytest.raises(SettingError, match=r"^The setting max_inflight_body_bytes, 10, is below max_body_bytes"):
        settings(max_inflight_body_bytes=10)
