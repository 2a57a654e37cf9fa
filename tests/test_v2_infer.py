"""Predictions by the Open Inference Protocol: the library's numbers, however tensors travel."""

import gzip
import json
import socket
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from mcdrop.predictor import MCDropout
from serving import live, model, models_folder
from v2_requests import (
    INSECTS,
    LENGTH,
    ROW,
    binary,
    binary_body,
    check_error,
    insects,
    outputs,
    refuse,
    tensor,
    unusual_folder,
)

ROWS = np.array([ROW, [3.0, 0.0, -1.0, 0.25]], np.float32)
FP32 = {"name": "input", "shape": [2, 4], "datatype": "FP32"}


@pytest.fixture
def http(everything: httpx.Client) -> httpx.Client:
    return everything


def expected(**keywords: object) -> dict[str, np.ndarray]:
    prediction = model("one")(ROWS, **keywords)
    return {name: np.asarray(getattr(prediction, name)) for name in ("mean", "variance", "entropy", "label")}


def assert_same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        assert found[name].shape == array.shape
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("data", [ROWS.ravel().tolist(), ROWS.tolist()], ids=["flat", "nested"])
@pytest.mark.parametrize("datatype", ["FP32", "FP64"])
def test_json_in_and_out(http, data, datatype):
    answer = http.post(INSECTS, json=insects(data, [2, 4], datatype))
    assert_same(outputs(answer), expected())
    content = json.loads(answer.content, parse_constant=refuse)
    assert (content["model_name"], content["model_version"]) == ("insects", "3")
    parameters = content["parameters"]
    assert list(parameters) == ["num_samples", "seed", "queue_ms", "compute_ms", "nonfinite_count"]
    assert (parameters["num_samples"], parameters["seed"], parameters["nonfinite_count"]) == (20, 5, 0)
    assert [each["datatype"] for each in content["outputs"]] == ["FP32", "FP32", "FP32", "INT64"]
    assert "id" not in content


@pytest.mark.parametrize(("datatype", "dtype"), [("FP32", "<f4"), ("FP64", "<f8")])
def test_binary_in_and_out(http, datatype, dtype):
    array = ROWS.astype(dtype)
    content = {"inputs": [binary("input", array, datatype)], "parameters": {"binary_data_output": True}}
    body, headers = binary_body(content, array.tobytes())
    assert_same(outputs(http.post(INSECTS, content=body, headers=headers)), expected())


def test_narrow_floats_come_as_bytes(http):
    """Halves and eighths are the same numbers in float16 and bfloat16."""
    rows = np.array([[0.5, -0.125, 2.0, 1.5]], np.float32)
    wanted = np.asarray(model("one")(rows).mean)
    brief = (rows.view(np.uint32) >> 16).astype("<u2")
    for array, datatype in ((rows.astype("<f2"), "FP16"), (brief, "BF16")):
        body, headers = binary_body({"inputs": [binary("input", array, datatype)]}, array.tobytes())
        np.testing.assert_allclose(
            outputs(http.post(INSECTS, content=body, headers=headers))["mean"], wanted, rtol=1e-5
        )


def test_json_and_binary_outputs_may_be_mixed(http):
    """What an output says of itself goes before what the request says of all."""
    for overall in (True, False):
        wanted = [
            {"name": "entropy", "parameters": {"binary_data": False}},
            {"name": "mean", "parameters": {"binary_data": True}},
            {"name": "label"},
        ]
        request = insects(ROWS.tolist(), outputs=wanted, parameters={"binary_data_output": overall})
        answer = http.post(INSECTS, json=request)
        assert_same(outputs(answer), {name: expected()[name] for name in ("entropy", "mean", "label")})
        content = json.loads(answer.content[: int(answer.headers[LENGTH])])
        sizes = [each.get("parameters", {}).get("binary_data_size") for each in content["outputs"]]
        assert sizes == [None, 24, 16 if overall else None]


