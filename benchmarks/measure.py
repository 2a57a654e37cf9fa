"""Measuring a case: everything in turn, round after round, so that a machine that drifts drifts for all alike."""

import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from benchmarks import memory
from benchmarks.baselines import replicated, train_mode, train_mode_loop
from benchmarks.cases import Case
from mcdrop import MCDropout

__all__ = ["MemoryResult", "SpeedResult", "in_turn", "measure_memory", "measure_speed"]

ROUNDS = 7
_LEAST = 0.02  # seconds that one measurement lasts at least; calls that are faster are repeated


@dataclass(frozen=True)
class SpeedResult:
    """Seconds of one prediction (medians but for `first`), MiB of memory, and ratios to the baselines."""

    case: str
    rows: int
    num_samples: int
    loop: float
    replicated: float
    first: float
    warm: float
    new_seed: float
    to_loop: float
    to_loop_new_seed: float
    to_replicated: float
    peak: float
    peak_replicated: float
    target: float | None


@dataclass(frozen=True)
class MemoryResult:
    """Seconds and MiB of one prediction: growth of resident memory, what it may be, and the size of all samples."""

    case: str
    rows: int
    num_samples: int
    seconds: float
    max_memory: float
    growth: float
    limit: float
    samples: float


def measure_speed(case: Case, *, rounds: int = ROUNDS, least: float = _LEAST) -> SpeedResult:
    """Speed of a case beside its baselines."""
    model, inputs = case.build()
    training, passes = train_mode(model), case.num_samples
    mc = MCDropout(model, inputs, task="classification", num_samples=passes, **case.keywords)
    begin = time.perf_counter()
    mc(inputs)
    first = time.perf_counter() - begin
    seeds = itertools.count(1)
    calls: dict[str, Callable[[], object]] = {
        "loop": lambda: train_mode_loop(training, inputs, passes),
        "replicated": lambda: replicated(training, inputs, passes),
        "warm": lambda: mc(inputs),
        "new_seed": lambda: mc(inputs, seed=next(seeds)),
    }
    seconds = {name: statistics.median(each) for name, each in in_turn(calls, rounds=rounds, least=least).items()}
    return SpeedResult(
        case=case.name,
        rows=case.rows,
        num_samples=passes,
        first=first,
        to_loop=seconds["loop"] / seconds["warm"],
        to_loop_new_seed=seconds["loop"] / seconds["new_seed"],
        to_replicated=seconds["replicated"] / seconds["warm"],
        peak=memory.growth(calls["warm"]),
        peak_replicated=memory.growth(calls["replicated"]),
        target=case.target,
        **seconds,
    )


def in_turn(
    calls: Mapping[str, Callable[[], object]], *, rounds: int = ROUNDS, least: float = _LEAST
) -> dict[str, list[float]]:
    """Seconds of each call in each round, after a warm-up; each round measures every call once."""
    numbers = {}
    for name, call in calls.items():
        call()
        numbers[name] = max(1, math.ceil(least / _seconds(call, 1)))
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            found[name].append(_seconds(call, numbers[name]))
    return found


def _seconds(call: Callable[[], object], number: int) -> float:
    begin = time.perf_counter()
    for _ in range(number):
        call()
    return (time.perf_counter() - begin) / number


def measure_memory(case: Case) -> MemoryResult:
    """How far resident memory grows during the first prediction of a case."""
    model, inputs = case.build()
    outputs = model(inputs).numel()
    mc = MCDropout(model, inputs, task="classification", num_samples=case.num_samples, **case.keywords)
    begin = time.perf_counter()
    grown = memory.growth(lambda: mc(inputs))
    return MemoryResult(
        case=case.name,
        rows=case.rows,
        num_samples=case.num_samples,
        seconds=time.perf_counter() - begin,
        max_memory=case.keywords["max_memory"] / 2**20,
        growth=grown,
        limit=case.growth or math.inf,
        samples=outputs * 4 * case.num_samples / 2**20,
    )
