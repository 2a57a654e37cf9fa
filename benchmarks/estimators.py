"""`python -m benchmarks.estimators`: what balanced masks and an exact last layer gain on trained networks.

For each network, number of passes N and way to estimate: the mean squared error of shared masks, over test rows and
seeds, divided by that of the way ("as good as that many times the passes"), number by number, and how often
mean +- 1.96 standard errors covers the truth. The truth is a run of 40,000 passes. It takes some minutes.
"""

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.report import conditions
from mcdrop import MCDropout
from mcdrop.digits import digit_mlp, few_digits, load_digits, train
from mcdrop.training import fit

__all__ = ["Case", "compare", "main"]

TRUE_PASSES, TRUE_SEED, SEEDS, ROWS = 40_000, 10**6, 100, 40
PASSES = (20, 60, 100)
CLASSIFIED = ("mean", "variance", "entropy", "expected_entropy", "mutual_information")
PREDICTED = ("mean", "epistemic_variance")


@dataclass(frozen=True)
class Case:
    """A trained network, rows to predict, and the ways to do it: settings of the model and the mode of its masks."""

    name: str
    network: nn.Module
    rows: Tensor
    task: Any
    fields: Sequence[str]
    ways: Mapping[str, tuple[dict[str, Any], Any]]


_MASKS: dict[str, tuple[dict[str, Any], Any]] = {"shared": ({}, "shared"), "balanced": ({}, "balanced")}
_EXACT: dict[str, tuple[dict[str, Any], Any]] = {
    "exact last layer": ({"last_layer": "exact"}, "shared"),
    "exact and balanced": ({"last_layer": "exact"}, "balanced"),
}


def digits() -> Case:
    """The demo's network: convolutions, then dropout at 0.25 and 0.5."""
    rows = torch.from_numpy(load_digits()[1].images[:: 360 // ROWS]).float()
    return Case("digits", train(load_digits()[0]), rows, "classification", CLASSIFIED, _MASKS)


def mlp(p: float) -> Case:
    """Three layers with dropout at rate `p` behind both hidden ones, trained on few digits."""
    learn, rest = few_digits()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = digit_mlp(p)
    fit(network, learn, epochs=30)
    return Case(f"digit MLP, p = {p}", network.eval(), rest[0][:ROWS], "classification", CLASSIFIED, _MASKS)


def friedman(p: float) -> Case:
    """A regression of three layers on Friedman's first function (1991) of ten uniform numbers, noise of variance 1."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1200, 10, generator=generator)
    y = 10 * torch.sin(math.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]
    y = (y + torch.randn(1200, generator=generator)).unsqueeze(1)
    y = (y - y.mean()) / y.std()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Linear(10, 64), nn.ReLU(), nn.Dropout(p), nn.Linear(64, 64), nn.ReLU(), nn.Dropout(p), nn.Linear(64, 1)
        )
    fit(network, (x[:1000], y[:1000]), task="regression", epochs=100, learning_rate=3e-3)
    return Case(f"regression, p = {p}", network.eval(), x[-ROWS:], "regression", PREDICTED, _MASKS | _EXACT)


def compare(case: Case, passes: Sequence[int], seeds: int) -> list[tuple[str, int, str, list[float], float]]:
    """For each N and way: errors of shared masks divided by its own, field by field, and the coverage of `mean`."""
    models = {
        way: MCDropout(case.network, case.rows[:2], task=case.task, masks=masks, **settings)
        for way, (settings, masks) in case.ways.items()
    }
    truth = list(models.values())[-1](case.rows, num_samples=TRUE_PASSES, seed=TRUE_SEED, masks="balanced")
    results = []
    for count in passes:
        base: list[float] = []
        for way, mc in models.items():
            found = [mc(case.rows, num_samples=count, seed=seed, standard_errors=True) for seed in range(seeds)]
            errors = [_error(found, truth, field) for field in case.fields]
            base = base or errors
            covered = [
                ((one.mean - truth.mean).abs() <= 1.96 * (one.standard_errors or {})["mean"]).double().mean()
                for one in found
            ]
            factors = [a / b if b else math.inf for a, b in zip(base, errors, strict=True)]
            results.append((case.name, count, way, factors, float(torch.stack(covered).mean())))
    return results


def _error(found: Sequence[Any], truth: Any, field: str) -> float:
    exact = getattr(truth, field).double()
    return float(torch.stack([(getattr(one, field).double() - exact).square().mean() for one in found]).mean())


CASES: dict[str, Callable[[], Case]] = {
    "digits": digits,
    "mlp-0.1": lambda: mlp(0.1),
    "mlp-0.5": lambda: mlp(0.5),
    "regression-0.1": lambda: friedman(0.1),
    "regression-0.25": lambda: friedman(0.25),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.estimators", description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="case", help=f"{', '.join(CASES)}; default: all")
    parser.add_argument("--seeds", type=int, default=SEEDS, metavar="N", help="repetitions (default: %(default)s)")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.cases if name not in CASES]:
        parser.error(f"there is no case {', '.join(unknown)}; choose from {', '.join(CASES)}")
    print(", ".join(f"{name} {value}" for name, value in conditions().items()))
    for name in options.cases or CASES:
        case = CASES[name]()
        print(f"\n| network | N | way | {' | '.join(case.fields)} | coverage of mean |")
        print("|---" * (len(case.fields) + 4) + "|")
        for network, count, way, factors, covered in compare(case, PASSES, options.seeds):
            shown = " | ".join(f"{factor:.1f}" for factor in factors)
            print(f"| {network} | {count} | {way} | {shown} | {covered:.3f} |", flush=True)


if __name__ == "__main__":
    main()
