"""Compressed bodies, of both protocols: what is read, what is refused, what is written compressed and what is not."""

import contextlib
import gzip
import random
import threading
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.compression import SMALL, accepted, compress, decompress
from service.errors import BodyTooLargeError, MalformedBodyError
from serving import live, models_folder
from v2_requests import INSECTS, LENGTH, ROW, check_error, insects

NATIVE = "/v1/models/insects/predict"
LIMIT = 100_000


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with live(models=models_folder() / "one", max_body_bytes=LIMIT) as client:
        yield client


def packed(body: bytes, coding: str) -> bytes:
    return {"gzip": gzip.compress, "x-gzip": gzip.compress, "deflate": zlib.compress}[coding](body)


def request(path: str, rows: int = 1, **parameters: Any) -> httpx.Request:
    data = [ROW] * rows
    content = insects(data, parameters=parameters) if path == INSECTS else {"inputs": data, **parameters}
    return httpx.Request("POST", "http://server", json=content)


def post(http: httpx.Client, path: str, content: bytes, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return http.post(path, content=content, headers={"content-type": "application/json", **named})


def error_of(answer: httpx.Response) -> str:
    content: dict[str, str] = answer.json()
    return content["error"] if "error" in content else content["detail"]


@given(st.binary(max_size=300), st.sampled_from(["gzip", "deflate"]))
@settings(max_examples=60, deadline=None)
def test_what_is_packed_is_unpacked(body, coding):
    assert decompress(packed(body, coding), coding, len(body)) == body
    assert decompress(compress(body, coding), coding, len(body)) == body
    if body:
        with pytest.raises(BodyTooLargeError, match=f"more than {len(body) - 1} bytes once decompressed"):
            decompress(packed(body, coding), coding, len(body) - 1)


@given(st.binary(max_size=100), st.integers(0, 60), st.sampled_from(["gzip", "deflate"]))
@settings(max_examples=100, deadline=None)
def test_other_bytes_are_refused_in_one_way(noise, cut, coding):
    with contextlib.suppress(MalformedBodyError, BodyTooLargeError):
        decompress(packed(b"valid until here", coding)[:cut] + noise, coding, 1000)


def test_gzip_may_have_several_members_and_one_limit():
    body = gzip.compress(b"a" * 10) + gzip.compress(b"b" * 10)
    assert decompress(body, "gzip", 20) == b"a" * 10 + b"b" * 10
    with pytest.raises(BodyTooLargeError):
        decompress(body, "gzip", 19)


def test_many_members_take_no_longer_than_their_bytes():
    """Copying what is left at the end of each took 20 s for these, and hours for a body as large as is read."""
    body = 200_000 * gzip.compress(b"") + gzip.compress(b"the end")
    began = time.thread_time()
    assert decompress(body, "gzip", 7) == b"the end"
    assert time.thread_time() - began < 8


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 50_000])
@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_bodies_of_any_size_are_unpacked(size, coding):
    body = random.Random(size).randbytes(size)
    assert decompress(packed(body, coding), coding, size) == body
    with pytest.raises(MalformedBodyError, match="in the middle"):
        decompress(packed(body, coding)[:-1], coding, size)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_bomb_is_never_unpacked(coding):
    bomb = packed(b"\0" * 50_000_000, coding)
    assert len(bomb) < 60_000
    tracemalloc.start()
    with pytest.raises(BodyTooLargeError):
        decompress(bomb, coding, 1_000_000)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


def test_bombs_are_looked_at_one_at_a_time(http):
    """On all threads at once they took every core and the memory of each, and probes of health waited."""
    bomb = gzip.compress(bytes(100 * LIMIT))
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: post(http, NATIVE, bomb, content_encoding="gzip"), range(16)))
    assert {answer.status_code for answer in answers} == {413}
    assert len([thread for thread in threading.enumerate() if thread.name.startswith("mcdrop-decompress")]) == 1


@pytest.mark.parametrize("path", [NATIVE, INSECTS])
@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "deflate", "GZIP", " identity", ""])
def test_a_compressed_request_is_the_same_request(http, path, coding):
    body = request(path).content
    plain = post(http, path, body)
    sent = packed(body, coding.lower()) if coding.strip().lower() in ("gzip", "x-gzip", "deflate") else body
    answer = http.post(path, content=sent, headers=[("content-type", "application/json"),
                                                    ("content-encoding", coding.strip())])  # fmt: skip
    assert answer.status_code == 200
    names = ("mean", "outputs")
    assert [answer.json().get(name) for name in names] == [plain.json().get(name) for name in names]