def test_json_and_binary_inputs_may_be_mixed(http):
    left, right = np.array([[1.0, 2.0, 3.0]], np.float32), np.array([[0.0, 1.0, 0.5]], np.float32)
    wanted = np.asarray(model("pair")((left, right)).mean)
    named = {"left": left, "right": right}
    for order in (("left", "right"), ("right", "left")):
        for as_bytes in ((), ("left",), ("right",), ("left", "right")):
            inputs = [
                binary(name, named[name], "FP32") if name in as_bytes
                else tensor(name, [1, 3], "FP32", named[name].tolist())
                for name in order
            ]  # fmt: skip
            buffers = [named[name].tobytes() for name in order if name in as_bytes]
            body, headers = binary_body({"inputs": inputs}, *buffers)
            answer = http.post("/v2/models/pair/infer", content=body, headers=headers)
            np.testing.assert_allclose(outputs(answer)["mean"], wanted, rtol=1e-5)


def test_whole_numbers_and_bools_of_any_length(http):
    """Wide and narrow whole-number types are one kind; sizes that may vary do."""
    words = MCDropout.load(unusual_folder() / "words")
    path = "/v2/models/words/infer"
    for length in (1, 5):
        ids, counts = np.arange(2 * length).reshape(2, length) % 10, np.ones((2, length), np.bool_)
        counts[0, 0] = False
        wanted = np.asarray(words({"ids": ids, "counts": counts}).mean)
        assert wanted.shape == (2, length, 2)
        for datatype, dtype in (("INT64", "<i8"), ("INT32", "<i4"), ("UINT8", "u1"), ("UINT64", "<u8")):
            shape = [2, length]
            in_json = [tensor("ids", shape, datatype, ids.tolist()), tensor("counts", shape, "BOOL", counts.tolist())]
            found = outputs(http.post(path, json={"inputs": in_json}))["mean"]
            np.testing.assert_allclose(found, wanted, rtol=1e-5)
            array = ids.astype(dtype)
            content = {"inputs": [binary("ids", array, datatype), binary("counts", counts, "BOOL")]}
            body, headers = binary_body(content, array.tobytes(), counts.tobytes())
            np.testing.assert_allclose(
                outputs(http.post(path, content=body, headers=headers))["mean"], wanted, rtol=1e-5
            )


def test_no_rows_have_an_answer_without_rows(http):
    shapes = {"mean": (0, 3), "variance": (0, 3), "entropy": (0,), "label": (0,)}
    empty = np.empty((0, 4), np.float32)
    body, headers = binary_body(
        {"inputs": [binary("input", empty, "FP32")], "parameters": {"binary_data_output": True}}
    )
    for answer in (http.post(INSECTS, json=insects([])), http.post(INSECTS, content=body, headers=headers)):
        assert {name: array.shape for name, array in outputs(answer).items()} == shapes


def test_parameters_are_those_of_the_native_api(http):
    answer = http.post(INSECTS, json=insects(ROWS.tolist(), parameters={"num_samples": 30, "seed": 7}))
    assert_same(outputs(answer), expected(num_samples=30, seed=7))
    assert answer.json()["parameters"] | {"queue_ms": 0, "compute_ms": 0} == {
        "num_samples": 30, "seed": 7, "queue_ms": 0, "compute_ms": 0, "nonfinite_count": 0
    }  # fmt: skip


def test_optional_outputs_are_tensors_too(http):
    names = ["std", "standard_errors.mean", "samples", "standard_errors"]
    answer = http.post(INSECTS, json=insects(ROWS.tolist(), outputs=[{"name": name} for name in names]))
    found = outputs(answer)
    errors = [f"standard_errors.{name}" for name in ("mean", "variance", "entropy", "expected_entropy",
                                                     "mutual_information")]  # fmt: skip
    assert set(found) == {"std", "samples", *errors}
    assert found["samples"].shape == (20, 2, 3)
    prediction = model("one")(ROWS, standard_errors=True)
    np.testing.assert_allclose(found["std"], prediction.std, rtol=1e-4)
    np.testing.assert_allclose(found["standard_errors.entropy"], prediction.standard_errors["entropy"], rtol=1e-3)


