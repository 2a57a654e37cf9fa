"""`python -m benchmarks.adaptive [--tolerance 0.02] [--coverage SEEDS]`: what stopping by a rule saves; does it hold?

The demo's network on its 360 test digits. A fixed number of passes has to suffice for the hardest number of the hardest
row: `fixed N` is the smallest N with 1.96 s / sqrt(N) <= tolerance for every number of every row's mean, s from 20,000
passes. Beside it stand the passes that rows take by each rule, and the times of both with a new seed in each call.

Then every number of every mean, under 200 seeds, is compared with that of 100,000 passes under another seed (minutes;
--coverage 0 leaves it out); and the same for a number that jumps in few passes, whose coverage needs no seeds
(benchmarks.jumps).
"""

import argparse
import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from benchmarks.jumps import coverage_of_jumps
from benchmarks.report import conditions
from mcdrop import MCDropout
from mcdrop.digits import load_digits, train

__all__ = ["Coverage", "coverage", "digits", "fixed_passes", "main"]

MOST = 10_000  # passes of a row that stops by a rule
SHARE = 0.93  # of 200 seeds, that each number is held to
JUMPS = (0.005, 0.01, 0.02, 0.021, 0.025, 0.03, 0.04, 0.05, 0.1, 0.2, 0.5)
_Z = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Coverage:
    """How often the mean was within the tolerance of its truth, over seeds.

    Attributes:
        all: of all numbers of all rows.
        hardest: of the number of each row that spreads most, which decides when the row stops.
        lowest: of the number, of any row, for which it was least often.
        below: share of the numbers for which it was in less than 0.93 of the seeds.
        passes: on average.
    """

    all: float
    hardest: float
    lowest: float
    below: float
    passes: float


def digits() -> tuple[MCDropout, Tensor]:
    """The demo's network, trained here in seconds, and the test images (360, 8, 8)."""
    learn, test = load_digits()
    images = torch.from_numpy(test.images).float()
    return MCDropout(train(learn), images[:2], task="classification", name="digits"), images


def fixed_passes(mc: MCDropout, rows: Tensor, tolerance: float, num_samples: int = 20_000) -> int:
    """The smallest number of passes with which every number of every mean has a half-width within `tolerance`."""
    variance = mc(rows, num_samples=num_samples, seed=10**6).variance.max().item()
    return math.ceil((_Z / tolerance) ** 2 * variance)


def coverage(mc: MCDropout, rows: Tensor, tolerance: float, *, seeds: int, num_samples: int = 100_000) -> Coverage:
    """Of means that stop by `tolerance` under seeds 0, 1, ..., against `num_samples` passes under another seed."""
    truth = mc(rows, num_samples=num_samples, seed=10**6)
    near = torch.zeros_like(truth.mean)
    passes = 0.0
    for seed in range(seeds):
        found = mc(rows, num_samples=MOST, seed=seed, tolerance=tolerance)
        near += (found.mean - truth.mean).abs() <= tolerance
        passes += found.passes.double().mean().item()
    share = near / seeds
    hardest = share.gather(1, truth.variance.argmax(1, keepdim=True))
    below = (near < SHARE * seeds).double().mean().item()
    return Coverage(share.mean().item(), hardest.mean().item(), share.min().item(), below, passes / seeds)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.adaptive", description="What stopping by a rule saves.")
    parser.add_argument("--tolerance", type=float, default=0.02, help="half-width (default: %(default)s)")
    parser.add_argument(
        "--coverage", type=int, default=200, metavar="SEEDS", help="seeds of which it holds in how many (%(default)s)"
    )
    options = parser.parse_args()
    print(", ".join(f"{name} {value}" for name, value in conditions().items()), end="\n\n")
    mc, images = digits()
    fixed = fixed_passes(mc, images, options.tolerance)
    seconds = _seconds(functools.partial(mc, images, num_samples=fixed))
    print(f"{len(images)} digits, tolerance {options.tolerance}: fixed N {fixed}, {1000 * seconds:.0f} ms\n")
    print("rule       mean passes  fixed / mean  most passes  converged     ms  fixed ms / ms")
    rules: dict[str, dict[str, Any]] = {
        "tolerance": {"tolerance": options.tolerance},
        "certified": {"tolerance": options.tolerance, "certified": True},
        "label": {"until": "label"},
    }
    for name, rule in rules.items():
        predict = functools.partial(mc, images, num_samples=MOST, **rule)
        found, took = predict(), _seconds(predict)
        passes, done = found.passes.double(), int(found.converged.sum())
        print(
            f"{name:9}  {passes.mean():11.1f}  {fixed / passes.mean():12.1f}  {passes.max():11.0f}  "
            f"{done:>3} of {len(images)}  {1000 * took:5.0f}  {seconds / took:13.1f}"
        )
    if options.coverage:
        held = coverage(mc, images, options.tolerance, seeds=options.coverage)
        print(
            f"\nwithin the tolerance under {options.coverage} seeds: {held.all:.4f} of all numbers, {held.hardest:.4f} "
            f"of each row's hardest, {held.lowest:.3f} of the lowest of all; in less than {SHARE} of the seeds "
            f"{100 * held.below:.2f} % of the numbers\n"
            f"{held.passes:.1f} passes on average, fixed / mean {fixed / held.passes:.2f}"
        )
    shares, counts = coverage_of_jumps(options.tolerance, JUMPS)
    print("\nvotes that jump with probability  " + "  ".join(f"{p:6}" for p in JUMPS))
    print("within the tolerance (exact)      " + "  ".join(f"{share:6.4f}" for share in shares))
    print("passes on average                 " + "  ".join(f"{count:6.0f}" for count in counts))


def _seconds(call: Callable[..., object]) -> float:
    """Of a call with a new seed, the median of three."""
    times = []
    for seed in range(3):
        began = time.perf_counter()
        call(seed=seed)
        times.append(time.perf_counter() - began)
    return sorted(times)[1]


if __name__ == "__main__":
    main()
