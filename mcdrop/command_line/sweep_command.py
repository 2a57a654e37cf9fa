"""`mcdrop sweep`: data and a network given by words, the sweep with its progress, a report and files."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mcdrop.command_line.datafiles import read_labelled
from mcdrop.command_line.exporting import build_network
from mcdrop.digits import digit_mlp, few_digits
from mcdrop.errors import McdropError, SettingError
from mcdrop.surroundings.terminal import open_console, progress
from mcdrop.sweep import LEAST_SEEDS, Factory, Plan
from mcdrop.sweep.sweep_report import can_draw, make_folder, remove_empty, report, write
from mcdrop.sweep.trials import Sweep, Trial
from mcdrop.training import Data

__all__ = ["run"]

FOLDER = Path("mcdrop-sweep")
LEAST_ROWS = 10  # of a file of which a fifth is held out
SETTINGS = ("rates", "task", "seeds", "epochs", "batch_size", "learning_rate", "weight_decay", "num_samples")
NO_PICTURE = "No picture: matplotlib is not installed. From a clone: pip install '.[plot]'"


def run(arguments: argparse.Namespace) -> None:
    """Sweep as the arguments say. Raises McdropError, before any training where that can be known.

    KeyboardInterrupt ends the training: what all rates have is reported and written, then it is raised again.
    """
    factory, train, validation = _asked(arguments.factory, arguments.data)
    folder = FOLDER if arguments.folder is None and not arguments.json else arguments.folder
    made = () if folder is None else make_folder(folder)
    settings = {name: getattr(arguments, name) for name in SETTINGS}
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    plan = Plan(factory, train, validation, **settings, device=device, threads=arguments.threads)
    facts = {
        "network": arguments.factory or digit_mlp.__name__,
        "data": arguments.data,
        "training_rows": len(train[0]),
        "validation_rows": len(validation[0]),
        **{name: value for name, value in settings.items() if name not in ("rates", "seeds")},
    }
    trials: list[Trial] = []
    try:
        try:
            _train(plan, trials, arguments.factory)
        except KeyboardInterrupt:
            _tell_of_some(plan, trials, facts, folder, as_json=arguments.json)
            raise
        _tell(plan.gather(trials), facts, folder, as_json=arguments.json)
    finally:
        remove_empty(made)


def _train(plan: Plan, trials: list[Trial], reference: str | None) -> None:
    """Add each trial to `trials` as it is finished: with a bar in a terminal, else with a line on standard error."""
    total = plan.seeds * len(plan.rates)
    try:
        with progress("training", total * plan.epochs) as advance:
            for trial in plan.trials(advance):
                trials.append(trial)
                if not sys.stderr.isatty():
                    measure = f"{plan.measure} {trial.score.measure:.4g}, NLL {trial.score.nll:.4g}"
                    line = f"{len(trials)} of {total}: seed {trial.seed}, p = {trial.rate:g}, {measure}"
                    print(line, file=sys.stderr, flush=True)
    except McdropError:
        raise
    except Exception as error:  # from the user's code
        inputs = plan.train[0]
        raise SettingError(
            f"a network of {reference} cannot be trained on inputs of {inputs.dtype} {list(inputs.shape)}; "
            f"it raises {type(error).__name__}: {error}"
        ) from error


def _tell(found: Sweep, facts: Mapping[str, Any], folder: Path | None, *, as_json: bool) -> None:
    """The report or its JSON on standard output, and the files."""
    if as_json:
        print(json.dumps({**facts, **found.to_dict()}))
    else:
        report(open_console(), found, facts)
    if folder is not None:
        written = write(found, facts, folder)
        if not as_json:
            print(f"\nWritten to {folder}: {', '.join(written)}" + ("" if can_draw() else f"\n{NO_PICTURE}"))


def _tell_of_some(
    plan: Plan, trials: Sequence[Trial], facts: Mapping[str, Any], folder: Path | None, *, as_json: bool
) -> None:
    """The same of the seeds that are trained at every rate, where they are enough for a standard error."""
    seeds, total = len(trials) // len(plan.rates), plan.seeds * len(plan.rates)
    if seeds < LEAST_SEEDS:
        print(
            f"\n{len(trials)} of {total} trainings were finished; it takes {LEAST_SEEDS} seeds at every rate to report "
            "anything, so nothing is written.",
            file=sys.stderr,
        )
        return
    print(f"\nstopped: {seeds} of {plan.seeds} seeds are trained at every rate; these are reported", file=sys.stderr)
    _tell(plan.gather(trials[: seeds * len(plan.rates)]), facts, folder, as_json=as_json)


def _asked(reference: str | None, data: str) -> tuple[Factory, Data, Data]:
    """The factory, and the data to train and to validate on."""
    if data == "digits":
        train, validation = few_digits()
    else:
        train, validation = _read(Path(data))
    if reference is not None:
        return lambda rate: build_network(reference, rate), train, validation
    if data != "digits":
        raise SettingError(
            f"which network to train on {data} is not known. Name a function that takes a dropout rate and returns a "
            f"network, as in: mcdrop sweep models:build --data {data}"
        )
    return digit_mlp, train, validation


def _read(path: Path) -> tuple[Data, Data]:
    arrays = {name: _tensor(values) for name, values in read_labelled(path).items()}
    inputs, targets = arrays["inputs"], arrays["targets"]
    if "validation_inputs" in arrays:
        return (inputs, targets), (arrays["validation_inputs"], arrays["validation_targets"])
    if len(inputs) < LEAST_ROWS:
        raise SettingError(
            f"{path} has {len(inputs)} rows, too few to hold some out; give at least {LEAST_ROWS}, or "
            "validation_inputs and validation_targets."
        )
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(inputs)))
    held_out, kept = order.tensor_split([len(inputs) // 5])
    return (inputs[kept], targets[kept]), (inputs[held_out], targets[held_out])


def _tensor(values: np.ndarray) -> Tensor:
    """Real numbers in float32, as networks take them; class numbers, ids and bytes as they are."""
    if values.dtype.kind == "f":
        return torch.from_numpy(values.astype(np.float32))
    return torch.from_numpy(
        values.astype(np.int64) if values.dtype.kind == "b" or values.dtype.itemsize > 1 else values
    )
