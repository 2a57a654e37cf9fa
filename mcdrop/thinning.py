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

Not here, which keeps plain passes: devices other than the CPU; draws by row; masks that differ along more than one axis
(dropout on sequences or maps, attention); alpha dropout, whose dropped units are not zero; masks written by hand;
weights that are computed; grouped convolutions. Where a thinned value meets an operation that is not in the tables of
`unit_operations` (a norm over units, a concatenation), it is filled up with zeros again. What a network computes at
dropped units does not show: where that is infinite, plain passes give NaN (infinity times 0) and thinned ones do not.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mcdrop.kept_passes import KeptPasses
from mcdrop.kept_units import Gather, Kept, Selection, select
from mcdrop.needs import kinds_of
from mcdrop.pass_cost import CALL, GATHERED_BYTE, PassCost
from mcdrop.rewriting import Rewriter
from mcdrop.sites import Site
from mcdrop.skipping import skip_blocks
from mcdrop.split import Part, Split

__all__ = ["Thinned", "can_be_thinned", "thin"]


class Thinned:
    """The suffix over kept units, one pass at a time. Read-only but for what it keeps, so that threads may share it.

    Attributes:
        cost: what passes are expected to cost.
        kept: what passes took of the weights.
    """

    def __init__(self, part: Part, weights: Sequence[Tensor], takes: Sequence[Kept], cost: PassCost, room: int) -> None:
        self._part, self._weights, self._takes, self.cost = part, weights, tuple(takes), cost
        self.kept = KeptPasses(room)
        self._by_unit = [  # numbers of the arguments of which units are taken, for which units have to stand together
            number
            for number, node in enumerate(part.module.graph.nodes)
            if node.op == "placeholder" and any(u.target is select and u.args[:2] == (node, 1) for u in node.users)
        ]

    @property
    def draws(self) -> tuple[int, ...]:
        """Numbers of the draws whose dropped units are left out."""
        return tuple(sorted({cut.draw for take in self._takes if isinstance(take, Gather) for cut in take.cuts}))

    def pays(self, rows: int) -> bool:
        """Whether passes of so many rows are expected to be faster thinned than plain."""
        least = self.cost.least_rows
        return least is not None and rows >= least

    def passes(
        self, sizes: Sequence[int], frontier: Sequence[Tensor], draws: Sequence[Tensor], passes: range, seed: int
    ) -> tuple[Tensor, ...]:
        """Outputs (passes, rows, ...) under the draws (passes, ...) of these passes of this seed."""
        same: list[Any] = [*sizes, *frontier]
        for number in self._by_unit:
            if same[number].ndim == 2:
                same[number] = same[number].t().contiguous().t()
        each = []
        for number, *drawn in zip(passes, *draws, strict=True):
            kept = self.kept.get(seed, number, partial(self._taken, drawn)) if self._takes else ()
            each.append(self._part(*same, *drawn, *kept))
        return tuple(torch.stack(outputs) for outputs in zip(*each, strict=True))

    def _taken(self, drawn: Sequence[Tensor]) -> tuple[Tensor, ...]:
        selection = Selection(drawn, self._weights)
        return tuple(take.of(selection) for take in self._takes)


def can_be_thinned(split: Split) -> bool:
    """Whether there is any draw of a kind that may leave something out; `thin` looks closer."""
    return any(_may_be_cut(site, sizes) or _is_gate(site, sizes) for site, sizes in split.draws)


def thin(split: Split, arguments: Sequence[Any], rows: int, *, bound: int) -> Thinned | None:
    """The suffix of a program over kept units; None where nothing is left out, whether or not that pays.

    Args:
        split: the program in its parts.
        arguments: sizes, frontier and draws of one pass for `rows` rows, of which only the shapes count.
        rows: how many.
        bound: bytes that gathered weights may take; a suffix of which one pass takes more stays plain.
    """
    candidates = {number for number, (site, sizes) in enumerate(split.draws) if _may_be_cut(site, sizes)}
    gates = {number for number, (site, sizes) in enumerate(split.draws) if _is_gate(site, sizes)}
    part, sites = split.mapped, [site for site, _ in split.draws]
    kinds = kinds_of(part, arguments)
    while (rewriter := Rewriter(part, kinds, sites, candidates)).saving != candidates:
        candidates = rewriter.saving  # those that save no part of a product go the plain way
    open_shares = {node: 1.0 - (sites[number].p or 0.0) for node, number in rewriter.new_draws() if number in gates}
    if not skip_blocks(rewriter.finish(), open_shares) and not candidates:
        return None
    return _finished(rewriter, part.weights, rows, bound)


def _may_be_cut(site: Site, sizes: Sequence[Any]) -> bool:
    """Whether a draw is a mask that differs along one axis alone, of fixed size, and that all rows share."""
    own = [size for axis, size in enumerate(sizes) if axis != site.row_axis and size != 1]
    return site.law == "bernoulli" and bool(site.p) and len(own) == 1 and isinstance(own[0], int)


def _is_gate(site: Site, sizes: Sequence[Any]) -> bool:
    """Whether a draw is one number for each pass that drops a whole branch."""
    own = [size for axis, size in enumerate(sizes) if axis != site.row_axis]
    return site.law == "bernoulli" and bool(site.p) and all(size == 1 for size in own)


def _finished(rewriter: Rewriter, weights: Sequence[Tensor], rows: int, bound: int) -> Thinned | None:
    """The new graph with what it takes and costs; None where one pass takes more than `bound` bytes."""
    graph = rewriter.graph

    def nbytes(take: Gather) -> float:
        weight = weights[take.weight]
        return weight.nbytes * math.prod(rewriter.share(cut, weight.shape[cut.axis]) for cut in take.cuts)

    gathered = sum(nbytes(take) for take in rewriter.kept if isinstance(take, Gather))
    calls = sum(node.meta.get("calls", 1) for node in graph.nodes if node.op == "call_function")
    cost = PassCost(
        plain_row=rewriter.plain_cost / rows,
        thinned_row=sum(node.meta.get("cost", 0.0) for node in graph.nodes) / rows,
        thinned_pass=gathered * GATHERED_BYTE + calls * CALL,
    )
    if gathered > bound:
        return None
    named = {f"weight_{number}": weight for number, weight in enumerate(weights)}
    return Thinned(Part(graph, named), weights, list(rewriter.kept), cost, bound - int(gathered))
