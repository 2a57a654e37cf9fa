"""Thinned passes: with one mask for all rows of a pass, what the mask drops is not computed.

`thin` rewrites one pass of the suffix so that activations hold the kept units alone. Two facts carry it:

    needed  what feeds a dropout, through operations that act unit by unit, is needed at the kept units alone: the rows
            of the weight before it that belong to dropped units are left out
    zero    what comes out of a dropout is zero at the dropped units, and stays so through operations that keep zero:
            the columns of the weight behind it are left out too

So Linear - ReLU - Dropout - Linear is a product over kept units on both sides; convolutions likewise, over the channels
that a spatial dropout keeps. Masks are those of the plain suffix, so widths differ from pass to pass and passes are
computed one after the other, each with its own gathered weights, which are kept from call to call under a bound on
bytes.

Not here, which keeps plain passes: draws by row; masks that differ along more than one axis (dropout on sequences or
maps, attention); alpha dropout, whose dropped units are not zero; masks written by hand; weights that are computed;
grouped convolutions. Where a thinned value meets an operation that is not in the tables below (a norm over
units, a concatenation), it is filled up with zeros again. What a network computes at dropped units does not show: where
that is infinite, plain passes give NaN (infinity times 0) and thinned ones do not.
"""

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mcdrop.kept_units import Gather, blocks_of, select
from mcdrop.rewriting import Rewriter, shapes_of
from mcdrop.sites import Site
from mcdrop.skipping import skip_blocks
from mcdrop.split import Part, Split

__all__ = ["Thinned", "gathered_bound", "thin"]

_GATHERED_BOUND = 128 * 2**20
_ASKED = 2**14  # passes of which it is remembered that they were asked for

BYTE = 0.2  # nanoseconds of a gathered weight: it is gathered in some calls and only read in others
CALL = 4000.0  # nanoseconds of one operation from Python


@dataclass(frozen=True)
class Cost:
    """Nanoseconds of one pass: for each row in plain and in thinned form, and for a thinned pass whatever its rows."""

    plain_row: float
    thinned_row: float
    thinned_pass: float

    @property
    def least_rows(self) -> int | None:
        """The number of rows from which thinned passes are faster; None if they never are."""
        saved = self.plain_row - self.thinned_row
        return max(1, int(self.thinned_pass / saved) + 1) if saved > 0 else None


