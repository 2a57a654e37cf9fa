"""`python -m benchmarks.serving [case ...] [--clients N ...] [--only load open http fairness] [--json FILE]`"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import conditions
from benchmarks.serving import report
from benchmarks.serving.cases import CASES, CONTENDERS, Case, Contender
from benchmarks.serving.load import generator
from benchmarks.serving.measure import measure_fairness, measure_http, measure_load, measure_open_loop, saved
from benchmarks.serving.processes import keep_to_cores

MEASUREMENTS = ("load", "open", "http", "fairness")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is asked for and print it."""
    options = _parser().parse_args(arguments)
    cores = keep_to_cores(options.cores)
    threads = options.threads or max(1, cores - 1)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # for the servers
    torch.set_num_threads(threads)  # for library calls
    where = {**conditions(), "cores": cores, "closed loop": generator(), "open loop": "asyncio", "T": 100}
    print(", ".join(f"{name} {value}" for name, value in where.items()), end="\n\n")
    contenders = [each for each in CONTENDERS if each.name in options.servers and each.available]
    for missing in (each for each in CONTENDERS if each.name in options.servers and not each.available):
        print(f"{missing.name} is left out: there is no module {missing.needs}.")
    found = report.Results.read(options.json, where)
    with tempfile.TemporaryDirectory() as folder:
        for name in options.cases or CASES:
            for result in _measured(CASES[name], Path(folder), contenders, options):
                _tell(asdict(result))
                found.add(result)
                if options.json:  # at once, so that a run that is broken off leaves what it found
                    options.json.write_text(json.dumps(found.as_json(), indent=2) + "\n")
    print(found.text())
    return 0


def _measured(
    case: Case, folder: Path, contenders: Sequence[Contender], options: argparse.Namespace
) -> Iterator[report.Result]:
    model = saved(case, folder)
    if "load" in options.only:
        yield from measure_load(case, model, contenders, options.clients, options.seconds, options.rounds)
    if "open" in options.only:
        yield measure_open_loop(case, model, max(options.clients), options.seconds, options.rounds)
    if "http" in options.only:
        yield measure_http(case, model)
    if "fairness" in options.only:
        yield measure_fairness(case, model, options.seconds)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving", description="mcdrop's server beside other ways to serve a network."
    )
    servers = [each.name for each in CONTENDERS]
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], metavar="case", help=", ".join(CASES))
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 8, 64], help="in closed loops; default: 1 8 64")
    parser.add_argument("--seconds", type=float, default=10, help="of each run of load; default: 10")
    parser.add_argument("--servers", nargs="+", choices=servers, default=servers, help=", ".join(servers))
    parser.add_argument("--only", nargs="+", choices=MEASUREMENTS, default=MEASUREMENTS, help="default: everything")
    parser.add_argument("--rounds", type=int, default=3, help="of load; the least disturbed counts; default: 3")
    parser.add_argument("--cores", type=int, default=2, help="for the servers and the load together; default: 2")
    parser.add_argument("--threads", type=int, help="of PyTorch in each server; default: one less than cores")
    parser.add_argument("--json", type=Path, metavar="FILE", help="add the results to those there, or write them")
    return parser


def _tell(values: dict[str, Any]) -> None:
    shown = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in values.items()}
    print(
        " ".join(f"{name}={value}" for name, value in shown.items() if value is not None), file=sys.stderr, flush=True
    )


if __name__ == "__main__":
    sys.exit(main())
