"""A sweep over dropout rates, to be read: a table with sentences, a picture, and files of both.

The picture needs matplotlib (`pip install '.[plot]'`), which is imported when something is drawn and not before.
"""

import contextlib
import importlib.util
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from mcdrop.errors import SettingError
from mcdrop.surroundings.terminal import new_table
from mcdrop.sweep.trials import Estimate, Score, Sweep, estimate
from mcdrop.sweep.troubles import LEAST_EPOCHS, Trouble

__all__ = ["can_draw", "draw", "make_folder", "remove_empty", "report", "write"]

TEXT, NUMBERS, PICTURE = "sweep.txt", "sweep.json", "sweep.png"
TEXT_WIDTH = 80
UNITS = {"accuracy": "accuracy in percent, NLL in nats", "rmse": "RMSE in the targets' unit, NLL in nats"}


# ---- in words


def report(console: Console, sweep: Sweep, facts: Mapping[str, Any]) -> None:
    """What was trained, the table of all rates, which is best and by how much, and what the curves show."""
    console.print(
        f"{facts['network']} on {facts['data']}: {facts['training_rows']:,} rows to train on, "
        f"{facts['validation_rows']:,} to validate on.\n"
        f"{facts['epochs']} epochs in batches of {facts['batch_size']}, AdamW with learning rate "
        f"{facts['learning_rate']:g} and weight decay {facts['weight_decay']:g}.\n"
    )
    console.print(_table(sweep))
    seeds = len(sweep.of(sweep.rates[0]))
    console.print(
        f"\nMean ± standard error over {seeds} seeds, {UNITS[sweep.measure]}. The training loss "
        f"is that of the last epoch, with dropout on; the rest is measured on the validation data, MC with "
        f"{sweep.num_samples} passes."
    )
    console.print(f"\nBest by NLL: p = {sweep.best:g}, {_number(estimate(sweep.nll(sweep.best)))}", style="bold")
    console.print(_comparison(sweep))
    console.print("\nWhat the curves show", style="bold")
    console.print(_troubles(sweep))


def _table(sweep: Sweep) -> Table:
    measure = sweep.measure if sweep.measure == "accuracy" else sweep.measure.upper()
    table = new_table(("p", "training loss", measure, "NLL", f"MC {measure}", "MC NLL"))
    for rate in sweep.rates:
        trials = sweep.of(rate)
        table.add_row(
            f"{rate:g}",
            _number(estimate(sweep.training_loss(rate)[:, -1]), digits=1),
            *_scores([trial.deterministic for trial in trials], sweep.measure),
            *_scores([trial.mc for trial in trials if trial.mc is not None], sweep.measure),
        )
    return table


def _scores(scores: Sequence[Score], measure: str) -> tuple[str, str]:
    if not scores:
        return "-", "-"
    scale = 100 if measure == "accuracy" else 1
    shown = estimate([scale * each.measure for each in scores])
    return _number(shown, digits=1), _number(estimate([each.nll for each in scores]), digits=1)


def _number(value: Estimate, *, digits: int = 2) -> str:
    """The error with so many digits, and the mean to the same place: `0.382 ± 0.012`."""
    error = value.standard_error
    places = 4 if error == 0 else min(max(digits - 1 - math.floor(math.log10(error)), 0), 6)
    return f"{value.mean:.{places}f} ± {error:.{places}f}"


def _comparison(sweep: Sweep) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    for rate in sweep.rates:
        if rate != sweep.best:
            behind = sweep.behind(rate)
            verdict = (
                "more than two standard errors" if behind.clear else "within two standard errors: no difference shown"
            )
            table.add_row("", f"p = {rate:g}", f"worse by {_number(behind)}", verdict)
    return table


