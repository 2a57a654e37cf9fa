"""What a network's output means: the task.

Nothing is guessed from values: the user says whether the outputs are logits or probabilities and which axis holds the
classes. A task checks itself when it is made and a model's outputs, by shape and dtype, before any is used.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
from torch import Tensor

from mcdrop.errors import SettingError

__all__ = ["OutputKind", "Task", "TaskName"]

TaskName = Literal["classification", "binary", "multilabel", "regression", "heteroscedastic", "raw"]
OutputKind = Literal["logits", "probs"]

# What each task may be given besides its name.
_SETTINGS: dict[str, frozenset[str]] = {
    "classification": frozenset({"output_kind", "class_axis", "class_names"}),
    "binary": frozenset({"output_kind", "class_names"}),
    "multilabel": frozenset({"output_kind", "class_axis", "class_names"}),
    "regression": frozenset({"noise_variance"}),
    "heteroscedastic": frozenset(),
    "raw": frozenset(),
}


@dataclass(frozen=True, eq=False)
class Task:
    """What the outputs mean.

    Args:
        name: "classification" (one of several classes), "binary" (one number: positive or not), "multilabel" (one
            number for each label), "regression", "heteroscedastic" (a tuple (mean, log variance), or a last axis of
            size 2 that holds both) or "raw" (only mean and variance).
        output_kind: whether the network returns "logits" or "probs".
        class_axis: axis of the classes (or labels) in the network's own output, whose axis 0 is the batch.
        noise_variance: for regression, variance of the noise in the targets: a number, or a tensor that broadcasts to
            one row of the output. None counts as 0.
        class_names: names of the classes or labels; for binary those of negative and positive.

    Raises:
        SettingError: a setting that means nothing, or nothing for this task.
    """

    name: str  # a TaskName; checked here, like all values that users give
    output_kind: str = "logits"
    class_axis: int = -1
    noise_variance: float | Tensor | None = None
    class_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.name not in get_args(TaskName):
            raise SettingError(f"task={self.name!r} is unknown; choose one of {', '.join(get_args(TaskName))}.")
        if self.output_kind not in get_args(OutputKind):
            raise SettingError(f'output_kind={self.output_kind!r} is unknown; choose "logits" or "probs".')
        if isinstance(self.class_axis, bool) or not isinstance(self.class_axis, int) or self.class_axis == 0:
            raise SettingError(
                f"class_axis={self.class_axis!r}; expected a whole number other than 0, which is the batch: "
                "-1 for the last axis, 1 for segmentation."
            )
        if self.class_names is not None:
            object.__setattr__(self, "class_names", _checked_names(self.class_names, self.name))
        if self.noise_variance is not None:
            object.__setattr__(self, "noise_variance", _checked_noise(self.noise_variance))
        given = {
            "output_kind": self.output_kind != "logits",
            "class_axis": self.class_axis != -1,
            "noise_variance": self.noise_variance is not None,
            "class_names": self.class_names is not None,
        }
        strangers = [name for name, is_given in given.items() if is_given and name not in _SETTINGS[self.name]]
        if strangers:
            tasks = [name for name, known in _SETTINGS.items() if strangers[0] in known]
            raise SettingError(
                f"{strangers[0]} means nothing for task={self.name!r}; it belongs to {', '.join(tasks)}. Leave it out."
            )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Task):
            return NotImplemented
        mine, theirs = self.noise_variance, other.noise_variance
        if isinstance(mine, Tensor) and isinstance(theirs, Tensor):
            same_noise = mine.shape == theirs.shape and torch.equal(mine.cpu(), theirs.cpu())
        else:
            same_noise = type(mine) is type(theirs) and mine == theirs
        return same_noise and self._plain() == other._plain()

    def __hash__(self) -> int:
        return hash(self._plain())

    def _plain(self) -> tuple[object, ...]:
        return self.name, self.output_kind, self.class_axis, self.class_names

    def axis(self, ndim: int) -> int:
        """`class_axis` of an output with `ndim` axes, counted from the front."""
        return self.class_axis if self.class_axis > 0 else ndim + self.class_axis

    def check_outputs(self, outputs: Sequence[Tensor]) -> None:
        """Raise SettingError where a model's outputs, each (batch, ...), cannot be what the task says.

        Looks at number, shape and dtype, never at values.
        """
        expected = (1, 2) if self.name == "heteroscedastic" else (1,)
        if len(outputs) not in expected:
            raise SettingError(
                f"the model returns {len(outputs)} tensors; "
                f"task={self.name!r} takes {' or '.join(map(str, expected))}. "
                "Name the one that counts with `output`."
            )
        for output in outputs:
            if output.is_complex() or not (output.is_floating_point() or self.name == "raw"):
                raise SettingError(
                    f"the model's output is {output.dtype}; task={self.name!r} takes real floating point numbers. "
                    "Return the network's scores before they are rounded or chosen from."
                )
        shape = tuple(outputs[0].shape)
        if len(shape) < 1:
            raise SettingError("the model's output has no axis; expected the batch as axis 0.")
        if self.name == "classification":
            self._check_classes(shape)
        elif self.name == "heteroscedastic":
            _check_pair([tuple(output.shape) for output in outputs])
        elif self.name == "multilabel" and self.class_names is not None:
            self._check_names(shape)
        elif self.name == "regression" and isinstance(self.noise_variance, Tensor):
            _check_broadcast(tuple(self.noise_variance.shape), shape[1:])

    def _check_classes(self, shape: tuple[int, ...]) -> None:
        if len(shape) < 2:
            raise SettingError(
                f"the model's output has shape {shape}: one number in each row and no axis of classes. "
                'For positive or negative use task="binary".'
            )
        axis = self.axis(len(shape))
        if not 1 <= axis < len(shape):
            raise SettingError(
                f"class_axis={self.class_axis} is no axis of classes of an output of shape {shape}; "
                f"expected 1 to {len(shape) - 1}, or negative from the end."
            )
        if shape[axis] < 2:
            raise SettingError(
                f"class_axis={self.class_axis} of the model's output {shape} has size {shape[axis]}; expected at least "
                '2 classes. For one number that says positive or negative use task="binary"; '
                "else set class_axis to the axis that holds the classes."
            )
        self._check_names(shape)

    def _check_names(self, shape: tuple[int, ...]) -> None:
        axis = self.axis(len(shape))
        if self.class_names is None:
            return
        size = shape[axis] if 1 <= axis < len(shape) else 1
        if len(self.class_names) != size:
            raise SettingError(
                f"class_names has {len(self.class_names)} names; axis {self.class_axis} of the model's output {shape} "
                f"has size {size}. Give one name for each, in the order of the outputs."
            )


def _checked_names(names: Sequence[str], task: str) -> tuple[str, ...]:
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise SettingError(f"class_names={names!r}; expected a sequence of strings, one for each class.")
    if len(set(names)) != len(names):
        raise SettingError(f"class_names {tuple(names)} repeat themselves; give each class a name of its own.")
    if task == "binary" and len(names) != 2:
        raise SettingError(f"class_names has {len(names)} names; a binary task has two: negative and positive.")
    return tuple(names)


def _checked_noise(noise: object) -> float | Tensor:
    try:
        value: float | Tensor = noise.detach() if isinstance(noise, Tensor) else float(cast(float, noise))
        valid = bool(((value >= 0) & value.isfinite()).all()) if isinstance(value, Tensor) else 0 <= value < math.inf
    except (TypeError, ValueError) as error:
        raise SettingError(f"noise_variance={noise!r}; expected a number or a tensor.") from error
    if not valid:
        raise SettingError(f"noise_variance={noise!r}; a variance is finite and at least 0.")
    return value


def _check_pair(shapes: Sequence[tuple[int, ...]]) -> None:
    if len(shapes) == 2 and shapes[0] != shapes[1]:
        raise SettingError(
            f"the model returns a mean of shape {shapes[0]} and a log variance of shape {shapes[1]}; expected the same."
        )
    if len(shapes) == 1 and (len(shapes[0]) < 2 or shapes[0][-1] != 2):
        raise SettingError(
            f"the model's output has shape {shapes[0]}; a heteroscedastic task takes a tuple (mean, log variance) or "
            'a last axis of size 2 that holds both. For a predicted value alone use task="regression".'
        )


def _check_broadcast(noise: tuple[int, ...], row: tuple[int, ...]) -> None:
    padded = (1,) * (len(row) - len(noise)) + noise
    if len(padded) > len(row) or any(size not in (1, other) for size, other in zip(padded, row, strict=False)):
        raise SettingError(
            f"noise_variance has shape {noise}; expected a number, or a tensor that broadcasts to a row {row}."
        )