@pytest.mark.parametrize("name", ["insects", "slope", "pair", "spread"])
def test_every_output_that_is_named_can_be_had(http, name):
    metadata = http.get(f"/v2/models/{name}").json()
    inputs = [
        tensor(each["name"], [1, *each["shape"][1:]], each["datatype"], [0.5] * each["shape"][1])
        for each in metadata["inputs"]
    ]
    listed = metadata["outputs"] + metadata["parameters"]["optional_outputs"]
    assert {each["name"].partition(".")[0] for each in listed} == set(http.get(f"/v1/models/{name}").json()["outputs"])
    for each in listed:
        answer = http.post(f"/v2/models/{name}/infer", json={"inputs": inputs, "outputs": [{"name": each["name"]}]})
        assert list(outputs(answer)) == [each["name"]]
        (found,) = answer.json()["outputs"]
        assert found["datatype"] == each["datatype"]
        assert all(size in (-1, real) for size, real in zip(each["shape"], found["shape"], strict=True))


def test_a_pair_and_float64(http):
    inputs = [tensor("x", [1, 2], "FP64", [0.1, 0.2])]
    answer = http.post("/v2/models/spread/infer", json={"inputs": inputs, "outputs": [{"name": "samples"},
                                                                                     {"name": "mean"}]})  # fmt: skip
    found = outputs(answer)
    assert list(found) == ["samples.mean", "samples.log_variance", "mean"]
    assert {array.dtype for array in found.values()} == {np.dtype("<f8")}
    spread = MCDropout.load(unusual_folder() / "spread")
    np.testing.assert_allclose(found["mean"], spread(np.array([[0.1, 0.2]])).mean, rtol=1e-12)
    one = http.post("/v2/models/spread/infer", json={"inputs": inputs, "outputs": [{"name": "samples.mean"}]})
    assert list(outputs(one)) == ["samples.mean"]


def test_quantiles_come_with_their_levels(http):
    request = {"inputs": [tensor("input", [1, 2], "FP32", [1.0, 2.0])]}
    for wanted, levels in (({"outputs": [{"name": "quantiles"}]}, "0.05,0.5,0.95"),
                           ({"parameters": {"quantiles": "0.25, 0.5"}}, "0.25,0.5")):  # fmt: skip
        answer = http.post("/v2/models/slope/infer", json={**request, **wanted})
        assert answer.json()["parameters"]["quantile_levels"] == levels
        assert outputs(answer)["quantiles"].shape == (levels.count(",") + 1, 1, 1)
    answer = http.post(
        "/v2/models/slope/infer",
        json={**request, "outputs": [{"name": "mean"}], "parameters": {"quantiles": "0.5"}},
    )
    assert list(outputs(answer)) == ["mean"]


@pytest.mark.parametrize("identifier", ["7", "", "a b", "é \u2028", "x" * 1000])
def test_an_id_is_echoed(http, identifier):
    assert http.post(INSECTS, json=insects(id=identifier)).json()["id"] == identifier


def test_what_is_not_known_is_ignored(http):
    """KServe's client and Triton's own example send `model_name`."""
    request = insects(ROWS.tolist(), model_name="insects", parameters={"priority": 1, "headers": "x", "mine": 2.5},
                      outputs=[])  # fmt: skip
    request["inputs"][0] |= {"parameters": {"content_type": "np"}, "more": [{}]}
    assert_same(outputs(http.post(INSECTS, json=request)), expected())


@pytest.mark.parametrize("kind", [None, "application/octet-stream", "application/json", "text/plain", "multipart/x"])
def test_the_content_type_tells_nothing(http, kind):
    content = json.dumps(insects(ROWS.tolist()))
    headers = {} if kind is None else {"content-type": kind}
    assert_same(outputs(http.post(INSECTS, content=content, headers=headers)), expected())


