"""The result types: rows, other forms, printing, and that they are what the table of fields says."""

import copy
import dataclasses
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mcdrop.outputs.fields import FIELDS
from mcdrop.outputs.tasks import Task
from mcdrop.prediction import MultilabelPrediction, Prediction
from mcdrop.streaming.moments import accumulator

CASES: dict[str, tuple[Task, tuple[int, ...]]] = {
    "classification": (Task("classification", class_names=("a", "b", "c", "d")), (3, 4)),
    "segmentation": (Task("classification", class_axis=1), (3, 4, 2, 5)),
    "binary": (Task("binary"), (3, 1)),
    "multilabel": (Task("multilabel"), (3, 5)),
    "regression": (Task("regression", noise_variance=0.3), (3,)),
    "heteroscedastic": (Task("heteroscedastic"), (3, 6, 2)),
    "raw": (Task("raw"), (3, 2, 2)),
}
each_case = pytest.mark.parametrize("name", CASES)


def make(name: str, **settings: Any) -> Any:
    task, shape = CASES[name]
    outputs = torch.randn((6, *shape), generator=torch.Generator().manual_seed(0))
    sums = accumulator(task, num_samples=6, **settings)
    sums.update((outputs,), range(6))
    return sums.prediction(seed=11)


def everything(name: str) -> Any:
    return make(name, standard_errors=True, quantiles=(0.25, 0.75), samples=True)


def same(mine: Any, theirs: Any) -> bool:
    if isinstance(theirs, dict):
        return mine.keys() == theirs.keys() and all(same(mine[key], theirs[key]) for key in theirs)
    if isinstance(theirs, Tensor):
        return isinstance(mine, Tensor) and mine.dtype == theirs.dtype and torch.equal(mine, theirs)
    return bool(mine == theirs)


@each_case
def test_it_has_the_fields_of_the_table_and_says_how_it_was_made(name: str) -> None:
    prediction, task = make(name), CASES[name][0]
    assert tuple(prediction.fields) == tuple(name for name in FIELDS[task.name]) or task.name == "heteroscedastic"
    assert set(prediction.fields) == set(FIELDS[task.name])
    assert (prediction.num_samples, prediction.seed) == (6, 11)
    assert prediction.standard_errors is prediction.quantiles is prediction.samples is None
    facts = prediction.to_dict()
    assert list(facts) == ["num_samples", "seed", *prediction.fields]
    assert all(isinstance(facts[field], Tensor) and len(facts[field]) == 3 for field in prediction.fields)


@each_case
@pytest.mark.parametrize("rows", [1, -1, slice(1, None), [2, 0], torch.tensor([True, False, True]), np.int64(2)])
@pytest.mark.parametrize("form", ["tensors", "arrays"])
def test_rows_of_a_prediction_are_rows_of_its_fields(name: str, rows: Any, form: str) -> None:
    whole = everything(name)
    if form == "arrays":
        whole, rows = whole.numpy(), np.asarray(rows) if isinstance(rows, Tensor) else rows
    part = whole[rows]
    for field in whole.fields:
        assert np.array_equal(getattr(part, field), getattr(whole, field)[rows], equal_nan=False), field
    for field, errors in whole.standard_errors.items():
        assert np.array_equal(part.standard_errors[field], errors[rows])
    assert np.array_equal(part.quantiles, whole.quantiles[:, rows])
    assert np.array_equal(part.samples, whole.samples[:, rows])
    assert (part.num_samples, part.seed, part.quantile_levels) == (6, 11, (0.25, 0.75))


@each_case
def test_fields_computed_after_indexing_are_the_same(name: str) -> None:
    fresh, used = make(name), make(name)
    used.to_dict()
    for field in used.fields:
        torch.testing.assert_close(getattr(fresh[1:], field), getattr(used, field)[1:])
        torch.testing.assert_close(getattr(fresh[2], field), getattr(used, field)[2])


@each_case
def test_it_iterates_over_its_rows(name: str) -> None:
    prediction = make(name)
    assert len(prediction) == 3
    assert [row.mean.tolist() for row in prediction] == prediction.mean.tolist()
    assert prediction[:0] is not None
    assert len(prediction[:0]) == 0


def test_what_is_no_row_is_refused() -> None:
    prediction = make("segmentation")
    with pytest.raises(IndexError):
        prediction[3]
    for wrong in ((0, 1), None, ...):
        with pytest.raises(TypeError, match="indexed by rows alone.*prediction.mean"):
            prediction[wrong]
    with pytest.raises(TypeError, match="one row.*no length"):
        len(prediction[0])
    with pytest.raises(TypeError, match="one row.*row.mean"):
        prediction[0][0]


