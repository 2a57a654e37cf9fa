"""What people have, as tensors: arrays, nested lists and tensors of another dtype.

Values are never changed silently. A cast happens only where it keeps the meaning: between floating dtypes (a finite
value must stay finite), from whole numbers to floats, and between bool and whole-number dtypes where every value fits.
Errors name the input and repeat `expected`, the text of its specification.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mcdrop.errors import InputError

__all__ = ["cast", "check_finite", "dtype_name", "is_array", "to_tensor"]

_KINDS = {"U": "strings", "S": "bytes", "O": "objects", "V": "records", "M": "dates", "m": "time spans"}


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` for `torch.float32`."""
    return str(dtype).removeprefix("torch.")


def is_array(value: object) -> bool:
    """NumPy arrays and what offers itself as one (data frames, images); not tensors, whose `__array__` copies."""
    return isinstance(value, np.ndarray | np.generic) or (hasattr(value, "__array__") and not isinstance(value, Tensor))


def to_tensor(value: Any, *, name: str, expected: str) -> Tensor:
    """A dense tensor of the value's own dtype, sharing memory where it can; raises `InputError` for anything else."""
    if isinstance(value, Tensor):
        if value.layout is not torch.strided or value.is_quantized or value.is_nested or value.is_meta:
            raise InputError(
                f"input {name!r} is a {value.layout} tensor on {value.device}; expected a dense {expected}."
            )
        return value.detach()
    if not (is_array(value) or isinstance(value, list | tuple | bool | int | float | complex)):
        raise InputError(
            f"input {name!r} is of type {type(value).__name__}; expected {expected}. "
            "Give a tensor, an array or nested lists of numbers."
        )
    if isinstance(value, list | tuple) and any(isinstance(item, Tensor) for item in value):
        raise InputError(f"input {name!r} is a list of tensors; expected {expected}. Join the rows with torch.stack.")
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise InputError(
            f"input {name!r} is no regular array of numbers: its lists differ in length or hold something else. "
            f"Expected {expected}; pad rows to one length."
        ) from error
    kind = array.dtype.kind
    if kind not in "biufc":
        raise InputError(
            f"input {name!r} holds {_KINDS.get(kind, 'no numbers')}; expected {expected}. "
            "Strings, missing values and whole numbers beyond 64 bits cannot be used."
        )
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):  # torch takes neither as it is
        array = array.copy()
    try:
        return torch.from_numpy(array)
    except TypeError as error:
        raise InputError(f"input {name!r} has the NumPy dtype {array.dtype}; expected {expected}.") from error


def cast(tensor: Tensor, dtype: torch.dtype, *, name: str, expected: str) -> Tensor:
    """The same values in `dtype`; raises `InputError` where a value would change its meaning."""
    source = tensor.dtype
    if source is dtype or tensor.numel() == 0:
        return tensor.to(dtype)
    if source.is_complex and not dtype.is_complex:
        raise InputError(
            f"input {name!r} holds complex numbers; expected {expected}. Give the real part or the modulus."
        )
    if not (dtype.is_floating_point or dtype.is_complex):
        if source.is_floating_point:
            raise InputError(
                f"input {name!r} has dtype {dtype_name(source)}; expected whole numbers: {expected}. "
                "Convert it yourself if that loses nothing."
            )
        return _cast_whole(tensor, dtype, name=name, expected=expected)
    result = tensor.to(dtype)
    narrower = source.itemsize > dtype.itemsize and (source.is_floating_point or source.is_complex)
    if narrower and not _all_finite(result):
        overflowed = torch.isinf(result) & torch.isfinite(tensor)
        if bool(overflowed.any()):
            raise InputError(
                f"input {name!r} holds {tensor[overflowed][0].item()}, beyond what {dtype_name(dtype)} can hold; "
                f"expected {expected}. Scale the values, or capture the model with a wider dtype."
            )
    return result


def check_finite(tensors: Sequence[Tensor], names: Sequence[str] = ()) -> None:
    """Raise `InputError` where an input holds NaN or infinity, saying which input (by `names`, else its position)."""
    for position, tensor in enumerate(tensors):
        if not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        if not _all_finite(tensor):
            index = tuple((~torch.isfinite(tensor)).nonzero()[0].tolist())
            name = names[position] if position < len(names) else str(position)
            raise InputError(
                f"input {name!r} holds {tensor[index].item()} at index {list(index)}; every value has to be finite. "
                "Replace missing or overflowing values before asking for a prediction."
            )


def _cast_whole(tensor: Tensor, dtype: torch.dtype, *, name: str, expected: str) -> Tensor:
    """Between bool and whole-number dtypes: every value has to fit."""
    (least, most), (have_least, have_most) = _whole_range(dtype), _whole_range(tensor.dtype)
    if have_least < least or have_most > most:
        low, high = (int(value) for value in torch.aminmax(tensor.to(torch.int64)))  # uint16 to uint64 have no aminmax
        if tensor.dtype is torch.uint64 and low < 0:  # wrapped: at least one value is beyond int64
            low, high = 0, low + 2**64
        if low < least or high > most:
            raise InputError(
                f"input {name!r} holds {low if low < least else high} as {dtype_name(tensor.dtype)}; "
                f"{dtype_name(dtype)} holds {least} to {most}: {expected}."
            )
    return tensor.to(dtype)


def _whole_range(dtype: torch.dtype) -> tuple[int, int]:
    if dtype is torch.bool:
        return 0, 1
    info = torch.iinfo(dtype)
    return info.min, info.max


def _all_finite(tensor: Tensor) -> bool:
    """A sum is finite only if all of its terms are, and faster; one that is not may have grown too large."""
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())
