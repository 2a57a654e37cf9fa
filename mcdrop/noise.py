"""Noise as a function: masks and random numbers from (seed, site, pass, unit coordinates[, row]).

Nothing here has a state, and nothing depends on how a draw is cut up: any range of passes, any subset of rows and any
length of any axis gives each element the same bits, on every device (integer arithmetic and integer thresholds).

Definition, version 1. Integers are unsigned with 64 bits and wrap; `>>` shifts zeros in; negative ones count modulo
2**64. `mix` is the finaliser of splitmix64 (Steele, Lea and Flood 2014; variant 13 of Stafford's):

    mix(z):     z ^= z >> 30;  z *= 0xBF58476D1CE4E5B9;  z ^= z >> 27;  z *= 0x94D049BB133111EB;  z ^= z >> 31
    out(s, i) = mix(s + (i + 1) G)      output i of splitmix64 started at s;  G = 0x9E3779B97F4A7C15
    A_j       = out(0, j) | 1           the factor of axis j of `shape`, counted from the left

    word(b, coordinates) = mix(out(out(out(seed, 0), site), b) + sum_j c_j A_j [+ (row + 1) G])

Here b numbers blocks, c_j is the unit's coordinate on axis j, and the term in brackets is there when `rows` is given.
The halves of one word serve two passes: with h the high (even t) or low (odd t) 32 bits of word(t // 2, ...),

    hash32    = h + 2**31 modulo 2**32  that is, h read as a signed number, plus 2**31
    mask      = 1 (kept) where hash32 >= round(p 2**32), ties to even; p is the probability of dropping
    bernoulli = 1 where hash32 >= round((1 - prob) 2**32): the mask of a dropout with p = 1 - prob
    uniform   = the first d bits of hash32 as a fraction in [0, 1); d = 24 for float32, 11 for float16, 8 for bfloat16;
                for float64 d = 53: hash32, then the first 21 bits of word(2**63 + t, ...)
    normal    = sqrt(2) erfinv(2 u - 1) in float64, then rounded; u = (k + 1/2) / 2**52 with k the first 52 bits of
                word(2**63 + t, ...)

The batch axis, `row_axis`, holds `units_per_row` units of each row: 1, or the factor that was merged with the batch
(attention heads). Its coordinate c_j is the unit's number within its row. Without `rows` one draw serves all rows, and
`shape` has one row. With `rows`, the index of each row in its request, every row has a draw of its own; on that axis
the units of a row are neighbours (`row_major`, batch * heads) or the rows of a unit are (heads * batch).

Since the sum is linear, small or trailing axes cost nothing extra, and units of one pass share a word only where their
coordinates solve a congruence modulo 2**64. Lattice reduction says how far apart such units are at least, for any of
the first six axes and rows: more than 7e8 on one of two axes, 2e5 on one of three, 5e3 on one of four.

Arguments that the draws share: `shape` of one pass; `seed` and `site`, any integers; `passes`, contiguous, from 0 up;
`device`, the CPU if None. Every draw raises SettingError for arguments that do not fit together.
"""

import functools
import math
from collections.abc import Iterator
from typing import overload

import torch
from jaxtyping import Bool, Float, Int, Int64, Shaped, UInt8
from torch import Tensor

from mcdrop.errors import SettingError

__all__ = [
    "EXTRA",
    "NOISE_VERSION",
    "Device",
    "Number",
    "bernoulli",
    "hash32",
    "keep_mask",
    "normal",
    "offsets",
    "pack_bits",
    "threshold",
    "uniform",
    "unpack_bits",
    "words",
]

NOISE_VERSION = 1

_GAMMA = 0x9E3779B97F4A7C15
_FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_SHIFTS = (30, 27, 31)
EXTRA = 2**63  # blocks from here on hold what does not fit into the 32 bits of a pass
_PRECISION = {torch.float64: 53, torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}
_BLOCK_PER_THREAD = 32768  # torch's grain: each thread gets one, and its buffers stay in the cache
_BLOCK_ON_DEVICE = 2**22  # enough to hide the launch of a kernel
_GATHER = 0x0102040810204080  # times eight bytes of 0 or 1: their bits, in order, in the top byte

