"""What each command does, given its parsed arguments; `mcdrop.cli` says what they are."""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import mcdrop
from mcdrop.command_line.datafiles import (
    as_json,
    check_output,
    read_arrays,
    read_inputs,
    read_targets,
    write_csv,
    write_fields,
)
from mcdrop.command_line.exporting import build_network, call_of, load_checkpoint
from mcdrop.command_line.remote_command import BY_ROW, ERROR, Predicted, predict_remotely
from mcdrop.command_line.sweep_command import run as run_sweep
from mcdrop.demo import demo as run_demo
from mcdrop.errors import McdropError, SettingError
from mcdrop.graph.arrays import dtype_name
from mcdrop.graph.inputs import InputSpec, Signature, check_finite
from mcdrop.prediction import Prediction
from mcdrop.predictor import MCDropout
from mcdrop.reporting.report import Report, renderables
from mcdrop.surroundings.terminal import new_table, open_console, progress
from service import server
from service.settings import load_settings

__all__ = ["demo", "export", "inspect", "predict", "serve", "sweep", "versions"]

SHOWN_ROWS = 20  # of a prediction, in a terminal
FIRST = ("label", "confidence")  # of the columns
HIDDEN = ("variance", "mutual_information_plugin", "variation_ratio", "vote_shares")  # there, too wide for a terminal
STEPS = 20  # of a progress bar


def versions() -> str:
    """The line of `mcdrop --version`."""
    device = f"cuda ({torch.cuda.get_device_name()})" if torch.cuda.is_available() else "cpu"
    threads = torch.get_num_threads()
    return f"mcdrop {mcdrop.__version__}, torch {torch.__version__}, device {device}, threads {threads}"


def demo(arguments: argparse.Namespace) -> None:
    run_demo(folder=arguments.folder, host=arguments.host, port=arguments.port, once=arguments.once)


def serve(arguments: argparse.Namespace) -> None:
    flags = {name: value for name, value in vars(arguments).items() if name not in ("command", "traceback")}
    settings = load_settings(**flags)

    def ready(url: str) -> None:
        print(f"Serving {settings.models} at {url} - documentation at {url}/docs - Ctrl-C stops", flush=True)

    server.serve(settings, on_ready=ready)


# ---- export and inspect


def export(arguments: argparse.Namespace) -> None:
    output = arguments.output
    mc = _capture(
        arguments,
        output=int(output) if output is not None and output.lstrip("-").isdigit() else output,
        output_kind=arguments.output_kind,
        class_axis=arguments.class_axis,
        class_names=_class_names(arguments.classes),
        noise_variance=arguments.noise_variance,
        num_samples=arguments.num_samples,
        seed=arguments.seed,
        masks=arguments.masks,
        last_layer=arguments.last_layer,
        dtype=getattr(torch, arguments.dtype),
        engine="graph",
        include=arguments.include,
        exclude=arguments.exclude or (),
        rates=dict(arguments.rates),
        name=arguments.name,
        version=arguments.version,
    )
    mc.save(arguments.folder)
    name = mc.name or arguments.folder.resolve().name
    if arguments.json:
        print(json.dumps({"folder": str(arguments.folder), **facts(mc, name)}))
    else:
        summary(mc, name)
        print(f"\nSaved in {arguments.folder}. Serve it: mcdrop serve {arguments.folder}")


def inspect(arguments: argparse.Namespace) -> None:
    folder = Path(arguments.model)
    targets = None if arguments.targets is None else read_targets(arguments.targets)
    with open_console(stderr=True).status("inspecting"):
        report = _inspected(arguments, folder, targets)
    if arguments.json:
        print(json.dumps(report.to_dict(), allow_nan=False))
    else:
        console = open_console()
        for part in renderables(report):
            console.print(part)


def _inspected(arguments: argparse.Namespace, folder: Path, targets: Any) -> Report:
    if folder.is_dir() or ":" not in arguments.model:
        mc = MCDropout.load(
            folder, include=arguments.include, exclude=arguments.exclude, rates=dict(arguments.rates) or None
        )
        inputs = None if arguments.data is None else read_inputs(arguments.data, mc.signature)
        report = mc.inspect(inputs, targets, num_samples=arguments.num_samples)
        name = mc.name or folder.resolve().name
    else:
        report = _inspect_network(arguments, targets)
        name = arguments.model
    return replace(report, model={**report.model, "name": name})


