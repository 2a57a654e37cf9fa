"""The outputs of a model as tensors by name, and which of them a request wants.

A field of a prediction is a tensor of its name. Where a field holds several arrays, each is a tensor of its own
(`standard_errors.mean`, ..., and for a network that gives a pair `samples.mean` and `samples.log_variance`), and the
bare name stands for all of them.
"""

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mcdrop.predictor import MCDropout
from service.errors import InvalidRequestError
from service.outcome import Outcome
from service.v2.parameters import flag, read_parameters
from service.wire import BY_ROW, available_outputs

PAIR = ("mean", "log_variance")  # what a heteroscedastic network gives
_ERRORS = {
    "raw": ("mean", "variance"),
    "regression": ("mean", "variance", "epistemic_variance", "aleatoric_variance", "entropy"),
    "heteroscedastic": ("mean", "variance", "epistemic_variance", "aleatoric_variance", "entropy"),
}
_ERRORS_OF_PROBABILITIES = ("mean", "variance", "entropy", "expected_entropy", "mutual_information")


@dataclass(frozen=True)
class Wanted:
    """One entry of a request's `outputs`; `binary` is None where the request as a whole decides."""

    name: str
    binary: bool | None = None

    @property
    def field(self) -> str:
        """The field of the prediction that holds it."""
        return self.name.partition(".")[0]


def output_names(mc: MCDropout) -> tuple[str, ...]:
    """Every name that a request may ask for."""
    task = mc.task
    errors = _ERRORS.get(task.name, _ERRORS_OF_PROBABILITIES)
    parts = {"standard_errors": errors, "samples": PAIR if task.name == "heteroscedastic" else ()}
    return tuple(
        name
        for field in available_outputs(mc)
        for name in (field, *(f"{field}.{part}" for part in parts.get(field, ())))
    )


def read_outputs(given: object, mc: MCDropout) -> tuple[Wanted, ...]:
    """The `outputs` of a request; an absent or empty array wants those that are computed anyway."""
    if given is None:
        return ()
    if not isinstance(given, list) or not all(isinstance(item, dict) for item in given):
        raise InvalidRequestError("outputs is no array of objects; leave it out, or name outputs in it.")
    known = output_names(mc)
    wanted: dict[str, Wanted] = {}
    for item in given:
        name = item.get("name")
        if not isinstance(name, str) or name not in known:
            raise InvalidRequestError(
                f"there is no output {reprlib.repr(name)}. A {mc.task.name} model has {', '.join(known)}."
            )
        if name in wanted:
            raise InvalidRequestError(f"output {name!r} is asked for twice.")
        parameters = read_parameters(item, f"output {name!r}")
        for strange in ("classification", "shared_memory_region"):
            if strange in parameters:
                raise InvalidRequestError(f"output {name!r}: this server does not offer {strange!r}. Leave it out.")
        binary = flag(parameters, "binary_data", False) if "binary_data" in parameters else None
        wanted[name] = Wanted(name, binary)
    return tuple(wanted.values())


def tensors(outcome: Outcome) -> dict[str, NDArray[Any]]:
    """Every array of an outcome by the name of its tensor."""
    found: dict[str, NDArray[Any]] = {}
    for field, value in outcome.fields.items():
        if isinstance(value, Mapping):
            found |= {f"{field}.{part}": np.asarray(array) for part, array in value.items()}
        elif isinstance(value, list):
            found |= {f"{field}.{part}": np.asarray(array) for part, array in zip(PAIR, value, strict=True)}
        else:
            found[field] = np.asarray(value)
    return found


def select(
    found: Mapping[str, NDArray[Any]], wanted: Sequence[Wanted], binary: bool
) -> dict[str, tuple[NDArray[Any], bool]]:
    """The tensors of an answer in its order, each with whether it is written as bytes.

    Where rows stop by a rule, what is said of each row comes with any others.
    """
    if not wanted:
        return {name: (array, binary) for name, array in found.items()}
    chosen: dict[str, tuple[NDArray[Any], bool]] = {}
    for output in wanted:
        names = [name for name in found if name == output.name or name.startswith(f"{output.name}.")]
        if not names:
            raise InvalidRequestError(f"this model's {output.field} has no {output.name!r}; ask for {output.field!r}.")
        as_bytes = binary if output.binary is None else output.binary
        chosen |= {name: (found[name], as_bytes) for name in names}
    return chosen | {name: (found[name], binary) for name in BY_ROW if name in found}
