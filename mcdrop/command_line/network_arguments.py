"""What `mcdrop export` and `mcdrop inspect` take: a network of the user's, how to call it, which of its sites draw."""

import argparse
from pathlib import Path
from typing import Any

from mcdrop.modes import LAST_LAYERS, MASK_MODES

__all__ = ["TASKS", "add_export", "add_inspect"]

TASKS = ("classification", "binary", "multilabel", "regression", "heteroscedastic", "raw")
DTYPES = ("float32", "bfloat16", "float16", "float64")


def add_export(commands: Any) -> None:
    def fill(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "model", metavar="FACTORY", help="pkg.module:function that returns the nn.Module; found from here"
        )
        _add_network(parser)
        parser.add_argument(
            "--task", required=True, choices=TASKS, metavar="TASK", help=f"what the output means: {', '.join(TASKS)}"
        )
        parser.add_argument(
            "-o", "--folder", required=True, type=Path, metavar="FOLDER", help="the model folder to write"
        )
        outputs = parser.add_argument_group("output")
        outputs.add_argument(
            "--output", metavar="NAME", help="name or index of the output that counts, if there are many"
        )
        outputs.add_argument(
            "--output-kind", choices=("logits", "probs"), default="logits", help="never guessed (default: %(default)s)"
        )
        outputs.add_argument(
            "--class-axis",
            type=int,
            default=-1,
            metavar="AXIS",
            help="axis of the classes; segmentation: 1 (default: -1)",
        )
        outputs.add_argument(
            "--classes", metavar="NAMES", help="class names: cat,dog,bird, or @names.txt with one on each line"
        )
        outputs.add_argument(
            "--noise-variance", type=float, metavar="VALUE", help="regression: variance of the noise in the targets"
        )
        outputs.add_argument(
            "--last-layer",
            choices=LAST_LAYERS,
            default="sampled",
            help="regression: draw its last dropout, or integrate it in closed form (default: %(default)s)",
        )
        _add_choice(parser)
        defaults = parser.add_argument_group("defaults of the model")
        defaults.add_argument(
            "--num-samples", type=int, default=64, metavar="N", help="stochastic passes (default: %(default)s)"
        )
        defaults.add_argument("--seed", type=int, default=0, metavar="N", help="names the masks (default: %(default)s)")
        defaults.add_argument(
            "--masks",
            choices=MASK_MODES,
            default="shared",
            help="one thinned network per pass for all rows, one per row, or for all rows with\n"
            "every unit dropped equally often (default: %(default)s)",
        )
        defaults.add_argument(
            "--dtype", choices=DTYPES, default="float32", help="compute in this type (default: %(default)s)"
        )
        defaults.add_argument("--name", help="name of the model (default: the folder's)")
        defaults.add_argument("--version", default="1", help="version of the model (default: %(default)s)")
        parser.add_argument("--json", action="store_true", help="print what was written as JSON")

    commands.add_parser(
        "export",
        fill=fill,
        usage="%(prog)s FACTORY --weights FILE --input SPEC --task TASK -o FOLDER",
        help="make a model folder from a network and its weights",
        description="Capture a network and save it as a model folder, which holds no Python code:\n"
        "`mcdrop predict` and `mcdrop serve` need nothing else. The factory is called\n"
        "without arguments.",
        epilog="examples:\n"
        "  mcdrop export models:build --weights w.safetensors \\\n"
        '      --input "image: float32[batch, 1, 28, 28]" \\\n'
        "      --task classification --classes cat,dog -o models/pets\n"
        "  mcdrop export models:build --weights checkpoint.pt \\\n"
        '      --input "input_ids: int64[batch, length<=512]" \\\n'
        '      --input "attention_mask: int64[batch, length<=512]" \\\n'
        "      --task classification -o models/bert\n",
    )


def add_inspect(commands: Any) -> None:
    def fill(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "model", metavar="MODEL", help="a model folder, or pkg.module:function that returns an nn.Module"
        )
        _add_network(parser)
        parser.add_argument(
            "--task",
            choices=TASKS,
            default="raw",
            metavar="TASK",
            help=f"of a network: {', '.join(TASKS)} (default: raw)",
        )
        parser.add_argument(
            "--data", type=Path, metavar="FILE", help="rows on which to measure the sites: .npy, .npz or .csv"
        )
        parser.add_argument(
            "--targets", type=Path, metavar="FILE", help="their known answers, to score predictions: .npy, .npz or .csv"
        )
        parser.add_argument(
            "--num-samples", type=int, metavar="N", help="passes to measure with (default: the model's)"
        )
        _add_choice(parser)
        parser.add_argument("--json", action="store_true", help="print it as JSON")

    commands.add_parser(
        "inspect",
        fill=fill,
        usage="%(prog)s MODEL [--input SPEC] [--data FILE [--targets FILE]]",
        help="report whether a network is fit for Monte Carlo dropout, and why",
        description="Report on a network: what speaks against its dropout and what to do about it,\n"
        "every place where it draws noise, what runs once per row and what once per pass.\n"
        "With --data also what each place contributes, and with --targets how good\n"
        "predictions are with and without dropout. A network that cannot be sampled gets\n"
        "a report too.",
        epilog="examples:\n"
        "  mcdrop inspect models/pets --data photos.npy --targets labels.npy\n"
        '  mcdrop inspect models:build --input "image: float32[batch, 1, 28, 28]"\n',
    )


def _add_network(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--weights", type=Path, metavar="FILE", help=".safetensors, or a checkpoint of tensors saved with torch.save"
    )
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        dest="inputs",
        metavar="SPEC",
        help='an input of forward(), by its name there: "image: float32[batch, 1, 28, 28]", '
        '"ids: int64[batch, length<=512]"; repeat for more',
    )
    parser.add_argument(
        "--example", type=Path, metavar="FILE", help="inputs to trace with, .npz or .npy (default: made from --input)"
    )
    parser.add_argument(
        "--allow-row-interaction", action="store_true", help="go on although the rows of a batch influence one another"
    )


def _add_choice(parser: argparse.ArgumentParser) -> None:
    """What chooses among the sites of a network. A pattern is a module path with * and ?, a kind, or #number."""
    sites = parser.add_argument_group("sites", 'a PATTERN is a module path ("head.*"), a kind (attention) or "#number"')
    for flag, what in (("--include", "draw at these sites only"), ("--exclude", "do not draw at these sites")):
        sites.add_argument(flag, action="append", metavar="PATTERN", help=f"{what}; repeat for more")
    sites.add_argument(
        "--rate",
        type=_rate,
        action="append",
        default=[],
        dest="rates",
        metavar="PATTERN=P",
        help="probability of dropping at these sites; repeat for more, the last one counts",
    )


def _rate(text: str) -> tuple[str, float]:
    """`PATTERN=P` for argparse."""
    pattern, equals, p = text.rpartition("=")
    try:
        return pattern, float(p if equals else "")
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no rate; expected PATTERN=P, as in 'head.*=0.2'") from None