def _inspect_network(arguments: argparse.Namespace, targets: Any) -> Report:
    network, example, dynamic, specs = _network(arguments)
    inputs: Any = None
    if arguments.data is not None:
        inputs = read_inputs(arguments.data, Signature(specs)) if specs else read_arrays(arguments.data)
    with _own_words(network, arguments):
        return mcdrop.inspect(
            network,
            example,
            inputs,
            targets,
            task=arguments.task,
            num_samples=64 if arguments.num_samples is None else arguments.num_samples,
            dynamic=dynamic,
            include=arguments.include,
            exclude=arguments.exclude or (),
            rates=dict(arguments.rates),
            allow_row_interaction=arguments.allow_row_interaction,
        )


def _capture(arguments: argparse.Namespace, **settings: Any) -> MCDropout:
    """The network that the arguments name, captured with the inputs that they describe."""
    network, example, dynamic, _ = _network(arguments)
    with _own_words(network, arguments):
        return MCDropout(
            network,
            example,
            task=arguments.task,
            dynamic=dynamic,
            allow_row_interaction=arguments.allow_row_interaction,
            **settings,
        )


def _network(arguments: argparse.Namespace) -> tuple[nn.Module, Any, Any, tuple[InputSpec, ...]]:
    """The network that the arguments name with its weights, an example, its dynamic axes, and the inputs as stated."""
    specs = [InputSpec.parse(text) for text in arguments.inputs]
    if not specs and arguments.example is None:
        raise SettingError(
            "what the network takes is not known. Describe each input, as in "
            '--input "image: float32[batch, 1, 28, 28]", or give --example data.npz.'
        )
    network = build_network(arguments.model)
    if arguments.weights is not None:
        load_checkpoint(network, arguments.weights)
    given = None if arguments.example is None else read_arrays(arguments.example)
    return network, *call_of(network, specs, given), tuple(specs)


@contextmanager
def _own_words(network: nn.Module, arguments: argparse.Namespace) -> Iterator[None]:
    """What the user's own code raises inside becomes an error that says so."""
    try:
        yield
    except McdropError:
        raise
    except Exception as error:  # from the user's code
        described = ", ".join(arguments.inputs) or arguments.example
        raise SettingError(
            f"{type(network).__name__} cannot be run on inputs like {described}; it raises {type(error).__name__}: "
            f"{error}. Describe the inputs that its forward() takes."
        ) from error


def _class_names(text: str | None) -> tuple[str, ...] | None:
    """`cat,dog`, or the lines of `@file`."""
    if text is None:
        return None
    if not text.startswith("@"):
        return tuple(name.strip() for name in text.split(","))
    try:
        lines = Path(text[1:]).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"the class names cannot be read from {text[1:]}: {error}") from error
    return tuple(line.strip() for line in lines if line.strip())


def facts(mc: MCDropout, name: str) -> dict[str, Any]:
    """What there is to know of a model, as plain JSON."""
    return {
        "name": name,
        "version": mc.version,
        "task": mc.task.name,
        "class_names": mc.task.class_names,
        "inputs": [str(spec) for spec in mc.signature.inputs],
        "defaults": {"num_samples": mc.num_samples, "seed": mc.seed, "masks": mc.masks},
        "last_layer": mc.last_layer,
        "device": str(mc.device),
        "dtype": dtype_name(mc.dtype),
        "sites": [
            {key: getattr(site, key) for key in ("path", "kind", "p", "shape", "active", "reason", "source")}
            for site in mc.sites
        ],
        "cost": mc.cost,
    }


def summary(mc: MCDropout, name: str) -> None:
    """The same, to be read by people."""
    names = mc.task.class_names
    classes = f", {len(names)} classes: {', '.join(names[:10])}{', ...' * (len(names) > 10)}" if names else ""
    table = new_table(("", ""))
    table.show_header = False
    table.add_row("model", f"{name}, version {mc.version}")
    table.add_row("inputs", "\n".join(map(str, mc.signature.inputs)))
    table.add_row("task", mc.task.name + classes)
    table.add_row("defaults", f"{mc.num_samples} passes, seed {mc.seed}, {mc.masks} masks")
    if mc.engine == "graph":
        cost = mc.cost
        table.add_row("once per row", f"{cost['prefix_operations']} operations (prefix)")
        table.add_row("once per pass", f"{cost['suffix_operations']} operations (suffix, {cost['mode']})")
    else:
        table.add_row("once per pass", "everything: it runs eagerly")
    open_console().print(table)
    print(f"\n{mc.sites}")


