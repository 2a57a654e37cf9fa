"""Weights on disk: a safetensors file, and the table that says which stored tensor each weight is.

    {"fc.weight": {"tensor": "fc.weight", "dtype": "float32", "shape": [10, 784]},
     "tied.weight": {"tensor": "fc.weight", ...},                    the same memory, stored once
     "conv.weight": {..., "stride": [27, 1, 9, 3]}}                  its memory is not in the order of its axes

Tied weights stay tied, and dense weights keep their strides, since kernels round differently by memory layout (the
stored tensor is always in plain order). Views of one memory that are not the same tensor are stored apart. Files are
read into memory of our own, not mapped, so that a file overwritten or cut off meanwhile, or later, can neither change
nor end a running process.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from mcdrop.disk.strictjson import Refused, as_list, as_text, as_whole

__all__ = ["load_weights", "save_weights"]

MAX_WEIGHTS = 100_000

STORABLE: Mapping[str, torch.dtype] = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64,
        torch.int64, torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8,
        torch.bool, torch.float8_e4m3fn, torch.float8_e5m2,
    )
}  # fmt: skip


def save_weights(path: Path, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Write the tensors and return their table. Raises `Refused` for a tensor that safetensors cannot hold."""
    table: dict[str, Any] = {}
    stored: dict[str, Tensor] = {}
    known: dict[tuple[Any, ...], str] = {}
    for name, weight in weights.items():
        dtype = str(weight.dtype).removeprefix("torch.")
        if weight.layout is not torch.strided or weight.is_quantized or weight.is_meta or dtype not in STORABLE:
            raise Refused(f"the weight {name!r} is a {weight.layout} tensor of {dtype} on {weight.device}")
        shape, stride = tuple(weight.shape), weight.stride()
        entry: dict[str, Any] = {"tensor": name, "dtype": dtype, "shape": list(shape)}
        if _is_dense(shape, stride) and stride != torch.empty(shape, device="meta").stride():
            entry["stride"] = list(stride)
        memory = (weight.data_ptr(), weight.device, dtype, shape, stride)
        if weight.numel() and memory in known:
            entry["tensor"] = known[memory]
        else:
            known[memory] = name
            # a clone: safetensors refuses tensors that share memory, and a view would keep all of what it views
            stored[name] = weight.detach().to("cpu").clone(memory_format=torch.contiguous_format)
        table[name] = entry
    save_file(stored, path)
    return table


def load_weights(data: bytes, table: object, *, device: torch.device) -> dict[str, Tensor]:
    """The weights of a table, from a file's content. Raises `Refused` where the two do not say the same."""
    if not isinstance(table, dict) or len(table) > MAX_WEIGHTS:
        raise Refused(f"the table of weights should be an object with at most {MAX_WEIGHTS} entries")
    weights: dict[str, Tensor] = {}
    read: dict[str, tuple[tuple[int, ...] | None, Tensor]] = {}
    try:
        with torch.device("cpu"):  # whatever the caller has made the default
            stored = load(data)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise Refused(f"it cannot be read: {error}") from error
    for name, entry in table.items():
        source, dtype, shape, stride = _entry(name, entry)
        if source not in read:
            if source not in stored:
                raise Refused(f"the weight {name!r} is to be the tensor {source!r:.80}, which the file does not have")
            read[source] = stride, _laid_out(stored.pop(source), stride).to(device)
        known, weight = read[source]
        if known != stride:  # else one small file could ask for many large copies
            raise Refused(f"the weight {name!r} has other strides than its twin")
        if weight.dtype is not dtype or tuple(weight.shape) != shape:
            raise Refused(f"the weight {name!r} is {weight.dtype} {list(weight.shape)}, not {dtype} {list(shape)}")
        weights[name] = weight
    if unused := sorted(stored):
        raise Refused(f"the tensor {unused[0]!r:.80} belongs to no weight")
    return weights


def _entry(name: str, entry: object) -> tuple[str, torch.dtype, tuple[int, ...], tuple[int, ...] | None]:
    as_text(name, "the name of a weight")
    if not isinstance(entry, dict) or set(entry) - {"stride"} != {"tensor", "dtype", "shape"}:
        raise Refused(f"the weight {name!r} should have tensor, dtype and shape")
    dtype = STORABLE.get(as_text(entry["dtype"], "a dtype"))
    shape = _sizes(entry["shape"], f"the shape of {name!r}")
    if dtype is None:
        raise Refused(f"the weight {name!r} has the unknown dtype {entry['dtype']!r:.80}")
    stride = _sizes(entry["stride"], f"the strides of {name!r}") if "stride" in entry else None
    return as_text(entry["tensor"], "a tensor"), dtype, shape, stride


def _sizes(value: object, what: str) -> tuple[int, ...]:
    sizes = as_list(value, what, 64)
    if any(type(size) is not int or size < 0 for size in sizes):
        raise Refused(f"{what} holds something else than sizes")
    return tuple(as_whole(size) for size in sizes)


def _is_dense(shape: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether the elements fill their memory without gaps and without meeting."""
    extent = 1
    for step, size in sorted((step, size) for step, size in zip(stride, shape, strict=True) if size != 1):
        if step != extent:
            return False
        extent *= size
    return all(0 <= step <= max(extent, 1) for step in stride)


def _laid_out(stored: Tensor, stride: tuple[int, ...] | None) -> Tensor:
    """A copy in memory of our own."""
    if stride is None:
        return stored.clone()
    if len(stride) != stored.ndim or not _is_dense(stored.shape, stride):
        raise Refused(f"the strides {list(stride)} do not fit a tensor of shape {list(stored.shape)}")
    return torch.empty_strided(stored.shape, stride, dtype=stored.dtype, device=stored.device).copy_(stored)
