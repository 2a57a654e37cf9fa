"""What the Open Inference Protocol refuses: always 4xx with {"error"}, before anything that is only claimed is made."""

import json
import struct
import tracemalloc
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.v2 import requests
from serving import live, model, models_folder
from serving import settings as server_settings
from v2_requests import INSECTS, LENGTH, ROW, binary, binary_body, check_error, insects, outputs, tensor

LIMITS = {"max_body_bytes": 20_000, "max_input_bytes": 40_000, "max_rows": 100, "max_num_samples": 200}
ARRAY = np.array([ROW], "<f4")


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with live(models=models_folder() / "one", **LIMITS) as client:
        yield client


def changed(**members: Any) -> dict[str, Any]:
    """A request whose only input has other members."""
    request = insects()
    request["inputs"][0] |= members
    return request


@pytest.mark.parametrize(
    ("request_", "fragments"),
    [
        ({}, ["inputs is missing", "float32[batch, 4]"]),
        ({"inputs": None}, ["inputs is missing"]),
        ({"inputs": {}}, ["no array of objects"]),
        ({"inputs": [3]}, ["no array of objects"]),
        ({"inputs": []}, ["missing: input"]),
        ({"inputs": [tensor("x", [1, 4], "FP32", ROW)]}, ["there is no input 'x'", "input: float32[batch, 4]"]),
        ({"inputs": [{}]}, ["there is no input None"]),
        ({"inputs": insects()["inputs"] * 2}, ["'input' is given twice"]),
        (changed(shape=[1, 5]), ["4 values", "takes 5"]),
        (changed(shape=[1, 5], data=[0] * 5), ["size 5 at axis 1", "expected 4"]),
        (changed(shape=[4], data=ROW), ["1 axes", "batch axis"]),
        (changed(shape=[2, 2], data=[0] * 4), ["size 2 at axis 1"]),
        (changed(shape=[-1, 4]), ["[-1, 4]", "at least 0"]),
        (changed(shape=[1.0, 4]), ["at least 0"]),
        (changed(shape=[True, 4]), ["at least 0"]),
        (changed(shape="1,4"), ["array of at most 32 sizes"]),
        (changed(shape=[1] * 33), ["at most 32 sizes"]),
        (changed(shape=None), ["array of at most 32 sizes"]),
        (changed(shape=[2**4, 2**60 + 2]), ["which no tensor can have"]),
        (changed(shape=[4, 2**60 + 2]), ["which no tensor can have"]),
        (changed(shape=[2**32, 2**32]), ["which no tensor can have"]),
        (changed(shape=[0, 2**62]), ["which no tensor can have"]),
        (changed(datatype="FP8"), ["datatype 'FP8'", "FP32"]),
        (changed(datatype="BYTES", data=["a"] * 4), ["takes no strings"]),
        (changed(datatype="FP16"), ["JSON cannot carry", "binary"]),
        (changed(datatype="BF16"), ["JSON cannot carry", "binary"]),
        (changed(datatype="INT64", data=[1, 2, 3, 4]), ["INT64", "takes FP32", "floating point"]),
        (changed(datatype="BOOL", data=[1, 0, 0, 1]), ["BOOL", "takes FP32"]),
        (changed(datatype="FP64", data=[1e39, 0, 0, 0]), ["beyond what float32 can hold"]),
        (changed(data=None), ["no array in `data`"]),
        (changed(data=["a", 1, 2, 3]), ["elements of type str"]),
        (changed(data=[None, 1, 2, 3]), ["holds null"]),
        (changed(data=[ROW, [1]]), ["rows of equal length"]),
        (changed(parameters=[1]), ["parameters of input 'input' is list"]),
        (changed(parameters={"a": {"b": 1}}), ["parameter 'a'", "string"]),
        (changed(parameters={"a": None}), ["parameter 'a'"]),
        (changed(parameters={"binary_data_size": 16}), [LENGTH, "missing"]),
        (changed(parameters={"shared_memory_region": "r"}), ["shared memory"]),
        (insects(outputs={}), ["outputs is no array"]),
        (insects(outputs=[{"name": "sdt"}]), ["no output 'sdt'", "mutual_information"]),
        (insects(outputs=[{"name": "standard_errors.std"}]), ["no output"]),
        (insects(outputs=[{}]), ["no output None"]),
        (insects(outputs=[{"name": "mean"}] * 2), ["'mean' is asked for twice"]),
        (insects(outputs=[{"name": "mean", "parameters": {"binary_data": 1}}]), ["binary_data", "true or false"]),
        (insects(outputs=[{"name": "mean", "parameters": {"classification": 2}}]), ["classification"]),
        (insects(outputs=[{"name": "mean", "parameters": {"shared_memory_region": "r"}}]), ["shared_memory_region"]),
        (insects(id=7), ["id is 7", "string"]),
        (insects(id=["7"]), ["id is"]),
        (insects(parameters="x"), ["parameters of the request is str"]),
        (insects(parameters={"binary_data_output": "yes"}), ["binary_data_output", "true or false"]),
        (insects(parameters={"num_samples": 0}), ["num_samples"]),
        (insects(parameters={"num_samples": 1}), ["num_samples"]),
        (insects(parameters={"num_samples": "9"}), ["num_samples"]),
        (insects(parameters={"num_samples": 201}), ["201 passes", "max_num_samples"]),
        (insects(parameters={"seed": 1.5}), ["seed"]),
        (insects(parameters={"seed": 2**64}), ["seed"]),
        (insects(parameters={"quantiles": "a"}), ["quantiles", "0.05,0.5,0.95"]),
        (insects(parameters={"quantiles": "0.5,7"}), ["quantiles"]),
        (insects(parameters={"quantiles": "nan"}), ["quantiles"]),
        (insects(parameters={"deadline_ms": -1}), ["deadline_ms"]),
        (insects(parameters={"timeout": -1}), ["timeout", "microseconds"]),
        (insects(parameters={"timeout": 1.5}), ["timeout"]),
        (insects(parameters={"determinism": "maybe"}), ["determinism"]),
        (insects(parameters={"sequence_id": 3, "sequence_start": True}), ["sequence_id"]),
        (insects([ROW] * 101), ["101 rows", "allows 100"]),
    ],
)  # fmt: skip
def test_what_is_json_but_wrong_is_400(http, request_, fragments):
    check_error(http.post(INSECTS, content=json.dumps(request_)), 400, *fragments)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[" * 5000,
        b'{"a": NaN' + b"[" * 5000,
        b"\xff",
        "{}".encode("utf-16"),
        b'{"a": ' + b"9" * 5000 + b"}",
    ],
)
def test_what_is_no_json_is_400(http, body):
    check_error(http.post(INSECTS, content=body), 400, "JSON")


