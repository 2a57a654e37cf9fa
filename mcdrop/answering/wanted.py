"""What one prediction is asked for: its passes and their noise, what it has to contain, and when its rows may stop."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Self

from mcdrop.answering.arguments import check_masks, check_num_samples, check_seed
from mcdrop.answering.runs import Sink
from mcdrop.errors import SettingError
from mcdrop.modes import LastLayer, block_length
from mcdrop.outputs.tasks import Task
from mcdrop.statistics import check_levels
from mcdrop.streaming.adaptive import AdaptiveSink
from mcdrop.streaming.moments import accumulator, check_passes
from mcdrop.streaming.stopping import Rule, Until, read_rule

__all__ = ["Passes", "Wanted", "check_drawn"]


@dataclass(frozen=True)
class Passes:
    """How many passes, or of rows that may stop the most, and the noise that they draw."""

    num_samples: int
    seed: int
    masks: str

    @classmethod
    def read(cls, num_samples: Any, seed: Any, masks: Any) -> Self:
        """Raises SettingError where one of them makes no sense."""
        check_num_samples(num_samples)
        check_seed(seed)
        check_masks(masks)
        return cls(int(num_samples), int(seed), masks)


@dataclass(frozen=True)
class Wanted:
    """What a prediction has to contain, and when its rows may stop; `MCDropout.__call__` explains each.

    `exact`: to be computed by itself, so that its bits are always the same.
    """

    standard_errors: bool = False
    quantiles: tuple[float, ...] = ()
    samples: bool = False
    tolerance: float | None = None
    certified: bool = False
    until: Until | None = None
    exact: bool = False

    def rule(self, task: Task, passes: Passes, last_layer: LastLayer) -> Rule | None:
        """By which rows stop, None where all take every pass.

        Checks everything that is asked for here, since errors belong to the caller and not to the thread that computes.

        Raises:
            SettingError: something that makes no sense, or that this model cannot give.
        """
        for asked, given in (("samples", self.samples), ("quantiles", self.quantiles)):
            if given:
                check_drawn(asked, last_layer)
        check_levels(self.quantiles)
        check_passes(passes.num_samples, block_length(passes.masks) if self.standard_errors else 1)
        return read_rule(
            task, tolerance=self.tolerance, certified=self.certified, until=self.until, maximum=passes.num_samples,
            masks=passes.masks, kept=self.samples or bool(self.quantiles),
        )  # fmt: skip

    def kind(self, rule: Rule | None) -> Hashable:
        """What runs have in common that may be computed as one."""
        return self.standard_errors, self.quantiles, self.samples, rule

    def sink(self, task: Task, passes: Passes, last_layer: LastLayer, rule: Rule | None) -> Sink:
        """What takes the passes and makes the prediction of them."""
        sums = accumulator(
            task,
            num_samples=passes.num_samples,
            standard_errors=self.standard_errors,
            quantiles=self.quantiles,
            samples=self.samples,
            block=block_length(passes.masks),
            integrated=last_layer == "exact",
        )
        return sums if rule is None else AdaptiveSink(rule, sums)


def check_drawn(asked: str, last_layer: LastLayer) -> None:
    """Refuse what takes the outputs of single passes where there are none."""
    if last_layer == "exact":
        raise SettingError(
            f'{asked}: with last_layer="exact" the last dropout is integrated and not drawn, so there are no '
            'outputs of single passes. Use last_layer="sampled" for them.'
        )
