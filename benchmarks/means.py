"""`python -m benchmarks.means [case ...] [--compile]`: what the ordinary means bring, each beside the plain engine.

Threads, bfloat16 and the compiler: seconds of a warm call, in turn in one process, as ratios to float32 with all
threads, and how far bfloat16 moves mean and entropy for the same seed. The digits of the demo, trained here, come too.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cases import Case, Network, Point, chosen
from benchmarks.measure import LEAST, in_turn
from benchmarks.report import conditions
from mcdrop import MCDropout
from mcdrop.digits import load_digits, train
from mcdrop.surroundings.threads import limited_threads

__all__ = ["Means", "digits_case", "main", "measure_means"]

_DIGITS = "digits-64"


@dataclass(frozen=True)
class Means:
    """Seconds of a warm call in float32, how many times as fast each other way is, and what bfloat16 changes.

    `mean` and `entropy` are the largest differences (probability, nats) to float32 for the same seed; `error` is the
    largest Monte Carlo standard error of a mean, which they should be read beside. `compiled` is 0 where not measured.
    """

    case: str
    rows: int
    num_samples: int
    seconds: float
    one_thread: float
    bfloat16: float
    compiled: float
    both: float
    mean: float
    entropy: float
    error: float


def digits_case() -> Case:
    """The network of the demo, trained on 3823 digits, and the first test digits."""
    learn, test = load_digits()
    network = train(learn, epochs=10)
    given = Network(lambda: network, lambda rows: torch.from_numpy(test.images[:rows]).float())
    return Case(_DIGITS, "the network of the demo", given, given, {Point(64, 100): {}})


def measure_means(case: Case, point: Point, *, compiled: bool = False, rounds: int = 7, least: float = LEAST) -> Means:
    """Everything for one case at one point."""
    model, inputs = case.network.build(point.rows)
    plain, half = _model(case, point, model, inputs), _model(case, point, model, inputs, dtype="bfloat16")
    calls: dict[str, Callable[[], object]] = {
        "plain": lambda: plain(inputs),
        "one_thread": lambda: _on_one_thread(plain, inputs),
        "bfloat16": lambda: half(inputs),
    }
    if compiled:
        twins = [_model(case, point, model, inputs, compile=True, dtype=dtype) for dtype in ("float32", "bfloat16")]
        calls |= {"compiled": lambda: twins[0](inputs), "both": lambda: twins[1](inputs)}
    seconds = {name: statistics.median(each) for name, each in in_turn(calls, rounds=rounds, least=least).items()}
    one: Any = plain(inputs, standard_errors=True)
    other: Any = half(inputs)
    return Means(
        case=case.name,
        rows=point.rows,
        num_samples=point.num_samples,
        seconds=seconds["plain"],
        **{name: seconds["plain"] / seconds[name] if name in seconds else 0.0
           for name in ("one_thread", "bfloat16", "compiled", "both")},
        mean=float((one.mean - other.mean).abs().max()),
        entropy=float((one.entropy - other.entropy).abs().max()),
        error=float(one.standard_errors["mean"].max()),
    )  # fmt: skip


def _model(case: Case, point: Point, model: nn.Module, inputs: Tensor, **settings: Any) -> MCDropout:
    settings = {**case.keywords, **settings}
    return MCDropout(model, inputs, task="classification", num_samples=point.num_samples, **settings)


def _on_one_thread(mc: MCDropout, inputs: Tensor) -> None:
    with limited_threads(1):
        mc(inputs)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the cases that are asked for and print them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.means", description=__doc__.splitlines()[0])
    parser.add_argument(
        "cases", nargs="*", metavar="case", help="as for python -m benchmarks; default: all, and digits"
    )
    parser.add_argument("--compile", action="store_true", help="also compile=True, which takes minutes")
    options = parser.parse_args(arguments)
    names = [name for name in options.cases if name != _DIGITS]
    try:
        cases = chosen(names) if names or not options.cases else []
    except LookupError as error:
        parser.error(f"{error} And {_DIGITS}.")
    if _DIGITS in options.cases or not options.cases:
        cases.insert(0, digits_case())
    print(", ".join(f"{name} {value}" for name, value in conditions().items()), end="\n\n")
    print(_HEAD, flush=True)
    for case, point in [(each, point) for each in cases for point in each.points]:
        print(_line(measure_means(case, point, compiled=options.compile)), flush=True)
    return 0


_HEAD = (
    f"{'case':<16}{'T':>5}{'B':>5}{'float32 ms':>12}{'1 thread':>10}{'bfloat16':>10}{'compiled':>10}{'both':>8}"
    f"{'d mean':>10}{'d entropy':>11}{'MC error':>10}"
)


def _line(r: Means) -> str:
    ratios = [f"{value:.2f}x" if value else "" for value in (r.one_thread, r.bfloat16, r.compiled, r.both)]
    return (
        f"{r.case:<16}{r.num_samples:>5}{r.rows:>5}{r.seconds * 1000:>12.3g}"
        f"{ratios[0]:>10}{ratios[1]:>10}{ratios[2]:>10}{ratios[3]:>8}{r.mean:>10.1e}{r.entropy:>11.1e}{r.error:>10.1e}"
    )


if __name__ == "__main__":
    sys.exit(main())
