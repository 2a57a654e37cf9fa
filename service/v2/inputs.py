"""The input tensors of a request: their shapes and sizes checked before anything is made, then read.

Values stand in the JSON or, where an input has the parameter `binary_data_size`, in the buffers after it: in the order
of the inputs, little endian, row-major, without gaps.
"""

import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mcdrop.errors import InputError
from mcdrop.graph.inputs import InputSpec, Signature, check_finite
from service.errors import BodyTooLargeError, InvalidRequestError
from service.settings import Settings, raise_limit
from service.v2 import datatypes
from service.v2.parameters import read_parameters

_MAX_BYTES = 2**63 - 1  # no tensor of any machine is larger


@dataclass
class Inputs:
    """The inputs of one request; `rest` is what is left of the buffers."""

    rest: memoryview
    has_header: bool
    signature: Signature
    settings: Settings

    def read(self, given: object) -> dict[str, Tensor]:
        if not isinstance(given, list) or not all(isinstance(item, dict) for item in given):
            raise InvalidRequestError(f"inputs is missing or no array of objects. The model takes {self.signature}.")
        specs = {spec.name: spec for spec in self.signature.inputs}
        tensors: dict[str, Tensor] = {}
        for item in given:
            name = item.get("name")
            if not isinstance(name, str) or name not in specs:
                raise InputError(f"there is no input {reprlib.repr(name)}. The model takes {self.signature}.")
            if name in tensors:
                raise InputError(f"input {name!r} is given twice.")
            tensors[name] = self._tensor(item, specs[name])
        if self.rest:
            raise InputError(
                f"unexpected additional input data: {len(self.rest)} bytes are left after all inputs are read."
            )
        return tensors

    def _tensor(self, item: Mapping[str, Any], spec: InputSpec) -> Tensor:
        datatype = datatypes.named(item.get("datatype"), tensor=spec.name)
        expected = datatypes.of_dtype(spec.dtype)
        if datatype.kind != expected.kind:
            raise InputError(
                f"input {spec.name!r} has datatype {datatype.name}; the model takes {expected.name}, "
                f"or another {expected.kind} type whose values fit."
            )
        shape = _shape(item.get("shape"), spec.name)
        count = math.prod(shape)
        _check_extent(shape, datatype.itemsize, spec.name, self.settings)
        parameters = read_parameters(item, f"input {spec.name!r}")
        if any(name.startswith("shared_memory_") for name in parameters):
            raise InvalidRequestError(f"input {spec.name!r} is in shared memory, which this server does not read.")
        if "binary_data_size" in parameters:
            size = self._checked_size(item, parameters["binary_data_size"], count * datatype.itemsize, spec.name)
            buffer, self.rest = self.rest[:size], self.rest[size:]
            tensor = datatypes.from_bytes(buffer, datatype, shape, name=spec.name)
        else:
            tensor = datatypes.from_json(item.get("data"), datatype, shape, name=spec.name)
        if not self.settings.allow_nonfinite_inputs:
            check_finite([tensor], [spec.name])
        return tensor

    def _checked_size(self, item: Mapping[str, Any], size: object, wanted: int, name: str) -> int:
        if isinstance(size, bool) or not isinstance(size, int) or size < 0:
            raise InvalidRequestError(f"binary_data_size of input {name!r} is {size!r}; expected a number of bytes.")
        if not self.has_header:
            raise InvalidRequestError(
                f"input {name!r} is binary, and the header Inference-Header-Content-Length is missing, "
                "which says where the JSON ends."
            )
        if "data" in item:
            raise InvalidRequestError(f"input {name!r} has both binary_data_size and data; send one of them.")
        if size != wanted:
            raise InputError(f"input {name!r} has binary_data_size {size}; its shape and datatype take {wanted} bytes.")
        if size > len(self.rest):
            raise InputError(f"unexpected size for input {name!r}, expecting {size - len(self.rest)} additional bytes.")
        return size


def read_raw(body: bytes, signature: Signature, settings: Settings) -> Tensor:
    """The only input of a model, one row of it, from a body without JSON."""
    spec = signature.inputs[0]
    sizes = spec.shape[1:] if spec.batched else spec.shape
    datatype = datatypes.of_dtype(spec.dtype)
    if len(signature.inputs) > 1 or sum(isinstance(size, str) for size in sizes) > 1:
        raise InputError(
            "a raw binary request (Inference-Header-Content-Length: 0) is for models with one input that has at most "
            f"one variable size; this one takes {signature}. Send a request with JSON."
        )
    unit = datatype.itemsize * math.prod(size for size in sizes if isinstance(size, int))
    count = len(body) // unit  # the variable size, where there is one
    if len(body) % unit or (count != 1 and all(isinstance(size, int) for size in sizes)):
        raise InputError(
            f"the raw binary request has {len(body)} bytes; one row of {spec} takes {unit}, "
            "or a multiple of that where a size is variable."
        )
    shape = [size if isinstance(size, int) else count for size in sizes]
    tensor = datatypes.from_bytes(memoryview(body), datatype, [1, *shape] if spec.batched else shape, name=spec.name)
    if not settings.allow_nonfinite_inputs:
        check_finite([tensor], [spec.name])
    return tensor


def _shape(given: object, name: str) -> list[int]:
    right = isinstance(given, list) and all(type(size) is int and size >= 0 for size in given)
    if not (right and isinstance(given, list) and len(given) <= 32):
        raise InputError(
            f"input {name!r} has shape {reprlib.repr(given)}; expected an array of at most 32 sizes, at least 0."
        )
    return given


def _check_extent(shape: Sequence[int], itemsize: int, name: str, settings: Settings) -> None:
    """Refuse a shape before anything of its size is made; sizes beside a 0 count too, since libraries multiply them."""
    extent = math.prod(max(size, 1) for size in shape) * itemsize
    if extent > _MAX_BYTES:
        raise InputError(f"input {name!r} has shape {list(shape)}, which no tensor can have.")
    if extent > settings.max_input_bytes:
        raise BodyTooLargeError(
            f"input {name!r} of shape {list(shape)} takes {extent} bytes and this server allows "
            f"{settings.max_input_bytes} for one input. Send fewer rows, or raise {raise_limit('max_input_bytes')}."
        )
