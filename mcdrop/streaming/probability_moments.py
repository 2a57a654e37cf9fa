"""Streaming statistics of predicted distributions: one of several classes, yes or no, several labels.

Each pass gives a distribution; kept are the central sums of its probabilities, the sum of its entropies and its vote.
The latter two are not read by everybody: while they are few, probabilities are kept and counted when asked for.
"""

import copy
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from mcdrop.errors import SettingError
from mcdrop.prediction import BinaryPrediction, ClassificationPrediction, MultilabelPrediction, Prediction
from mcdrop.statistics import binary_entropy, entropy
from mcdrop.streaming.accumulator import Accumulator, Pick
from mcdrop.streaming.block_sums import BlockSums
from mcdrop.streaming.sums import CentralSums, GroupSums, Place, is_turned, jackknife_standard_error

__all__ = ["BinaryAccumulator", "ClassAccumulator"]

_FEW = 2**14  # probabilities that are kept until entropies and votes are asked for
_REGISTER = 64  # bytes of a vector register


class ProbabilityAccumulator(Accumulator):
    """One of several classes, and yes or no: distributions, their entropies and votes."""

    _probs: CentralSums
    _entropies: Tensor  # sums over the passes that are counted
    _votes: Tensor  # numbers of passes, of those that are counted
    _uncounted: tuple[Tensor, ...]  # probabilities (passes, ...) of the others
    _prob_groups: GroupSums
    _entropy_groups: GroupSums
    _tolerance: float  # of probabilities that the model returns

    @abstractmethod
    def _probabilities(self, chunk: Tensor) -> Tensor:
        """The model's flattened output as probabilities, at least float32."""

    @abstractmethod
    def _entropy(self, probs: Tensor) -> Tensor:
        """Entropies of (..., outer[, classes, inner])."""

    @abstractmethod
    def _vote(self, probs: Tensor, place: Place) -> None:
        """Add the passes' votes."""

    def _reduced(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape without its axis of classes."""
        return shape

    def _reduced_place(self, place: Place) -> Place:
        """The place without its axis of classes."""
        return place

    def _reduced_layout(self) -> tuple[int, ...]:
        """The output's own shape without its axis of classes."""
        return self._layout

    def _start(self, outputs: tuple[Tensor, ...]) -> None:
        shape, device = tuple(self._flatten(outputs[0]).shape[1:]), outputs[0].device
        self._probs = CentralSums(shape, order=4 if self._with_errors and self._block == 1 else 2, device=device)
        self._tolerance = max(1e-4, 4 * torch.finfo(outputs[0].dtype).eps)
        self._uncounted = ()
        if self._block > 1:
            first = self._probabilities(self._flatten(outputs[0][:1]).to(self._dtype))[0]
            self._blocks = BlockSums(first, squares=self._with_errors)
        if self._with_errors:
            self._prob_groups = GroupSums(shape, dtype=self._dtype, device=device)
            self._entropy_groups = GroupSums(self._reduced(shape), dtype=torch.float64, device=device)

    def _add(self, chunk: tuple[Tensor, ...], groups: Tensor | None, place: Place, before: int) -> None:
        probs = self._probabilities(chunk[0].to(self._dtype))
        self._probs.add(probs, place=place, before=before)
        if self._blocks is not None and groups is not None:
            self._blocks.add(probs, groups, place)
        if not self._with_errors and not place and sum(map(Tensor.numel, self._uncounted), probs.numel()) <= _FEW:
            self._uncounted += (probs,)
            return
        entropies = self._count(probs, place)
        if self._with_errors and groups is not None:
            self._prob_groups.add(probs, groups, place)
            self._entropy_groups.add(entropies, groups, self._reduced_place(place))

    def _count(self, probs: Tensor, place: Place) -> Tensor:
        """Add the entropies and votes of passes at `place`, and return the entropies."""
        if not hasattr(self, "_votes"):
            self._votes = torch.zeros(self._probs.shape, dtype=torch.int32, device=probs.device)
            self._entropies = torch.zeros(self._reduced(self._probs.shape), dtype=torch.float64, device=probs.device)
        entropies = self._entropy(probs)
        self._entropies[self._reduced_place(place)].add_(entropies.sum(dim=0, dtype=torch.float64))
        self._vote(probs, place)
        return entropies

    def _count_all(self) -> None:
        for probs in self._uncounted:
            self._count(probs, ())
        self._uncounted = ()

    def _values(self, samples: tuple[Tensor, ...]) -> tuple[Tensor, Tensor | None]:
        probs = self._probabilities(self._flatten(samples[0]).to(self._dtype))
        return probs.view(probs.shape[0], *self._layout), None

    def _merge(self, other: Any) -> None:
        self._count_all()
        other._count_all()
        if self._with_errors:
            self._prob_groups.merge(other._prob_groups)
            self._entropy_groups.merge(other._entropy_groups)
        self._probs.merge(other._probs, self.passes, other.passes)
        self._entropies += other._entropies
        self._votes += other._votes

    @property
    def spread(self) -> Tensor:
        return self._with_error(self._probs)[0].view(self._layout[0], math.prod(self._layout[1:]))

    def _select(self, twin: Any, pick: Pick) -> None:
        twin._probs = self._probs.select(pick)
        twin._uncounted = tuple(pick(probs, 1) for probs in self._uncounted)
        if hasattr(self, "_votes"):
            twin._votes, twin._entropies = pick(self._votes, 0), pick(self._entropies, 0)
        if self._with_errors:
            twin._prob_groups, twin._entropy_groups = self._prob_groups.select(pick), self._entropy_groups.select(pick)

    def _fields(self) -> dict[str, Any]:
        """The fields that both kinds have, in the layout of the output."""
        mean, (variance, error) = self._probs.mean, self._with_error(self._probs)
        fields: dict[str, Any] = {
            "mean": self._shaped(mean),
            "variance": self._shaped(variance),
            "rest": self._counted_by_now(variance),
            "class_names": self.task.class_names,
            "error_of_mean": None if error is None else self._shaped(error),
        }
        if self._with_errors:
            total, reduced = self._entropy(mean), self._reduced_layout()
            fields["standard_errors"] = {
                **self._moment_errors(variance),
                **{name: error.to(self._dtype).view(reduced) for name, error in self._entropy_errors(total)},
            }
        return fields

    def _moment_errors(self, variance: Tensor) -> dict[str, Tensor]:
        """Of mean and variance; that of the mean is never 0 by luck."""
        count = self.passes
        if self._blocks is None:
            of_one, of_variance = variance, self._probs.variance_of_variance(count)
        else:
            of_one = self._error(self._blocks.deviations(self._group_counts)) * count
            of_variance = self._error(self._blocks.square_deviations(self._group_counts))
        return {
            "mean": self._shaped(((of_one + 1 / count) / count).sqrt()),
            "variance": self._shaped(of_variance.sqrt()),
        }

    def _counted_by_now(self, variance: Tensor) -> Callable[[], tuple[Tensor, Tensor, Tensor]]:
        """What gives the entropies and the votes of the passes so far, whatever is added later."""
        now, mean = copy.copy(self), self._probs.mean.clone()
        now._samples = ()  # a prediction does not hold what it was not asked for
        if hasattr(self, "_votes"):
            now._votes, now._entropies = self._votes.clone(), self._entropies.clone()
        if not now._uncounted:
            done = now._counted(mean, variance)  # alone: the sums are many times its size
            return lambda: done

        def counted() -> tuple[Tensor, Tensor, Tensor]:
            all_ = copy.copy(now)  # threads may ask at the same time
            if hasattr(now, "_votes"):
                all_._votes, all_._entropies = now._votes.clone(), now._entropies.clone()
            all_._count_all()
            return all_._counted(mean, variance)

        return counted

    def _counted(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Entropy, expected entropy and votes in the layout of the answer, once all passes are counted."""
        total, reduced = self._entropy(mean), self._reduced_layout()
        expected = self._expected(variance, total)
        return (
            total.to(self._dtype).reshape(reduced),
            expected.to(self._dtype).view(reduced),
            self._votes.view(self._layout),
        )

    def _expected(self, variance: Tensor, total: Tensor) -> Tensor:
        """Jensen: the mean entropy is below the entropy of the mean, and equal to it where all passes agree."""
        spread = variance if total.shape == variance.shape else variance.amax(dim=1)
        return torch.minimum(self._entropies / self.passes, total).where(spread > 0, total)

    def _entropy_errors(self, total: Tensor) -> Iterator[tuple[str, Tensor]]:
        groups = [group for group, count in enumerate(self._group_counts) if count]
        if len(groups) < 2:  # all passes are of one block, whose estimate stands alone
            for name in ("entropy", "expected_entropy", "mutual_information"):
                yield name, torch.full_like(total, torch.nan)
            return
        counts = [self._group_counts[group] for group in groups]
        totals, expecteds = [], []
        for group, count in zip(groups, counts, strict=True):
            rest = self.passes - count
            totals.append(self._entropy((self._probs.mean * self.passes - self._prob_groups.sums[group]) / rest))
            expecteds.append((self._entropies - self._entropy_groups.sums[group]) / rest)
        left_total, left_expected = torch.stack(totals), torch.stack(expecteds)
        expected = self._expected(self._probs.variance(self.passes), total)
        yield "entropy", jackknife_standard_error(total, left_total, counts)
        yield "expected_entropy", jackknife_standard_error(self._entropies / self.passes, left_expected, counts)
        yield "mutual_information", jackknife_standard_error(total - expected, left_total - left_expected, counts)


class ClassAccumulator(ProbabilityAccumulator):
    """classification: (passes, outer, classes[, inner]) around the axis of the classes."""

    def _flatten(self, output: Tensor) -> Tensor:
        axis = self.task.axis(output.ndim - 1) + 1
        if output.ndim == 3 and axis == 2:
            return output
        shape = (output.shape[0], math.prod(output.shape[1:axis]), output.shape[axis])
        inner = output.shape[axis + 1 :]
        return output.reshape(*shape, math.prod(inner)) if inner else output.reshape(shape)

    def _reduced(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape[:1] + shape[2:]

    def _reduced_place(self, place: Place) -> Place:
        return place[:1] + place[2:]

    def _reduced_layout(self) -> tuple[int, ...]:
        axis = self.task.axis(len(self._layout))
        return self._layout[:axis] + self._layout[axis + 1 :]

    def _probabilities(self, chunk: Tensor) -> Tensor:
        if self.task.output_kind == "logits":
            return _softmax(chunk)
        total = chunk.sum(dim=2, keepdim=True)
        if not bool((((total - 1).abs() <= self._tolerance) & (chunk >= -self._tolerance)).all()):
            off = (total - 1).abs().max().item()
            raise SettingError(
                f'output_kind="probs", but the outputs along class_axis={self.task.class_axis} are no probabilities: '
                f"they sum to 1 only within {off:.2g}, or one is below 0; expected within {self._tolerance:.2g}. "
                'If the model returns logits leave output_kind at "logits"; else set class_axis to the axis of classes.'
            )
        return chunk.clamp_min(0) / total  # what half precision rounded off must not show in the entropies

    def _entropy(self, probs: Tensor) -> Tensor:
        return entropy(probs, class_axis=probs.ndim - len(self._probs.shape) + 1)

    def _vote(self, probs: Tensor, place: Place) -> None:
        wins = _wins(probs) if probs.device.type == "cpu" else None
        if wins is not None:
            self._votes[place].add_(wins)
            return
        winners = probs.max(dim=2).indices.movedim(0, 1)  # (outer, passes[, inner])
        self._votes[place].scatter_add_(1, winners, self._votes.new_ones(()).expand_as(winners))

    def _predict(self, shared: dict[str, Any]) -> Prediction:
        from_end = self.task.axis(len(self._layout)) - len(self._layout)
        return ClassificationPrediction(class_axis=from_end, **self._fields(), **shared)


def _wins(probs: Tensor) -> Tensor | None:
    """How often each class is the highest over passes, (outer, classes[, inner]); None where some are equal or NaN.

    On a CPU several times faster than to look for the class of each pass.
    """
    highest = probs.amax(dim=2, keepdim=True)
    is_highest = probs == highest
    turned = is_turned(is_highest)
    wins = (is_highest.mT if turned else is_highest).sum(dim=0, dtype=torch.int32)
    if int(wins.sum()) != highest.numel() or bool(highest.isnan().any()):
        return None
    return wins.mT if turned else wins


def _softmax(logits: Tensor) -> Tensor:
    """Over axis 2. PyTorch takes classes one by one where they do not fill a register: rows then lie side by side."""
    if logits.ndim == 3 and logits.shape[2] * logits.itemsize < _REGISTER and logits.device.type == "cpu":
        return logits.transpose(1, 2).contiguous().softmax(dim=1).transpose(1, 2)
    return logits.softmax(dim=2)


class BinaryAccumulator(ProbabilityAccumulator):
    """binary and multilabel: each number of the output by itself."""

    def _probabilities(self, chunk: Tensor) -> Tensor:
        if self.task.output_kind == "logits":
            return chunk.sigmoid()
        if not bool(((chunk >= -self._tolerance) & (chunk <= 1 + self._tolerance)).all()):
            low, high = chunk.min().item(), chunk.max().item()
            raise SettingError(
                f'output_kind="probs", but the outputs lie between {low:.3g} and {high:.3g}; '
                'expected 0 to 1. If the model returns logits leave output_kind at "logits".'
            )
        return chunk.clamp(0, 1)

    def _entropy(self, probs: Tensor) -> Tensor:
        return binary_entropy(probs)

    def _vote(self, probs: Tensor, place: Place) -> None:
        self._votes[place].add_((probs >= 0.5).sum(dim=0))

    def _predict(self, shared: dict[str, Any]) -> Prediction:
        kind = BinaryPrediction if self.task.name == "binary" else MultilabelPrediction
        return kind(**self._fields(), **shared)
