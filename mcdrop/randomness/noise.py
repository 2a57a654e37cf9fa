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

import math
from collections.abc import Iterator
from typing import overload

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from mcdrop.errors import SettingError
from mcdrop.randomness.words import Device, Rows, offsets, words

__all__ = [
    "EXTRA",
    "NOISE_VERSION",
    "Number",
    "bernoulli",
    "hash32",
    "keep_mask",
    "normal",
    "threshold",
    "uniform",
]

NOISE_VERSION = 1

EXTRA = 2**63  # blocks from here on hold what does not fit into the 32 bits of a pass
_PRECISION = {torch.float64: 53, torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}

Number = float | int  # beartype does not take an int for a float


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


def _precision(dtype: torch.dtype) -> int:
    if dtype not in _PRECISION:
        names = ", ".join(str(known).removeprefix("torch.") for known in _PRECISION)
        raise SettingError(f"random numbers of dtype {dtype} are not defined; expected one of {names}.")
    return _PRECISION[dtype]


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


def _top(word: Int64[Tensor, "..."], bits: int) -> Int64[Tensor, "..."]:
    """The first `bits` bits of each word as a number; `word` loses its values."""
    return word.bitwise_right_shift_(64 - bits).bitwise_and_(2**bits - 1)
