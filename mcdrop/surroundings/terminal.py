"""What the commands show: a console, progress bars, and images and bars drawn with characters.

Reports go to standard output and progress to standard error, so that `mcdrop ... --json | jq` sees JSON only. A bar
appears only in a terminal. Where the output cannot carry block characters, ASCII stands in for them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

__all__ = ["Advance", "bar", "draw", "new_table", "open_console", "progress"]

SHADES = " ░▒▓█"
ASCII_SHADES = " .:*#"
EIGHTHS = " ▏▎▍▌▋▊▉█"


class Advance(Protocol):
    def __call__(self, steps: int = 1) -> None: ...


def open_console(*, stderr: bool = False) -> Console:
    """A console as wide as the terminal (80 columns into a pipe), for which `[batch, 4]` is text and no markup."""
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False)


@contextmanager
def progress(label: str, total: int | None, *, shown: bool | None = None) -> Iterator[Advance]:
    """Gives a function to call after each step, of `total` where that is known.

    Draws a bar on standard error if that is a terminal, or as `shown` says.
    """
    console = open_console(stderr=True)
    visible = console.is_terminal if shown is None else shown
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=console.is_terminal, disable=not visible) as display:
        task = display.add_task(label, total=total)

        def advance(steps: int = 1) -> None:
            display.advance(task, steps)

        yield advance


def draw(image: np.ndarray, *, darkest: float, ascii_only: bool = False) -> list[str]:
    """A line for each row of `image` (height, width), two characters a pixel, darker with more ink (0 to `darkest`)."""
    shades = ASCII_SHADES if ascii_only else SHADES
    levels = np.clip(np.ceil(image / darkest * (len(shades) - 1)), 0, len(shades) - 1).astype(int)
    return ["".join(shades[level] * 2 for level in row) for row in levels]


def bar(share: float, *, width: int, ascii_only: bool = False) -> str:
    """A bar that fills `share` (0 to 1) of `width` characters, to an eighth of a character."""
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    if ascii_only:
        return "#" * round(eighths / 8)
    full, rest = divmod(eighths, 8)
    return "█" * full + (EIGHTHS[rest] if rest else "")


def new_table(columns: Sequence[str], *, numeric: Sequence[str] = ()) -> Table:
    """An empty table without frames; the `numeric` columns are aligned to the right."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(Text(column), justify="right" if column in numeric else "left")
    return table