class Thinned:
    """The suffix over kept units, one pass at a time. Read-only but for what it keeps, so that threads may share it.

    Attributes:
        draws: numbers of the draws whose dropped units are left out.
        cost: what passes are expected to cost.
    """

    def __init__(
        self,
        part: Part,
        plain: Part,
        indices: Sequence[tuple[int, int]],
        gathers: Sequence[Gather],
        cost: Cost,
        bound: int,
    ) -> None:
        self._part, self._plain, self._indices, self._gathers = part, plain, tuple(indices), tuple(gathers)
        self.draws = tuple(dict.fromkeys(draw for draw, _ in indices))
        self.cost = cost
        self._kept = _Kept(bound)

    def pays(self, rows: int) -> bool:
        """Whether passes of so many rows are expected to be faster thinned than plain."""
        least = self.cost.least_rows
        return least is not None and rows >= least

    def passes(
        self, sizes: Sequence[int], frontier: Sequence[Tensor], draws: Sequence[Tensor], passes: range, seed: int
    ) -> tuple[Tensor, ...]:
        """Outputs (passes, rows, ...) under the draws (passes, ...) of these passes of this seed."""
        each = []
        for place, number in enumerate(passes):
            drawn = [draw[place] for draw in draws]
            kept: tuple[Tensor, ...] = ()
            if self.draws:
                kept = self._kept.get(seed, number, lambda drawn=drawn: self._gathered(drawn))  # type: ignore[misc]
            part = self._part if kept or not self.draws else self._plain
            each.append(part(*sizes, *frontier, *drawn, *kept))
        return tuple(torch.stack(outputs) for outputs in zip(*each, strict=True))

    def _gathered(self, drawn: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """What one pass keeps: the numbers of its units, and the weights that belong to them.

        Nothing where a site keeps no unit at all, on which few operations are defined: that pass goes the plain way.
        """
        units = {draw: drawn[draw].flatten().nonzero().flatten() for draw in self.draws}
        indices = {(draw, block): blocks_of(units[draw], block) for draw, block in self._indices}
        if not all(len(kept) for kept in units.values()):
            return ()
        weights = []
        for gather in self._gathers:
            weight = self._plain.weights[gather.weight]
            for draw, axis, block in gather.cuts:
                weight = select(weight, axis, indices[draw, block])
            weights.append(weight if gather.factor == 1 else weight.mul_(gather.factor))
        return *indices.values(), *weights


class _Kept:
    """What passes keep, under a bound on bytes. Safe to use from many threads.

    A pass is kept when it is asked for the second time: of a seed that never comes again nothing would be of use.
    Passes come in order, call after call, so once the room is taken by passes of the same seed, those stay: what is
    put out for the next would be missed first. Other seeds go, the least recently used first.
    """

    def __init__(self, bound: int) -> None:
        self.bound, self.held = bound, 0
        self.seeds: OrderedDict[int, dict[int, tuple[Tensor, ...]]] = OrderedDict()
        self.asked: OrderedDict[tuple[int, int], None] = OrderedDict()
        self.lock = threading.Lock()

    def get(self, seed: int, number: int, make: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        with self.lock:
            if seed in self.seeds:
                self.seeds.move_to_end(seed)
                if number in self.seeds[seed]:
                    return self.seeds[seed][number]
            again = (seed, number) in self.asked
            self.asked[seed, number] = None
            if len(self.asked) > _ASKED:
                self.asked.popitem(last=False)
        made = make()
        if again:
            with self.lock:
                self._keep(seed, number, made)
        return made

    def _keep(self, seed: int, number: int, made: tuple[Tensor, ...]) -> None:
        size = _bytes(made)
        while self.held + size > self.bound and any(other != seed for other in self.seeds):
            oldest = next(other for other in self.seeds if other != seed)
            self.held -= sum(_bytes(kept) for kept in self.seeds.pop(oldest).values())
        if self.held + size <= self.bound and number not in self.seeds.setdefault(seed, {}):
            self.seeds[seed][number] = made
            self.held += size


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def gathered_bound(max_memory: int | None, thinned: bool = True) -> int:
    """Bytes of gathered weights that may be kept beside the draws of `Masks.within`; 0 where passes stay plain."""
    if not thinned:
        return 0
    return _GATHERED_BOUND if max_memory is None else min(_GATHERED_BOUND, max_memory // 8)


def thin(split: Split, arguments: Sequence[Any], rows: int, *, bound: int) -> Thinned | None:
    """The suffix of a program over kept units; None where nothing is left out, whether or not that pays.

    Args:
        split: the program in its parts.
        arguments: sizes, frontier and draws of one pass for `rows` rows, of which only the shapes count.
        bound: bytes of gathered weights that may be kept; a suffix of which one pass takes more stays plain, and with
            0 every suffix.
    """
    candidates = {number for number, (site, sizes) in enumerate(split.draws) if _may_be_cut(site, sizes)}
    gates = {number for number, (site, sizes) in enumerate(split.draws) if _is_gate(site, sizes)}
    if not candidates | gates or bound == 0:
        return None
    part, sites = split.mapped, [site for site, _ in split.draws]
    shapes = shapes_of(part, arguments)
    while True:
        rewriter = Rewriter(part, shapes, sites, candidates)
        useful = {cut.draw for gather in rewriter.products for cut in gather.cuts}
        if useful == candidates:
            break
        candidates = useful  # those that save no part of a product go the plain way
    open_shares = {node: 1.0 - (sites[number].p or 0.0) for node, number in rewriter.new_draws() if number in gates}
    if not skip_blocks(rewriter.finish(), open_shares) and not candidates:
        return None
    return _finished(rewriter, rows, bound)


def _may_be_cut(site: Site, sizes: Sequence[Any]) -> bool:
    """Whether a draw is a mask that differs along one axis alone, of fixed size, and that all rows share."""
    own = [size for axis, size in enumerate(sizes) if axis != site.row_axis and size != 1]
    return site.law == "bernoulli" and bool(site.p) and len(own) == 1 and isinstance(own[0], int)


def _is_gate(site: Site, sizes: Sequence[Any]) -> bool:
    """Whether a draw is one number for each pass that drops a whole branch."""
    own = [size for axis, size in enumerate(sizes) if axis != site.row_axis]
    return site.law == "bernoulli" and bool(site.p) and all(size == 1 for size in own)


def _finished(rewriter: Rewriter, rows: int, bound: int) -> Thinned | None:
    """The new graph with what it needs and costs; None where one pass takes more than `bound` bytes."""
    graph, weights = rewriter.graph, rewriter.part.weights
    gathered = sum(
        weights[gather.weight].nbytes * math.prod(map(rewriter.fraction, gather.cuts)) for gather in rewriter.gathers
    )
    calls = sum(node.meta.get("calls", 1) for node in graph.nodes if node.op == "call_function")
    cost = Cost(
        plain_row=rewriter.plain_cost / rows,
        thinned_row=sum(node.meta.get("cost", 0.0) for node in graph.nodes) / rows,
        thinned_pass=gathered * BYTE + calls * CALL,
    )
    if gathered > bound:
        return None
    named = {f"weight_{number}": weight for number, weight in enumerate(weights)}
    part = Part(graph, named)
    return Thinned(part, rewriter.part, list(rewriter.indices), list(rewriter.gathers), cost, bound)
