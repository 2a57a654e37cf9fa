"""Thinned passes: with one mask for all rows of a pass, what the mask drops is not computed.

`thin` rewrites one pass of the suffix so that activations hold the kept units alone. Two facts carry it:

    needed  what feeds a dropout, through operations that act unit by unit, is needed at the kept units alone: the rows
            of the weight before it that belong to dropped units are left out
    zero    what comes out of a dropout is zero at the dropped units, and stays so through operations that keep zero:
            the columns of the weight behind it are left out too

So Linear - ReLU - Dropout - Linear is a product over kept units on both sides; convolutions likewise, over the channels
that a spatial dropout keeps. Masks are those of the plain suffix, so widths differ from pass to pass: a few passes of
like widths are filled up to the widest among them and computed together, those with convolutions one after the other,
each with its own gathered weights, which are kept from call to call under a bound on bytes.

Not here, which keeps plain passes: devices other than the CPU; draws by row; masks that differ along more than one axis
(dropout on sequences or maps, attention); alpha dropout, whose dropped units are not zero; masks written by hand;
weights that are computed; grouped convolutions. Where a thinned value meets an operation that is not in the tables of
`unit_operations` (a norm over units, a concatenation), it is filled up with zeros again. What a network computes at
dropped units does not show: where that is infinite, plain passes give NaN (infinity times 0) and thinned ones do not.
"""

import functools
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from mcdrop.graph.sites import Site
from mcdrop.shortcuts.biases import biases_as_units
from mcdrop.shortcuts.grouped import grouped
from mcdrop.shortcuts.grouping import alike
from mcdrop.shortcuts.kept_passes import KeptPasses
from mcdrop.shortcuts.kept_units import Gather, Kept, Selection, Turned, select, turned, widths
from mcdrop.shortcuts.needs import Kind, kinds_of
from mcdrop.shortcuts.pass_cost import CALL, FLOP, GATHERED_BYTE, MAPPED_CALL, TAKE, PassCost
from mcdrop.shortcuts.rewriting import Rewriter
from mcdrop.shortcuts.skipping import skip_blocks
from mcdrop.splitting.part import Part
from mcdrop.splitting.split import Split

__all__ = ["STRETCH", "Thinned", "can_be_thinned", "thin"]

ThinnedMode = Literal["grouped", "mapped", "loop"]
Node = Any  # fx.Node, whose arguments are typed too widely to be of use

_TOGETHER = {"grouped": 8, "mapped": 16, "loop": 1}  # passes: calls of vmap are dear, but all are as wide as the widest
STRETCH = {"grouped": 16, "mapped": 4, "loop": 1}  # passes to ask for, as a factor on those that caches hold
_SPAN = 128  # passes among which groups are sought: spans begin at its multiples, so that longer requests share them
_ROWS = 64  # for which groups are chosen: with more of them calls cost less beside products, with fewer more


