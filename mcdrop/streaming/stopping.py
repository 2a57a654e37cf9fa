"""When a row has had enough passes: rules, and the numbers of passes after which they are looked at.

A rule is looked at after fixed numbers of passes, multiples of 16, and at the maximum: so an answer does not depend on
chunks, neighbours or load. Each row is judged by itself, and all of its numbers have to pass. The rules, at 95 % for
each number:

    tolerance                 half-width of `mean`, sqrt(z^2 s^2 / n + (r log 20 / n)^2), at most the tolerance (after
                              Chow & Robbins 1965; asymptotic), with s^2 the variance over n passes. z = 2.24: each
                              look may be wrong in 2.5 %, and the rest of the 5 % pays for looking often, that is for
                              stopping when s^2 is small by luck. r is the range of the number; where all passes agree,
                              log 20 r / tolerance of them are enough: a jump which they all missed, at 5 %, moves the
                              mean by less than the tolerance (the rule of three). The range of probabilities is 1; of
                              other numbers it is the one seen so far, and n >= 64, of which a jump of 1 pass in 20 is
                              missed with probability 0.04. Looked at as soon as a row can stop, and then each time
                              after an eighth more (at a tolerance of 0.02: 160, 192, 224, 256, 288, 336, ...).
    tolerance, certified      the reported mean is nowhere further than the tolerance from a bound of a confidence
                              sequence (mcdrop.streaming.sequences), which holds for any n; probabilities only.
    until="label"             the label is that of infinitely many passes, by a confidence sequence. Both are looked at
                              after 16 passes and then each time a quarter more (16, 32, 48, 64, 80, 112, 144, ...).

An answer that stops early guarantees this and no more: it stops when the spread happens to be small, so its variance
and mutual information are too low on average.
"""

import math
from dataclasses import dataclass
from numbers import Real
from statistics import NormalDist
from typing import Any, Literal

from mcdrop.errors import SettingError
from mcdrop.outputs.tasks import Task

__all__ = ["ERROR_RATE", "STEP", "UNSEEN", "Rule", "Until", "Z", "looks", "read_rule"]

Until = Literal["label"]

STEP = 16  # passes: looks are at its multiples
ERROR_RATE = 0.05  # of each number
Z = NormalDist().inv_cdf(1 - ERROR_RATE / 4)  # of a half-width at one look: two sides of half of the error rate
UNSEEN = math.log(1 / ERROR_RATE)  # over n: the probability of what n passes do not show (the rule of three)
_LEAST_OF_VALUES = 64  # passes before numbers without bounds are judged
_MANY = 2**62  # more passes than there ever are
_PROBABILITIES = ("classification", "binary", "multilabel")
_INDEPENDENT = ("shared", "independent")  # mask modes whose passes are independent, as confidence sequences need them


def looks(maximum: int, first: int = STEP, part: int = 4) -> tuple[int, ...]:
    """The numbers of passes after which a rule is looked at, ascending; the last is the maximum.

    `first`, then each time one `part`-th more, all rounded up to multiples of 16.
    """
    counts, count = [], STEP * -(-first // STEP)
    while count < maximum:
        counts.append(count)
        count += STEP * -(-count // (part * STEP))
    return (*counts, maximum)


@dataclass(frozen=True)
class Rule:
    """When a row stops. Exactly one of `tolerance` and `until` is given.

    Attributes:
        maximum: passes after which every row stops.
        tolerance: largest half-width of the numbers of `mean`, in the unit of the output.
        certified: whether by a confidence sequence.
        until: "label", or None.
        task: name of the task.
    """

    maximum: int
    tolerance: float | None = None
    certified: bool = False
    until: Until | None = None
    task: str = "classification"

    @property
    def bounded(self) -> bool:
        """Whether the numbers of `mean` are probabilities."""
        return self.task in _PROBABILITIES

    @property
    def is_sequence(self) -> bool:
        """Whether it goes by a confidence sequence."""
        return self.certified or self.until is not None

    @property
    def least(self) -> int:
        """Passes before which no row can stop, whatever they say."""
        if self.tolerance is None:  # bounds of the difference, as a number in [0, 1], less than 1/2 apart from it
            return 2 * STEP if self.task == "classification" else STEP
        if not self.bounded:
            return _LEAST_OF_VALUES
        width = 2 * math.log(2 / ERROR_RATE) if self.certified else UNSEEN  # certified: at the largest weight, 1/2
        return math.ceil(min(width / self.tolerance, _MANY))

    @property
    def looks(self) -> tuple[int, ...]:
        """Where to look: at numbers that can matter."""
        if not self.is_sequence:
            return looks(self.maximum, self.least, 8)
        first = STEP if self.until == "label" else self.least
        return tuple(count for count in looks(self.maximum) if count >= first)


def read_rule(
    task: Task, *, tolerance: Any, certified: Any, until: Any, maximum: int, masks: str, kept: bool
) -> Rule | None:
    """The rule of a prediction's arguments, None where all passes are wanted; `kept`: samples or quantiles are.

    Raises:
        SettingError: arguments that make no sense together, or for this task.
    """
    if not isinstance(certified, bool):
        raise SettingError(f"certified is {certified!r}; expected True or False.")
    if tolerance is None and until is None:
        if certified:
            raise SettingError("certified=True says how a tolerance is kept, and there is none: give tolerance too.")
        return None
    if tolerance is not None and until is not None:
        raise SettingError("tolerance and until are two rules to stop by; give one of them.")
    if kept:
        raise SettingError(
            "rows that stop by a rule have different numbers of passes, so samples and quantiles have no common shape. "
            "Leave them out, or leave out tolerance and until."
        )
    rule = (
        _read_until(task, until, certified, maximum)
        if tolerance is None
        else _read_tolerance(task, tolerance, certified, maximum)
    )
    if rule.is_sequence and masks not in _INDEPENDENT:
        raise SettingError(
            f"masks={masks!r} makes passes depend on one another, and a confidence sequence takes independent ones. "
            "Use masks='shared', or a tolerance that is not certified."
        )
    if maximum < rule.least:
        what = 'until="label"' if tolerance is None else f"tolerance={tolerance}"
        raise SettingError(
            f"{what} takes at least {rule.least} passes, even where they all agree, and num_samples={maximum} is the "
            "most that a row may have. Raise num_samples; rows that need fewer stop earlier."
        )
    return rule


def _read_until(task: Task, until: Any, certified: bool, maximum: int) -> Rule:
    if until != "label":
        raise SettingError(f'until is {until!r}; expected "label", or tolerance= for the mean.')
    if task.name not in _PROBABILITIES:
        raise SettingError(f'until="label" is for {", ".join(_PROBABILITIES)}; a {task.name} prediction has no label.')
    if certified:
        raise SettingError(
            'until="label" goes by a confidence sequence anyway; certified is for tolerance. Leave it out.'
        )
    return Rule(maximum, until="label", task=task.name)


def _read_tolerance(task: Task, tolerance: Any, certified: bool, maximum: int) -> Rule:
    is_number = isinstance(tolerance, Real) and not isinstance(tolerance, bool)
    if not is_number or not 0 < tolerance < math.inf:
        raise SettingError(f"tolerance is {tolerance!r}; expected a half-width above 0, in the unit of the output.")
    if certified and task.name not in _PROBABILITIES:
        raise SettingError(
            f"certified=True takes numbers whose bounds are known, as probabilities are; a {task.name} prediction has "
            "none. Leave it out: tolerance alone holds asymptotically."
        )
    return Rule(maximum, tolerance=float(tolerance), certified=certified, task=task.name)
