"""The draws of a program's sites, made once per seed and kept.

Shared draws depend on (seed, site, pass, unit) alone, so they are kept ready to multiply. Masks that come back when
there was no room for that, or of which one request has too many, are kept packed as well, one bit a unit. Both under a
bound on bytes, least recently used first out. Draws by row (`masks="independent"`) are made anew.
"""

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mcdrop.graph.sites import Site
from mcdrop.modes import BLOCK
from mcdrop.randomness.balance import balanced_mask
from mcdrop.randomness.bits import pack_bits, unpack_bits
from mcdrop.randomness.noise import keep_mask, normal, uniform

__all__ = ["Masks"]

_BLOCK = 32  # passes that are drawn and kept together
_FEW = 2**16  # units below which more passes are drawn together: a draw takes 0.1 ms, and as long for 50,000 units
_UNITS = 2**22  # units that are drawn at once, in bytes a few times that
_ENTRY = 1536  # bytes that an entry takes besides its numbers: tensor, key and place in the table
_BITS_BOUND = 64 * 2**20
_READY_BOUND = 64 * 2**20


class _Kept:
    """Tensors under a bound on bytes, the least recently used first out. Safe to use from many threads."""

    def __init__(self, bound: int) -> None:
        self.bound, self.held = bound, 0
        self.tensors: OrderedDict[Hashable, Tensor] = OrderedDict()
        self.lock = threading.Lock()

    def find(self, key: Hashable, least: int = 0) -> Tensor | None:
        """What is kept under a key, where it has this length at least."""
        with self.lock:
            found = self.tensors.get(key)
            if found is None or len(found) < least:
                return None
            self.tensors.move_to_end(key)
            return found

    def get(self, key: Hashable, make: Callable[[], Tensor], least: int = 0) -> Tensor:
        """What is kept under a key, or else what `make` makes, which is kept from then on."""
        if (found := self.find(key, least)) is not None:
            return found
        return self.put(key, make())

    def put(self, key: Hashable, made: Tensor) -> Tensor:
        """Keep a tensor in the place of what is kept under its key, if it is not larger than the bound."""
        with self.lock:
            if made.nbytes + _ENTRY <= self.bound:
                self._drop(self.tensors.pop(key, None))
                self.tensors[key] = made
                self.held += made.nbytes + _ENTRY
                while self.held > self.bound:
                    self._drop(self.tensors.popitem(last=False)[1])
        return made

    def _drop(self, tensor: Tensor | None) -> None:
        if tensor is not None:
            self.held -= tensor.nbytes + _ENTRY


