"""Predictions over HTTP: the library's numbers, in the promised shape."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from service.wire import available_outputs
from serving import CLASSES, live, model, models_folder, settings

ROW, OTHER_ROW = [0.1, -0.5, 2.0, 1.5], [3.0, 0.0, -1.0, 0.25]
INSECTS, SLOPE, PAIR = (f"/v1/models/{name}/predict" for name in ("insects", "slope", "pair"))


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with live() as client:
        yield client


def post(http: httpx.Client, path: str, **request: Any) -> dict[str, Any]:
    """The answer's JSON, which must be strict: no NaN, no Infinity."""
    answer = http.post(path, json=request)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} in JSON")

    parsed: dict[str, Any] = json.loads(answer.text, parse_constant=refuse)
    return parsed


def test_a_classification_has_its_fields_in_order_and_the_librarys_numbers(http):
    answer = post(http, INSECTS, inputs=[ROW, OTHER_ROW], num_samples=30, seed=7)
    assert list(answer) == [
        "model", "version", "num_samples", "seed", "mean", "variance", "entropy", "label", "class_names"
    ]  # fmt: skip
    assert (answer["model"], answer["version"], answer["num_samples"], answer["seed"]) == ("insects", "3", 30, 7)
    assert answer["class_names"] == list(CLASSES)
    expected = model("one")(np.array([ROW, OTHER_ROW], np.float32), num_samples=30, seed=7)
    for name in ("mean", "variance", "entropy"):
        np.testing.assert_allclose(answer[name], getattr(expected, name), rtol=1e-5, atol=1e-7)
    assert answer["label"] == np.asarray(expected.label).tolist()


def test_a_regression_is_named_after_its_folder(http):
    answer = post(http, SLOPE, inputs=[[1.0, 2.0]], seed=3)
    assert list(answer) == ["model", "version", "num_samples", "seed", "mean", "variance", "entropy"]
    assert answer["model"] == "slope"
    expected = model("slope")(np.array([[1.0, 2.0]], np.float32), seed=3)
    for name in ("mean", "variance", "entropy"):
        np.testing.assert_allclose(answer[name], getattr(expected, name), rtol=1e-5, atol=1e-7)


def test_entropy_without_variance_is_null(http):
    """The network has no bias, so an input of zeros gives 0 in every pass: variance 0, entropy minus infinity."""
    answer = post(http, SLOPE, inputs=[[0.0, 0.0]])
    assert (np.ravel(answer["mean"]), np.ravel(answer["variance"])) == (0, 0)
    assert np.ravel(answer["entropy"]).tolist() == [None]


def test_several_inputs_go_by_name_and_raw_has_no_entropy(http):
    left, right = [[1.0, 2.0, 3.0]], [[0.0, 1.0, 0.5]]
    answer = post(http, PAIR, inputs={"right": right, "left": left}, seed=1)
    assert list(answer) == ["model", "version", "num_samples", "seed", "mean", "variance"]
    expected = model("pair")((np.array(left, np.float32), np.array(right, np.float32)), seed=1)
    np.testing.assert_allclose(answer["mean"], expected.mean, rtol=1e-5)


def test_a_lone_input_may_be_named_too(http):
    named = post(http, INSECTS, inputs={"input": [ROW]})
    assert named == post(http, INSECTS, inputs=[ROW])


def test_whole_numbers_are_numbers(http):
    assert post(http, INSECTS, inputs=[[1, 0, 2, 3]]) == post(http, INSECTS, inputs=[[1.0, 0.0, 2.0, 3.0]])


def test_the_models_defaults_are_used_and_told(http):
    answer = post(http, INSECTS, inputs=[ROW])
    assert (answer["num_samples"], answer["seed"]) == (20, 5)
    assert answer == post(http, INSECTS, inputs=[ROW], num_samples=20, seed=5)
    assert answer["mean"] != post(http, INSECTS, inputs=[ROW], seed=6)["mean"]


def test_an_empty_batch_has_an_empty_answer(http):
    answer = post(http, INSECTS, inputs=[])
    assert (answer["mean"], answer["entropy"], answer["label"]) == ([], [], [])


@pytest.mark.parametrize(("folder", "inputs"), [("one", [ROW, OTHER_ROW]), ("slope", [[1.0, 2.0]])])
def test_every_output_that_is_offered_can_be_had(http, folder, inputs):
    mc = model(folder)
    names = [name for name in available_outputs(mc) if name not in ("standard_errors", "quantiles", "samples")]
    answer = post(http, f"/v1/models/{'insects' if folder == 'one' else folder}/predict", inputs=inputs, outputs=names)
    expected = mc(np.array(inputs, np.float32))
    assert names
    for name in names:
        np.testing.assert_allclose(answer[name], getattr(expected, name), rtol=1e-4, atol=1e-6, err_msg=name)


def test_standard_errors_come_by_name(http):
    answer = post(http, INSECTS, inputs=[ROW], outputs=["standard_errors"], num_samples=64)
    expected = model("one")(np.array([ROW], np.float32), num_samples=64, standard_errors=True).standard_errors
    assert set(answer["standard_errors"]) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(answer["standard_errors"][name], value, rtol=1e-3, atol=1e-6)


def test_quantiles_come_with_their_levels(http):
    answer = post(http, SLOPE, inputs=[[1.0, 2.0]], outputs=["quantiles"])
    assert answer["quantile_levels"] == [0.05, 0.5, 0.95]
    low, middle, high = np.array(answer["quantiles"])
    assert (low < middle).all()
    assert (middle < high).all()
    chosen = post(http, SLOPE, inputs=[[1.0, 2.0]], quantiles=[0.5])
    assert chosen["quantile_levels"] == [0.5]
    np.testing.assert_allclose(chosen["quantiles"], [middle], rtol=1e-5)


def test_samples_are_the_models_own_outputs(http):
    answer = post(http, INSECTS, inputs=[ROW, OTHER_ROW], outputs=["samples"], num_samples=9)
    samples = np.array(answer["samples"])
    assert samples.shape == (9, 2, 3)
    expected = model("one").sample(np.array([ROW, OTHER_ROW], np.float32), num_samples=9)
    np.testing.assert_allclose(samples, expected, rtol=1e-5, atol=1e-6)


def test_requests_at_the_same_time_get_what_each_gets_alone(http):
    requests = [{"inputs": [ROW] * (1 + i % 3), "num_samples": 40 + 30 * i, "seed": i} for i in range(8)]
    alone = [post(http, INSECTS, **request) for request in requests]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda request: post(http, INSECTS, **request), requests))
    for one, other in zip(alone, together, strict=True):
        assert one["num_samples"] == other["num_samples"]
        for name in ("mean", "variance", "entropy"):
            np.testing.assert_allclose(one[name], other[name], rtol=1e-5, atol=1e-7)


def test_the_short_path_answers_with_the_only_model():
    with live(models=models_folder() / "one") as http:
        assert post(http, "/v1/predict", inputs=[ROW])["model"] == "insects"


def test_the_short_path_answers_with_the_default_model():
    with live(default_model="slope") as http:
        assert post(http, "/v1/predict", inputs=[[1.0, 2.0]])["model"] == "slope"


def test_the_short_path_needs_a_default_among_several(http):
    answer = http.post("/v1/predict", json={"inputs": [ROW]})
    assert answer.status_code == 404
    assert "MCDROP_DEFAULT_MODEL" in answer.json()["detail"]


def test_settings_of_the_tests_find_three_models(tmp_path: Path):
    assert settings().models == models_folder()