@pytest.mark.parametrize("body", [b"[]", b"3", b"null", b'"inputs"', b"NaN"])
def test_json_that_is_no_object_is_400(http, body):
    check_error(http.post(INSECTS, content=body), 400, "expected a request")


def test_what_only_the_lenient_parser_lets_through_is_refused(http):
    """The text has NaN in it. Half a surrogate pair and numbers beyond 64 bits could not be written again."""
    rest = json.dumps(insects())[1:]
    for members, fragment in (
        ('"id": "\\ud800"', "id is"),
        ('"outputs": [{"name": "\\ud800"}]', "no output"),
        ('"parameters": {"\\ud800": []}', "parameter"),
        ('"parameters": {"seed": 1000000000000000000000}', "64-bit number"),
    ):
        check_error(http.post(INSECTS, content='{"a": NaN, ' + members + ", " + rest), 400, fragment)


# ---- the length of the JSON, and the buffers after it


@pytest.mark.parametrize("given_", ["-1", "x", "1.0", "1e2", "", "0x10", "99999", "9" * 30, "+5", "\u0665".encode()])
def test_a_header_length_that_cannot_be_is_400(http, given_):
    body, _ = binary_body(insects())
    check_error(http.post(INSECTS, content=body, headers={LENGTH: given_}), 400, LENGTH, f"0 to {len(body)}")


def test_a_header_length_that_cuts_the_json_is_400(http):
    body, _ = binary_body(insects())
    check_error(http.post(INSECTS, content=body, headers={LENGTH: str(len(body) - 1)}), 400, "JSON")


@pytest.mark.parametrize(
    ("size", "buffer", "fragments"),
    [
        (16, ARRAY.tobytes() + b"x", ["unexpected additional input data", "1 bytes"]),
        (16, ARRAY.tobytes()[:-3], ["unexpected size for input 'input', expecting 3 additional bytes"]),
        (16, b"", ["expecting 16 additional bytes"]),
        (12, ARRAY.tobytes()[:12], ["binary_data_size 12", "take 16"]),
        (0, b"", ["binary_data_size 0", "take 16"]),
        (-16, b"", ["binary_data_size", "-16"]),
        (16.0, ARRAY.tobytes(), ["binary_data_size"]),
        ("16", ARRAY.tobytes(), ["binary_data_size"]),
        (True, b"x", ["binary_data_size"]),
        (2**70, b"", ["binary_data_size"]),
    ],
)
def test_buffers_have_exactly_the_bytes_that_are_declared(http, size, buffer, fragments):
    body, headers = binary_body({"inputs": [binary("input", ARRAY, "FP32", binary_data_size=size)]}, buffer)
    check_error(http.post(INSECTS, content=body, headers=headers), 400, *fragments)


