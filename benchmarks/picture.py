"""The picture of a machine's results: how many times as long the baselines take, and time against rows and passes.

It needs matplotlib (`pip install '.[plot]'`), imported when something is drawn. The file says from which results it was
made, so that a test can tell whether it is theirs.
"""

import hashlib
from pathlib import Path
from typing import Any

from benchmarks.results import Result, Results

__all__ = ["digest", "draw"]

_COLOURS = {"mcdrop": "#0b6e4f", "loop": "#c1666b", "replicated": "#d4b483", "vmap": "#4281a4"}


def digest(source: Path) -> str:
    """What a picture of this file says of it."""
    return "sha256 " + hashlib.sha256(source.read_bytes()).hexdigest()


def draw(results: Results, target: Path, source: Path) -> None:
    """Draw the results of `source` as SVG."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(
        {"svg.hashsalt": "mcdrop", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    ):
        figure = Figure(figsize=(9, 8.2), layout="constrained")
        upper, lower = figure.subfigures(2, 1, height_ratios=[1.5, 1])
        _leads(upper.subplots(), results)
        if results.scaling:
            _growth(lower.subplots(1, 2, sharey=True), results)
        figure.savefig(target, format="svg", metadata={"Date": None, "Description": digest(source)})


def _leads(axes: Any, results: Results) -> None:
    """Bars from 1: the time of each baseline over that of a warm call; pale where it computes the wrong thing."""
    names = ["loop", "replicated", "vmap"]
    shown = list(reversed(results.results))
    height = 0.8 / len(names)
    for number, name in enumerate(names):
        for place, result in enumerate(shown):
            if name in result.seconds:
                axes.barh(
                    place + 0.4 - height * (number + 0.5),
                    result.lead(name) - 1,
                    height,
                    left=1,
                    color=_COLOURS[name],
                    alpha=0.35 if results.fault(result.case, name) else 1,
                )
        axes.barh(0, 0, left=1, color=_COLOURS[name], label=name)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_yticks(range(len(shown)), [f"{r.case}, B {r.rows}, T {r.num_samples}" for r in shown])
    axes.set_xlabel("time of the baseline / time of mcdrop, warm (pale: does not compute the right thing)")
    axes.legend(frameon=False, loc="lower right")


def _growth(both: Any, results: Results) -> None:
    """Lines: time against rows at one number of passes, and against passes at one number of rows."""
    for axes, along, fixed, label in zip(both, ("rows", "num_samples"), ("num_samples", "rows"), "BT", strict=True):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_xlabel({"B": "rows B", "T": "passes T"}[label])
        for case in dict.fromkeys(result.case for result in results.scaling):
            each = [result for result in results.scaling if result.case == case]
            common = _commonest([getattr(result, fixed) for result in each])
            line = sorted((r for r in each if getattr(r, fixed) == common), key=lambda r: getattr(r, along))
            for name, column in (("loop", "loop"), ("replicated", "replicated"), ("mcdrop", "warm")):
                axes.plot([getattr(r, along) for r in line], [_ms(r, column) for r in line],
                          marker="o", markersize=3, color=_COLOURS[name], label=name)  # fmt: skip
            axes.set_title(f"{case}, {'T' if label == 'B' else 'B'} = {common}", fontsize=9)
    both[0].set_ylabel("milliseconds")
    both[0].legend(frameon=False)


def _commonest(values: list[int]) -> int:
    return max(sorted(set(values)), key=values.count)


def _ms(result: Result, column: str) -> float:
    return 1000 * result.seconds[column]