def _troubles(sweep: Sweep) -> Table | str:
    """A line for each trouble, with all rates that have it; then what to try."""
    if not sweep.judged:
        return f"  Too little to judge: it takes {LEAST_EPOCHS} epochs."
    found: dict[str, list[tuple[str, Trouble]]] = {}
    for rate in sweep.rates:
        for trouble in sweep.troubles(rate):
            found.setdefault(trouble.code, []).append((f"p = {rate:g}", trouble))
    if (gain := sweep.gain()) is not None:
        found[gain.code] = [("", gain)]
    if not found:
        return "  None of the usual troubles."
    table = Table.grid(padding=(0, 2, 0, 0))
    for code, places in found.items():
        for place, trouble in places:
            table.add_row("", code, place, trouble.seen)
        for advice in dict.fromkeys(trouble.advice for _, trouble in places):
            table.add_row("", "", "try", advice)
    return table


# ---- in a picture


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def draw(sweep: Sweep, path: Path) -> None:
    """A PNG: training and validation loss by epoch, mean over seeds in a band of one standard error; NLL by rate, with
    and without MC.

    Drawn without pyplot, so that no figure and no backend of the caller's is touched.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # here, since it is an extra
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    FigureCanvasAgg(figure)
    training, validation, scores = figure.subplots(1, 3)
    for number, rate in enumerate(sweep.rates):
        for axes, curves in ((training, sweep.training_loss(rate)), (validation, sweep.validation_loss(rate))):
            epochs, mean = np.arange(1, curves.shape[1] + 1), curves.mean(axis=0)
            error = curves.std(axis=0, ddof=1) / math.sqrt(len(curves))
            axes.plot(epochs, mean, color=f"C{number}", label=f"p = {rate:g}")
            axes.fill_between(epochs, mean - error, mean + error, color=f"C{number}", alpha=0.25, linewidth=0)
    training.set(xlabel="epoch", yscale="log", title="training loss, dropout on")
    validation.set(xlabel="epoch", yscale="log", title="validation loss, dropout off")
    training.legend()
    for name, shift in (("deterministic", -0.08), ("mc", 0.08)):
        for place, rate in enumerate(sweep.rates):
            values = [score.nll for trial in sweep.of(rate) if (score := getattr(trial, name)) is not None]
            if values:
                nll, colour = estimate(values), "0.5" if name == "deterministic" else f"C{place}"
                scores.errorbar(place + shift, nll.mean, 2 * nll.standard_error, fmt="o", capsize=4, color=colour)
    scores.set_xticks(range(len(sweep.rates)), [f"{rate:g}" for rate in sweep.rates])
    scores.set(xlabel="dropout rate p", title="NLL: one pass grey, MC in colour")
    figure.savefig(path, format="png", dpi=100, metadata={"Software": None})


# ---- in files


def make_folder(folder: Path) -> tuple[Path, ...]:
    """Make the folder for `write`, before anything is computed; returns those that were not there, inner ones first.

    Raises SettingError.
    """
    new = tuple(each for each in (folder, *folder.parents) if not each.exists())
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingError(f"{folder} cannot be made: {error.strerror}. Choose another folder with -o.") from error
    return new


def remove_empty(folders: Sequence[Path]) -> None:
    """Remove the folders in which nothing was written, inner ones first."""
    for folder in folders:
        with contextlib.suppress(OSError):  # not empty
            folder.rmdir()


def write(sweep: Sweep, facts: Mapping[str, Any], folder: Path) -> list[str]:
    """Write the report, the numbers and the picture; returns their names, without a picture where matplotlib is
    missing. Raises SettingError."""
    try:
        with (folder / TEXT).open("w", encoding="utf-8") as file:
            report(Console(file=file, width=TEXT_WIDTH, highlight=False, markup=False, emoji=False), sweep, facts)
        (folder / NUMBERS).write_text(json.dumps({**facts, **sweep.to_dict()}, indent=1) + "\n", encoding="utf-8")
        if not can_draw():
            (folder / PICTURE).unlink(missing_ok=True)  # of an older sweep
            return [TEXT, NUMBERS]
        draw(sweep, folder / PICTURE)
    except OSError as error:
        raise SettingError(f"the sweep cannot be written to {folder}: {error.strerror}.") from error
    return [TEXT, NUMBERS, PICTURE]
