"""The graph of one pass, rewritten so that values hold kept units alone.

Forward through the nodes of the plain pass, each gets a node in the new graph and the units that it has there: those at
which it is needed, where it can be computed from its inputs at the same ones; else those outside of which it is zero;
else all. `meta["kind"]` of a new node is its kind if it has all units, and `meta["cost"]` what it costs, in the unit of
`pass_cost`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

from mcdrop.graph.draws import scale
from mcdrop.graph.sites import Site
from mcdrop.shortcuts.kept_units import Cut, Gather, Index, Kept, Scales, filled, select
from mcdrop.shortcuts.needs import Kind, Needs
from mcdrop.shortcuts.pass_cost import ELEMENT, FEW, FLOP, RAGGED, SELECTED, share
from mcdrop.shortcuts.unit_operations import (
    ARITHMETIC,
    CHANNEL_WISE,
    FLATTENING,
    GROUPS,
    QUOTIENTS,
    SUMS,
    WEIGHT_AXES,
    ZERO_KEEPING,
)
from mcdrop.splitting.part import Part

__all__ = ["Rewriter"]

Node = Any  # fx.Node, whose arguments are typed too widely to be of use

aten = torch.ops.aten


class Rewriter:
    """Rewrites the graph of one pass for the draws in `candidates`; `fixed`: all sizes are but the number of rows.

    Attributes:
        graph: the new one: the placeholders of the plain one but for the weights, then those of `kept`.
        kept: what the new graph takes of each pass, each with its placeholder.
        saving: the draws that make a product smaller.
        plain_cost: of the plain pass.
    """

    def __init__(
        self, part: Part, kinds: Mapping[Node, Kind], sites: Sequence[Site], candidates: set[int], *, fixed: bool
    ) -> None:
        self._kinds, self._sites, self._fixed = kinds, sites, fixed
        self._shapes = {node: kind.shape for node, kind in kinds.items()}
        self._needs = needs = Needs(part, kinds, sites, candidates)
        self.graph = fx.Graph()
        self._env: dict[Node, tuple[Node, Cut | None]] = {
            node: (self.graph.placeholder(node.name), None) for node in needs.inputs
        }
        self._mark = self.graph.call_function(tuple)  # before which placeholders are added
        self.kept: dict[Kept, Node] = {}
        self._others: dict[tuple[Node, Cut | None], Node] = {}  # values at other units than those of `_env`
        self._unscaled: dict[Node, Node] = {}  # what a dropout keeps, not yet multiplied by its draw
        self.saving: set[int] = set()
        self.plain_cost = 0.0
        for node in needs.nodes:
            if node.op == "call_function":
                self._env[node] = self._rewritten(node)
                self._note_cost(node)
            elif node.op == "output":
                self.graph.output(tuple(self._held(value, None) for value in node.args[0]))

    def finish(self) -> fx.Graph:
        """The new graph, without what nothing reads."""
        self.graph.erase_node(self._mark)
        self.graph.eliminate_dead_code()
        return self.graph

    def new_draws(self) -> list[tuple[Node, int]]:
        """The draws in the new graph, each with its number."""
        return [(self._env[node][0], number) for node, number in self._needs.draws.items()]

    def share(self, cut: Cut | None, units: int) -> float:
        """The part of the units of an axis that is computed."""
        return 1.0 if cut is None else share(self._sites[cut.draw].p or 0.0, units // cut.block)

    # ---- values in the new graph

    def _held(self, node: Any, cut: Cut | None) -> Any:
        """A value in the new graph, at the units of `cut`, of whose axis it has all; all of them for None."""
        if not isinstance(node, fx.Node):
            return node
        if node in self._needs.weights:
            return self._weight(node, () if cut is None else (cut,))
        new, has = self._env[node]
        if has != cut and (node, cut) not in self._others:
            if has is not None:
                new = self.graph.call_function(filled, (new, has.axis, self._index(has), self._shapes[node][has.axis]))
            if cut is not None:
                new = self.graph.call_function(select, (new, cut.axis, self._index(cut)))
                shape = self._shapes[node]
                new.meta.update(axes=len(shape), size=shape[cut.axis])
                if len(shape) == 2:
                    new.meta["cost"] = shape.numel() * self.share(cut, shape[cut.axis]) * SELECTED
            self._others[node, cut] = new
        return new if has == cut else self._others[node, cut]

    def _taken(self, kept: Kept) -> Node:
        if kept not in self.kept:
            with self.graph.inserting_before(self._mark):
                self.kept[kept] = self.graph.placeholder(f"kept_{len(self.kept)}")
        return self.kept[kept]

    def _index(self, cut: Cut) -> Node:
        return self._taken(Index(cut.draw, cut.block))

    def _weight(self, node: Node, cuts: tuple[Cut, ...], scaled: Cut | None = None) -> Node:
        number = self._needs.weights[node]
        return self._taken(Gather(number, cuts, scaled)) if cuts else self.graph.get_attr(f"weight_{number}")

    # ---- nodes

    def _rewritten(self, node: Node) -> tuple[Node, Cut | None]:
        """The node in the new graph, and the units that it has there."""
        target, need = node.target, self._needs.computable(node)
        has = self._has(node.args[0]) if node.args else None
        if node in self._needs.cuts:
            cut = self._needs.cuts[node]
            self._unscaled[node] = x = self._held(node.args[0], cut)
            drawn = self._taken(Scales(cut.draw, len(self._shapes[node]) - cut.axis))
            return self.graph.call_function(scale, (x, drawn)), cut
        if self._is_plain_product(node):
            return self._product(node)
        if target is aten.batch_norm.default and need is not None:
            by_unit = [self._held(value, need._replace(axis=0)) for value in node.args[1:5]]
            x = self._held(node.args[0], need)
            return self.graph.call_function(target, (x, *by_unit, *node.args[5:]), dict(node.kwargs)), need
        if has is not None and self._flattens(node, has):
            self._scale_later(node, torch.flatten, 1)
            new = self.graph.call_function(torch.flatten, (self._env[node.args[0]][0], 1))
            return new, has._replace(block=has.block * self._shapes[node.args[0]][2:].numel())
        if need is not None:
            return self._copied(node, need)
        if target in ARITHMETIC:
            return self._copied(node, self._zero_outside(node))
        if target in CHANNEL_WISE and self._needs.by_channel(node) and has is not None and has.axis == 1:
            self._scale_later(node, target, *node.args[1:])
            return self._copied(node, has)
        return self._copied(node, has if target in ZERO_KEEPING else None)

    def _scale_later(self, node: Node, target: Any, *arguments: Any) -> None:
        """What this makes of values that are not yet multiplied by their draw: it gives k times as much for k times."""
        if node.args[0] in self._unscaled:
            unscaled = self.graph.call_function(target, (self._unscaled[node.args[0]], *arguments), dict(node.kwargs))
            unscaled.meta["cost"] = self._shapes[node].numel() * ELEMENT
            self._unscaled[node] = unscaled

    def _has(self, value: Any) -> Cut | None:
        return self._env[value][1] if isinstance(value, fx.Node) and value in self._env else None

    def _flattens(self, node: Node, has: Cut) -> bool:
        """Whether this makes (rows, channels * space) of (rows, channels, *space), whatever the number of rows."""
        shape = self._shapes[node.args[0]]
        flat = torch.Size((shape[0], shape[1:].numel()))
        return self._fixed and node.target in FLATTENING and has.axis == 1 and self._shapes[node] == flat

    def _zero_outside(self, node: Node) -> Cut | None:
        """The units outside of which arithmetic on what is zero there gives zero."""
        shape = self._shapes[node]
        operands = node.args[:2]
        has = [self._has(value) for value in operands]
        fits = [
            cut if cut is not None and len(self._shapes[value]) == len(shape) else None
            for cut, value in zip(has, operands, strict=True)
        ]
        if node.target in SUMS:
            return fits[0] if fits[0] == fits[1] else None
        if node.target in QUOTIENTS:
            return fits[0] if has[1] is None else None
        return fits[0] or fits[1]

    def _copied(self, node: Node, cut: Cut | None) -> tuple[Node, Cut | None]:
        """The same operation at the units of `cut`."""

        def argument(value: Node) -> Any:
            if cut is None or value not in self._shapes:
                return self._held(value, None)
            axis = _broadcast(self._shapes[value], self._shapes[node], cut)
            return self._held(value, None if axis is None else cut._replace(axis=axis))

        args, kwargs = (fx.node.map_arg(values, argument) for values in (node.args, node.kwargs))
        return self.graph.call_function(node.target, args, kwargs), cut

    # ---- products

    def _is_plain_product(self, node: Node) -> bool:
        """Whether this is a linear map or an ungrouped convolution of a batch, by weights that are not computed."""
        if node.target not in WEIGHT_AXES:
            return False
        x, weight, bias = (*node.args, None)[:3]
        return (
            weight in self._needs.weights
            and (bias is None or bias in self._needs.weights)
            and node.args[GROUPS : GROUPS + 1] in ((), (1,))
            and not node.kwargs
            and (node.target is torch.nn.functional.linear or len(self._shapes[x]) == len(self._shapes[weight]))
        )

    def _product(self, node: Node) -> tuple[Node, Cut | None]:
        """A linear map or convolution, from the units that its input has to those that are needed."""
        x, weight, bias = (*node.args, None)[:3]
        leaving, entering = WEIGHT_AXES[node.target]
        axis = len(self._shapes[x]) - 1 if node.target is torch.nn.functional.linear else 1
        has, need = (
            cut if cut is not None and cut.axis == axis else None for cut in (self._has(x), self._needs.wanted(node))
        )
        cuts = tuple(cut._replace(axis=at) for cut, at in ((need, leaving), (has, entering)) if cut is not None)
        held, scaled = self._held(x, has), None
        if has is not None and x in self._unscaled:
            held, scaled = self._unscaled[x], has._replace(axis=entering)
        new = [held, self._weight(weight, cuts, scaled)]
        if len(node.args) > 2:
            new.append(None if bias is None else self._held(bias, need and need._replace(axis=0)))
        result = self.graph.call_function(node.target, (*new, *node.args[3:]))
        sizes = self._shapes[weight]
        per_output = self._shapes[node if leaving == 0 else x].numel()  # a transposed one counts what enters
        cost = 2.0 * FLOP * sizes[1:].numel() * per_output
        self.plain_cost += cost
        cost *= self.share(need, sizes[leaving]) * self.share(has, sizes[entering])
        result.meta["cost"] = cost * RAGGED if cuts and len(sizes) > 2 else cost
        self.saving |= {cut.draw for cut in cuts}
        return result, need

    # ---- what it costs

    def _note_cost(self, node: Node) -> None:
        if node in self._shapes:
            new, cut = self._env[node]
            cost = self._shapes[node].numel() * ELEMENT
            self.plain_cost += cost * self._multiplied(node)
            computed = 1.0 if cut is None else self.share(cut, self._shapes[node][cut.axis])
            new.meta["cost"] = new.meta.get("cost", 0.0) + cost * computed
            new.meta["kind"] = self._kinds[node] if cut is None else None

    def _multiplied(self, node: Node) -> float:
        """The part of the numbers of a plain result that is computed: less where `lean.dropped_linear` multiplies."""
        if node not in self._needs.cuts or node.args[0].op != "placeholder" or len(self._shapes[node]) != 2:
            return 1.0
        first, *others = node.users
        is_factor = not others and first.target is torch.nn.functional.linear and first.args[0] is node
        return min(1.0, self._shapes[first][-1] / FEW) if is_factor else 1.0


def _broadcast(shape: torch.Size, result: torch.Size, cut: Cut) -> int | None:
    """The axis of an operand that meets the cut axis of a result; None where it has one unit for all."""
    axis = cut.axis - len(result) + len(shape)
    return axis if axis >= 0 and shape[axis] == result[cut.axis] else None