class Masks:
    """Makes and keeps the draws of one program on one device."""

    def __init__(self, *, bits_bound: int = _BITS_BOUND, ready_bound: int = _READY_BOUND) -> None:
        self._bits, self._ready = _Kept(bits_bound), _Kept(ready_bound)
        self._drawn: dict[int, int] = {}  # hash of a mask's key -> passes that were made ready, to know what comes back

    @classmethod
    def within(cls, max_memory: int | None) -> "Masks":
        """Bounds that leave most of a budget to the computation; the usual ones without a budget."""
        if max_memory is None:
            return cls()
        return cls(bits_bound=min(_BITS_BOUND, max_memory // 4), ready_bound=min(_READY_BOUND, max_memory // 8))

    def passes_kept(self, units: int, sites: int) -> int:
        """For how many passes the draws of `sites` sites, `units` numbers a pass together, can be kept ready."""
        return max(0, self._ready.bound - sites * _ENTRY) // (4 * max(units, 1))

    def draw(
        self,
        site: Site,
        sizes: Sequence[int],
        *,
        seed: int,
        passes: range,
        row_count: int,
        rows: Tensor | None,
        device: torch.device,
        balanced: bool = False,
        most: int | None = None,
    ) -> Tensor:
        """The draws of a site, (passes, *sizes), kept units scaled, in float32; masks `balanced` over blocks of passes.

        `sizes` is the draw as the network asks for it, all rows included. With `rows` (the index of each row) every
        row draws for itself; without, one draw stands for all rows, and the axis of the rows has the size of one. Masks
        of up to `most` passes are kept ready to multiply; by default as many as `passes_kept` says for this site alone.
        """
        shape, axis = tuple(sizes), site.row_axis
        units = 1 if axis is None else shape[axis] // max(row_count, 1)
        by_row = rows is not None and axis is not None
        if by_row:
            return self._make(site, shape, seed, passes, device, axis=axis, rows=rows, units=units)
        if axis is not None:
            shape = (*shape[:axis], units, *shape[axis + 1 :])
        most = self.passes_kept(math.prod(shape), 1) if most is None else most
        return self._ready_to_multiply(site, shape, seed, passes, device, most, balanced and site.law == "bernoulli")

    def _ready_to_multiply(
        self,
        site: Site,
        shape: tuple[int, ...],
        seed: int,
        passes: range,
        device: torch.device,
        most: int,
        balanced: bool,
    ) -> Tensor:
        """Masks are kept from the first pass on, up to `most`; numbers from any.

        Packing and unpacking take about as long as drawing, so only masks that come back are packed.
        """
        start = 0 if site.law == "bernoulli" else passes.start
        key = (seed, site.index, shape, start, device, balanced)

        def make(some: range) -> Tensor:
            return self._make(site, shape, seed, some, device, balanced=balanced)

        def unpack(some: range) -> Tensor:
            return self._unpacked(site, shape, seed, some, device, balanced)

        if site.law != "bernoulli":
            return self._ready.get(key, partial(make, passes), len(passes))[: len(passes)]
        kept = self._ready.find(key)
        count = 0 if kept is None else len(kept)
        if kept is not None and passes.stop <= count:
            return kept[passes.start : passes.stop]
        goal = min(max(passes.stop, _BLOCK, 2 * count), most)  # the next chunk is often of the same request
        if goal < passes.stop:
            return unpack(passes)
        drawn = self._drawn.get(hash(key), 0)
        more = (unpack if count < drawn else make)(range(count, goal))
        if len(self._drawn) >= self._bits.bound // _ENTRY:  # no more than that are ever kept packed
            self._drawn.clear()
        self._drawn[hash(key)] = max(drawn, goal)
        return self._ready.put(key, more if kept is None else torch.cat([kept, more]))[passes.start : passes.stop]

    def _unpacked(
        self, site: Site, shape: tuple[int, ...], seed: int, passes: range, device: torch.device, balanced: bool
    ) -> Tensor:
        """Masks from their bits, which are kept."""
        parts = []
        units = max(math.prod(shape), 1)
        most = max(1, min(max(_BLOCK, _FEW // units), _UNITS // units))  # passes of a block, by the shape alone
        step = min(_BLOCK, most)
        if balanced:  # a block of balanced masks is made as a whole
            most, step = (-(-count // BLOCK) * BLOCK for count in (most, step))
        for block in range(passes.start // most, -(-passes.stop // most)):
            start = block * most
            first, last = max(passes.start - start, 0), min(passes.stop - start, most)
            count = min(-(-last // step) * step, most)
            bits = self._bits.get(
                (seed, site.index, shape, block, device, balanced),
                partial(self._packed, site, shape, seed, range(start, start + count), device, balanced),
                last,
            )
            parts.append(bits[first:last])
        bits = parts[0] if len(parts) == 1 else torch.cat(parts)
        return unpack_bits(bits, shape=shape, scale=site.scale, dtype=torch.float32).contiguous()

    @staticmethod
    def _packed(
        site: Site, shape: tuple[int, ...], seed: int, passes: range, device: torch.device, balanced: bool
    ) -> Tensor:
        make = balanced_mask if balanced else keep_mask
        return pack_bits(make(p=site.p or 0.0, shape=shape, seed=seed, site=site.index, passes=passes, device=device))

    @staticmethod
    def _make(
        site: Site,
        shape: tuple[int, ...],
        seed: int,
        passes: range,
        device: torch.device,
        *,
        balanced: bool = False,
        axis: int | None = None,
        rows: Tensor | None = None,
        units: int = 1,
    ) -> Tensor:
        where: dict[str, Any] = {"seed": seed, "site": site.index, "passes": passes, "device": device}
        if axis is not None:
            where |= {"row_axis": axis, "rows": rows, "units_per_row": units, "row_major": site.row_major}
        if site.law == "uniform":
            return uniform(shape=shape, **where)
        if site.law == "normal":
            return normal(shape=shape, **where)
        make = balanced_mask if balanced else keep_mask
        return make(p=site.p or 0.0, shape=shape, **where).float().mul_(site.scale)
