"""A task checks itself and the shapes of a model's outputs."""

from typing import Any

import pytest
import torch

from mcdrop.errors import SettingError
from mcdrop.outputs.tasks import Task


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "clustering"}, "task='clustering' is unknown; choose one of classification"),
        ({"name": "classification", "output_kind": "scores"}, "output_kind='scores' is unknown; choose \"logits\""),
        ({"name": "classification", "class_axis": 0}, "class_axis=0; expected a whole number other than 0"),
        ({"name": "classification", "class_axis": True}, "class_axis=True; expected a whole number"),
        ({"name": "regression", "output_kind": "probs"}, "output_kind means nothing for task='regression'"),
        ({"name": "raw", "class_axis": 1}, "class_axis means nothing for task='raw'; it belongs to classification"),
        ({"name": "binary", "noise_variance": 1.0}, "noise_variance means nothing .* it belongs to regression"),
        ({"name": "regression", "noise_variance": -1.0}, "noise_variance=-1.0; a variance is finite and at least 0"),
        ({"name": "regression", "noise_variance": float("nan")}, "noise_variance=nan; a variance"),
        ({"name": "regression", "noise_variance": torch.tensor([1.0, -1.0])}, "a variance is finite"),
        ({"name": "classification", "class_names": ("a", "a")}, "class_names .* repeat"),
        ({"name": "binary", "class_names": ("a", "b", "c")}, "class_names has 3 names; a binary task has two"),
    ],
)
def test_a_setting_that_means_nothing_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Task(**settings)


@pytest.mark.parametrize(
    ("task", "shapes", "message"),
    [
        (Task("classification"), [(5, 1)], 'has size 1; .*use task="binary"'),
        (Task("classification"), [(5,)], 'no axis of classes. .*use task="binary"'),
        (Task("classification", class_axis=2), [(5, 3)], "class_axis=2 is no axis of classes of an output of shape"),
        (Task("classification", class_axis=-2), [(5, 3)], "class_axis=-2 is no axis of classes"),
        (Task("classification", class_names=("a", "b")), [(5, 3)], "class_names has 2 names; .* has size 3"),
        (Task("multilabel", class_names=("a", "b")), [(5, 3)], "class_names has 2 names; .* has size 3"),
        (Task("heteroscedastic"), [(5, 3)], "last axis of size 2"),
        (Task("heteroscedastic"), [(5, 3), (5, 1)], "log variance of shape"),
        (Task("raw"), [(5, 3), (5, 3)], "returns 2 tensors; task='raw' takes 1"),
        (Task("raw"), [()], "no axis; expected the batch"),
        (Task("regression", noise_variance=torch.ones(2)), [(5, 3)], "noise_variance has shape .* broadcasts to a row"),
        (Task("regression", noise_variance=torch.ones(1, 3)), [(5, 3)], "noise_variance has shape"),
    ],
)
def test_outputs_that_do_not_fit_the_task_are_refused(task: Task, shapes: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        task.check_outputs([torch.zeros(shape) for shape in shapes])


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64])
def test_outputs_that_are_no_real_numbers_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(SettingError, match="takes real floating point numbers"):
        Task("classification").check_outputs([torch.zeros(2, 3, dtype=dtype)])


@pytest.mark.parametrize(
    ("task", "shapes"),
    [
        (Task("classification", class_axis=1), [(0, 3, 8, 8)]),
        (Task("classification", class_names=("a", "b")), [(5, 2)]),
        (Task("binary"), [(5,)]),
        (Task("multilabel"), [(5, 3)]),
        (Task("regression", noise_variance=torch.ones(3)), [(5, 2, 3)]),
        (Task("regression", noise_variance=1.0), [(5,)]),
        (Task("heteroscedastic"), [(5, 2)]),
        (Task("heteroscedastic"), [(5, 1), (5, 1)]),
        (Task("raw"), [(5,)]),
    ],
)
def test_outputs_that_fit_pass(task: Task, shapes: list[tuple[int, ...]]) -> None:
    task.check_outputs([torch.zeros(shape) for shape in shapes])


def test_tasks_compare_by_value_tensors_too() -> None:
    noisy = [Task("regression", noise_variance=torch.tensor(values)) for values in ([1.0, 2.0], [1.0, 2.0], [1.0, 3.0])]
    assert noisy[0] == noisy[1] != noisy[2]
    assert hash(noisy[0]) == hash(noisy[1])
    assert Task("raw") == Task("raw") != Task("regression")
    assert Task("regression", noise_variance=1.0) != noisy[0]
    assert Task("raw") != "raw"
