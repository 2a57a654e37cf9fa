"""In which floating type a network computes: what is refused, and what stays float32 all the same.

Half precision is that of weights and activations. Inputs arrive as float32 and are rounded inside the program, a draw
multiplies its activations in float32 and is rounded once (so that a kept unit is scaled by 1 / (1 - p) and not by its
nearest bfloat16, which would shift every mean), and statistics are summed in float64. Whole numbers stay what they are.
"""

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mcdrop.errors import McdropError, SettingError
from mcdrop.graph.arrays import dtype_name
from mcdrop.surroundings.memory import is_out_of_memory

__all__ = ["HALVES", "as_dtype", "check_precision", "dtype_of", "explained", "input_dtype"]

HALVES = (torch.bfloat16, torch.float16)
_NAMES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def as_dtype(value: Any) -> torch.dtype:
    """The type that a setting means, by its name ("bfloat16") or as it is. Raises SettingError for any other."""
    for name, dtype in _NAMES.items():
        if value in (name, dtype):
            return dtype
    raise SettingError(f"dtype is {value!r}; choose {', '.join(_NAMES)}, or the dtype of PyTorch of that name.")


def input_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type of the inputs with real numbers for a network that computes in `dtype`."""
    return torch.float32 if dtype in HALVES else dtype


def dtype_of(weights: Iterable[Tensor]) -> torch.dtype:
    """The floating type of most of these numbers; float32 where there are none."""
    counts: Counter[torch.dtype] = Counter()
    for weight in weights:
        if weight.is_floating_point():
            counts[weight.dtype] += weight.numel()
    return max(counts, key=counts.__getitem__, default=torch.float32)


def check_precision(model: nn.Module, inputs: Iterable[Tensor], dtype: torch.dtype) -> None:
    """Refuse half precision where it would lose what the network was made for.

    Raises:
        SettingError: weights are float64, or weights or inputs complex.
    """
    if dtype not in HALVES:
        return
    weights = [(repr(name), weight) for name, weight in [*model.named_parameters(), *model.named_buffers()]]
    for what, value in [*weights, *((f"input {number}", value) for number, value in enumerate(inputs))]:
        if value.is_complex():
            raise SettingError(
                f"dtype is {dtype_name(dtype)} and {what} is {value.dtype}: there are no complex numbers of half "
                "precision. Capture the network in float32."
            )
    for what, value in weights:
        if value.dtype == torch.float64:
            raise SettingError(
                f"dtype is {dtype_name(dtype)} and {what} is float64, most of whose digits it would lose. Where that "
                "is meant, give model.float(); else capture the network in float64."
            )


@contextlib.contextmanager
def explained(dtype: torch.dtype) -> Iterator[None]:
    """Inside, what PyTorch cannot compute in half precision on a device is a SettingError with its reason."""
    try:
        yield
    except RuntimeError as error:
        if dtype not in HALVES or isinstance(error, McdropError) or is_out_of_memory(error):
            raise
        raise SettingError(
            f"the network cannot compute in {dtype_name(dtype)} here: {str(error).splitlines()[0]}. Capture it in "
            "float32."
        ) from error
