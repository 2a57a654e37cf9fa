"""Results as plain text, and what they were measured on."""

import platform
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

import mcdrop
from benchmarks.cases import CASES, Point
from benchmarks.results import CaseResult, MemoryResult, Result, Results

__all__ = ["conditions", "milliseconds", "ratio", "table", "text"]

Columns = Mapping[str, Callable[[Any], str]]

MEMORY: Columns = {
    "case": lambda r: r.case,
    "T": lambda r: str(r.num_samples),
    "B": lambda r: str(r.rows),
    "first s": lambda r: f"{r.seconds:.1f}",
    "max_memory MiB": lambda r: f"{r.max_memory:.0f}",
    "growth MiB": lambda r: f"{r.growth:.0f}",
    "all samples MiB": lambda r: f"{r.samples:.0f}",
}


def text(results: Results) -> str:
    """Every table, the verdicts, and what falls short of its target."""
    parts: list[str] = []
    if results.results:
        parts += [
            "milliseconds, medians:\n" + table(_times(results.results), results.results),
            "ratios to mcdrop's warm calls, and to the floor:\n" + table(_ratios(results), results.results),
            "growth of memory in the first call, MiB:\n" + table(_peaks(results.results), results.results),
        ]
    if results.scaling:
        parts.append("scaling, milliseconds:\n" + table(_times(results.scaling), results.scaling))
    parts += [line for case in results.cases for line in _verdicts(case)]
    parts += _targets(results)
    if results.memory:
        parts.append(table(MEMORY, results.memory))
    return "\n\n".join(parts)


def table(columns: Columns, results: Sequence[Result | MemoryResult]) -> str:
    """Results below the names of their columns; the first column flush left."""
    lines = [list(columns), *([cell(result) for cell in columns.values()] for result in results)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(columns))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    )


_POINT: Columns = {"case": lambda r: r.case, "T": lambda r: str(r.num_samples), "B": lambda r: str(r.rows)}


def _times(results: Sequence[Result]) -> Columns:
    names = ["first", "warm", "new seed", *_baselines(results), "one pass", "product"]
    return {**_POINT, **{name: lambda r, n=name: milliseconds(r.seconds.get(n)) for name in names}}


def _ratios(results: Results) -> Columns:
    def shown(name: str) -> Callable[[Result], str]:
        return lambda result: ratio(results.quantity(result, name))

    names = [*_baselines(results.results), "one pass", "floor", "saved"]
    return {
        **_POINT,
        **{name: shown(name) for name in names},
        "loop/new seed": lambda r: ratio(r.lead("loop", "new seed") if "loop" in r.seconds else None),
    }


def _peaks(results: Sequence[Result]) -> Columns:
    names = ["mcdrop", *_baselines(results)]
    return {**_POINT, **{n: lambda r, n=n: f"{r.peak[n]:.0f}" if n in r.peak else "-" for n in names}}


def _baselines(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(name for result in results for name in result.baselines))


def _verdicts(case: CaseResult) -> list[str]:
    wrong = [f"  {name}: {fault}" for name, fault in case.verdicts.items() if fault]
    return [f"{case.case}: not right are\n" + "\n".join(wrong)] if wrong else []


def _targets(results: Results) -> list[str]:
    targets = {case.name: case.points for case in CASES}
    found = []
    for result in results.results:
        for name, least in targets[result.case].get(Point(result.rows, result.num_samples), {}).items():
            value = results.quantity(result, name)
            said = "reached" if value is not None and value >= least else "NOT reached"
            found.append(
                f"{result.case}, B {result.rows}, T {result.num_samples}: {name} {ratio(value)}, "
                f"target {ratio(least)} {said}"
            )
    return ["\n".join(found)] if found else []


def conditions() -> dict[str, str | int]:
    """What the numbers depend on besides the code."""
    return {
        "mcdrop": mcdrop.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "cpu": _cpu(),
    }


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo") as facts:
            return next(line.split(":", 1)[1].strip() for line in facts if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def milliseconds(seconds: float | None) -> str:
    """Three digits."""
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.3g}" if seconds < 1 else f"{seconds * 1000:.0f}"


def ratio(value: float | None) -> str:
    """Two digits below 10, whole numbers above."""
    if value is None:
        return "-"
    return f"{value:.2g}" if abs(value) < 1 else f"{value:.1f}" if value < 10 else f"{value:.0f}"