class Thinned:
    """The suffix over kept units, for a few passes at a time. Read-only but for what it keeps, so threads may share it.

    Attributes:
        cost: what passes are expected to cost.
        mode: how passes are computed together: "grouped" for chains of linear maps, "mapped" by vmap, or "loop": one
            after the other.
        together: how many at most.
        kept: what passes took of the weights.
    """

    def __init__(
        self,
        part: Part,
        weights: Sequence[Tensor],
        turned: Turned,
        takes: Sequence[Kept],
        columns: Mapping[int, bool],
        *,
        reads: Sequence[int],
        cost: PassCost,
        mode: ThinnedMode,
        together: int,
        call: float,
        bound: int,
    ) -> None:
        self._part, self._weights, self._turned, self._takes = part, weights, turned, tuple(takes)
        self._columns = columns  # numbers of the arguments of which columns are taken, and whether one of ones too
        self._call = call  # what a group costs beside its passes, in elements of weights
        self._threads = torch.get_num_threads()  # fixed, since groups show in the last bits
        self._reads = reads  # numbers of the draws that the graph has
        self.cost, self.mode, self.together = cost, mode, together
        self.kept = KeptPasses(bound)

    @property
    def draws(self) -> tuple[int, ...]:
        """Numbers of the draws whose dropped units are left out."""
        return tuple(sorted({cut.draw for take in self._takes if isinstance(take, Gather) for cut in take.cuts}))

    def pays(self, rows: int) -> bool:
        """Whether passes of so many rows are expected to be faster thinned than plain."""
        least = self.cost.least_rows
        return least is not None and rows >= least

    def passes(
        self,
        sizes: Sequence[int],
        frontier: Sequence[Tensor],
        draws: Sequence[Tensor],
        *,
        passes: range,
        seed: Hashable,
    ) -> tuple[Tensor, ...]:
        """Outputs (passes, rows, ...) under the draws (passes, ...) of these passes; `seed` names their noise."""
        same: list[Any] = [*sizes, *frontier]
        for number, with_ones in self._columns.items():
            same[number] = _column_wise(same[number], with_ones)
        results: list[Tensor] = []
        for start in range(passes.start // _SPAN * _SPAN, passes.stop, _SPAN):
            here = range(max(start, passes.start), min(start + _SPAN, passes.stop))
            part = slice(here.start - passes.start, here.stop - passes.start)
            drawn, span = [draw[part] for draw in draws], self.kept.ask((seed, here))
            groups = span.groups or self._groups(drawn)
            for number, places in enumerate(groups):
                taken = span.taken.get(number)
                if taken is None:
                    taken = self._taken([_at(draw, places) for draw in drawn])
                    self.kept.keep(span, groups, number, taken)
                outputs = self._computed(same, [_at(drawn[read], places) for read in self._reads], taken)
                results = results or [_room_for(len(passes), output) for output in outputs]
                for result, output in zip(results, outputs, strict=True):
                    result[part].index_copy_(0, places, output)
        return tuple(results)

    def _groups(self, drawn: Sequence[Tensor]) -> Sequence[Tensor]:
        """Which passes are computed together, by their places among these."""
        numbers = torch.arange(len(drawn[0]), device=drawn[0].device)
        if self.together == 1:
            return [*numbers.split(1)]
        draws = self.draws
        each = zip(*(widths(drawn[number].flatten(1)) for number in draws), strict=True)

        @functools.cache
        def elements(of_pass: tuple[int, ...]) -> float:
            """Of the weights that a pass of such widths takes: each is one step of a product, for each row."""
            of = dict(zip(draws, of_pass, strict=True))
            return sum(gather.elements(self._weights, of) for gather in self._takes if isinstance(gather, Gather))

        found = alike([*each], elements, most=self.together, threads=self._threads, call=self._call)
        return [numbers[places] for places in found]

    def _computed(self, same: Sequence[Any], drawn: Sequence[Tensor], taken: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Outputs of one group, from the arguments that all passes share and its own."""
        if self.mode == "grouped":
            outputs: tuple[Tensor, ...] = self._part(*same, *drawn, *taken)
            return outputs
        if self.mode == "mapped":
            in_dims = (None,) * len(same) + (0,) * (len(drawn) + len(taken))
            mapped: tuple[Tensor, ...] = torch.func.vmap(self._part, in_dims=in_dims)(*same, *drawn, *taken)
            return mapped
        return tuple(output.unsqueeze(0) for output in self._part(*same, *(x[0] for x in (*drawn, *taken))))

    def _taken(self, drawn: Sequence[Tensor]) -> tuple[Tensor, ...]:
        selection = Selection(drawn, self._weights, self._turned)
        return tuple(take.of(selection) for take in self._takes)


def _at(draw: Tensor, places: Tensor) -> Tensor:
    """The draws of some of the passes that it holds."""
    if len(places) > 1:
        return draw.index_select(0, places)
    place = int(places)
    return draw[place : place + 1]


def _column_wise(x: Tensor, with_ones: bool) -> Tensor:
    """A matrix each of whose columns stands together, with one of ones behind them."""
    return torch.cat([x.t(), x.new_ones(1, len(x))]).t() if with_ones else x.t().contiguous().t()


def _room_for(passes: int, output: Tensor) -> Tensor:
    """For the outputs of so many passes, in the layout of some of them."""
    if output.ndim == 3 and output.mT.is_contiguous():
        return output.new_empty(passes, output.shape[2], output.shape[1]).mT
    return output.new_empty(passes, *output.shape[1:])


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
    while (rewriter := Rewriter(part, kinds, sites, candidates, fixed=split.fixed)).saving != candidates:
        candidates = rewriter.saving  # those that save no part of a product go the plain way
    open_shares = {node: 1.0 - (sites[number].p or 0.0) for node, number in rewriter.new_draws() if number in gates}
    skipped = skip_blocks(rewriter.finish(), open_shares)
    return (
        _finished(rewriter, part.weights, sites, kinds, rows, bound, skipped=skipped) if skipped or candidates else None
    )


def _may_be_cut(site: Site, sizes: Sequence[Any]) -> bool:
    """Whether a draw is a mask that differs along one axis alone, of fixed size, and that all rows share."""
    own = [size for axis, size in enumerate(sizes) if axis != site.row_axis and size != 1]
    return site.law == "bernoulli" and bool(site.p) and len(own) == 1 and isinstance(own[0], int)


def _is_gate(site: Site, sizes: Sequence[Any]) -> bool:
    """Whether a draw is one number for each pass that drops a whole branch."""
    own = [size for axis, size in enumerate(sizes) if axis != site.row_axis]
    return site.law == "bernoulli" and bool(site.p) and all(size == 1 for size in own)


def _finished(
    rewriter: Rewriter,
    weights: Sequence[Tensor],
    sites: Sequence[Site],
    kinds: Mapping[Node, Kind],
    rows: int,
    bound: int,
    *,
    skipped: int,
) -> Thinned | None:
    """The new graph with what it takes and costs; None where that of one pass is more than `bound` bytes.

    Passes that have a convolution by weights of their own, take channels of maps or skip blocks are computed one after
    the other.
    """
    graph, draws = rewriter.graph, dict(rewriter.new_draws())
    taken, ones = biases_as_units(graph, rewriter.kept)
    for node in (*draws, *taken.values()):
        if not node.users:
            graph.erase_node(node)
    draws = {node: number for node, number in draws.items() if node.users}
    kept = [take for take, node in taken.items() if node.users]
    takes = [take for take in kept if isinstance(take, Gather)]
    gathered = sum(
        weights[take.weight].nbytes
        * math.prod(rewriter.share(c, weights[take.weight].shape[c.axis]) for c in take.cuts)
        for take in takes
    )
    matrices = {(take.weight, take.scaled): weights[take.weight] for take in takes if take.takes_columns(weights)}
    room = bound - sum(matrix.nbytes for matrix in matrices.values())
    if gathered > room:
        return None
    maps = any(node.meta.get("axes", 2) > 2 for node in graph.nodes)
    alone = bool(skipped) or maps or any(weights[take.weight].ndim > 2 for take in takes)
    chain = None if alone else grouped(graph, kinds)
    mode: ThinnedMode = "loop" if alone else "mapped" if chain is None else "grouped"
    together = max(1, min(_TOGETHER[mode], int(room / 2 / max(gathered, 1))))
    calls = sum(node.meta.get("calls", 1) for node in graph.nodes if node.op == "call_function")
    calls_cost = calls * (MAPPED_CALL if mode == "mapped" else CALL)
    cost = PassCost(
        plain_row=rewriter.plain_cost / rows,
        thinned_row=sum(node.meta.get("cost", 0.0) for node in graph.nodes) / rows,
        thinned_pass=gathered * GATHERED_BYTE + (calls_cost + len(kept) * TAKE) / together,
    )
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    return Thinned(
        Part(chain or graph, {f"weight_{number}": weight for number, weight in enumerate(weights)}),
        weights,
        turned(weights, takes, [site.scale for site in sites]),
        kept,
        {
            number: node in ones
            for number, node in enumerate(placeholders)
            if any(_takes_columns(user, node) for user in node.users)
        },
        reads=[*draws.values()],
        cost=cost,
        mode=mode,
        together=together,
        call=calls_cost / (2 * FLOP * _ROWS),
        bound=room - int(together * gathered),
    )


def _takes_columns(user: Node, node: Node) -> bool:
    """Whether columns are taken of a matrix."""
    return user.target is select and user.args[:2] == (node, 1) and user.meta["axes"] == 2
