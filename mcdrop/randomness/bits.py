"""Masks as bits, eight units in a byte, and back."""

import functools
import math

import torch
from jaxtyping import Bool, Shaped, UInt8
from torch import Tensor

from mcdrop.errors import SettingError

__all__ = ["pack_bits", "unpack_bits"]

_GATHER = 0x0102040810204080  # times eight bytes of 0 or 1: their bits, in order, in the top byte


def pack_bits(mask: Bool[Tensor, "passes ..."]) -> UInt8[Tensor, "passes bytes"]:
    """Eight units per byte: unit i of a pass, counted in row-major order, is bit i % 8 of byte i // 8."""
    units = math.prod(mask.shape[1:])
    padded = torch.nn.functional.pad(mask.reshape(len(mask), units), (0, -units % 8))  # copies, so bytes are aligned
    gathered = padded.reshape(-1).view(torch.int64).mul(_GATHER).bitwise_right_shift_(56).bitwise_and_(255)
    return gathered.to(torch.uint8).view(len(mask), -(-units // 8))


def unpack_bits(
    bits: UInt8[Tensor, "passes bytes"],
    *,
    shape: tuple[int, ...],
    scale: float | int = 1.0,  # beartype does not take an int for a float
    dtype: torch.dtype = torch.float32,
) -> Shaped[Tensor, "passes ..."]:
    """The packed masks as numbers of `dtype`, (passes, *shape): `scale` where kept, else 0.

    Contiguous if the units of a pass fill whole bytes, else a view that skips the spare bits.
    """
    units = math.prod(shape)
    if bits.shape[1] != -(-units // 8):
        raise SettingError(
            f"{bits.shape[1]} bytes per pass cannot hold a mask of shape {tuple(shape)}; expected {-(-units // 8)}. "
            "Give the shape that was packed, without the passes."
        )
    table = _byte_table(float(scale), dtype, bits.device)
    spread = table.index_select(0, bits.reshape(-1).int())  # (passes * bytes, 8)
    return spread.view(len(bits), 8 * bits.shape[1])[:, :units].view(len(bits), *shape)


@functools.lru_cache(maxsize=256)
def _byte_table(scale: float, dtype: torch.dtype, device: torch.device) -> Shaped[Tensor, "256 8"]:
    """Row v: the bits of byte v, least first, times `scale`. Made on the CPU, so that no stream reads it too early."""
    bits = torch.arange(256, device="cpu")[:, None] >> torch.arange(8, device="cpu") & 1
    return (bits.double() * scale).to(dtype).to(device)
