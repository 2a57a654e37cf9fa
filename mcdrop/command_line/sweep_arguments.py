"""What `mcdrop sweep` takes."""

import argparse
from pathlib import Path
from typing import Any

__all__ = ["add_sweep"]

TASKS = ("classification", "binary", "multilabel", "regression")


def add_sweep(commands: Any) -> None:
    def fill(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "factory",
            nargs="?",
            metavar="FACTORY",
            help="pkg.module:function that takes a dropout rate and returns an untrained nn.Module "
            "(default: a three-layer MLP for the digits)",
        )
        parser.add_argument(
            "--data",
            default="digits",
            metavar="DATA",
            help="digits, or an .npz file with inputs and targets, and validation_inputs and validation_targets "
            "(else a random fifth of the rows); classes are integers (default: %(default)s)",
        )
        parser.add_argument(
            "--rates",
            type=_rates,
            default=(0.0, 0.2, 0.5),
            metavar="P,P,...",
            help="dropout rates to compare (default: 0,0.2,0.5)",
        )
        parser.add_argument(
            "--task",
            choices=TASKS,
            default="classification",
            metavar="TASK",
            help=f"what the output means: {', '.join(TASKS)} (default: %(default)s)",
        )
        parser.add_argument(
            "--seeds", type=int, default=10, metavar="N", help="trainings per rate (default: %(default)s)"
        )
        parser.add_argument(
            "-o", "--folder", type=Path, metavar="FOLDER",
            help="where to write sweep.txt, sweep.json and sweep.png (default: mcdrop-sweep; none with --json)",
        )  # fmt: skip
        parser.add_argument("--json", action="store_true", help="print every number as JSON")
        training = parser.add_argument_group("training")
        for flag, default, what in (
            ("--epochs", 30, "passes over the data"),
            ("--batch-size", 32, "rows of a step"),
            ("--learning-rate", 1e-3, "of AdamW"),
            ("--weight-decay", 1e-2, "of AdamW"),
            ("--num-samples", 100, "stochastic passes of an MC prediction"),
        ):
            training.add_argument(
                flag, type=type(default), default=default, metavar="N", help=f"{what} (default: %(default)s)"
            )
        training.add_argument("--device", help="cpu, cuda, ... (default: CUDA if there is one)")
        training.add_argument(
            "--threads", type=int, metavar="N", help="of PyTorch on the CPU (default: 1 for small networks)"
        )

    commands.add_parser(
        "sweep",
        fill=fill,
        usage="%(prog)s [FACTORY] [--data DATA] [--rates P,P,...] [--seeds N]",
        help="train with several dropout rates and compare them",
        description="Train the same network with several dropout rates and seeds, and compare them on\n"
        "validation data: curves, accuracy and likelihood with and without MC dropout,\n"
        "which rate is best and whether that exceeds two standard errors, and which of\n"
        "the usual troubles the curves show. By default that is 10 seeds of 30 epochs for\n"
        "each rate. Ctrl-C ends it and reports the seeds that every rate has. The picture\n"
        "takes matplotlib (the extra `plot`).",
        epilog="examples:\n"
        "  mcdrop sweep --data digits --rates 0,0.2,0.5\n"
        "  mcdrop sweep models:build --data data.npz --rates 0,0.1,0.3 --seeds 3 -o sweep\n",
    )


def _rates(text: str) -> tuple[float, ...]:
    """Numbers for argparse, separated by commas."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} are no rates; expected numbers as in 0,0.2,0.5") from None
