"""The command `mcdrop demo | export | inspect | predict | serve | sweep`.

Exit codes: 0 done, 1 an error (one sentence on standard error, the traceback with --traceback), 2 wrong usage,
130 interrupted. Reports and JSON go to standard output, progress and errors to standard error.

`mcdrop.command_line.parser` knows what the commands take, and `mcdrop.command_line.commands` does the work. That is
imported when a command runs: loading PyTorch takes seconds, and neither `mcdrop --help` nor a mistyped flag should have
to wait for it.
"""

import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mcdrop.command_line.parser import make_parser
from mcdrop.errors import McdropError

__all__ = ["main"]

INTERRUPTED = 130  # 128 + SIGINT, as shells count


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Wrong usage and --help leave by SystemExit, as argparse does."""
    if hidden := _hidden_service():
        print(f"mcdrop: error: {hidden}", file=sys.stderr)
        return 1
    arguments = make_parser().parse_args(argv)
    try:
        with warnings.catch_warnings():  # puts `showwarning` back
            warnings.showwarning = _show_warning
            getattr(importlib.import_module("mcdrop.command_line.commands"), arguments.command)(arguments)
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