def test_an_input_has_data_or_a_buffer_not_both(http):
    both = binary("input", ARRAY, "FP32") | {"data": ROW}
    body, headers = binary_body({"inputs": [both]}, ARRAY.tobytes())
    check_error(http.post(INSECTS, content=body, headers=headers), 400, "both binary_data_size and data")


def test_strings_as_bytes_are_refused_like_strings_in_json(http):
    element = struct.pack("<I", 3) + b"abc"
    item = {"name": "input", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(element)}}
    body, headers = binary_body({"inputs": [item]}, element)
    check_error(http.post(INSECTS, content=body, headers=headers), 400, "takes no strings")


# ---- sizes


def test_a_body_over_the_limit_is_413(http):
    for body in (b" " * 20_001, (b" " * 100 for _ in range(201))):
        check_error(http.post(INSECTS, content=body), 413, "at most 20000", "max_body_bytes (MCDROP_MAX_BODY_BYTES)")


@pytest.mark.parametrize("shape", [[2501, 4], [0, 10_001], [10**9, 4]])
def test_a_tensor_that_is_claimed_beyond_the_limit_is_413(http, shape):
    check_error(http.post(INSECTS, json=changed(shape=shape)), 413, "allows 40000", "max_input_bytes")
    item = {"name": "input", "shape": shape, "datatype": "FP32", "parameters": {"binary_data_size": 0}}
    body, headers = binary_body({"inputs": [item]})
    check_error(http.post(INSECTS, content=body, headers=headers), 413, "allows 40000", "max_input_bytes")


def test_nothing_is_made_for_what_is_only_claimed():
    """The limit allows the claim here; what is there does not hold it."""
    generous = server_settings(max_input_bytes=2**50)
    body = json.dumps(changed(shape=[2**40, 4])).encode()
    strings = json.dumps(changed(shape=[1, 4], data=["a" * 10**6, *["b"] * 1000])).encode()
    for each in (body, strings):
        captured = model("one")
        tracemalloc.start()
        with pytest.raises(ValueError, match="'input'"):
            requests.read(each, None, captured, generous)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2**26  # the claims are 16 TiB and, as an array of strings of equal length, 4 GB


# ---- anything at all


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**65), 2**65) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)
PATHS = [
    (), ("inputs",), ("inputs", 0), ("inputs", 0, "name"), ("inputs", 0, "shape"), ("inputs", 0, "shape", 0),
    ("inputs", 0, "datatype"), ("inputs", 0, "data"), ("inputs", 0, "data", 0), ("inputs", 0, "parameters"),
    ("inputs", 0, "parameters", "binary_data_size"), ("outputs",), ("outputs", 0), ("outputs", 0, "name"),
    ("outputs", 0, "parameters"), ("outputs", 0, "parameters", "binary_data"), ("id",), ("parameters",),
    *(("parameters", name) for name in ("num_samples", "seed", "deadline_ms", "timeout", "quantiles", "determinism",
                                        "allow_partial", "binary_data_output", "priority", "sequence_id")),
]  # fmt: skip


def answer_is_sound(answer: httpx.Response) -> None:
    """Either the promised tensors, or the promised error."""
    if answer.status_code == 200:
        outputs(answer)
    else:
        check_error(answer, answer.status_code)
        assert 400 <= answer.status_code < 500, answer.text


@given(st.sampled_from(PATHS), JSON_VALUES)
@settings(max_examples=300, deadline=None)
def test_any_value_anywhere_in_a_request_is_answered_or_refused(http, path, value):
    content: Any = insects(
        [ROW], outputs=[{"name": "mean", "parameters": {"binary_data": True}}], parameters={"num_samples": 2}
    )
    content["inputs"][0]["parameters"] = {}
    holder = {"content": content}
    place: Any = holder
    key: Any = "content"
    for step in path:
        place, key = place[key], step
    place[key] = value
    answer_is_sound(http.post(INSECTS, content=json.dumps(holder["content"]).encode("utf-8", "surrogatepass")))


@given(
    st.binary(max_size=60),
    st.one_of(st.none(), st.integers(-2, 300).map(str), st.text(st.characters(min_codepoint=33, max_codepoint=126))),
    st.sampled_from(["", "identity", "gzip", "deflate", "br", "gzip, gzip"]),
    st.integers(0, 400),
    st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_any_bytes_under_any_headers_are_answered_or_refused(http, noise, length, coding, cut, is_valid_before):
    """Noise alone, and a valid request that is cut somewhere and goes on as noise."""
    valid, _ = binary_body({"inputs": [binary("input", ARRAY, "FP32")]}, ARRAY.tobytes())
    body = valid[:cut] + noise if is_valid_before else noise
    headers = {} if length is None else {LENGTH: length}
    answer_is_sound(http.post(INSECTS, content=body, headers={**headers, "content-encoding": coding}))
