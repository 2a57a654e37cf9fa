"""Results as plain text, and as JSON with what they were measured on."""

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

import mcdrop
from benchmarks.measure import MemoryResult, SpeedResult

__all__ = ["MEMORY", "SPEED", "as_json", "conditions", "table"]

SPEED: Mapping[str, Callable[[SpeedResult], str]] = {
    "case": lambda r: r.case,
    "T": lambda r: str(r.num_samples),
    "B": lambda r: str(r.rows),
    "loop ms": lambda r: _milliseconds(r.loop),
    "replicated ms": lambda r: _milliseconds(r.replicated),
    "first ms": lambda r: _milliseconds(r.first),
    "warm ms": lambda r: _milliseconds(r.warm),
    "new seed ms": lambda r: _milliseconds(r.new_seed),
    "loop/warm": lambda r: _times(r.to_loop),
    "target": lambda r: "" if r.target is None else f"{r.target:g}",
    "loop/new seed": lambda r: _times(r.to_loop_new_seed),
    "replicated/warm": lambda r: _times(r.to_replicated),
    "peak MiB": lambda r: f"{r.peak:.1f}",
    "replicated's MiB": lambda r: f"{r.peak_replicated:.1f}",
}
MEMORY: Mapping[str, Callable[[MemoryResult], str]] = {
    "case": lambda r: r.case,
    "T": lambda r: str(r.num_samples),
    "B": lambda r: str(r.rows),
    "first s": lambda r: f"{r.seconds:.1f}",
    "max_memory MiB": lambda r: f"{r.max_memory:.0f}",
    "growth MiB": lambda r: f"{r.growth:.0f}",
    "limit MiB": lambda r: f"{r.limit:.0f}",
    "all samples MiB": lambda r: f"{r.samples:.0f}",
}


def table(columns: Mapping[str, Callable[[Any], str]], results: Sequence[SpeedResult | MemoryResult]) -> str:
    """Results below the names of their columns; the first column flush left."""
    lines = [list(columns), *([cell(result) for cell in columns.values()] for result in results)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(columns))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    )


def conditions() -> dict[str, str | int]:
    """What the numbers depend on besides the code."""
    return {
        "mcdrop": mcdrop.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "cpu": _cpu(),
    }


def as_json(results: Sequence[SpeedResult | MemoryResult]) -> dict[str, Any]:
    """Everything measured, in seconds and MiB."""
    return {"conditions": conditions(), "results": [asdict(result) for result in results]}


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo") as facts:
            return next(line.split(":", 1)[1].strip() for line in facts if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.3g}" if seconds < 1 else f"{seconds * 1000:.0f}"


def _times(ratio: float) -> str:
    return f"{ratio:.1f}" if ratio < 10 else f"{ratio:.0f}"
