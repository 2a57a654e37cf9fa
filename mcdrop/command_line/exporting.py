"""A network given by words, as on the command line: `pkg.module:factory`, a weights file, input specifications.

Code is only ever run from the factory's module, which the user names; weight files are read without unpickling
objects (safetensors, or `torch.load(weights_only=True)`), and have to fit the network exactly.
"""

import importlib
import inspect
import os
import pickle
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mcdrop.errors import SettingError
from mcdrop.graph.examples import example_inputs
from mcdrop.graph.inputs import BATCH, InputSpec, Signature

__all__ = ["build_network", "call_of", "load_checkpoint", "read_checkpoint"]

STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model")  # where training scripts put the weights in a checkpoint
WRAPPER_PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and of torch.compile


# ---- the network


def build_network(reference: str, *arguments: float) -> nn.Module:
    """Import `pkg.module:factory` (the current directory included) and call it with `arguments`.

    Without arguments a finished module is taken as it is. Raises SettingError when the reference, the module
    or what it returns is not usable.
    """
    module_name, _, path = reference.partition(":")
    if not module_name or not path:
        raise SettingError(f"{reference!r} names no network. Write it as pkg.module:factory, for example models:build.")
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    value: Any
    try:
        value = importlib.import_module(module_name)
        for name in path.split("."):
            value = getattr(value, name)
    except ModuleNotFoundError as error:
        raise SettingError(
            f"{reference}: there is no module {error.name!r}. Run the command in the folder that contains "
            f"{module_name.split('.')[0]!r}, or install the package."
        ) from error
    except AttributeError as error:
        raise SettingError(f"{reference}: {error}. Name a function or class of that module.") from error
    except Exception as error:
        raise SettingError(f"{reference}: importing it failed with {type(error).__name__}: {error}") from error
    if isinstance(value, nn.Module) and not arguments:
        return value
    if isinstance(value, nn.Module) or not callable(value):
        takes = "takes a dropout rate and " if arguments else ""
        raise SettingError(
            f"{reference} is a {type(value).__name__}; name a function that {takes}returns an nn.Module."
        )
    call = f"{reference}({', '.join(f'{argument:g}' for argument in arguments)})"
    try:
        network = value(*arguments)
    except Exception as error:
        raise SettingError(
            f"{call} failed with {type(error).__name__}: {error}. The function is called "
            f"{'with one argument, the dropout rate' if arguments else 'without arguments'}."
        ) from error
    if not isinstance(network, nn.Module):
        raise SettingError(f"{call} returned a {type(network).__name__}; it has to return an nn.Module.")
    return network


