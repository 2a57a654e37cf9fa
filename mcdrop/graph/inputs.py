"""What a captured network accepts: named tensors with dtype, fixed sizes and declared dynamic sizes.

An `InputSpec` is one input, a `Signature` all of them. `Signature.bind` is the one door for data: it takes what people
have (tensors, NumPy arrays, nested lists; alone, in a tuple, or in a dict by name) and gives tensors in the order of
the program, or an `InputError` that names the input, says what came and what was expected.

    image: float32[batch, 1, 28, 28]
    ids: int64[batch, length=2..512]        also length<=512, length>=2, length (at least 1)

The first size is `batch` for an input with rows; an input without it is the same for every row. A batch may be empty.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mcdrop.errors import InputError, SettingError
from mcdrop.graph.arrays import cast, check_finite, dtype_name, is_array, to_tensor

__all__ = ["BATCH", "DTYPES", "InputSpec", "Signature", "check_finite"]

BATCH = "batch"

DTYPES: Mapping[str, torch.dtype] = {
    dtype_name(dtype): dtype
    for dtype in (
        torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128,
        torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64,
        torch.bool,
    )
}  # fmt: skip

Bounds = tuple[int, int | None]
DEFAULT_BOUNDS: Bounds = (1, None)

_SPEC = re.compile(r"\s*([^:\[\]]+?)\s*:\s*([a-z0-9]+)\s*\[(.*)\]\s*", re.ASCII)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-]{0,199}", re.ASCII)
_SIZE = re.compile(r"[0-9]{1,18}", re.ASCII)
_DYNAMIC = re.compile(
    r"(?P<name>[A-Za-z_]\w{0,99})\s*"
    r"(?:<=\s*(?P<most>\d{1,18})|>=\s*(?P<least>\d{1,18})|=\s*(?P<low>\d{1,18})\s*\.\.\s*(?P<high>\d{1,18}))?",
    re.ASCII,
)
_FORM = 'Write it like "image: float32[batch, 1, 28, 28]" or "ids: int64[batch, length=2..512]".'


@dataclass(frozen=True)
class InputSpec:
    """One input: its name, dtype and shape.

    `shape` holds fixed sizes (int >= 1), `"batch"` (first axis only) and names of dynamic sizes. `bounds` gives each
    dynamic size its (least, most) value, most None for no bound; a name without an entry gets (1, None).
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int | str, ...]
    bounds: Mapping[str, Bounds] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        _check_name(self.name)
        if self.dtype not in DTYPES.values():
            raise SettingError(f"input {self.name!r} has dtype {self.dtype}; it can be {', '.join(DTYPES)}.")
        names: list[str] = []
        for axis, size in enumerate(self.shape):
            if isinstance(size, str):
                _check_dynamic(self.name, size, axis)
                if size != BATCH:
                    names.append(size)
            elif type(size) is not int or size < 1:
                raise SettingError(f"input {self.name!r} has size {size!r} at axis {axis}; a fixed size is at least 1.")
        if unknown := sorted(set(self.bounds) - set(names)):
            raise SettingError(
                f"input {self.name!r} has bounds for {unknown[0]!r}, which is no dynamic size of {self.shape}."
            )
        bounds = {name: _checked_bounds(name, self.bounds.get(name, DEFAULT_BOUNDS)) for name in names}
        object.__setattr__(self, "shape", tuple(self.shape))
        object.__setattr__(self, "bounds", bounds)

    @classmethod
    def parse(cls, text: str) -> "InputSpec":
        """Read `name: dtype[size, ...]`; raises `SettingError` where the text is not of that form."""
        match = _SPEC.fullmatch(text)
        if match is None:
            raise SettingError(f"the input specification {text!r} cannot be read. {_FORM}")
        name, dtype, sizes = match.groups()
        if dtype not in DTYPES:
            raise SettingError(
                f"the input specification {text!r} names dtype {dtype!r}; known are {', '.join(DTYPES)}."
            )
        shape: list[int | str] = []
        bounds: dict[str, Bounds] = {}
        for item in (part.strip() for part in sizes.split(",")) if sizes.strip() else ():
            if _SIZE.fullmatch(item):
                shape.append(int(item))
                continue
            dynamic = _DYNAMIC.fullmatch(item)
            if dynamic is None:
                raise SettingError(
                    f"the input specification {text!r} has the size {item!r}, which cannot be read. {_FORM}"
                )
            shape.append(dynamic["name"])
            stated = _stated_bounds(dynamic)
            if stated is not None and bounds.setdefault(dynamic["name"], stated) != stated:
                raise SettingError(f"the input specification {text!r} bounds {dynamic['name']!r} twice, differently.")
        return cls(name, DTYPES[dtype], tuple(shape), bounds)

    def __str__(self) -> str:
        return self._text

    @cached_property
    def _text(self) -> str:
        written: set[str] = set()
        sizes = []
        for size in self.shape:
            text = str(size)
            if isinstance(size, str) and size not in written and size != BATCH:
                text += _bounds_text(self.bounds[size])
                written.add(size)
            sizes.append(text)
        return f"{self.name}: {self.dtype_name}[{', '.join(sizes)}]"

    @property
    def dtype_name(self) -> str:
        """The dtype as `parse` reads it: `float32`."""
        return dtype_name(self.dtype)

    @property
    def batched(self) -> bool:
        """Whether the first axis counts rows."""
        return bool(self.shape) and self.shape[0] == BATCH


