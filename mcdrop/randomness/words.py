"""Words of 64 random bits from (seed, site, block, unit coordinates[, row]): the counter-based generator of `noise`.

`mcdrop.randomness.noise` defines `word`, `out`, `mix` and the factors A_j. Nothing here has a state; everything is
integer arithmetic modulo 2**64, the same on every device.
"""

import functools
import math
from collections.abc import Iterator

import torch
from jaxtyping import Int, Int64
from torch import Tensor

from mcdrop.errors import SettingError

__all__ = ["Device", "Rows", "offsets", "words"]

_GAMMA = 0x9E3779B97F4A7C15
_FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_SHIFTS = (30, 27, 31)
_BLOCK_PER_THREAD = 32768  # torch's grain: each thread gets one, and its buffers stay in the cache
_BLOCK_ON_DEVICE = 2**22  # enough to hide the launch of a kernel

Rows = range | Int[Tensor, " rows"] | None
Device = torch.device | str | None


def offsets(
    shape: tuple[int, ...],
    passes: range,
    row_axis: int | None,
    rows: Rows,
    units_per_row: int,
    row_major: bool,
    device: Device,
) -> list[Int64[Tensor, " _"]]:
    """What each coordinate adds to the sum in `word`: one vector per axis of `shape`, behind checked arguments."""
    if passes.step != 1 or passes.start < 0:
        raise SettingError(f"passes = {passes}; expected a range that counts up by one from 0 or more.")
    if row_axis is not None and not 0 <= row_axis < len(shape):
        raise SettingError(f"row_axis = {row_axis} is not an axis of shape {tuple(shape)}.")
    if row_axis is None and (rows is not None or units_per_row != 1):
        raise SettingError("rows and units_per_row describe the batch axis; name it with row_axis.")
    if row_axis is not None and shape[row_axis] != (1 if rows is None else len(rows)) * units_per_row:
        raise SettingError(
            f"axis {row_axis} of shape {tuple(shape)} has {shape[row_axis]} units; expected {units_per_row} for "
            f"{'one row, which all rows share' if rows is None else f'each of {len(rows)} rows'}."
        )
    device = torch.device("cpu" if device is None else device)
    axes = []
    for axis, size in enumerate(shape):
        coordinate = torch.arange(size, device=device)
        if rows is None or axis != row_axis:
            axes.append(coordinate.mul_(_signed(_out(0, axis) | 1)))
            continue
        numbers = torch.as_tensor(rows if isinstance(rows, Tensor) else list(rows), dtype=torch.int64, device=device)
        own = (numbers + 1) * _signed(_GAMMA)
        units = torch.arange(units_per_row, device=device).mul_(_signed(_out(0, axis) | 1))
        axes.append(_sums(own, units) if row_major else _sums(units, own))
    return axes or [torch.zeros(1, dtype=torch.int64, device=device)]


def words(
    axes: list[Int64[Tensor, " _"]], seed: int, site: int, first: int, count: int, *, together: int = 1
) -> Iterator[tuple[tuple[slice, slice], Int64[Tensor, "blocks units"]]]:
    """word(first), ..., word(first + count - 1) piece by piece; each piece lives until the next one is asked for.

    A piece holds a multiple of `together` words, and so has to be `count`.
    """
    device = axes[0].device
    total = math.prod(len(axis) for axis in axes)
    if count == 0 or total == 0:
        return
    room = _BLOCK_PER_THREAD * torch.get_num_threads() if device.type == "cpu" else _BLOCK_ON_DEVICE
    room = max(1, room // together)
    keys = torch.arange(count, device=device).mul_(_signed(_GAMMA))
    keys.add_(_signed(_out(_out(seed, 0), site) + (first + 1) * _GAMMA))
    _mix_(keys, torch.empty_like(keys))

    # The sum over trailing axes fits into a piece and is kept; the next axis is cut; the leading ones are walked over.
    zero = torch.zeros(1, dtype=torch.int64, device=device)
    leading = list(axes)
    trailing = leading.pop() if len(axes[-1]) <= room else zero
    while leading and len(leading[-1]) * len(trailing) <= room:
        trailing = _sums(leading.pop(), trailing)
    cut = leading.pop() if leading else zero
    walk = functools.reduce(_sums, leading, zero)
    step = max(1, room // len(trailing))
    step = -(-len(cut) // -(-len(cut) // step))  # pieces of about equal size

    buffers = torch.empty((2, min(room * together, count * total)), dtype=torch.int64, device=device)
    for number, base in enumerate(walk):
        for at in range(0, len(cut), step):
            terms = _sums(cut[at : at + step] + base, trailing)
            begin = (number * len(cut) + at) * len(trailing)
            group = together * max(1, room // len(terms))
            for block in range(0, count, group):
                key = keys[block : block + group]
                word, spare = buffers[:, : len(key) * len(terms)].view(2, len(key), -1).unbind()
                torch.add(key.unsqueeze(1), terms, out=word)
                _mix_(word, spare)
                yield (slice(block, block + len(key)), slice(begin, begin + len(terms))), word


def _sums(slow: Int64[Tensor, " _"], fast: Int64[Tensor, " _"]) -> Int64[Tensor, " _"]:
    """Every sum of two terms, the second running faster."""
    return (slow.unsqueeze(1) + fast).flatten()


def _mix_(z: Int64[Tensor, "..."], spare: Int64[Tensor, "..."]) -> None:
    """`mix` in place; `spare` has the shape of `z` and loses its values."""
    for shift, factor in zip(_SHIFTS, (*_FACTORS, None), strict=True):
        torch.bitwise_right_shift(z, shift, out=spare)
        z.bitwise_xor_(spare.bitwise_and_(2 ** (64 - shift) - 1))  # torch's shift repeats the sign bit
        if factor is not None:
            z.mul_(_signed(factor))


def _out(state: int, index: int) -> int:
    """`out` on Python integers."""
    z = (state + (index + 1) * _GAMMA) % 2**64
    for shift, factor in zip(_SHIFTS, (*_FACTORS, 1), strict=True):
        z = (z ^ z >> shift) * factor % 2**64
    return z


def _signed(number: int) -> int:
    """The same 64 bits as torch's int64 reads them."""
    return (number + 2**63) % 2**64 - 2**63
