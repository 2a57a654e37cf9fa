"""The command `mcdrop demo | export | inspect | predict | serve | sweep`.

Exit codes: 0 done, 1 an error (one sentence on standard error, the traceback with --traceback), 2 wrong usage,
130 interrupted. Reports and JSON go to standard output, progress and errors to standard error.

This module only knows what the commands take; `mcdrop.commands` does the work. It is imported when a command runs:
loading PyTorch takes seconds, and neither `mcdrop --help` nor a mistyped flag should have to wait for it.
"""

import argparse
import importlib
import importlib.util
import os
import sys
import typing
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mcdrop.errors import McdropError
from mcdrop.modes import LAST_LAYERS, MASK_MODES

__all__ = ["main"]

INTERRUPTED = 130  # 128 + SIGINT, as shells count

TASKS = ("classification", "binary", "multilabel", "regression", "heteroscedastic", "raw")
SWEPT_TASKS = ("classification", "binary", "multilabel", "regression")
DTYPES = ("float32", "bfloat16", "float16", "float64")

DESCRIPTION = "Predictions with uncertainty from any trained PyTorch network that contains dropout."
EPILOG = """\
first steps:
  mcdrop demo --once      train a small network, see its uncertainty, ask it over HTTP
  mcdrop COMMAND --help   what a command takes, with examples
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Wrong usage and --help leave by SystemExit, as argparse does."""
    if hidden := _hidden_service():
        print(f"mcdrop: error: {hidden}", file=sys.stderr)
        return 1
    arguments = _parser().parse_args(argv)
    try:
        with warnings.catch_warnings():  # puts `showwarning` back
            warnings.showwarning = _show_warning
            getattr(importlib.import_module("mcdrop.commands"), arguments.command)(arguments)
        sys.stdout.flush()
        return 0
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `mcdrop ... | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if arguments.traceback:
            raise
        print(f"mcdrop: error: {_sentence(error)}", file=sys.stderr)
        return 1


def _hidden_service() -> str | None:
    """What to say where Python finds another package `service` than ours, which stands beside this one."""
    found = importlib.util.find_spec("service")
    places = [] if found is None else found.submodule_search_locations or [found.origin or "service"]
    ours = Path(__file__).resolve().parents[1] / "service"
    if ours in (Path(place).resolve() for place in places):
        return None
    if not places:
        return f"the package service, which mcdrop comes with, is not in {ours.parent}. Install mcdrop again."
    return (
        f"{Path(places[0]).resolve()} hides the package service that mcdrop comes with: Python looks there first. Run "
        "the command mcdrop, or python -P -m mcdrop, which leave out the current folder; or rename your service."
    )


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """A warning as one line, without the place in the code that means nothing to whoever typed a command."""
    print(f"mcdrop: warning: {message}", file=sys.stderr)


def _sentence(error: Exception) -> str:
    if isinstance(error, McdropError):
        return str(error)
    return f"{type(error).__name__}: {error} (this was not foreseen; --traceback shows where it happened)"


# ---- what the commands take


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mcdrop", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="versions of mcdrop and torch, device and threads")
    parser.add_argument("--traceback", action="store_true", help="show where in the code an error happened")
    commands = parser.add_subparsers(
        title="commands", dest="command", metavar="COMMAND", required=True, parser_class=_Command
    )
    for add in (_add_demo, _add_export, _add_inspect, _add_predict, _add_serve, _add_sweep):
        add(commands)
    return parser


class _Command(argparse.ArgumentParser):
    """A command's parser. Its flags are added when the command is used: those of `serve` are read from the service."""

    def __init__(self, *, fill: Callable[[argparse.ArgumentParser], None], **settings: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **settings)
        self._fill: Callable[[argparse.ArgumentParser], None] | None = fill
        self.given: tuple[str, ...] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self._fill is not None:
            self.given = tuple(args or ())
            self._fill(self)
            self.add_argument(
                "--traceback",
                action="store_true",
                default=argparse.SUPPRESS,
                help="show where in the code an error happened",
            )
            self._fill = None
        return super().parse_known_args(args, namespace)


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(importlib.import_module("mcdrop.commands").versions())
        parser.exit()


def _add_demo(commands: Any) -> None:
    def fill(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--once", action="store_true", help="send the request that is shown, print its answer, and stop"
        )
        parser.add_argument(
            "--folder", type=Path, default=Path("mcdrop-demo"), help="where to save the model (default: %(default)s)"
        )
        parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
        parser.add_argument(
            "--port", type=_port, default=8000, help="port to listen on; 0 picks a free one (default: %(default)s)"
        )

    commands.add_parser(
        "demo",
        fill=fill,
        help="train on handwritten digits, show the uncertainty, serve",
        description="Train a small network with dropout on handwritten digits (a few seconds), show\n"
        "which digits it is sure and unsure about and what it makes of images that are no\n"
        "digits, then serve it over HTTP.",
        epilog="examples:\n"
        "  mcdrop demo                   keeps serving until Ctrl-C\n"
        "  mcdrop demo --once --port 0   asks the server once, on any free port, and ends\n",
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


def _add_export(commands: Any) -> None:
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


def _add_inspect(commands: Any) -> None:
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


def _add_predict(commands: Any) -> None:
    def fill(parser: argparse.ArgumentParser) -> None:
        given: Sequence[str] = getattr(parser, "given", ())
        if any(text.partition("=")[0] == "--url" for text in given):  # the model is elsewhere
            parser.set_defaults(folder=None)
        else:
            parser.add_argument("folder", type=Path, metavar="FOLDER", help="a model folder; none with --url")
        parser.add_argument(
            "data", type=Path, metavar="DATA", help=".npy, .npz (arrays named after the inputs) or .csv"
        )
        parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write .npz, .csv or .json")
        parser.add_argument("--num-samples", type=int, metavar="N", help="stochastic passes (default: the model's)")
        parser.add_argument("--seed", type=int, metavar="N", help="names the masks (default: the model's)")
        parser.add_argument("--standard-errors", action="store_true", help="add the Monte Carlo error of each number")
        stops = parser.add_argument_group("stop each row early, after at most --num-samples passes")
        stops.add_argument(
            "--tolerance",
            type=float,
            metavar="WIDTH",
            help="when the half-width of every number of its mean is at most this, at 95 %%",
        )
        stops.add_argument(
            "--certified", action="store_true", help="keep the tolerance by a confidence sequence (probabilities only)"
        )
        stops.add_argument("--until", choices=("label",), help="when its label is settled, at 95 %%")
        parser.add_argument("--device", help="cpu, cuda, ... (default: CUDA if there is one)")
        parser.add_argument("--json", action="store_true", help="print the predictions as JSON")
        remote = parser.add_argument_group("by a server, instead of FOLDER")
        remote.add_argument("--url", help="of the server (its key, if it wants one, in MCDROP_API_KEY)")
        remote.add_argument("--model", metavar="NAME", help="which of its models (default: the server's)")

    commands.add_parser(
        "predict",
        fill=fill,
        usage="%(prog)s (FOLDER | --url URL [--model NAME]) DATA [options]",
        help="predict the rows of a data file, with uncertainty",
        description="Predict the rows of a data file. Without -o, a terminal gets a table of the\n"
        "first rows, and a pipe all of them as CSV.",
        epilog="examples:\n"
        "  mcdrop predict models/pets photos.npy -o predictions.csv\n"
        "  mcdrop predict models/pets photos.npy --num-samples 200 --seed 7 --json\n"
        "  mcdrop predict --url http://127.0.0.1:8000 --model pets photos.npy -o out.csv\n",
    )


def _add_serve(commands: Any) -> None:
    def fill(parser: argparse.ArgumentParser) -> None:
        from service.settings import Settings  # here, since pydantic takes a while to load and only `serve` needs it

        parser.add_argument(
            "models",
            type=Path,
            nargs="?",
            metavar="MODELS",
            help="a model folder, a folder of them, or a repository NAME/VERSION/ (default: models)",
        )
        for name, field in Settings.model_fields.items():
            if name != "models":
                flag, default = f"--{name.replace('_', '-')}", field.default
                note = "" if default is None else f" (default: {default})"
                parser.add_argument(flag, metavar=_placeholder(field.annotation), help=f"{field.description}{note}")

    commands.add_parser(
        "serve",
        fill=fill,
        usage="%(prog)s [MODELS] [--host HOST] [--port N] [--config FILE] [settings]",
        help="answer over HTTP",
        description="Serve one model folder, every model in a folder of folders, or the newest\n"
        "version of each in a repository NAME/VERSION/, over HTTP until Ctrl-C or\n"
        "SIGTERM. A flag wins over its environment variable (for --max-rows:\n"
        "MCDROP_MAX_ROWS), and that over the YAML file of --config.",
        epilog="examples:\n"
        "  mcdrop serve models\n"
        "  mcdrop serve models/pets --host 0.0.0.0 --port 8080\n"
        "  mcdrop serve --config server.yaml\n",
    )


def _add_sweep(commands: Any) -> None:
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
            choices=SWEPT_TASKS,
            default="classification",
            metavar="TASK",
            help=f"what the output means: {', '.join(SWEPT_TASKS)} (default: %(default)s)",
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


def _placeholder(annotation: Any) -> str:
    """What --help shows for a value: N for numbers, the choices of a Literal or bool, else FILE or VALUE."""
    if annotation is bool:
        return "{true,false}"
    kinds = typing.get_args(annotation) or (annotation,)
    if all(isinstance(kind, str | int) for kind in kinds):
        return "{" + ",".join(map(str, kinds)) + "}"
    return "N" if int in kinds or float in kinds else "FILE" if Path in kinds else "VALUE"


def _rate(text: str) -> tuple[str, float]:
    """`PATTERN=P` for argparse."""
    pattern, equals, p = text.rpartition("=")
    try:
        return pattern, float(p if equals else "")
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no rate; expected PATTERN=P, as in 'head.*=0.2'") from None


def _port(text: str) -> int:
    """A port number for argparse: 0 to 65535."""
    port = int(text)
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{port} is no port; expected 0 to 65535")
    return port


def _rates(text: str) -> tuple[float, ...]:
    """Numbers for argparse, separated by commas."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} are no rates; expected numbers as in 0,0.2,0.5") from None
