"""`python -m benchmarks [case ...] [--memory] [--json FILE]`"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.cases import CASES, chosen
from benchmarks.measure import MemoryResult, SpeedResult, measure_memory, measure_speed
from benchmarks.report import MEMORY, SPEED, as_json, conditions, table


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the cases that are asked for and print them."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="mcdrop beside what people do without it."
    )
    names = ", ".join(case.name for case in CASES)
    parser.add_argument("cases", nargs="*", metavar="case", help=f"{names}; or a network, such as mlp; default: speed")
    parser.add_argument("--memory", action="store_true", help="measure the memory case, which takes minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there as well")
    options = parser.parse_args(arguments)
    try:
        cases = chosen(options.cases, memory=options.memory)
    except LookupError as error:
        parser.error(str(error))
    print(", ".join(f"{name} {value}" for name, value in conditions().items()), end="\n\n")
    speed: list[SpeedResult] = []
    memory: list[MemoryResult] = []
    for number, case in enumerate(cases, start=1):
        print(f"{number} of {len(cases)}: {case.name}", file=sys.stderr, flush=True)
        if case.growth:
            memory.append(measure_memory(case))
        else:
            speed.append(measure_speed(case))
        if options.json:  # after each case, so that a run that is broken off leaves what it found
            options.json.write_text(json.dumps(as_json([*speed, *memory]), indent=2) + "\n")
    print("\n\n".join(table(*each) for each in ((SPEED, speed), (MEMORY, memory)) if each[1]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
