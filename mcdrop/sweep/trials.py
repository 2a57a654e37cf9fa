"""What a sweep over dropout rates found: trials, and what they say together.

A trial is one network, trained with one rate and one seed. Trials of different rates with the same seed start from the
same weights and see the same batches, so rates are compared seed by seed, and what the seeds share cancels. All
standard errors are over seeds (ddof 1): they say how much a repetition with other seeds would differ, and nothing about
other validation data.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from mcdrop.sweep.troubles import LEAST_EPOCHS, Trouble, no_gain, noisy, not_converging, still_overfitting
from mcdrop.training import History

__all__ = ["Estimate", "Score", "Sweep", "Trial", "estimate"]


@dataclass(frozen=True)
class Score:
    """How good predictions are: negative log likelihood in nats per target, and accuracy (0 to 1) or RMSE."""

    nll: float
    measure: float


@dataclass(frozen=True)
class Trial:
    """One trained network; `mc` is None where it has no active dropout."""

    rate: float
    seed: int
    history: History
    deterministic: Score
    mc: Score | None

    @property
    def score(self) -> Score:
        """Of the prediction that one would use: MC where there is dropout."""
        return self.mc or self.deterministic


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its standard error."""

    mean: float
    standard_error: float

    @property
    def clear(self) -> bool:
        """Whether it is more than two standard errors away from 0."""
        return abs(self.mean) > 2 * self.standard_error


def estimate(values: Sequence[float] | Float[np.ndarray, " seeds"]) -> Estimate:
    """Mean and standard error of at least two independent values."""
    array = np.asarray(values, dtype=np.float64)
    return Estimate(float(array.mean()), float(array.std(ddof=1) / math.sqrt(len(array))))


@dataclass(frozen=True)
class Sweep:
    """All trials.

    Attributes:
        task: what the outputs mean.
        measure: "accuracy" or "rmse", the second number of each score.
        num_samples: passes of each MC prediction.
        ignorant: training loss of the best answer that ignores the input.
        rates: in the order in which they were asked for.
        trials: by rate, then by seed.
    """

    task: str
    measure: str
    num_samples: int
    ignorant: float
    rates: tuple[float, ...]
    trials: tuple[Trial, ...]

    def of(self, rate: float) -> tuple[Trial, ...]:
        """The trials of one rate, by seed."""
        return tuple(trial for trial in self.trials if trial.rate == rate)

    def training_loss(self, rate: float) -> Float[np.ndarray, "seeds epochs"]:
        return np.array([[epoch.training_loss for epoch in trial.history.epochs] for trial in self.of(rate)])

    def validation_loss(self, rate: float) -> Float[np.ndarray, "seeds epochs"]:
        return np.array(
            [[epoch.validation_loss for epoch in trial.history.epochs] for trial in self.of(rate)], dtype=np.float64
        )

    def nll(self, rate: float) -> Float[np.ndarray, " seeds"]:
        """Of the prediction that one would use."""
        return np.array([trial.score.nll for trial in self.of(rate)])

    @property
    def best(self) -> float:
        """The rate with the lowest mean NLL."""
        return min(self.rates, key=lambda rate: float(self.nll(rate).mean()))

    def behind(self, rate: float) -> Estimate:
        """By how much the NLL of `rate` is above that of the best rate, seed by seed."""
        return estimate(self.nll(rate) - self.nll(self.best))

    @property
    def judged(self) -> bool:
        """Whether the curves are long enough to be judged."""
        return len(self.trials[0].history.epochs) >= LEAST_EPOCHS

    def troubles(self, rate: float) -> tuple[Trouble, ...]:
        """What the curves of one rate show; nothing where they are too short."""
        if not self.judged:
            return ()
        training, validation = self.training_loss(rate), self.validation_loss(rate)
        found = (
            not_converging(training, validation, ignorant=self.ignorant),
            noisy(validation),
            still_overfitting(training, validation),
        )
        return tuple(trouble for trouble in found if trouble is not None)

    def gain(self) -> Trouble | None:
        """Whether dropout brings anything, where rate 0 is there to compare with."""
        above = [rate for rate in self.rates if rate > 0]
        if 0 not in self.rates or not above:
            return None
        best = min(above, key=lambda rate: float(self.nll(rate).mean()))
        return no_gain(self.nll(0) - self.nll(best))

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON."""
        none = self.gain()
        return {
            "task": self.task,
            "measure": self.measure,
            "num_samples": self.num_samples,
            "seeds": [trial.seed for trial in self.of(self.rates[0])],
            "rates": [self._rate_to_dict(rate) for rate in self.rates],
            "best": self.best,
            "judged": self.judged,
            "troubles": [] if none is None else [vars(none)],
        }

    def _rate_to_dict(self, rate: float) -> dict[str, Any]:
        trials = self.of(rate)
        behind = self.behind(rate)
        return {
            "rate": rate,
            "training_loss": self.training_loss(rate).tolist(),
            "validation_loss": self.validation_loss(rate).tolist(),
            "deterministic": _scores_to_dict([trial.deterministic for trial in trials], self.measure),
            "mc": _scores_to_dict([trial.mc for trial in trials], self.measure),
            "nll_behind_best": None if rate == self.best else {**vars(behind), "clear": behind.clear},
            "troubles": [vars(trouble) for trouble in self.troubles(rate)],
        }


def _scores_to_dict(scores: Sequence[Score | None], measure: str) -> dict[str, Any] | None:
    known = [score for score in scores if score is not None]
    if not known:
        return None
    columns = {"nll": [score.nll for score in known], measure: [score.measure for score in known]}
    return {name: {"by_seed": values, **vars(estimate(values))} for name, values in columns.items()}
