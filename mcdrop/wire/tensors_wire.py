"""Tensors as bytes: the binary tensor data extension of the Open Inference Protocol, without any network or HTTP.

    message = header (JSON, as many bytes as Inference-Header-Content-Length says)
              followed by the buffers of those tensors that have `parameters.binary_data_size`, in the header's order

A buffer is in C order and little endian, without padding; it carries every value bit for bit, infinities and NaN
included. BF16 is the upper half of a float32: rounded to the nearest on the way out, float32 on the way in.
Everything that does not fit raises InputError.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from mcdrop.errors import InputError

__all__ = ["BF16", "DATATYPES", "datatype_of", "fit", "join", "read", "read_all", "split", "write"]

BF16 = "BF16"  # has no NumPy dtype
DATATYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    **{f"UINT{8 * size}": np.dtype(f"<u{size}") for size in (1, 2, 4, 8)},
    **{f"INT{8 * size}": np.dtype(f"<i{size}") for size in (1, 2, 4, 8)},
    **{f"FP{8 * size}": np.dtype(f"<f{size}") for size in (2, 4, 8)},
}
_NAMES = {(dtype.kind, dtype.itemsize): name for name, dtype in DATATYPES.items()}
_BF16 = np.dtype("<u2")


def datatype_of(array: NDArray[Any]) -> str:
    """`FP32` for float32, and so on; raises InputError for what has no name."""
    name = _NAMES.get((array.dtype.kind, array.dtype.itemsize))
    if name is None:
        raise InputError(f"an array of {array.dtype} cannot be sent; expected one of {', '.join(DATATYPES)}.")
    return name


def fit(array: NDArray[Any], datatype: str, name: str) -> NDArray[Any]:
    """The same values as `datatype` holds them (float32 for BF16). Raises InputError where one would change.

    Allowed are whole numbers and bool to floats, floats to other floats as long as finite values stay finite, and
    whole numbers and bool to others that hold every value.
    """
    target = np.dtype("<f4") if datatype == BF16 else DATATYPES[datatype]
    if array.dtype == target or array.size == 0:
        return array.astype(target)
    if target.kind == "f":
        with np.errstate(over="ignore"):
            result = array.astype(target)
        overflowed = np.isinf(result) & np.isfinite(array)
        if overflowed.any():
            raise InputError(f"input {name!r} holds {array[overflowed][0]}, beyond what {datatype} can hold.")
        return result
    if array.dtype.kind == "f":
        raise InputError(f"input {name!r} has dtype {array.dtype}; expected whole numbers, {datatype}.")
    least, most = (0, 1) if target.kind == "b" else (int(np.iinfo(target).min), int(np.iinfo(target).max))
    low, high = int(array.min()), int(array.max())
    if low < least or high > most:
        raise InputError(f"input {name!r} holds {low if low < least else high}; {datatype} holds {least} to {most}.")
    return array.astype(target)


def write(name: str, array: NDArray[Any], datatype: str | None = None) -> tuple[dict[str, Any], bytes]:
    """How the header describes a tensor, and its buffer. `array` is of the datatype already: see `fit`."""
    kind = datatype_of(array) if datatype is None else datatype
    buffer = (_upper_halves(array) if kind == BF16 else array.astype(DATATYPES[kind], copy=False)).tobytes()
    described = {
        "name": name,
        "shape": list(array.shape),
        "datatype": kind,
        "parameters": {"binary_data_size": len(buffer)},
    }
    return described, buffer


def join(header: Mapping[str, Any], buffers: Sequence[bytes]) -> tuple[bytes, int]:
    """The message, and how many of its bytes are the header."""
    text = orjson.dumps(header)
    return b"".join([text, *buffers]), len(text)


def split(message: bytes | memoryview, header_length: str | None) -> tuple[Any, memoryview]:
    """The header as JSON, and the bytes behind it; without a length all of the message is header."""
    whole = memoryview(message)
    length = len(whole)
    if header_length is not None:
        if not (header_length.isascii() and header_length.isdigit()) or int(header_length) > length:
            raise InputError(
                f"Inference-Header-Content-Length is {header_length!r}; expected a number, {length} at most."
            )
        length = int(header_length)
    try:
        return orjson.loads(whole[:length]), whole[length:]
    except orjson.JSONDecodeError as error:
        raise InputError(f"the header is not JSON: {error}.") from error


def read(described: Mapping[str, Any], buffer: memoryview) -> NDArray[Any]:
    """One tensor from exactly its bytes: a view of them, so read-only (a copy for BF16)."""
    name, kind, shape = described["name"], described["datatype"], described["shape"]
    if kind not in DATATYPES and kind != BF16:
        raise InputError(f"tensor {name!r} has the datatype {kind!r}; known are {', '.join((*DATATYPES, BF16))}.")
    if any(type(size) is not int or size < 0 for size in shape):
        raise InputError(f"tensor {name!r} has the shape {shape}; expected sizes of at least 0.")
    dtype = _BF16 if kind == BF16 else DATATYPES[kind]
    expected = math.prod(shape) * dtype.itemsize
    if len(buffer) != expected:
        raise InputError(f"tensor {name!r} has {len(buffer)} bytes; {kind} of shape {shape} takes {expected}.")
    if dtype.kind == "b" and any(byte > 1 for byte in set(buffer)):
        raise InputError(f"tensor {name!r} holds a byte that is neither 0 nor 1; expected those for BOOL.")
    array = np.frombuffer(buffer, dtype).reshape(shape)
    return array if kind != BF16 else (array.astype("<u4") << 16).view("<f4")


def read_all(tensors: Sequence[Mapping[str, Any]], buffers: memoryview) -> dict[str, NDArray[Any]]:
    """The binary tensors among those that a header describes, by name. Raises InputError for bytes over or missing."""
    found: dict[str, NDArray[Any]] = {}
    start = 0
    for described in tensors:
        size = described.get("parameters", {}).get("binary_data_size")
        if size is None:
            continue
        name = described["name"]
        if type(size) is not int or size < 0:
            raise InputError(f"tensor {name!r} has binary_data_size {size!r}; expected a number of bytes.")
        if start + size > len(buffers):
            missing = start + size - len(buffers)
            raise InputError(f"unexpected size for tensor {name!r}, expecting {missing} additional bytes.")
        if name in found:
            raise InputError(f"two tensors are named {name!r}.")
        found[name] = read(described, buffers[start : start + size])
        start += size
    if start != len(buffers):
        raise InputError(f"unexpected additional data: {len(buffers) - start} bytes behind the last tensor.")
    return found


def _upper_halves(array: NDArray[Any]) -> NDArray[np.uint16]:
    """float32 as BF16: rounded to the nearest, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(array, "<f4").view("<u4")
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    quiet = (bits >> 16) | 0x40
    return np.where(np.isnan(array), quiet, rounded).astype(_BF16)
