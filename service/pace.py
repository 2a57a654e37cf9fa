"""What computing costs: predicted seconds of a model's prefix and passes, by number of rows.

A slice of work is what one model computes before others have their turn. Rows that are computed together are filled up
to one of a few batch sizes, powers of two: each new shape costs PyTorch memory, and these are measured before the first
request. What is measured while serving corrects the prediction by a factor for each shape of a row.
"""

import math
import time
from collections import OrderedDict
from collections.abc import Generator, Hashable, Sequence
from typing import Any

import torch

from mcdrop.predictor import MCDropout

SLICE_SECONDS = 0.05  # a person does not notice it, and PyTorch's cost per call disappears in it
MOST_ROWS = 256  # computed together: more gains nothing on the networks tried
_GUESS = 1e-4  # seconds for a row or a pass of it, before anything is known
JOINING = 1.5  # what is too long for a slice may take this much longer with more rows
_TURNS = 4  # of measuring a batch size
_SHAPES = 64  # of rows, whose factors are kept
_FACTOR = 1e6  # the most that a shape of rows costs more or less than another: predictions stay finite


class Pace:
    """Predicted seconds for one model."""

    def __init__(self) -> None:
        self._measured: dict[int, tuple[float, float]] = {}  # batch size -> seconds of its prefix, of a pass
        self._factors: OrderedDict[Hashable, float] = OrderedDict()

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """What rows are filled up to, ascending."""
        return tuple(self._measured) or (1,)

    @property
    def most_rows(self) -> int:
        """Rows that are computed together at most."""
        return self.batch_sizes[-1]

    def prefix(self, rows: int, shape: Hashable = None) -> float:
        """Predicted seconds of what is computed once for each of some rows."""
        return self._at(rows)[0] * self._factors.get(shape, 1.0)

    def each(self, rows: int, shape: Hashable = None) -> float:
        """Predicted seconds of one pass of some rows."""
        return self._at(rows)[1] * self._factors.get(shape, 1.0)

    def measure(self, rows: int, *, prefix: float, each: float) -> None:
        """Note what a batch size costs; sizes come in ascending order.

        Fewer rows cost no more than these: they could be filled up to as many.
        """
        cost = max(prefix, 0.0), max(each, 1e-9)
        for size, (known_prefix, known_each) in self._measured.items():
            self._measured[size] = min(known_prefix, cost[0]), min(known_each, cost[1])
        self._measured[rows] = cost

    def learn(self, predicted: float, seconds: float, *, shape: Hashable = None) -> None:
        """Take into account that what was predicted to take some seconds took others."""
        factor = self._factors.pop(shape, 1.0)
        ratio = min(max(seconds / max(predicted, 1e-9), 1e-3), 1e3)
        factor *= ratio**0.25 if 0.5 < ratio < 2 else ratio**0.5
        self._factors[shape] = min(max(factor, 1 / _FACTOR), _FACTOR)
        if len(self._factors) > _SHAPES:
            self._factors.popitem(last=False)

    def _at(self, rows: int) -> tuple[float, float]:
        if rows <= 0:
            return 0.0, 0.0
        if not self._measured:
            return _GUESS * rows, _GUESS * rows
        for size, seconds in self._measured.items():
            if size >= rows:
                return seconds
        most = self.most_rows
        prefix, each = self._measured[most]
        return prefix * rows / most, each * rows / most


def calibrate(mc: MCDropout, pace: Pace, example: Sequence[torch.Tensor]) -> Generator[None]:
    """Measure batch sizes, which warms them up too, until one pass fills a slice and more rows take as much more time.

    `example` has one row per input. The fastest of several turns counts: other processes make turns slower, and what is
    measured here decides for good how many requests are computed together.
    """
    size, before = 1, 0.0
    while size <= MOST_ROWS:
        inputs = tuple(
            x.repeat(size, *[1] * (x.ndim - 1)) if spec.batched else x
            for x, spec in zip(example, mc.signature.inputs, strict=True)
        )
        if size > 1 and len(mc.split(mc.start(inputs), 1)) == 1:
            return  # rows have to stay together
        began, each = math.inf, math.inf
        for turn in range(_TURNS):
            run = mc.start(inputs, num_samples=max(mc.num_samples, 2))
            first = _timed(mc, run, 1)
            yield
            passes = max(1, min(run.num_samples - 1, int(SLICE_SECONDS / 2 / max(first, 1e-6))))
            later = _timed(mc, run, passes) / passes
            yield
            if turn > 0:  # the first time is slower
                began, each = min(began, first), min(each, later)
        if began > max(SLICE_SECONDS / 2, JOINING * before) and size > 1:
            return
        pace.measure(size, prefix=began - each, each=each)
        size, before = 2 * size, began


def _timed(mc: MCDropout, run: Any, passes: int) -> float:
    """Seconds that the next passes of a run take."""
    started = time.perf_counter()
    mc.advance(run, passes)
    if mc.device.type == "cuda":
        torch.cuda.synchronize(mc.device)  # launched is not computed
    return time.perf_counter() - started


def power_of_two(number: float) -> int:
    """The greatest power of two that is at most this number, and at least 1."""
    return int(2 ** max(0, int(min(number, 2.0**30)).bit_length() - 1))
