"""What a user gets: one frozen result type for each kind of task.

Every field has the batch as axis 0 and then the axes of the model's own output; a number for each distribution
(entropies, label) drops the axis of the classes. A field is a tensor on the model's device, float32 (float64 where the
model's output is), or an array after `numpy()`. What few callers need is computed when first read. `FIELDS` in
mcdrop.statistics says what each number means.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from mcdrop.statistics import FIELDS, entropy_bias, gaussian_entropy

__all__ = [
    "BinaryPrediction",
    "ClassificationPrediction",
    "MultilabelPrediction",
    "Prediction",
    "RawPrediction",
    "RegressionPrediction",
    "concatenate",
    "with_passes",
]

_SHOWN_ROWS = 8
_P = TypeVar("_P", bound="Prediction")  # beartype does not know `Self` inside classes it does not decorate


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Prediction:
    """Mean and variance over passes, and how they were obtained.

    `prediction[k]` and slices take rows: `prediction[k].mean` is `prediction.mean[k]`, and so for every field.
    """

    mean: Float[Tensor, " batch *rest"]
    variance: Float[Tensor, " batch *rest"]
    num_samples: int  # passes really used; where rows stop by a rule, of the row that took most
    seed: int
    passes: Integer[Tensor, " batch"] | None = None  # of each row, where rows stop by a rule
    converged: Bool[Tensor, " batch"] | None = None  # whether the rule was met, or the maximum came first
    standard_errors: Mapping[str, Tensor] | None = None  # field name -> Monte Carlo standard error, where asked for
    quantile_levels: tuple[float, ...] = ()
    quantiles: Float[Tensor, "levels batch *rest"] | None = None  # where asked for, level by level
    samples: Tensor | tuple[Tensor, ...] | None = None  # where asked for: the model's own outputs (samples, batch, ...)
    error_of_mean: Float[Tensor, " batch *rest"] | None = None  # squared; variance / num_samples if None
    is_row: bool = False  # one row, without the batch axis

    fields: ClassVar[Mapping[str, str]] = FIELDS["raw"]  # the numbers of this kind of prediction, and their meaning
    _printed: ClassVar[tuple[str, ...]] = ("mean", "std")

    @cached_property
    def std(self) -> Tensor:
        """Standard deviation: square root of `variance`."""
        return self.variance.sqrt()

    # ---- rows

    def __len__(self) -> int:
        """Number of rows."""
        if self.is_row:
            raise TypeError("this is one row of a prediction and has no length")
        return len(self.mean)

    def __bool__(self) -> bool:
        return True

    def __getitem__(self: _P, rows: Any) -> _P:
        """Rows by number, slice, list of numbers or boolean mask."""
        if self.is_row:
            raise TypeError("this is one row of a prediction; index its fields, as in row.mean[0]")
        if isinstance(rows, tuple) or rows is None or rows is Ellipsis:
            raise TypeError("a prediction is indexed by rows alone; index its fields, as in prediction.mean[0, 1]")
        is_mask_or_list = isinstance(rows, slice | list) or getattr(rows, "ndim", 0) > 0
        taken = self._map(lambda values, axis: values[(slice(None),) * axis + (rows,)], is_row=not is_mask_or_list)
        return taken if taken.passes is None else taken._map(_same, num_samples=_most(taken.passes, self.num_samples))

    def __iter__(self: _P) -> Iterator[_P]:
        return (self[row] for row in range(len(self)))

    # ---- other forms

    def numpy(self: _P) -> _P:
        """The same prediction with arrays for tensors, every field computed; bfloat16 samples become float32."""
        for name in self.fields:
            getattr(self, name)
        return self._map(_array)

    def to(self: _P, device: str | torch.device) -> _P:
        """The same prediction with its tensors on another device."""
        return self._map(lambda values, axis: values.to(device) if isinstance(values, Tensor) else values)

    def cpu(self: _P) -> _P:
        """The same prediction in main memory."""
        return self.to("cpu")

    def to_dict(self) -> dict[str, Any]:
        """Every number by its name, `num_samples` and `seed`, and what else was asked for."""
        facts: dict[str, Any] = {"num_samples": self.num_samples, "seed": self.seed}
        facts |= {name: getattr(self, name) for name in self.fields}
        if self.standard_errors is not None:
            facts["standard_errors"] = dict(self.standard_errors)
        if self.quantiles is not None:
            facts |= {"quantile_levels": self.quantile_levels, "quantiles": self.quantiles}
        if self.samples is not None:
            facts["samples"] = self.samples
        if self.passes is not None:
            facts |= {"passes": self.passes, "converged": self.converged}
        return facts

    def _map(self: _P, change: Callable[[Any, int], Any], **replaced: Any) -> _P:
        """A copy with every array replaced by `change(array, its batch axis)`; fields computed so far come along."""

        def changed(value: Any, axis: int) -> Any:
            if isinstance(value, Mapping):
                return {name: changed(item, axis) for name, item in value.items()}
            if isinstance(value, tuple):
                return tuple(changed(item, axis) for item in value)
            return change(value, axis) if hasattr(value, "dtype") else value

        twin = object.__new__(type(self))  # past __init__, whose annotations ask for tensors with a batch
        values = {name: changed(value, int(name in ("samples", "quantiles"))) for name, value in self._facts().items()}
        twin.__dict__.update(values, **replaced)
        return twin

    @property
    def _error(self) -> tuple[Tensor, int]:
        """The squared standard error of `mean`, as a variance and a number of passes to divide it by."""
        return (self.variance, self.num_samples) if self.error_of_mean is None else (self.error_of_mean, 1)

    def _facts(self) -> dict[str, Any]:
        """What this object holds, nothing put off."""
        return dict(vars(self))

    def __getstate__(self) -> dict[str, Any]:
        return self._facts()

    # ---- printing

    def _passes_text(self) -> str:
        if self.passes is None or not math.prod(self.passes.shape) or self.converged is None:
            return f"{self.num_samples} passes"
        least, late = int(self.passes.min()), math.prod(self.passes.shape) - int(self.converged.sum())
        span = f"{least} to {self.num_samples}" if least < self.num_samples else f"{least}"
        return f"{span} passes" + (f" ({late} not converged)" if late else "")

    def __repr__(self) -> str:
        rows = 1 if self.is_row else len(self)
        title = "one row" if self.is_row else f"{rows} row{'s' * (rows != 1)}"
        lines = [f"{type(self).__name__}: {title}, {self._passes_text()}, seed {self.seed}"]
        if rows == 0:
            return lines[0]
        fields = {name: getattr(self, name) for name in self._printed}
        columns = {name: values for name, values in fields.items() if math.prod(values.shape) == rows}
        if columns:
            cells = [[name, *map(_number, values.reshape(-1)[:_SHOWN_ROWS])] for name, values in columns.items()]
            cells.insert(0, ["row", *map(str, range(min(rows, _SHOWN_ROWS)))])
            widths = [max(map(len, column)) for column in cells]
            for line in zip(*cells, strict=True):
                lines.append("  " + "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
            if rows > _SHOWN_ROWS:
                lines.append(f"  and {rows - _SHOWN_ROWS} more")
        for name in (name for name in fields if name not in columns):
            values = fields[name]
            span = f", {_number(values.min())} to {_number(values.max())}" if math.prod(values.shape) else ""
            lines.append(f"  {name}: {' x '.join(map(str, values.shape))}{span}")
        return "\n".join(lines)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class RawPrediction(Prediction):
    """Mean, variance and standard deviation of the output itself."""


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class RegressionPrediction(Prediction):
    """A predicted value and its total variance, that over passes plus that of the noise; heteroscedastic tasks too."""

    epistemic_variance: Float[Tensor, " batch *rest"]
    aleatoric_variance: Float[Tensor, " batch *rest"]

    fields: ClassVar[Mapping[str, str]] = FIELDS["regression"]
    _printed: ClassVar[tuple[str, ...]] = ("mean", "std", "epistemic_variance", "aleatoric_variance")

    @cached_property
    def entropy(self) -> Tensor:
        """Of a Gaussian with that variance, nats; -inf at variance 0."""
        return gaussian_entropy(self.variance)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class _ProbabilityPrediction(Prediction):
    """What one of several classes, and yes or no, have in common."""

    rest: Callable[[], tuple[Tensor, Tensor, Tensor]]  # gives entropy, expected entropy and votes
    class_names: tuple[str, ...] | None = None

    @cached_property
    def entropy(self) -> Float[Tensor, " batch *positions"]:
        """Entropy of `mean`, nats."""
        return self._counted[0]

    @cached_property
    def expected_entropy(self) -> Float[Tensor, " batch *positions"]:
        """Mean entropy of the passes, nats."""
        return self._counted[1]

    @cached_property
    def votes(self) -> Integer[Tensor, " batch *rest"]:
        """Number of passes that vote for the class, or for yes."""
        return self._counted[2]

    @cached_property
    def _counted(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.rest()

    def _facts(self) -> dict[str, Any]:
        return {"_counted": self._counted, **{name: value for name, value in vars(self).items() if name != "rest"}}

    @cached_property
    def mutual_information_plugin(self) -> Tensor:
        """`entropy - expected_entropy`, nats."""
        return self.entropy - self.expected_entropy

    @cached_property
    def vote_shares(self) -> Tensor:
        """Share of the passes that vote for the class, or for yes."""
        return self.votes.to(self.mean.dtype) / self.num_samples


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class ClassificationPrediction(_ProbabilityPrediction):
    """Probabilities of classes, of which one is true."""

    class_axis: int  # counted from the end

    fields: ClassVar[Mapping[str, str]] = FIELDS["classification"]
    _printed: ClassVar[tuple[str, ...]] = (
        *("label", "confidence", "entropy", "expected_entropy", "mutual_information", "variation_ratio"),
    )

    @cached_property
    def mutual_information(self) -> Tensor:
        """The plug-in without its bias of first order, nats; 0 to log(classes)."""
        bias = entropy_bias(self.mean, *self._error, self.class_axis)
        return (self.mutual_information_plugin + bias).clamp_(0, math.log(self.mean.shape[self.class_axis]))

    @cached_property
    def variation_ratio(self) -> Tensor:
        """Share of the passes that vote for another class than most do."""
        return 1 - self.vote_shares.amax(self.class_axis)

    @cached_property
    def label(self) -> Tensor:
        """Index of the most probable class of `mean`, the first of equals."""
        return self.mean.max(self.class_axis).indices

    @cached_property
    def confidence(self) -> Tensor:
        """Probability of `label`."""
        return self.mean.amax(self.class_axis)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class BinaryPrediction(_ProbabilityPrediction):
    """The probability of yes, in the output's own shape."""

    fields: ClassVar[Mapping[str, str]] = FIELDS["binary"]
    _printed: ClassVar[tuple[str, ...]] = (
        *("label", "mean", "entropy", "expected_entropy", "mutual_information", "variation_ratio"),
    )

    @cached_property
    def mutual_information(self) -> Tensor:
        """The plug-in without its bias of first order, nats; 0 to log 2."""
        both = torch.stack((self.mean, 1 - self.mean), dim=-1)
        variance, count = self._error
        bias = entropy_bias(both, variance.unsqueeze(-1).expand_as(both), count)
        return (self.mutual_information_plugin + bias).clamp_(0, math.log(2))

    @cached_property
    def variation_ratio(self) -> Tensor:
        """Share of the passes that are outvoted."""
        return torch.minimum(self.vote_shares, 1 - self.vote_shares)

    @cached_property
    def label(self) -> Tensor:
        """1 where `mean` is at least 1/2, else 0."""
        return (self.mean >= 0.5).long()

    @cached_property
    def confidence(self) -> Tensor:
        """Probability of `label`."""
        return torch.maximum(self.mean, 1 - self.mean)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class MultilabelPrediction(BinaryPrediction):
    """The probability of each of several labels that may be true together; every number is that of one label."""

    fields: ClassVar[Mapping[str, str]] = FIELDS["multilabel"]


