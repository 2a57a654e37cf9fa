"""Measuring a case: everything in turn, round after round, so that a machine that drifts drifts for all alike."""

import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from benchmarks import memory
from benchmarks.baselines import Sample, Way, baselines, moments
from benchmarks.cases import Case, Point
from benchmarks.floor import computed, floor, product
from benchmarks.results import CaseResult, MemoryResult, Result
from benchmarks.verdicts import first_line, references, verdict
from mcdrop import MCDropout

__all__ = ["captured", "in_turn", "judge", "measure", "measure_memory", "ours", "timed"]

LEAST = 0.25  # seconds that one measurement lasts at least: faster calls are repeated, or they would find cold caches
_SLOW, _FEW = 0.5, 3  # calls of so many seconds are measured in so many rounds: they vary less, and minutes count

Calls = dict[str, Callable[[], object]]


def captured(case: Case, model: nn.Module, inputs: Tensor, num_samples: int = 2) -> MCDropout:
    """The network of a case as mcdrop has it."""
    return MCDropout(model, inputs, task="classification", num_samples=num_samples, engine="graph", **case.keywords)


def measure(case: Case, point: Point) -> Result:
    """One case at one point beside its baselines: time, memory, operations."""
    result = timed(case, point, baselines())
    peak = memory.in_fresh_process(_peaks, case, point, [name for name in baselines() if name not in result.failed])
    return Result(**{**vars(result), "peak": peak})


def timed(
    case: Case, point: Point, ways: Mapping[str, Way], *, rounds: int | None = None, least: float = LEAST
) -> Result:
    """Times and operations of one case at one point beside these baselines."""
    model, inputs = case.network.build(point.rows)
    mc = captured(case, model, inputs, point.num_samples)
    seconds = {"first": _seconds(lambda: mc(inputs), 1)}
    operations = computed(lambda: mc(inputs))
    seeds = itertools.count(1)
    calls: Calls = {
        "warm": lambda: mc(inputs),
        "new seed": lambda: mc(inputs, seed=next(seeds)),
        "one pass": _without_gradients(lambda: model(inputs)),
        "product": product(),
    }
    failed = {}
    for name, way in ways.items():
        try:
            call = _prediction(case, way(model), inputs, point.num_samples)
            call()
        except Exception as error:  # another library's, or an operation that cannot be mapped: told in the results
            failed[name] = first_line(error)
        else:
            calls[name] = call
    rounds = case.rounds if rounds is None else rounds
    times = in_turn(calls, rounds=rounds, least=least)
    seconds |= {name: statistics.median(each) for name, each in times.items()}
    return Result(case.name, *point, rounds, seconds, operations=operations, failed=failed)


def judge(case: Case) -> CaseResult:
    """The floor of a case, and whether each way to sample it is right."""
    truth = references(case)
    ways = {"mcdrop": ours(case)} | baselines()
    return CaseResult(case.name, floor(case), {name: verdict(case, way, truth) for name, way in ways.items()})


def ours(case: Case) -> Way:
    def way(model: nn.Module) -> Sample:
        mc = captured(case, model, case.twin.build(2)[1])
        seeds = itertools.count()
        return lambda inputs, num_samples: mc.sample(inputs, num_samples=num_samples, seed=next(seeds))

    return way


def _prediction(case: Case, sample: Sample, inputs: Tensor, num_samples: int) -> Callable[[], object]:
    return _without_gradients(lambda: moments(sample(inputs, num_samples), case.class_axis))


def _without_gradients(call: Callable[[], object]) -> Callable[[], object]:
    return torch.no_grad()(call)


def _peaks(case: Case, point: Point, names: list[str]) -> dict[str, float]:
    model, inputs = case.network.build(point.rows)
    mc = captured(case, model, inputs, point.num_samples)
    peaks = {"mcdrop": memory.growth(lambda: mc(inputs))}
    for name in names:
        call = _prediction(case, baselines()[name](model), inputs, point.num_samples)
        peaks[name] = memory.growth(call)
    return peaks


def in_turn(calls: Mapping[str, Callable[[], object]], *, rounds: int, least: float = LEAST) -> dict[str, list[float]]:
    """Seconds of each call in each round, after a warm-up. Slow calls take part in the first three rounds."""
    numbers, most = {}, {}
    for name, call in calls.items():
        seconds = _seconds(call, 1)
        numbers[name] = 1 if seconds > 10 * least else max(1, math.ceil(least / _seconds(call, 1)))
        most[name] = min(_FEW, rounds) if seconds > _SLOW else rounds
    found: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds):
        for name, call in calls.items():
            if turn < most[name]:
                found[name].append(_seconds(call, numbers[name]))
    return found


def _seconds(call: Callable[[], object], number: int) -> float:
    begin = time.perf_counter()
    for _ in range(number):
        call()
    return (time.perf_counter() - begin) / number


def measure_memory(case: Case) -> MemoryResult:
    """How far resident memory grows during the first prediction of a case."""
    (point,) = case.points
    model, inputs = case.network.build(point.rows)
    outputs = model(inputs).numel()
    mc = captured(case, model, inputs, point.num_samples)
    begin = time.perf_counter()
    grown = memory.growth(lambda: mc(inputs))
    return MemoryResult(
        case=case.name,
        rows=point.rows,
        num_samples=point.num_samples,
        seconds=time.perf_counter() - begin,
        max_memory=case.keywords["max_memory"] / 2**20,
        growth=grown,
        samples=outputs * 4 * point.num_samples / 2**20,
    )