# ---- predict


def predict(arguments: argparse.Namespace) -> None:
    if arguments.output is not None:
        check_output(arguments.output)
    fields, names, made = predict_remotely(arguments) if arguments.folder is None else _predict_here(arguments)
    fields = dict(sorted(fields.items(), key=lambda item: (item[1].ndim, item[0] not in FIRST)))
    if arguments.output is not None:
        write_fields(arguments.output, fields, facts=made, class_names=names)
    if arguments.json:
        print(as_json(fields, facts=made))
    elif arguments.output is not None:
        rows = len(fields["mean"])
        print(f"{rows} rows, {_passes_text(fields, made)}, seed {made['seed']}: {arguments.output}")
    elif sys.stdout.isatty():
        _show(fields, names, made)
    else:
        write_csv(sys.stdout, fields, class_names=names)


def _predict_here(arguments: argparse.Namespace) -> Predicted:
    if arguments.model is not None:
        raise SettingError("--model names a model of a server. Give --url too, or leave it out.")
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    mc = MCDropout.load(arguments.folder, device=device)
    inputs = read_inputs(arguments.data, mc.signature)
    check_finite(mc.signature.bind(inputs)[0], mc.signature.names)
    prediction = _predict(mc, inputs, arguments)
    arrays = prediction.numpy()
    fields = {name: getattr(arrays, name) for name in arrays.fields}
    if arrays.passes is not None:
        fields |= {name: getattr(arrays, name) for name in BY_ROW}
    fields |= {name + ERROR: values for name, values in (arrays.standard_errors or {}).items()}
    return fields, mc.task.class_names, {"num_samples": prediction.num_samples, "seed": prediction.seed}


def _predict(mc: MCDropout, inputs: Any, arguments: argparse.Namespace) -> Prediction:
    run = mc.start(
        inputs,
        num_samples=arguments.num_samples,
        seed=arguments.seed,
        standard_errors=arguments.standard_errors,
        tolerance=arguments.tolerance,
        certified=arguments.certified,
        until=arguments.until,
    )
    with progress("passes", run.num_samples) as advance:
        while not run.done:
            before = run.passes
            mc.advance(run, max(1, run.num_samples // STEPS))
            advance(run.passes - before)
    return run.prediction()


def _passes_text(fields: Mapping[str, np.ndarray], made: Mapping[str, int]) -> str:
    """The passes of a prediction in words."""
    if "passes" not in fields or not len(fields["passes"]):
        return f"{made['num_samples']} passes"
    passes, late = fields["passes"], int((~fields["converged"]).sum())
    missed = f", {late} rows not converged" if late else ""
    return f"{passes.min()} to {passes.max()} passes ({passes.mean():.0f} on average{missed})"


def _show(fields: dict[str, np.ndarray], class_names: tuple[str, ...] | None, made: dict[str, int]) -> None:
    """The first rows, with the fields that have one value in each."""
    rows = len(fields["mean"])
    columns = {
        name: values.reshape(-1)
        for name, values in fields.items()
        if values.size == rows and name not in HIDDEN and not name.endswith(ERROR)
    }
    table = new_table(("row", *columns), numeric=("row", *columns))
    for row in range(min(rows, SHOWN_ROWS)):
        cells = []
        for name, values in columns.items():
            if name == "label" and class_names is not None:
                cells.append(class_names[values[row]])
            elif values.dtype.kind == "b":
                cells.append("yes" if values[row] else "no")
            else:
                error = fields.get(name + ERROR)
                cells.append(f"{values[row]:.4g}" + ("" if error is None else f" ± {error.reshape(-1)[row]:.1g}"))
        table.add_row(str(row), *cells)
    console = open_console()
    console.print(table)
    hidden = f" The first {SHOWN_ROWS} of {rows} rows." if rows > SHOWN_ROWS else ""
    console.print(
        f"\n{_passes_text(fields, made)}, seed {made['seed']}.{hidden} -o FILE writes every number.", style="dim"
    )


def sweep(arguments: argparse.Namespace) -> None:
    run_sweep(arguments)