def _array(values: Any, _: int) -> Any:
    if not isinstance(values, Tensor):
        return values
    return (values.float() if values.dtype is torch.bfloat16 else values).detach().cpu().numpy()


def _number(value: Any) -> str:
    number = value.item()
    return f"{number:.4g}" if isinstance(number, float) else str(number)


def concatenate(predictions: Sequence[Prediction]) -> Prediction:
    """One prediction of all rows from predictions of some rows each, made with the same seed, and passes but for
    rows that stop by a rule."""
    first = predictions[0]
    if len(predictions) == 1:
        return first

    def joined(values: Sequence[Any], axis: int) -> Any:
        if isinstance(values[0], Mapping):
            return {name: joined([value[name] for value in values], axis) for name in values[0]}
        if isinstance(values[0], tuple) and values[0] and isinstance(values[0][0], Tensor):
            return tuple(joined(parts, axis) for parts in zip(*values, strict=True))
        return torch.cat(list(values), axis) if isinstance(values[0], Tensor) else values[0]

    for prediction in predictions:
        for name in prediction.fields:
            getattr(prediction, name)
    facts = [prediction._facts() for prediction in predictions]
    twin = object.__new__(type(first))
    twin.__dict__.update(
        {name: joined([each[name] for each in facts], int(name in ("samples", "quantiles"))) for name in facts[0]}
    )
    if twin.passes is not None:  # what depends on the number of passes is computed, part by part
        twin.__dict__["num_samples"] = _most(twin.passes, first.num_samples)
    return twin


def with_passes(prediction: _P, *, converged: bool) -> _P:
    """The same prediction of rows that have stopped, or have not yet, after all of its passes."""
    rows = torch.full((len(prediction),), prediction.num_samples, device=prediction.mean.device)
    return prediction._map(_same, passes=rows, converged=torch.full_like(rows, converged, dtype=torch.bool))


def _same(values: Any, _: int) -> Any:
    return values


def _most(passes: Any, otherwise: int) -> int:
    return int(passes.max()) if math.prod(passes.shape) else otherwise
