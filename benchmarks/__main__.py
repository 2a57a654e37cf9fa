"""`python -m benchmarks [case ...] [--rows B ...] [--passes T ...] [--all] [--scaling] [--memory] [--json FILE]`"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import wrappers
from benchmarks.baselines import replicated, train_mode_loop
from benchmarks.cases import CASES, MEMORY, chosen, points_of
from benchmarks.disturbance import Disturbance
from benchmarks.measure import judge, measure, measure_memory, timed
from benchmarks.report import conditions, text
from benchmarks.results import Results, load, merged, save

_DISTURBED = 0.1  # of all cores, taken by other processes, from which on a run is called disturbed


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the cases that are asked for and print them."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="mcdrop beside what people do without it."
    )
    names = ", ".join(case.name for case in CASES)
    parser.add_argument("cases", nargs="*", metavar="case", help=f"{names}; default: all")
    parser.add_argument("--rows", type=int, nargs="+", default=[], metavar="B", help="instead of each case's own")
    parser.add_argument("--passes", type=int, nargs="+", default=[], metavar="T", help="instead of each case's own")
    parser.add_argument("--all", action="store_true", help="B = 1, 8, 64 and T = 30, 100, as far as a case goes: hours")
    parser.add_argument("--scaling", action="store_true", help="also how time grows with B and T")
    parser.add_argument("--memory", action="store_true", help="also the memory case, which takes minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="add the results to this file")
    options = parser.parse_args(arguments)
    facts = conditions() | wrappers.versions()
    if min(options.rows, default=1) < 1 or min(options.passes, default=2) < 2:
        parser.error("--rows takes numbers from 1 on and --passes from 2 on, since one pass has no spread.")
    if options.json and not options.json.parent.is_dir():
        parser.error(f"there is no folder {options.json.parent} for {options.json.name}: make it first.")
    try:
        cases = chosen(options.cases)
        kept = load(options.json) if options.json and options.json.exists() else Results(facts)
        merged(kept, Results(facts))
    except (LookupError, ValueError) as error:
        parser.error(str(error))
    print(", ".join(f"{name} {value}" for name, value in facts.items()), end="\n\n")
    found, disturbance = Results(facts), Disturbance() if sys.platform == "linux" else None

    def add(**more: object) -> None:
        nonlocal found
        found = merged(found, Results(facts, **more))  # type: ignore[arg-type]
        if options.json:  # after each measurement, so that a run that is broken off leaves what it found
            save(merged(kept, found), options.json)

    for number, case in enumerate(cases, start=1):
        points = points_of(case, options.rows, options.passes, grid=options.all)
        told = f"{number} of {len(cases)}: {case.name}"
        print(f"{told}, what is right", file=sys.stderr, flush=True)
        add(cases=(judge(case),))
        for point in points:
            print(f"{told}, B {point.rows}, T {point.num_samples}", file=sys.stderr, flush=True)
            add(results=(measure(case, point),))
        for point in case.scaling if options.scaling else ():
            print(f"{told}, scaling, B {point.rows}, T {point.num_samples}", file=sys.stderr, flush=True)
            add(scaling=(timed(case, point, {"loop": train_mode_loop, "replicated": replicated}),))
    if options.memory:
        add(memory=(measure_memory(MEMORY),))
    print(text(found))
    if disturbance and (share := disturbance.share()) > _DISTURBED:
        told = (
            f"Other processes took {share:.0%} of the cores meanwhile: neither these times nor their ratios mean much."
        )
        print(f"\n{told} Measure again on an idle machine.", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
