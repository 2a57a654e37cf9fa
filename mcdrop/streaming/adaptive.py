"""A sink whose rows leave when they have had enough passes: an accumulator, and a criterion that judges its rows.

The criteria are those of mcdrop.streaming.stopping. Sums of rows that have left are kept, and their answers put
together with those of the others, in the order of the rows.
"""

from typing import Protocol

import torch
from torch import Tensor

from mcdrop.prediction import Prediction, concatenate, with_passes
from mcdrop.streaming.accumulator import Accumulator
from mcdrop.streaming.sequences import ConfidenceSequence
from mcdrop.streaming.stopping import ERROR_RATE, UNSEEN, Rule, Z

__all__ = ["AdaptiveSink"]


class Criterion(Protocol):
    """Which rows have had enough passes."""

    def update(self, accumulator: Accumulator, outputs: tuple[Tensor, ...]) -> None:
        """Take in outputs (passes, batch, ...), which the accumulator has taken in."""

    def met(self, accumulator: Accumulator) -> Tensor:
        """Whether each row has had enough, (batch,); called at looks only."""

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows alone."""


class AdaptiveSink:
    """Takes chunks of outputs (passes, rows, ...), none of which passes a look, of the rows that have not left."""

    def __init__(self, rule: Rule, accumulator: Accumulator) -> None:
        self._rule, self._rest = rule, accumulator
        self._criterion = _criterion(rule, accumulator)
        self._numbers: Tensor | None = None  # of the rows in `_rest`; None: all that there were
        self._left: list[tuple[Tensor, Accumulator]] = []  # numbers and sums of those that have left

    def update(self, outputs: tuple[Tensor, ...], passes: range) -> None:
        self._rest.update(outputs, passes)
        self._criterion.update(self._rest, outputs)

    def leave(self) -> Tensor | None:
        """Let the rows leave that have had enough. Which of those that were here go on, (kept,); None: all of them."""
        if self._rest.passes not in self._rule.looks:
            return None
        met = self._criterion.met(self._rest)
        if not met.any():
            return None
        if self._numbers is None:
            self._numbers = torch.arange(len(met), device=met.device)
        gone, rest = met.nonzero().squeeze(1), (~met).nonzero().squeeze(1)
        self._left.append((self._numbers[gone], self._rest.select(gone)))
        self._rest, self._numbers = self._rest.select(rest), self._numbers[rest]
        self._criterion.keep(rest)
        return rest

    def prediction(self, *, seed: int) -> Prediction:
        """The prediction so far, with `passes` and `converged` of each row."""
        parts = [with_passes(sums.prediction(seed=seed), converged=True) for _, sums in self._left]
        numbers = [rows for rows, _ in self._left]
        if self._numbers is None or len(self._numbers):
            parts.append(with_passes(self._rest.prediction(seed=seed), converged=False))
        if self._numbers is None:
            return parts[0]
        return concatenate(parts)[torch.cat([*numbers, self._numbers]).argsort()]


def _criterion(rule: Rule, accumulator: Accumulator) -> Criterion:
    if rule.tolerance is None:
        return _SettledClass(accumulator) if rule.task == "classification" else _SettledSide()
    if rule.certified:
        return _CertifiedHalfWidth(rule.tolerance)
    return _HalfWidth(rule.tolerance) if rule.bounded else _HalfWidthOfValues(rule.tolerance)


class _HalfWidth:
    """Chow & Robbins 1965, of probabilities: sqrt(z^2 s^2 / n + (log 20 / n)^2) <= tolerance."""

    def __init__(self, tolerance: float) -> None:
        self._tolerance = tolerance

    def update(self, accumulator: Accumulator, outputs: tuple[Tensor, ...]) -> None:
        pass

    def _range(self) -> float | Tensor:
        return 1.0

    def met(self, accumulator: Accumulator) -> Tensor:
        count = accumulator.passes
        half_widths = (Z**2 / count * accumulator.spread + (UNSEEN / count * self._range()) ** 2).sqrt()
        return _all(half_widths <= self._tolerance)

    def keep(self, rows: Tensor) -> None:
        pass


class _HalfWidthOfValues(_HalfWidth):
    """The same of numbers without bounds, whose range is the one seen so far."""

    _low: Tensor
    _high: Tensor

    def update(self, accumulator: Accumulator, outputs: tuple[Tensor, ...]) -> None:
        low, high = accumulator.values(outputs).aminmax(dim=0)
        if hasattr(self, "_low"):
            low, high = torch.minimum(self._low, low), torch.maximum(self._high, high)
        self._low, self._high = low, high

    def _range(self) -> Tensor:
        extent = self._high.double() - self._low.double()
        return extent.reshape(len(extent), -1)  # a row may have one number and no axis for it

    def keep(self, rows: Tensor) -> None:
        self._low, self._high = self._low[rows], self._high[rows]


class _CertifiedHalfWidth:
    """The mean is at most the tolerance away from both bounds of a confidence sequence."""

    def __init__(self, tolerance: float) -> None:
        self._tolerance = tolerance
        self._sequence = ConfidenceSequence(ERROR_RATE / 2)

    def update(self, accumulator: Accumulator, outputs: tuple[Tensor, ...]) -> None:
        self._sequence.add(accumulator.values(outputs))

    def met(self, accumulator: Accumulator) -> Tensor:
        sequence = self._sequence
        return _all((sequence.mean - sequence.center).abs() + sequence.radius <= self._tolerance)

    def keep(self, rows: Tensor) -> None:
        self._sequence.keep(rows)


class _SettledSide:
    """Yes or no: the mean is on one side of 1/2, and so is the bound of a confidence sequence.

    Whatever the truth, only one side can be wrong, so each bound has the whole error rate.
    """

    def __init__(self) -> None:
        self._sequence = ConfidenceSequence(ERROR_RATE)

    def update(self, accumulator: Accumulator, outputs: tuple[Tensor, ...]) -> None:
        self._sequence.add(accumulator.values(outputs))

    def met(self, accumulator: Accumulator) -> Tensor:
        sequence = self._sequence
        yes = (sequence.mean >= 0.5) & (sequence.center - sequence.radius > 0.5)
        no = (sequence.mean < 0.5) & (sequence.center + sequence.radius < 0.5)
        return _all(yes | no)

    def keep(self, rows: Tensor) -> None:
        self._sequence.keep(rows)


class _SettledClass:
    """The label: a confidence sequence on its probability less that of each other class, all of them above 0.

    The label at the first look is the candidate, and passes count from there. Where another class leads at a later
    look, it is the candidate from then on: its sequence begins anew, at half of the error rate of the one before, so
    that all of them together keep the rate. Between the rivals nothing has to be divided: a label is wrong only if the
    bound against the truly most probable class is.
    """

    def __init__(self, accumulator: Accumulator) -> None:
        self._task = accumulator.task
        self._candidate: Tensor | None = None  # (batch, ..., 1)
        self._sequence = ConfidenceSequence(ERROR_RATE / 2)
        self._sums: Tensor  # of the probabilities, classes last

    def update(self, accumulator: Accumulator, outputs: tuple[Tensor, ...]) -> None:
        probs = accumulator.values(outputs)
        probs = probs.movedim(self._task.axis(probs.ndim - 1) + 1, -1)
        sums = probs.sum(0, dtype=torch.float64)
        self._sums = self._sums + sums if hasattr(self, "_sums") else sums
        if self._candidate is not None:
            own = probs.gather(-1, self._candidate.expand(*probs.shape[:-1], 1))
            self._sequence.add((1 + own - probs) / 2)

    def met(self, accumulator: Accumulator) -> Tensor:
        leading = self._sums.argmax(-1, keepdim=True)
        if self._candidate is None:
            self._candidate = leading
            return torch.zeros(len(leading), dtype=torch.bool, device=leading.device)
        sequence = self._sequence
        is_ahead = sequence.center - sequence.radius > 0.5
        is_ahead = is_ahead.scatter(-1, self._candidate, True)  # of itself
        changed = leading != self._candidate
        settled = is_ahead.all(-1, keepdim=True) & ~changed
        self._candidate = leading
        sequence.restart(changed.expand_as(is_ahead))
        return _all(settled)

    def keep(self, rows: Tensor) -> None:
        self._sums = self._sums[rows]
        if self._candidate is not None:
            self._candidate = self._candidate[rows]
            self._sequence.keep(rows)


def _all(passed: Tensor) -> Tensor:
    """Of each row (batch, ...), whether all of its numbers passed."""
    return passed.flatten(1).all(1) if passed.ndim > 1 else passed
