"""The parser of the command line: what it is called, the commands, and when each of them says what it takes."""

import argparse
import importlib
from collections.abc import Callable
from typing import Any

from mcdrop.command_line.model_arguments import add_demo, add_predict, add_serve
from mcdrop.command_line.network_arguments import add_export, add_inspect
from mcdrop.command_line.sweep_arguments import add_sweep

__all__ = ["make_parser"]

DESCRIPTION = "Predictions with uncertainty from any trained PyTorch network that contains dropout."
EPILOG = """\
first steps:
  mcdrop demo --once      train a small network, see its uncertainty, ask it over HTTP
  mcdrop COMMAND --help   what a command takes, with examples
"""


def make_parser() -> argparse.ArgumentParser:
    """The parser of `mcdrop`; what it gives says in `command` which command was asked for."""
    parser = argparse.ArgumentParser(
        prog="mcdrop", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="versions of mcdrop and torch, device and threads")
    parser.add_argument("--traceback", action="store_true", help="show where in the code an error happened")
    commands = parser.add_subparsers(
        title="commands", dest="command", metavar="COMMAND", required=True, parser_class=_Command
    )
    for add in (add_demo, add_export, add_inspect, add_predict, add_serve, add_sweep):
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
        print(importlib.import_module("mcdrop.command_line.commands").versions())
        parser.exit()