@pytest.mark.parametrize("path", [NATIVE, INSECTS])
def test_what_cannot_be_unpacked_is_refused(http, path):
    body = request(path).content
    for coding in ("br", "zstd", "compress", "gzip, gzip", "gzip;q=1"):
        answer = post(http, path, body, content_encoding=coding)
        assert (answer.status_code, answer.headers["accept-encoding"]) == (415, "gzip, deflate")
        assert coding in error_of(answer)
    whole = gzip.compress(body)
    raw = zlib.compressobj(wbits=-15)
    for coding, wrong in (
        ("gzip", body),
        ("gzip", whole[:-1]),
        ("gzip", b""),
        ("gzip", whole + b"x"),
        ("deflate", whole),
        ("deflate", raw.compress(body) + raw.flush()),
        ("deflate", zlib.compress(body) + b"x"),
    ):
        answer = post(http, path, wrong, content_encoding=coding)
        assert answer.status_code == 400, (coding, wrong)
        assert coding in error_of(answer)


@pytest.mark.parametrize("path", [NATIVE, INSECTS])
@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_the_limit_counts_decompressed_bytes_too(http, path, coding):
    body = request(path).content
    at_limit, beyond = body.ljust(LIMIT), body.ljust(LIMIT + 1)
    assert post(http, path, packed(at_limit, coding), content_encoding=coding).status_code == 200
    answer = post(http, path, packed(beyond, coding), content_encoding=coding)
    assert answer.status_code == 413
    assert "max_body_bytes (MCDROP_MAX_BODY_BYTES)" in error_of(answer)


def test_the_length_of_the_json_counts_decompressed_bytes(http):
    body = request(INSECTS).content
    for length, status in ((len(body), 200), (len(body) + 1, 400)):
        headers = {LENGTH: str(length), "content-encoding": "gzip"}
        answer = http.post(INSECTS, content=gzip.compress(body), headers=headers)
        assert answer.status_code == status
    check_error(answer, 400, f"0 to {len(body)} bytes")


@pytest.mark.parametrize("path", [NATIVE, INSECTS])
def test_large_json_is_compressed_where_the_client_asks(http, path):
    """httpx takes the coding off again."""
    body = request(path, rows=400).content
    plain = post(http, path, body, accept_encoding="identity")
    assert len(plain.content) > SMALL
    assert "content-encoding" not in plain.headers
    assert plain.headers["vary"] == "Accept-Encoding"
    for coding in ("gzip", "deflate"):
        answer = post(http, path, body, accept_encoding=coding)
        assert (answer.headers["content-encoding"], answer.headers["vary"]) == (coding, "Accept-Encoding")
        assert int(answer.headers["content-length"]) < len(plain.content) / 2
        assert abs(len(answer.content) - len(plain.content)) < 50  # times differ in their digits
        assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize("path", [NATIVE, INSECTS])
def test_small_answers_and_errors_are_never_compressed(http, path):
    for body in (request(path).content, b"{"):
        answer = post(http, path, body, accept_encoding="gzip")
        assert "content-encoding" not in answer.headers
    assert "content-encoding" not in http.get("/v2/models/insects", headers={"accept-encoding": "gzip"}).headers


@pytest.mark.parametrize(("setting", "compressed"), [("json", False), ("all", True), ("none", False)])
def test_binary_tensors_are_compressed_only_where_the_setting_says_so(setting, compressed):
    with live(models=models_folder() / "one", compress=setting) as http:
        body = request(INSECTS, rows=1000, binary_data_output=True).content
        answer = post(http, INSECTS, body, accept_encoding="gzip")
        assert ("content-encoding" in answer.headers) == compressed
        size = int(answer.headers[LENGTH])
        assert answer.content[size - 1 : size] == b"}"
        body = request(NATIVE, rows=1000).content
        answer = post(http, NATIVE, body, accept_encoding="gzip")
        assert ("content-encoding" in answer.headers) == (setting != "none")


@pytest.mark.parametrize(
    ("header", "coding"),
    [
        ("", None),
        ("identity", None),
        ("br, zstd", None),
        ("gzip", "gzip"),
        ("GZip , br", "gzip"),
        ("deflate", "deflate"),
        ("deflate, gzip", "deflate"),
        ("gzip;q=0.5, deflate;q=0.8", "deflate"),
        ("gzip;q=0", None),
        ("gzip; q=0.0, *", None),
        ("gzip;q=x", None),
        ("gzip;q=1.000;a=b", None),
    ],
)
def test_the_coding_is_the_one_that_the_client_likes_best(header, coding):
    assert accepted(header) == coding