# ---- its weights


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a checkpoint saved with `torch.save`; no object is unpickled."""
    if not path.is_file():
        raise SettingError(f"there is no weights file {path}.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; what matters here raises
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise SettingError(
            f"{path} contains more than weights, or is no checkpoint, and running code from a weights file is never "
            "allowed. Save the weights alone: torch.save(model.state_dict(), path)."
        ) from error
    except Exception as error:  # a damaged file makes the readers fail in many ways
        raise SettingError(f"{path} cannot be read as weights: {error}") from error
    return _state_dict(checkpoint, path)


def load_checkpoint(network: nn.Module, path: Path) -> None:
    """Put all weights of the file into the network, which has to want exactly those. Raises SettingError."""
    weights = read_checkpoint(path)
    wanted = network.state_dict()
    weights = _without_wrapper(weights, wanted)
    loaded = {wanted[name].data_ptr() for name in weights if name in wanted}
    missing = [name for name in wanted if name not in weights and wanted[name].data_ptr() not in loaded]  # tied: once
    unexpected = [name for name in weights if name not in wanted]
    different = [
        f"{name} (file {list(weights[name].shape)}, network {list(wanted[name].shape)})"
        for name in weights
        if name in wanted and weights[name].shape != wanted[name].shape
    ]
    problems = [
        f"{len(names)} {what}: {_some(names)}"
        for what, names in (
            ("missing in the file", missing),
            ("unknown to the network", unexpected),
            ("of another shape", different),
        )
        if names
    ]
    if problems:
        raise SettingError(
            f"{path} does not fit {type(network).__name__}: {'; '.join(problems)}. "
            "Give the weights of exactly this network; none is skipped."
        )
    network.load_state_dict(weights, strict=False)  # names and shapes are checked above; tied weights may come once


def _state_dict(checkpoint: object, path: Path) -> dict[str, Tensor]:
    """The mapping of names to tensors in a checkpoint: itself, or its one entry of a usual name."""
    if isinstance(checkpoint, Mapping):
        inner = [key for key in STATE_DICT_KEYS if isinstance(checkpoint.get(key), Mapping)]
        found = checkpoint[inner[0]] if len(inner) == 1 else checkpoint
        if found and all(isinstance(value, Tensor) for value in found.values()):
            return dict(found)
        keys = f"a mapping with {_some([str(key) for key in checkpoint])}"
    else:
        keys = f"a {type(checkpoint).__name__}"
    raise SettingError(
        f"{path} holds {keys}; expected the tensors of a state dict, by themselves or under one of "
        f"{', '.join(STATE_DICT_KEYS)}. Save them with torch.save(model.state_dict(), path)."
    )


def _without_wrapper(weights: dict[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop the prefix that DataParallel or torch.compile put before every name, unless the network has it too."""
    for prefix in WRAPPER_PREFIXES:
        if all(name.startswith(prefix) for name in weights) and not any(name.startswith(prefix) for name in wanted):
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


# ---- an example of its inputs

Arrays = np.ndarray | Mapping[str, np.ndarray]
Call = Tensor | tuple[Tensor, ...] | dict[str, Tensor]


def call_of(network: nn.Module, specs: Sequence[InputSpec], example: Arrays | None) -> tuple[Call, dict[str, Any]]:
    """How to call the network: example inputs and their dynamic axes, as `MCDropout` takes them.

    The values come from `example`, or are made by `example_inputs`. Inputs go by name where the names are those of
    `forward`; a single input may have any name and keeps the one that `forward` gives it. Raises SettingError.
    """
    values = example_inputs(specs) if example is None else _values(specs, example)
    known = _keywords(network)
    dynamic: dict[Any, Any] = {spec.name: axes for spec in specs if (axes := _dynamic(spec))}
    if set(values) <= set(known):
        return values, dynamic
    if len(values) > 1:
        unknown = next(name for name in values if name not in known)
        raise SettingError(
            f"forward() of {type(network).__name__} takes no {unknown!r}; it takes {', '.join(known)}. "
            "Name the inputs as it does."
        )
    (value,) = values.values()
    return value, next(iter(dynamic.values())) if dynamic else {}


def _values(specs: Sequence[InputSpec], example: Arrays) -> dict[str, Tensor]:
    """The arrays of an example file by input name, checked against the specifications where there are any."""
    arrays = {"input": example} if isinstance(example, np.ndarray) else dict(example)
    if not specs:
        return {name: torch.as_tensor(value) for name, value in arrays.items()}
    signature = Signature(tuple(specs))
    tensors = signature.bind(next(iter(arrays.values())) if len(arrays) == len(specs) == 1 else arrays)[0]
    return dict(zip(signature.names, tensors, strict=True))


def _keywords(network: nn.Module) -> list[str]:
    parameters = inspect.signature(network.forward).parameters.values()
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]


def _dynamic(spec: InputSpec) -> dict[int, str]:
    """Axis -> how its size is written: `length`, `length<=512`."""
    written = str(spec).partition("[")[2].removesuffix("]").split(", ")
    return {axis: written[axis] for axis, size in enumerate(spec.shape) if isinstance(size, str) and size != BATCH}
