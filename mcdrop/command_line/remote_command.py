"""`mcdrop predict --url`: the rows of a data file, predicted by a server, as the model itself would write them."""

import argparse
from collections.abc import Mapping
from typing import Any

import numpy as np

from mcdrop.client import Client
from mcdrop.command_line.datafiles import read_inputs
from mcdrop.errors import SettingError
from mcdrop.graph.inputs import InputSpec, Signature
from mcdrop.wire.many import ROWS

ERROR = "_standard_error"
ON_REQUEST = ("standard_errors", "quantiles", "samples")  # outputs that are not written unasked
BY_ROW = ("passes", "converged")  # of rows that stop by a rule
TIMEOUT = 600.0  # seconds for each request: nobody waits for these rows in a browser

Predicted = tuple[dict[str, np.ndarray], tuple[str, ...] | None, dict[str, int]]


def predict_remotely(arguments: argparse.Namespace) -> Predicted:
    """Fields by name, class names, and how they were obtained; shows progress in a terminal."""
    if arguments.device is not None:
        raise SettingError("--device is for a model folder: with --url the server decides. Leave it out.")
    with Client(arguments.url, timeout=TIMEOUT) as client:
        name = arguments.model or _only_model(client)
        about = client.model(name)
        signature = Signature(tuple(InputSpec.parse(item["spec"]) for item in about["inputs"]))
        wanted = [output for output in about["outputs"] if output not in ON_REQUEST]
        inputs = read_inputs(arguments.data, signature)
        prediction = client.predict_many(
            inputs,
            batch_size=_batch_size(inputs, about),
            model=name,
            num_samples=arguments.num_samples,
            seed=arguments.seed,
            tolerance=arguments.tolerance,
            certified=arguments.certified,
            until=arguments.until,
            outputs=[*wanted, *(["standard_errors"] if arguments.standard_errors else [])],
        )
    names = [*wanted, *(name for name in BY_ROW if name in prediction.fields)]
    fields = {name: prediction.fields[name] for name in names}
    errors: Mapping[str, np.ndarray] = prediction.fields.get("standard_errors", {})
    fields |= {f"{output}{ERROR}": values for output, values in errors.items()}
    return fields, prediction.class_names, {"num_samples": prediction.num_samples, "seed": prediction.seed}


def _only_model(client: Client) -> str:
    name = client.default_model()
    if name is None:
        known = ", ".join(model["name"] for model in client.models())
        raise SettingError(f"{client.base_url} serves {known}, and none is the default. Choose one with --model.")
    return name


def _batch_size(inputs: Any, about: Mapping[str, Any]) -> int | None:
    """Independent masks depend on a row's place in its request, so such rows go together."""
    if about["defaults"]["masks"] != "independent":
        return min(ROWS, int(about["limits"]["max_rows"]))
    first = next(iter(inputs.values())) if isinstance(inputs, dict) else inputs
    return max(1, len(first)) if first.ndim else None
