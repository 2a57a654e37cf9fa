"""What `mcdrop demo`, `mcdrop predict` and `mcdrop serve` take: models that are saved, or that a server has."""

import argparse
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["add_demo", "add_predict", "add_serve"]


def add_demo(commands: Any) -> None:
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


def add_predict(commands: Any) -> None:
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


def add_serve(commands: Any) -> None:
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


def _placeholder(annotation: Any) -> str:
    """What --help shows for a value: N for numbers, the choices of a Literal or bool, else FILE or VALUE."""
    if annotation is bool:
        return "{true,false}"
    kinds = typing.get_args(annotation) or (annotation,)
    if all(isinstance(kind, str | int) for kind in kinds):
        return "{" + ",".join(map(str, kinds)) + "}"
    return "N" if int in kinds or float in kinds else "FILE" if Path in kinds else "VALUE"


def _port(text: str) -> int:
    """A port number for argparse: 0 to 65535."""
    port = int(text)
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{port} is no port; expected 0 to 65535")
    return port