Number = float | int  # beartype does not take an int for a float
Rows = range | Int[Tensor, " rows"] | None
Device = torch.device | str | None


def keep_mask(
    *,
    p: Number,
    shape: tuple[int, ...],
    seed: int,
    site: int,
    passes: range,
    row_axis: int | None = None,
    rows: Rows = None,
    units_per_row: int = 1,
    row_major: bool = True,
    device: Device = None,
) -> Bool[Tensor, "passes ..."]:
    """Which units of each pass stay, (passes, *shape): False with probability `p`, to within 2**-33."""
    limit = threshold(p)
    axes = offsets(shape, passes, row_axis, rows, units_per_row, row_major, device)
    kept = _empty(axes, passes, torch.bool)
    if limit == 2**32:
        kept.zero_()
    else:
        least = (limit - 2**31) << 32
        for part, half in _halves(axes, seed, site, passes):
            torch.ge(half, least, out=kept[part])
    return kept.view(len(passes), *shape)


def hash32(
    *,
    shape: tuple[int, ...],
    seed: int,
    site: int,
    passes: range,
    row_axis: int | None = None,
    rows: Rows = None,
    units_per_row: int = 1,
    row_major: bool = True,
    device: Device = None,
) -> Int64[Tensor, "passes ..."]:
    """The 32 bits behind masks and uniforms, (passes, *shape), in 0 .. 2**32 - 1. Compare with `threshold`."""
    axes = offsets(shape, passes, row_axis, rows, units_per_row, row_major, device)
    hashes = _empty(axes, passes, torch.int64)
    for part, half in _halves(axes, seed, site, passes):
        torch.add(half.bitwise_right_shift_(32), 2**31, out=hashes[part])
    return hashes.view(len(passes), *shape)


def bernoulli(
    probs: Float[Tensor, "..."],
    *,
    shape: tuple[int, ...],
    seed: int,
    site: int,
    passes: range,
    row_axis: int | None = None,
    rows: Rows = None,
    units_per_row: int = 1,
    row_major: bool = True,
) -> Bool[Tensor, "passes ..."]:
    """True with probability `probs`, a tensor that broadcasts to (passes, *shape); on its device.

    Takes 8 bytes per element while it runs. For one number q, `keep_mask(p=1 - q)` is the same and lean.
    """
    hashes = hash32(
        shape=shape,
        seed=seed,
        site=site,
        passes=passes,
        row_axis=row_axis,
        rows=rows,
        units_per_row=units_per_row,
        row_major=row_major,
        device=probs.device,
    )
    return hashes >= threshold(1 - probs.double())


def uniform(
    *,
    shape: tuple[int, ...],
    seed: int,
    site: int,
    passes: range,
    row_axis: int | None = None,
    rows: Rows = None,
    units_per_row: int = 1,
    row_major: bool = True,
    device: Device = None,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "passes ..."]:
    """Uniform numbers in [0, 1), (passes, *shape), with as many bits as `dtype` holds.

    A narrower dtype gives the same numbers cut off, and `uniform >= p` the mask of rate p to within 2**-bits.
    """
    bits = _precision(dtype)
    axes = offsets(shape, passes, row_axis, rows, units_per_row, row_major, device)
    numbers = _empty(axes, passes, dtype)
    first = min(bits, 32)
    for part, half in _halves(axes, seed, site, passes):
        numbers[part] = half.bitwise_right_shift_(64 - first).add_(2 ** (first - 1))
    numbers.mul_(2.0**-first)
    if bits > first:
        for part, word in words(axes, seed, site, EXTRA + passes.start, len(passes)):
            numbers[part] += _top(word, bits - first).double().mul_(2.0**-bits)
    return numbers.view(len(passes), *shape)