@each_case
def test_numpy_has_arrays_in_every_field(name: str) -> None:
    prediction = everything(name)
    arrays = prediction.numpy()
    assert type(arrays) is type(prediction)
    for field in arrays.fields:
        value = getattr(arrays, field)
        assert isinstance(value, np.ndarray)
        assert np.array_equal(value, getattr(prediction, field).numpy())
    assert {type(error) for error in arrays.standard_errors.values()} == {np.ndarray}
    assert type(arrays.samples) is type(arrays.quantiles) is np.ndarray
    assert repr(arrays) == repr(prediction)
    assert same(prediction.cpu().to_dict(), prediction.to_dict())
    assert arrays.cpu().mean is arrays.mean


def test_bfloat16_samples_become_float32_arrays() -> None:
    sums = accumulator(Task("raw"), num_samples=2, samples=True)
    sums.update((torch.ones(2, 1, dtype=torch.bfloat16),), range(2))
    arrays: Any = sums.prediction(seed=0).numpy()
    assert arrays.samples.dtype == np.float32


@each_case
def test_it_survives_pickle_and_copy(name: str) -> None:
    prediction = everything(name)
    for twin in (pickle.loads(pickle.dumps(prediction)), copy.deepcopy(prediction), copy.copy(prediction)):
        assert type(twin) is type(prediction)
        assert same(twin.to_dict(), prediction.to_dict())


def test_it_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        make("raw").mean = torch.zeros(3)


def test_a_plug_in_mutual_information_is_exactly_the_difference() -> None:
    for name in ("classification", "segmentation", "binary", "multilabel"):
        prediction = make(name)
        assert torch.equal(prediction.mutual_information_plugin, prediction.entropy - prediction.expected_entropy)
        assert (prediction.mutual_information >= prediction.mutual_information_plugin).all()


def test_equal_probabilities_have_the_first_label_and_one_half_is_yes() -> None:
    sums = accumulator(Task("classification"), num_samples=2)
    sums.update((torch.zeros(2, 1, 3),), range(2))
    first: Any = sums.prediction(seed=0)
    assert first.label.tolist() == [0]
    yes = accumulator(Task("binary"), num_samples=2)
    yes.update((torch.zeros(2, 1),), range(2))
    half: Any = yes.prediction(seed=0)
    assert half.label.tolist() == [1]
    assert half.vote_shares.tolist() == [1.0]


def test_multilabel_is_a_kind_of_its_own_with_the_names_of_its_labels() -> None:
    task = Task("multilabel", class_names=("cat", "dog"))
    sums = accumulator(task, num_samples=2)
    sums.update((torch.zeros(2, 3, 2),), range(2))
    prediction = sums.prediction(seed=0)
    assert type(prediction) is MultilabelPrediction
    assert prediction.class_names == ("cat", "dog")


def test_it_prints_a_row_per_row() -> None:
    sums = accumulator(Task("classification"), num_samples=4)
    sums.update((torch.tensor([4.0, 0.0, 0.0]).expand(4, 10, 3),), range(4))
    assert repr(sums.prediction(seed=5)).splitlines()[:3] == [
        "ClassificationPrediction: 10 rows, 4 passes, seed 5",
        "  row  label  confidence  entropy  expected_entropy  mutual_information  variation_ratio",
        "    0      0      0.9647   0.1773            0.1773                   0                0",
    ]
    assert repr(sums.prediction(seed=5)).splitlines()[-1] == "  and 2 more"


@each_case
def test_every_kind_prints_whole_empty_and_as_one_row(name: str) -> None:
    prediction: Prediction = make(name)
    assert repr(prediction).startswith(f"{type(prediction).__name__}: 3 rows, 6 passes, seed 11\n")
    assert repr(prediction[:0]) == f"{type(prediction).__name__}: 0 rows, {prediction.num_samples} passes, seed 11"
    assert ": one row" in repr(prediction[0])
    assert ": 1 row," in repr(prediction[:1])


@pytest.mark.parametrize("task", FIELDS)
def test_every_field_says_its_range_or_unit(task: str) -> None:
    for name, text in FIELDS[task].items():
        assert text.endswith("."), name
        assert any(word in text for word in ("unit", "nats", " to ", "Index", "1 where")), (name, text)
