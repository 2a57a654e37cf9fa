"""`python -m benchmarks.guard [--against FILE]`: whether mcdrop has become slower beside its baselines.

Times differ from machine to machine; ratios within one run much less. A case fails where mcdrop's lead over a baseline
is below half of what the file has, in each of three tries: a busy machine is not a regression.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.baselines import replicated, train_mode_loop
from benchmarks.cases import CASES, Case, Point
from benchmarks.measure import timed
from benchmarks.results import Result, Results, load

__all__ = ["COMMITTED", "GUARDED", "lost", "main"]

COMMITTED = Path(__file__).parent / "results" / "xeon-2-cores.json"
GUARDED = {  # seconds each, and every way in which passes are computed
    "lenet": Point(1, 100),
    "resnet": Point(16, 50),
    "mlp-half": Point(64, 100),
    "transformer": Point(1, 30),
    "unet": Point(2, 30),
    "depth": Point(8, 30),
}
_WAYS = {"loop": train_mode_loop, "replicated": replicated}
_SHARE, _TRIES, _ROUNDS = 0.5, 3, 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the guarded cases; 1 where one has lost its lead."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guard", description=__doc__.splitlines()[0])
    parser.add_argument("--against", type=Path, default=COMMITTED, metavar="FILE", help="results that are to be kept")
    against = parser.parse_args(arguments).against
    try:
        guarded = [*_guarded(load(against))]
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if not guarded:
        parser.error(f"{against} has no result of a case that is guarded: measure {', '.join(GUARDED)}.")
    failed = 0
    for case, wanted in guarded:
        found = _tried(case, wanted)
        failed += bool(found)
        print(f"{case.name}: {'; '.join(found) or 'as fast as before, beside its baselines'}", flush=True)
    return min(failed, 1)


def _guarded(committed: Results) -> Iterator[tuple[Case, Result]]:
    for wanted in committed.results:
        for case in CASES:
            if case.name == wanted.case and GUARDED.get(case.name) == Point(wanted.rows, wanted.num_samples):
                yield case, wanted


def _tried(case: Case, wanted: Result) -> list[str]:
    found: list[str] = []
    for _ in range(_TRIES):
        found = lost(timed(case, Point(wanted.rows, wanted.num_samples), _WAYS, rounds=_ROUNDS), wanted)
        if not found:
            break
    return found


def lost(now: Result, wanted: Result) -> list[str]:
    """The leads of which less than half is left, in words."""
    found = []
    for column in ("warm", "new seed"):
        for name in _WAYS:
            lead, before = now.lead(name, column), wanted.lead(name, column)
            if lead < _SHARE * before:
                found.append(f"{name} / {column} is {lead:.2f}, and was {before:.2f}")
    return found


if __name__ == "__main__":
    sys.exit(main())