def normal(
    *,
    shape: tuple[int, ...],
    seed: int,
    site: int,
    passes: range,
    row_axis: int | None = None,
    rows: Rows = None,
    units_per_row: int = 1,
    row_major: bool = True,
    device: Device = None,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "passes ..."]:
    """Standard normal numbers, (passes, *shape), finite (at most 8.13 in size), in float64 rounded to `dtype`.

    The uniforms below have the same bits everywhere; `erfinv` may differ in the last digit between devices.
    """
    _precision(dtype)
    axes = offsets(shape, passes, row_axis, rows, units_per_row, row_major, device)
    numbers = _empty(axes, passes, dtype)
    for part, word in words(axes, seed, site, EXTRA + passes.start, len(passes)):
        odd = _top(word, 52).mul_(2).add_(1 - 2**52)  # 2 u - 1 is odd * 2**-52, exact in float64
        numbers[part] = odd.double().mul_(2.0**-52).erfinv_().mul_(math.sqrt(2))
    return numbers.view(len(passes), *shape)


@overload
def threshold(p: Number) -> int: ...
@overload
def threshold(p: Float[Tensor, "..."]) -> Int64[Tensor, "..."]: ...
def threshold(p: Number | Float[Tensor, "..."]) -> int | Int64[Tensor, "..."]:
    """The least `hash32` that is kept at probability `p` of dropping: round(p 2**32), ties to even.

    A tensor's values are not checked, which would stall a GPU: below 0 all is kept, above 1 nothing.
    """
    if isinstance(p, Tensor):
        return (p.double() * 2.0**32).round().clamp(0, 2**32).long()
    if not 0 <= p <= 1:
        raise SettingError(f"p = {p} is not a probability; expected the chance of dropping a unit, from 0 to 1.")
    return round(p * 2**32)


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
    scale: Number = 1.0,
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


def _precision(dtype: torch.dtype) -> int:
    if dtype not in _PRECISION:
        names = ", ".join(str(known).removeprefix("torch.") for known in _PRECISION)
        raise SettingError(f"random numbers of dtype {dtype} are not defined; expected one of {names}.")
    return _PRECISION[dtype]


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


def _empty(axes: list[Int64[Tensor, " _"]], passes: range, dtype: torch.dtype) -> Tensor:
    units = math.prod(len(axis) for axis in axes)
    return torch.empty((len(passes), units), dtype=dtype, device=axes[0].device)


def _halves(
    axes: list[Int64[Tensor, " _"]], seed: int, site: int, passes: range
) -> Iterator[tuple[tuple[slice, slice], Int64[Tensor, "passes units"]]]:
    """Places in a (passes, units) draw, with numbers whose high 32 bits are the hash there, less 2**31."""
    start, count = passes.start, len(passes)
    first = start // 2
    spare: Tensor | None = None
    for (blocks, units), word in words(axes, seed, site, first, -(-(start + count) // 2) - first if count else 0):
        even = 2 * (first + blocks.start) - start  # place of the first block's even pass, -1 if it is not asked for
        if spare is None or spare.shape != word.shape:
            spare = torch.empty_like(word)
        torch.bitwise_left_shift(word, 32, out=spare)
        for offset, half in ((even, word), (even + 1, spare)):
            skip = 1 if offset < 0 else 0
            places = range(offset + 2 * skip, min(count, offset + 2 * len(half)), 2)
            if places:
                yield (slice(places.start, places.stop, 2), units), half[skip : skip + len(places)]


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


def _top(word: Int64[Tensor, "..."], bits: int) -> Int64[Tensor, "..."]:
    """The first `bits` bits of each word as a number; `word` loses its values."""
    return word.bitwise_right_shift_(64 - bits).bitwise_and_(2**bits - 1)


def _out(state: int, index: int) -> int:
    """`out` on Python integers."""
    z = (state + (index + 1) * _GAMMA) % 2**64
    for shift, factor in zip(_SHIFTS, (*_FACTORS, 1), strict=True):
        z = (z ^ z >> shift) * factor % 2**64
    return z


def _signed(number: int) -> int:
    """The same 64 bits as torch's int64 reads them."""
    return (number + 2**63) % 2**64 - 2**63
