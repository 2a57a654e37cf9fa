"""Characters for images and bars."""

import io

import numpy as np
from rich.console import Console

from mcdrop.surroundings.terminal import bar, draw, new_table, progress


def test_ink_becomes_darker_characters():
    image = np.array([[0, 4, 8, 12, 16], [1, 5, 9, 13, 99]])
    assert draw(image, darkest=16) == ["  ░░▒▒▓▓██", "░░▒▒▓▓████"]
    assert draw(image, darkest=16, ascii_only=True) == ["  ..::**##", "..::**####"]


def test_bars_fill_their_share():
    assert bar(0, width=4) == ""
    assert bar(0.5, width=4) == "██"
    assert bar(1, width=4) == "████"
    assert bar(1 / 32, width=4) == "▏"
    assert bar(7, width=4) == "████"
    assert bar(-1, width=4) == ""
    assert bar(0.5, width=4, ascii_only=True) == "##"


def test_no_progress_bar_outside_a_terminal(capsys):
    with progress("work", 2) as advance:
        advance()
        advance(1)
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == ""


def test_tables_align_numbers_to_the_right():
    table = new_table(("name", "value"), numeric=("value",))
    table.add_row("a", "1.5")
    table.add_row("b", "10.25")
    text = io.StringIO()
    Console(file=text, width=40).print(table)
    assert [line.rstrip() for line in text.getvalue().splitlines()] == ["name  value", "a       1.5", "b     10.25"]
