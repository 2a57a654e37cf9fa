"""Streaming statistics of each task: an accumulator takes passes in any order and answers with a Prediction.

Two accumulators of different passes merge. Standard errors, on request: of means s/sqrt(N), for quantities between 0
and 1 sqrt((s^2 + 1/N)/N), which is never 0 by luck; of variances from the fourth moment; of the entropies from a
jackknife over 16 groups of passes (index modulo 16; each pass by itself below 16). They are those of one row. With
shared masks the errors of rows go together, so that an average over rows does not become more exact with more rows.

Passes of balanced masks depend on one another within a block. Groups are then made of whole blocks, and standard errors
of means and variances come from the spread of the groups too (mcdrop.streaming.block_sums); there are none, NaN, until
a second block has begun.
"""

from collections.abc import Sequence

from mcdrop.outputs.tasks import Task
from mcdrop.statistics import check_levels
from mcdrop.streaming.accumulator import Accumulator, check_passes
from mcdrop.streaming.probability_moments import BinaryAccumulator, ClassAccumulator
from mcdrop.streaming.value_moments import (
    HeteroscedasticAccumulator,
    IntegratedAccumulator,
    RawAccumulator,
    RegressionAccumulator,
)

__all__ = ["Accumulator", "accumulator", "check_passes"]

_ACCUMULATORS: dict[str, type[Accumulator]] = {
    "classification": ClassAccumulator,
    "binary": BinaryAccumulator,
    "multilabel": BinaryAccumulator,
    "regression": RegressionAccumulator,
    "heteroscedastic": HeteroscedasticAccumulator,
    "raw": RawAccumulator,
}


def accumulator(
    task: Task,
    *,
    num_samples: int,
    standard_errors: bool = False,
    quantiles: Sequence[float] = (),
    samples: bool = False,
    block: int = 1,
    integrated: bool = False,
) -> Accumulator:
    """An empty accumulator for `num_samples` passes.

    Args:
        standard_errors: keep what the predictions' standard errors need.
        quantiles: levels between 0 and 1; keeps all samples.
        samples: keep the model's own outputs.
        block: passes, from a multiple of that on, that depend on one another, as with balanced masks.
        integrated: the passes of a regression give mean and variance over the last dropout.

    Raises:
        SettingError: fewer than two passes, or a level that is none.
    """
    check_levels(quantiles)
    check_passes(num_samples)
    kind = IntegratedAccumulator if integrated else _ACCUMULATORS[task.name]
    return kind(task, num_samples, standard_errors, tuple(quantiles), samples, block)
