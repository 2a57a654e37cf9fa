"""The protocol's data types: their names, their bytes, and how tensors are read from JSON and from buffers.

Casts into the model's dtype happen where the library makes them (`mcdrop.graph.arrays.cast`), and only among floating
types or among whole numbers, as long as every value fits; nothing turns from one of these kinds, or bool, into another.
"""

import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcdrop.errors import InputError
from mcdrop.graph.arrays import dtype_name
from service.errors import NotOfferedError


@dataclass(frozen=True)
class Datatype:
    """One row of the table. `layout` is how NumPy reads its bytes; `in_json` says whether JSON may carry it."""

    name: str
    dtype: torch.dtype
    layout: str
    in_json: bool = True

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return np.dtype(self.layout).itemsize

    @property
    def kind(self) -> str:
        """Types of one kind are cast into each other."""
        if self.dtype is torch.bool:
            return "bool"
        return "floating point" if self.dtype.is_floating_point else "whole number"


DATATYPES: Mapping[str, Datatype] = {
    datatype.name: datatype
    for datatype in (
        Datatype("BOOL", torch.bool, "u1"),
        Datatype("UINT8", torch.uint8, "<u1"),
        Datatype("UINT16", torch.uint16, "<u2"),
        Datatype("UINT32", torch.uint32, "<u4"),
        Datatype("UINT64", torch.uint64, "<u8"),
        Datatype("INT8", torch.int8, "<i1"),
        Datatype("INT16", torch.int16, "<i2"),
        Datatype("INT32", torch.int32, "<i4"),
        Datatype("INT64", torch.int64, "<i8"),
        Datatype("FP16", torch.float16, "<f2", in_json=False),
        Datatype("BF16", torch.bfloat16, "<u2", in_json=False),
        Datatype("FP32", torch.float32, "<f4"),
        Datatype("FP64", torch.float64, "<f8"),
    )
}
STRINGS = "BYTES"  # known to the protocol; no network takes strings

_BY_DTYPE = {datatype.dtype: datatype for datatype in DATATYPES.values()}
_NUMBERS: Mapping[str, frozenset[type]] = {
    "bool": frozenset({bool, int}),
    "whole number": frozenset({int}),
    "floating point": frozenset({int, float}),
}


def of_dtype(dtype: torch.dtype) -> Datatype:
    """The data type of a tensor; raises NotOfferedError for complex numbers, which the protocol does not know."""
    if dtype not in _BY_DTYPE:
        raise NotOfferedError(
            f"The Open Inference Protocol has no data type for {dtype_name(dtype)}, which this model takes. "
            "Use POST /v1/models/{name}/predict or the library."
        )
    return _BY_DTYPE[dtype]


def of_array(array: NDArray[Any]) -> Datatype:
    """The data type of an output."""
    return _BY_DTYPE[torch.from_numpy(np.empty(0, array.dtype)).dtype]


def named(name: object, *, tensor: str) -> Datatype:
    """The data type that a request names for `tensor`; raises InputError for one that cannot be used."""
    if name == STRINGS:
        raise InputError(f"input {tensor!r} has datatype BYTES, and this model takes no strings. Send numbers.")
    if not isinstance(name, str) or name not in DATATYPES:
        raise InputError(f"input {tensor!r} has datatype {reprlib.repr(name)}; expected one of {', '.join(DATATYPES)}.")
    return DATATYPES[name]


def from_json(data: object, datatype: Datatype, shape: Sequence[int], *, name: str) -> Tensor:
    """The tensor that a JSON array holds, flat in row-major order or nested to `shape`. Raises InputError.

    Elements are looked at as they are: NumPy alone would read "1.5" and null as numbers.
    """
    if not datatype.in_json:
        raise InputError(
            f"input {name!r} has datatype {datatype.name}, which JSON cannot carry. Send it as binary data."
        )
    if not isinstance(data, list):
        raise InputError(f"input {name!r} has no array in `data`; expected {math.prod(shape)} values.")
    values = np.array(data, dtype=object)
    flat = values.ravel()
    elements = flat.tolist()
    strangers = sorted(kind.__name__ for kind in set(map(type, elements)) - _NUMBERS[datatype.kind])
    if strangers:
        found = "null" if strangers[0] == "NoneType" else f"elements of type {strangers[0]}"
        raise InputError(
            f"input {name!r} holds {found} in `data`; expected {datatype.kind} values as {datatype.name}, "
            f"flat or nested to the shape {list(shape)}, with rows of equal length."
        )
    if flat.size != math.prod(shape) or (values.ndim > 1 and values.shape != tuple(shape)):
        raise InputError(
            f"input {name!r} has {flat.size} values in an array of shape {list(values.shape)}; "
            f"its `shape` {list(shape)} takes {math.prod(shape)}, flat or nested."
        )
    _check_range(elements, datatype, name)
    try:
        numbers = flat.astype(np.float64 if datatype.dtype.is_floating_point else datatype.layout)
    except OverflowError as error:
        raise InputError(f"input {name!r} holds a number beyond what {datatype.name} can hold.") from error
    return _as_tensor(numbers, datatype, shape, name)


def from_bytes(buffer: memoryview, datatype: Datatype, shape: Sequence[int], *, name: str) -> Tensor:
    """The tensor in a buffer of exactly its size, copied."""
    return _as_tensor(np.frombuffer(buffer, dtype=datatype.layout), datatype, shape, name)


def _check_range(elements: list[Any], datatype: Datatype, name: str) -> None:
    if datatype.dtype.is_floating_point or not elements:
        return
    info = None if datatype.dtype is torch.bool else torch.iinfo(datatype.dtype)
    least, most = (0, 1) if info is None else (info.min, info.max)
    low, high = min(elements), max(elements)
    if low < least or high > most:
        raise InputError(
            f"input {name!r} holds {low if low < least else high}; {datatype.name} holds {least} to {most}."
        )


def _as_tensor(numbers: NDArray[Any], datatype: Datatype, shape: Sequence[int], name: str) -> Tensor:
    if datatype.dtype is torch.bool:
        if numbers.size and numbers.max() > 1:
            raise InputError(f"input {name!r} holds the byte {numbers.max()} as BOOL; expected 0 or 1.")
        numbers = numbers.astype(np.bool_)
    native = np.array(numbers, dtype=numbers.dtype.newbyteorder("="))  # a copy: buffers cannot be written
    tensor = torch.from_numpy(native)
    if datatype.dtype is torch.bfloat16:  # NumPy has none: its bits are read as whole numbers
        tensor = tensor.view(torch.bfloat16)
    elif datatype.dtype is torch.float32 and tensor.dtype is torch.float64:
        tensor = _narrowed(tensor, name)
    return tensor.reshape(tuple(shape))


def _narrowed(tensor: Tensor, name: str) -> Tensor:
    """JSON numbers as FP32, none of which may become infinite by that."""
    narrow = tensor.float()
    overflowed = torch.isinf(narrow) & torch.isfinite(tensor)
    if bool(overflowed.any()):
        raise InputError(f"input {name!r} holds {tensor[overflowed][0].item()}, beyond what FP32 can hold.")
    return narrow
