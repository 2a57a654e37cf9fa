"""`python -m benchmarks.readme`: puts a machine's results into the README, between two comments, and draws them.

What stands there, down to the sentence about where mcdrop is slower, is made from the file, and a test holds the README
to it.
"""

import argparse
import importlib.util
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from benchmarks.cases import CASES
from benchmarks.guard import COMMITTED
from benchmarks.picture import draw
from benchmarks.report import milliseconds, ratio
from benchmarks.results import Result, Results, load

__all__ = ["BEGIN", "END", "PICTURE", "README", "main", "placed", "section"]

ROOT = Path(__file__).parents[1]
README, PICTURE = ROOT / "README.md", ROOT / "docs" / "speed.svg"
BEGIN, END = "<!-- made by python -m benchmarks.readme -->", "<!-- end of what it makes -->"
_TITLES = {case.name: case.title for case in CASES}
_WRONG = "†"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the section and the picture."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readme", description=__doc__.split(": ", 1)[1])
    parser.parse_args(arguments)
    if importlib.util.find_spec("matplotlib") is None:
        parser.error("the picture takes matplotlib: pip install '.[plot]'. Nothing was written.")
    results = load(COMMITTED)
    README.write_text(placed(README.read_text(encoding="utf-8"), section(results)), encoding="utf-8")
    draw(results, PICTURE, COMMITTED)
    return 0


def placed(page: str, text: str) -> str:
    """The page with this text between the two comments."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}"


def section(results: Results) -> str:
    """What the README says about speed."""
    return "\n\n".join(
        part
        for part in (
            _opening(results),
            _table(results),
            "![How many times as fast as each baseline mcdrop is; time against rows and passes](docs/speed.svg)",
            _slower(results),
            _wrong(results),
            _saved(results),
        )
        if part
    )


def _opening(results: Results) -> str:
    facts = results.conditions
    others = [
        f"{name} {facts[name]}" if facts[name] != "not installed" else f"{name} not installed"
        for name in ("baal", "torch-uncertainty")
    ]
    return _paragraph(
        f"{facts['cpu']}, {facts['threads']} threads, torch {facts['torch']}, float32, {', '.join(others)} "
        f"(`benchmarks/results/{COMMITTED.name}`). Milliseconds, medians in one run, and how many times as long the "
        'others take; "first" is the first call, "warm" later ones with its seed, "new seed" one '
        'with a seed that was never asked for. "Floor" is the '
        "time that the least operations take at the rate of a 2048 x 2048 product, as a share of the warm call. "
        f"{_WRONG}: does not compute the right thing."
    )


def _paragraph(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def _items(lines: list[str]) -> str:
    return "\n".join(
        textwrap.fill(f"- {line}.", 120, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
        for line in lines
    )


def _point(result: Result) -> str:
    return f"{_TITLES[result.case]}, B = {result.rows}, T = {result.num_samples}"


def _names(results: Results) -> list[str]:
    return list(dict.fromkeys(name for result in results.results for name in result.baselines))


def _table(results: Results) -> str:
    names = _names(results)
    head = ["network", "T", "rows", "first, ms", "warm, ms", "new seed, ms", *(f"{n} / warm" for n in names)]
    head += ["loop / new seed", "floor"]
    lines = [head, ["---"] * len(head)]
    for result in results.results:
        lines.append([
            _TITLES[result.case], str(result.num_samples), str(result.rows),
            *(milliseconds(result.seconds[column]) for column in ("first", "warm", "new seed")),
            *(_beside(result, name, results) for name in names),
            ratio(result.lead("loop", "new seed")),
            f"{result.of_floor(results.floor(result.case)):.0%}",
        ])  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _beside(result: Result, name: str, results: Results) -> str:
    if name in result.failed:
        return "fails"
    if name not in result.seconds:
        return ""
    return ratio(result.lead(name)) + _mark(result, name, results)


def _slower(results: Results) -> str:
    """Where a baseline wins, whether or not it is right."""
    found = []
    for result in results.results:
        for column, words in (("warm", "warm"), ("new seed", "with a new seed")):
            faster = [name for name in result.baselines if result.lead(name, column) < 1]
            shares = [f"{name}{_mark(result, name, results)} {result.lead(name, column):.2f}" for name in faster]
            if faster:
                found.append(f"{_point(result)}, {words}: {', '.join(shares)} of the time")
    if not found:
        return "Nowhere in this table is mcdrop slower than a baseline, warm or with a new seed."
    return "**Slower than a baseline**, which takes this part of mcdrop's time:\n\n" + _items(found)


def _mark(result: Result, name: str, results: Results) -> str:
    return _WRONG if results.fault(result.case, name) else ""


def _wrong(results: Results) -> str:
    """Which ways do not compute the right thing, and why."""
    faults: dict[str, list[str]] = {}
    for case in results.cases:
        for name, fault in case.verdicts.items():
            if fault:
                faults.setdefault(name, []).append(f"`{case.case}` ({fault})")
    if not faults:
        return "Every way computed the right thing."
    checked = _paragraph(
        "Each way was compared with 10,000 passes in training mode on a small copy of the network: mean and variance "
        "of every probability within six standard errors, parameters, buffers and flags unchanged. What was wrong:"
    )
    return checked + "\n\n" + _items([f"{name}: {', '.join(each)}" for name, each in faults.items()])


def _saved(results: Results) -> str:
    targets = {case.name: case.points for case in CASES}
    found = [
        f"{_point(result)}: {result.saved(results.floor(result.case)):.2f}"
        for result in results.results
        if any("saved" in wanted for wanted in targets[result.case].values())
    ]
    if not found:
        return ""
    return (
        _paragraph(
            "Where whole channels or blocks are dropped, with t and t_rep the times, F and F_rep the operations of "
            "mcdrop and of the replicated batch, (1 - t / t_rep) / (1 - F / F_rep) is"
        )
        + "\n\n"
        + _items(found)
    )


if __name__ == "__main__":
    sys.exit(main())