@dataclass(frozen=True)
class Signature:
    """All inputs of a network, in the order of its program.

    `keyword` says that the network was captured with a dict of keyword inputs; both forms can be bound by either.
    """

    inputs: tuple[InputSpec, ...]
    keyword: bool = False

    def __post_init__(self) -> None:
        if not self.inputs:
            raise SettingError("a network needs at least one tensor input.")
        names = [spec.name for spec in self.inputs]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise SettingError(f"two inputs are named {repeated[0]!r}; give each its own name.")
        seen: dict[str, Bounds] = {}
        for spec in self.inputs:
            for name, bounds in spec.bounds.items():
                if seen.setdefault(name, bounds) != bounds:
                    raise SettingError(f"the dynamic size {name!r} has bounds {seen[name]} and {bounds}; state one.")

    def __str__(self) -> str:
        return "; ".join(map(str, self.inputs))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(spec.name for spec in self.inputs)

    @property
    def dims(self) -> dict[str, Bounds]:
        """Every dynamic size besides the batch, with its (least, most) value."""
        return {name: bounds for spec in self.inputs for name, bounds in spec.bounds.items()}

    def rows(self, tensors: Sequence[Tensor]) -> int | None:
        """The batch size of bound tensors; None when no input has a batch axis."""
        return next((tensor.shape[0] for spec, tensor in zip(self.inputs, tensors, strict=True) if spec.batched), None)

    def bind(self, value: Any, *, device: torch.device | str = "cpu") -> tuple[list[Tensor], bool]:
        """Checked tensors in the order of `inputs`, and whether the answer should be NumPy.

        `value` is one input (when there is one), a tuple or list of all, or a dict by name; each input is a tensor, an
        array, or nested lists of numbers. The answer is NumPy when arrays were given and no tensor.
        Raises `InputError`. Values are not checked to be finite: see `check_finite`.
        """
        values = self._ordered(value)
        sizes: dict[str, tuple[int, str]] = {}
        tensors = []
        for spec, given in zip(self.inputs, values, strict=True):
            if spec.batched and _is_empty(given):
                tensor = _empty_batch(spec, sizes)
            else:
                tensor = to_tensor(given, name=spec.name, expected=str(spec))
            _check_shape(spec, tensor, sizes)
            tensors.append(tensor)
        bound = [
            cast(tensor, spec.dtype, name=spec.name, expected=str(spec)).to(device)
            for spec, tensor in zip(self.inputs, tensors, strict=True)
        ]
        arrays = any(is_array(given) for given in values)
        return bound, arrays and not any(isinstance(given, Tensor) for given in values)

    def _ordered(self, value: Any) -> list[Any]:
        if isinstance(value, Mapping):
            unknown = [name for name in value if name not in self.names]
            missing = [name for name in self.names if name not in value]
            if unknown or missing:
                parts = [f"unknown: {', '.join(map(repr, unknown))}"] if unknown else []
                parts += [f"missing: {', '.join(missing)}"] if missing else []
                raise InputError(f"the inputs do not fit the model ({'; '.join(parts)}). Expected {self}.")
            return [value[name] for name in self.names]
        if len(self.inputs) == 1:
            alone = (
                isinstance(value, tuple | list)
                and len(value) == 1
                and (isinstance(value[0], Tensor) or is_array(value[0]))
            )
            return list(value) if alone else [value]
        if not isinstance(value, tuple | list) or len(value) != len(self.inputs):
            got = f"{len(value)} values" if isinstance(value, tuple | list) else f"one {type(value).__name__}"
            raise InputError(
                f"the model has {len(self.inputs)} inputs and got {got}. Expected {self}. "
                "Give a tuple with all of them, or a dict by name."
            )
        return list(value)