def test_a_triton_timeout_is_a_deadline_in_microseconds(http):
    assert http.post(INSECTS, json=insects(parameters={"timeout": 60_000_000})).status_code == 200
    assert http.post(INSECTS, json=insects(parameters={"timeout": 0})).status_code == 200
    check_error(http.post(INSECTS, json=insects(parameters={"timeout": 1})), 504, "deadline")
    check_error(http.post(INSECTS, json=insects(parameters={"deadline_ms": 0.001, "timeout": 60_000_000})), 504)


@pytest.mark.parametrize("limit", [{"deadline_ms": 400}, {"timeout": 400_000}])
def test_at_a_deadline_the_best_so_far_if_that_is_allowed(limit):
    """More passes than any machine computes by then: an answer from fewer, and its standard errors, or none."""
    asked = {"num_samples": 10**9, **limit}
    with live(models=models_folder() / "one", max_num_samples=10**9, max_cost=10**9, max_pending_seconds=1e9) as http:
        check_error(http.post(INSECTS, json=insects(parameters=asked)), 504, "allow_partial")
        answer = http.post(INSECTS, json=insects(parameters={**asked, "allow_partial": True}))
        found, parameters = outputs(answer), answer.json()["parameters"]
        assert parameters["partial"] is True
        assert 2 <= parameters["num_samples"] < 10**9
        assert {"mean", "standard_errors.mean", "standard_errors.entropy"} <= set(found)
        whole = http.post(INSECTS, json=insects(parameters={"allow_partial": True, "deadline_ms": 60_000}))
        assert "partial" not in whole.json()["parameters"]
        assert whole.json()["parameters"]["num_samples"] == 20


def test_a_body_may_come_in_many_small_pieces(http):
    array = ROWS.astype("<f4")
    body, headers = binary_body({"inputs": [binary("input", array, "FP32")]}, array.tobytes())
    answer = http.post(INSECTS, content=(body[i : i + 1] for i in range(len(body))), headers=headers)
    assert answer.request.headers["transfer-encoding"] == "chunked"
    assert_same(outputs(answer), expected())
    host, port = http.base_url.host, http.base_url.port
    head = f"POST {INSECTS} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n{LENGTH}: {headers[LENGTH]}\r\n\r\n"
    with socket.create_connection((host, port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in head.encode() + body:
            connection.send(bytes([byte]))
        assert connection.recv(100).startswith(b"HTTP/1.1 200")


def test_a_large_body_is_the_same(http):
    many = np.resize(ROWS, (3000, 4))
    body, headers = binary_body({"inputs": [binary("input", many, "FP32")]}, many.tobytes())
    found = outputs(http.post(INSECTS, content=gzip.compress(body), headers={**headers, "content-encoding": "gzip"}))
    np.testing.assert_allclose(found["mean"][:2], expected()["mean"], rtol=1e-5)
    assert found["mean"].shape == (3000, 3)


# ---- raw binary


RAW = {LENGTH: "0"}


def test_a_raw_body_is_one_row_and_its_answer_is_binary(http):
    found = outputs(http.post(INSECTS, content=ROWS[:1].tobytes(), headers=RAW))
    assert_same(found, {name: array[:1] for name, array in expected().items()})


@pytest.mark.parametrize("size", [0, 1, 12, 20, 32])
def test_a_raw_body_of_another_length_is_refused(http, size):
    check_error(http.post(INSECTS, content=bytes(size), headers=RAW), 400, f"{size} bytes", "takes 16")


def test_raw_bodies_are_for_models_with_one_input_and_one_variable_size(http):
    check_error(http.post("/v2/models/pair/infer", content=bytes(12), headers=RAW), 400, "one input")
    check_error(http.post("/v2/models/field/infer", content=bytes(12), headers=RAW), 400, "one variable size")


# ---- NaN and infinity


@pytest.mark.parametrize("token", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none_are_refused_unless_allowed(http, token):
    text = json.dumps(insects()).replace("2.0", token)
    check_error(http.post(INSECTS, content=text), 400, "input 'input' holds", "has to be finite")
    array = np.array([[0, 0, float(token), 0]], np.float32)
    body, headers = binary_body({"inputs": [binary("input", array, "FP32")]}, array.tobytes())
    check_error(http.post(INSECTS, content=body, headers=headers), 400, "has to be finite")
    check_error(http.post(INSECTS, content=array.tobytes(), headers=RAW), 400, "has to be finite")


def test_where_they_are_allowed_answers_are_strict_json_and_exact_bytes():
    with live(models=models_folder() / "slope", allow_nonfinite_inputs=True) as http:
        path, nan = (
            "/v2/models/slope/infer",
            '{"inputs": [{"name": "input", "shape": [1, 2], "datatype": "FP32", "data": [NaN, 1]}]',
        )
        answer = http.post(path, content=nan + "}")
        assert json.loads(answer.text, parse_constant=refuse)["parameters"]["nonfinite_count"] == 3
        assert np.isnan(outputs(answer)["mean"]).all()
        answer = http.post(path, content=nan + ', "parameters": {"binary_data_output": true}}')
        assert np.isnan(outputs(answer)["mean"]).all()


def test_an_entropy_of_minus_infinity_is_null_in_json_and_itself_in_bytes(http):
    """Zeros give 0 in every pass of this network, so its variance is 0."""
    request = {"inputs": [tensor("input", [1, 2], "FP32", [0, 0])]}
    answer = http.post("/v2/models/slope/infer", json=request)
    assert answer.json()["outputs"][2]["data"] == [None]
    assert answer.json()["parameters"]["nonfinite_count"] == 1
    request["parameters"] = {"binary_data_output": True}
    assert outputs(http.post("/v2/models/slope/infer", json=request))["entropy"].tolist() == [[-np.inf]]


def test_such_answers_can_be_made_errors_in_both_protocols():
    with live(models=models_folder() / "slope", nonfinite="error") as http:
        request = {"inputs": [tensor("input", [1, 2], "FP32", [0, 0])]}
        answer = http.post("/v2/models/slope/infer", json=request)
        check_error(answer, 500, "entropy holds 1 values", "nonfinite (MCDROP_NONFINITE)")
        assert answer.headers["x-should-retry"] == "false"
        native = http.post("/v1/models/slope/predict", json={"inputs": [[0, 0]]})
        assert (native.status_code, native.json()["code"]) == (500, "nonfinite-answer")
        assert http.post("/v1/models/slope/predict", json={"inputs": [[1, 0]]}).status_code == 200
        request["inputs"][0]["data"] = [1, 0]
        assert http.post("/v2/models/slope/infer", json=request).status_code == 200


# ---- many at once


def test_many_requests_at_once_get_each_their_own_answer(http):
    rows = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
    wanted = np.asarray(model("one")(rows).mean)

    def ask(number: int) -> None:
        row = rows[number : number + 1]
        body, headers = binary_body({"id": str(number), "inputs": [binary("input", row, "FP32")]}, row.tobytes())
        answer = http.post(INSECTS, content=body, headers=headers)
        assert answer.json()["id"] == str(number)
        np.testing.assert_allclose(outputs(answer)["mean"][0], wanted[number], rtol=1e-4, atol=1e-6)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(32)))


def test_a_request_that_finds_the_queue_full_is_429_at_once():
    with live(models=models_folder() / "one", max_pending=1) as http, ThreadPoolExecutor(8) as pool:
        slow = insects([ROW] * 1000, parameters={"num_samples": 3000})
        answers = list(pool.map(lambda _: http.post(INSECTS, json=slow), range(4)))
        statuses = sorted(answer.status_code for answer in answers)
        assert statuses[0] == 200
        assert statuses[-1] == 429
        refused = next(answer for answer in answers if answer.status_code == 429)
        check_error(refused, 429, "requests are waiting")
        assert refused.headers["retry-after"] == "1"