# ---- specifications


def _check_name(name: str) -> None:
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise SettingError(
            f"{name!r} cannot name an input; use letters, digits, '_', '.' and '-', starting with a letter or '_'."
        )


def _check_dynamic(name: str, size: str, axis: int) -> None:
    if size == BATCH and axis != 0:
        raise SettingError(f"input {name!r} has the batch at axis {axis}; it has to be axis 0.")
    dynamic = _DYNAMIC.fullmatch(size)
    if dynamic is None or dynamic["name"] != size:
        raise SettingError(
            f"input {name!r} names a size {size!r}; use letters, digits and '_'. Bounds stand in `bounds`."
        )


def _checked_bounds(name: str, bounds: Bounds) -> Bounds:
    least, most = bounds
    if type(least) is not int or least < 0 or not (most is None or (type(most) is int and most >= least)):
        raise SettingError(
            f"the dynamic size {name!r} has bounds {bounds}; expected (least, most), 0 <= least <= most or None."
        )
    return least, most


def _stated_bounds(match: re.Match[str]) -> Bounds | None:
    if match["most"] is not None:
        return DEFAULT_BOUNDS[0], int(match["most"])
    if match["least"] is not None:
        return int(match["least"]), None
    if match["low"] is not None:
        return int(match["low"]), int(match["high"])
    return None


def _bounds_text(bounds: Bounds) -> str:
    least, most = bounds
    if bounds == DEFAULT_BOUNDS:
        return ""
    if most is None:
        return f">={least}"
    return f"<={most}" if least == DEFAULT_BOUNDS[0] else f"={least}..{most}"


# ---- values


def _is_empty(value: object) -> bool:
    """`[]`, or the array that it becomes: an empty batch without its other axes."""
    return (isinstance(value, list | tuple) and not value) or (isinstance(value, np.ndarray) and value.shape == (0,))


def _empty_batch(spec: InputSpec, sizes: Mapping[str, tuple[int, str]]) -> Tensor:
    """What `[]` means: no rows, the other sizes as declared."""
    shape = [0]
    for size in spec.shape[1:]:
        shape.append(size if isinstance(size, int) else sizes.get(size, (spec.bounds[size][0], ""))[0])
    return torch.empty(shape, dtype=spec.dtype, device="cpu")


def _check_shape(spec: InputSpec, tensor: Tensor, sizes: dict[str, tuple[int, str]]) -> None:
    """Compare with the specification; `sizes` gathers what named sizes are, and at which input that was seen."""
    got = tuple(tensor.shape)
    if len(got) != len(spec.shape):
        hint = ""
        if spec.batched and len(got) == len(spec.shape) - 1:
            hint = " One row also needs the batch axis: x[None]."
        elif spec.batched and len(got) == len(spec.shape) + 1:
            hint = " Give one batch at a time: the first axis counts rows."
        raise InputError(
            f"input {spec.name!r} has {len(got)} axes, shape {list(got)}; expected {len(spec.shape)}: {spec}.{hint}"
        )
    for axis, (size, expected) in enumerate(zip(got, spec.shape, strict=True)):
        if isinstance(expected, int):
            if size != expected:
                where = f"at axis {axis}, shape {list(got)}"
                raise InputError(f"input {spec.name!r} has size {size} {where}; expected {expected}: {spec}.")
            continue
        known, seen_at = sizes.setdefault(expected, (size, spec.name))
        if size != known:
            other = "an earlier axis" if seen_at == spec.name else f"input {seen_at!r}"
            raise InputError(
                f"input {spec.name!r} has {expected} {size} at axis {axis}, but {other} has {expected} {known}; "
                f"sizes named {expected!r} have to be equal: {spec}."
            )
        if expected != BATCH:
            least, most = spec.bounds[expected]
            if size < least or (most is not None and size > most):
                reach = f"at least {least}" if most is None else f"{least} to {most}"
                raise InputError(f"input {spec.name!r} has {expected} {size} at axis {axis}; expected {reach}: {spec}.")
