"""The graph of one pass, rewritten so that values hold kept units alone.

First from the outputs, for each node at which units it is needed; then forward the nodes, each with the units at which
it can be had. `meta["cost"]` of each new node says what it costs, in nanoseconds on two cores of a server, of which
only the ratios count.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from mcdrop.kept_units import (
    ARITHMETIC,
    CHANNEL_WISE,
    GROUPS,
    QUOTIENTS,
    SUMS,
    UNIT_WISE,
    WEIGHT_AXES,
    ZERO_KEEPING,
    Cut,
    Gather,
    filled,
    select,
)
from mcdrop.sites import Site
from mcdrop.split import Part, scale_by_draw

__all__ = ["Rewriter", "shapes_of"]

Node = Any  # fx.Node, whose arguments are typed too widely to be of use

aten = torch.ops.aten

FLOP = 1 / 250  # of a matrix product or convolution
ELEMENT = 0.2  # of an activation: a mask or another unit-wise operation
CHANNELS = 16  # of a convolution that are computed together; widths are ragged, so half as many more on average


def shapes_of(part: Part, arguments: Sequence[Any]) -> Mapping[Node, torch.Size]:
    """The shape of each result of a graph, found by running it."""
    shapes = _Shapes(part)
    shapes.run(*arguments, *part.weights)
    return shapes.found


class _Shapes(fx.Interpreter):
    """Runs a graph and notes the shape of each result."""

    def __init__(self, part: Part) -> None:
        super().__init__(part.module)
        self.found: dict[Node, torch.Size] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.found[n] = result.shape
        return result


class Rewriter:
    """Rewrites the graph of one pass: first from the outputs what each node is needed for, then forward the nodes."""

    def __init__(
        self, part: Part, shapes: Mapping[Node, torch.Size], sites: Sequence[Site], candidates: set[int]
    ) -> None:
        self.part, self.shapes, self.sites = part, shapes, sites
        self.nodes: list[Node] = list(part.module.graph.nodes)
        inputs = [node for node in self.nodes if node.op == "placeholder"]
        first_weight = len(inputs) - len(part.weights)
        self.weights = {node: number for number, node in enumerate(inputs[first_weight:])}
        first_draw = first_weight - len(sites)
        self.draws = {node: number for number, node in enumerate(inputs[first_draw:first_weight])}
        self.candidates = candidates
        self.cuts = {node: cut for node in self.nodes if (cut := self._cut_by(node)) is not None}
        self.needs: dict[Node, Cut | None] = {}
        for node in reversed(self.nodes):
            wanted = {self._wanted(user, node) for user in node.users}
            self.needs[node] = wanted.pop() if len(wanted) == 1 else None

        self.graph = fx.Graph()
        self.env: dict[Node, tuple[Node, Cut | None]] = {
            node: (self.graph.placeholder(node.name), None) for node in inputs[:first_weight]
        }
        self.marks = [self.graph.call_function(tuple) for _ in range(2)]  # where indices end, and gathered weights
        self.indices: dict[tuple[int, int], Node] = {}
        self.gathers: dict[Gather, Node] = {}
        self.others: dict[tuple[Node, Cut | None], Node] = {}
        self.unscaled: dict[Node, tuple[Node, float]] = {}  # what a dropout keeps, and by what it is to be multiplied
        self.products: list[Gather] = []
        self.plain_cost = 0.0
        for node in self.nodes:
            if node.op == "call_function":
                self.env[node] = self._rewritten(node)
                self._note_cost(node)
            elif node.op == "output":
                self.graph.output(tuple(self.held(value, None) for value in node.args[0]))

    # ---- what is needed

    def _cut_by(self, node: Node) -> Cut | None:
        """The cut that a dropout makes, if it is one of the candidates, in activations that fit its mask."""
        if node.target is not scale_by_draw or node.args[1] not in self.draws:
            return None
        x, draw, row_axis = node.args[:3]
        drawn = self.shapes[draw]
        axes = [axis for axis, size in enumerate(drawn) if size != 1 and axis != row_axis]
        if self.draws[draw] not in self.candidates or len(drawn) != len(self.shapes[x]) or len(axes) != 1:
            return None
        (axis,) = axes
        if drawn[axis] != self.shapes[x][axis] or (row_axis is not None and drawn[row_axis] != 1):
            return None
        return Cut(self.draws[draw], axis)

    def _wanted(self, user: Node, node: Node) -> Cut | None:
        """The units of `node` that `user` looks at; None for all."""
        if user in self.cuts:
            return self.cuts[user] if node is user.args[0] else None
        need = self._own_need(user)
        if need is None or node not in self.shapes or len(self.shapes[node]) != len(self.shapes[user]):
            return None
        return need if self.shapes[node][need.axis] == self.shapes[user][need.axis] else None

    def _own_need(self, node: Node) -> Cut | None:
        """The units at which `node` is needed, if it can be computed there from its inputs at the same units."""
        need = self.needs[node]
        if node.target in ZERO_KEEPING | UNIT_WISE | ARITHMETIC:
            return need
        by_channel = node.target in CHANNEL_WISE or (
            node.target is aten.batch_norm.default
            and all(value in self.weights for value in node.args[1:5] if isinstance(value, fx.Node))
        )
        return need if by_channel and need is not None and need.axis == 1 else None

    # ---- values in the new graph

    def held(self, node: Any, cut: Cut | None) -> Any:
        """A value in the new graph, at the units of `cut`, of whose axis it has all; all of them for None."""
        if not isinstance(node, fx.Node):
            return node
        if node in self.weights:
            return self._gathered(node, () if cut is None else (cut,))
        new, has = self.env[node]
        if has != cut and (node, cut) not in self.others:
            if has is not None:
                new = self.graph.call_function(filled, (new, has.axis, self._index(has), self.shapes[node][has.axis]))
            if cut is not None:
                new = self.graph.call_function(select, (new, cut.axis, self._index(cut)))
            self.others[node, cut] = new
        return new if has == cut else self.others[node, cut]

    def _index(self, cut: Cut) -> Node:
        if (cut.draw, cut.block) not in self.indices:
            with self.graph.inserting_before(self.marks[0]):
                self.indices[cut.draw, cut.block] = self.graph.placeholder(f"kept_{cut.draw}_{cut.block}")
        return self.indices[cut.draw, cut.block]

    def _gathered(self, node: Node, cuts: tuple[Cut, ...], *, product: bool = False, factor: float = 1.0) -> Node:
        """A weight at the units of `cuts`; `product` says that work is left out with what it loses."""
        gather = Gather(self.weights[node], cuts, factor)
        if cuts and product:
            self.products.append(gather)
        if not cuts:
            return self.graph.get_attr(f"weight_{gather.weight}")
        if gather not in self.gathers:
            for cut in cuts:
                self._index(cut)
            with self.graph.inserting_before(self.marks[1]):
                self.gathers[gather] = self.graph.placeholder(f"gathered_{len(self.gathers)}")
        return self.gathers[gather]

    # ---- nodes

    def _rewritten(self, node: Node) -> tuple[Node, Cut | None]:
        """The node in the new graph, and the units that it has there."""
        target, need = node.target, self._own_need(node)
        has = self._has(node.args[0]) if node.args else None
        if node in self.cuts:
            cut, site = self.cuts[node], self.sites[self.draws[node.args[1]]]
            factor = float(torch.tensor(site.scale, dtype=torch.float32))  # as in the draw
            self.unscaled[node] = x, factor = self.held(node.args[0], cut), factor
            return self.graph.call_function(torch.mul, (x, factor)), cut
        if self._is_plain_product(node):
            return self._product(node)
        if target is aten.batch_norm.default and need is not None:
            by_unit = [self.held(value, need._replace(axis=0)) for value in node.args[1:5]]
            x = self.held(node.args[0], need)
            return self.graph.call_function(target, (x, *by_unit, *node.args[5:]), dict(node.kwargs)), need
        if has is not None and self._flattens(node, has):
            new = self.graph.call_function(torch.flatten, (self.env[node.args[0]][0], 1))
            return new, has._replace(block=has.block * self.shapes[node.args[0]][2:].numel())
        if need is not None:
            return self._copied(node, need)
        if target in ARITHMETIC:
            return self._copied(node, self._zero_in(node))
        if target in ZERO_KEEPING or (target in CHANNEL_WISE and has is not None and has.axis == 1):
            return self._copied(node, has)
        return self._copied(node, None)

    def _flattens(self, node: Node, has: Cut) -> bool:
        """Whether a reshape makes (rows, channels * space) of (rows, channels, *space), of fixed size."""
        if node.target is not torch.reshape or has.axis != 1 or len(node.args[1]) != 2:
            return False
        rows, units = node.args[1]
        shape = self.shapes[node.args[0]]
        return not isinstance(rows, int) and isinstance(units, int) and units == shape[1:].numel()

    def _has(self, value: Any) -> Cut | None:
        return self.env[value][1] if isinstance(value, fx.Node) and value in self.env else None

    def _zero_in(self, node: Node) -> Cut | None:
        """The units outside of which arithmetic on what is zero there gives zero."""
        shape = self.shapes[node]
        operands = node.args[:2]
        has = [self._has(value) for value in operands]
        fits = [
            cut if cut is not None and len(self.shapes[value]) == len(shape) else None
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
            if cut is None or value not in self.shapes:
                return self.held(value, None)
            axis = _broadcast(self.shapes[value], self.shapes[node], cut)
            return self.held(value, None if axis is None else cut._replace(axis=axis))

        args, kwargs = (fx.node.map_arg(values, argument) for values in (node.args, node.kwargs))
        return self.graph.call_function(node.target, args, kwargs), cut

    def _is_plain_product(self, node: Node) -> bool:
        """Whether this is a linear map or an ungrouped convolution of a batch, by weights that are not computed."""
        if node.target not in WEIGHT_AXES:
            return False
        x, weight, bias = (*node.args, None)[:3]
        return (
            weight in self.weights
            and (bias is None or bias in self.weights)
            and node.args[GROUPS : GROUPS + 1] in ((), (1,))
            and not node.kwargs
            and (node.target is torch.nn.functional.linear or len(self.shapes[x]) == len(self.shapes[weight]))
        )

    def _product(self, node: Node) -> tuple[Node, Cut | None]:
        """A linear map or convolution, from the units that its input has to those that are needed."""
        x, weight, bias = (*node.args, None)[:3]
        leaving, entering = WEIGHT_AXES[node.target]
        linear = node.target is torch.nn.functional.linear
        axis = len(self.shapes[x]) - 1 if linear else 1
        has, need = self._has(x), self.needs[node]
        has = has if has is not None and has.axis == axis else None
        need = need if need is not None and need.axis == axis else None
        cuts = [cut._replace(axis=at) for cut, at in ((need, leaving), (has, entering)) if cut is not None]
        held, factor = self.unscaled[x] if x in self.unscaled and has is not None else (self.held(x, has), 1.0)
        new = [held, self._gathered(weight, tuple(cuts), product=True, factor=factor)]
        if len(node.args) > 2:
            new.append(None if bias is None else self.held(bias, need and need._replace(axis=0)))
        result = self.graph.call_function(node.target, (*new, *node.args[3:]))
        flops = 2.0 * self.shapes[weight].numel() * self.shapes[node if not _transposed(node) else x].numel()
        flops /= self.shapes[weight][leaving if not _transposed(node) else entering]
        self.plain_cost += flops * FLOP
        for cut, at in ((has, entering), (need, leaving)):
            flops *= self.fraction(cut) if linear or cut is None else self._channels(cut, self.shapes[weight][at])
        result.meta["cost"] = flops * FLOP
        return result, need

    # ---- the result

    def new_draws(self) -> list[tuple[Node, int]]:
        """The draws in the new graph, each with its number."""
        return [(self.env[node][0], number) for node, number in self.draws.items()]

    def finish(self) -> fx.Graph:
        """The new graph, without what nothing reads."""
        for mark in self.marks:
            self.graph.erase_node(mark)
        self.graph.eliminate_dead_code()
        return self.graph

    # ---- what it costs

    def fraction(self, cut: Cut | None) -> float:
        return 1.0 if cut is None else 1.0 - (self.sites[cut.draw].p or 0.0)

    def _channels(self, cut: Cut, channels: int) -> float:
        """The share of the channels of a convolution that has to be computed: libraries do so many at a time."""
        kept = channels * self.fraction(cut)
        return min(1.0, math.ceil(kept / CHANNELS + 0.5) * CHANNELS / channels)

    def _note_cost(self, node: Node) -> None:
        if node in self.shapes:
            new, cut = self.env[node]
            cost = self.shapes[node].numel() * ELEMENT
            self.plain_cost += cost
            new.meta["cost"] = new.meta.get("cost", 0.0) + cost * self.fraction(cut)
            new.meta["shape"] = self.shapes[node] if cut is None else None


def _transposed(node: Node) -> bool:
    return WEIGHT_AXES[node.target] == (1, 0)


def _broadcast(shape: torch.Size, result: torch.Size, cut: Cut) -> int | None:
    """The axis of an operand that meets the cut axis of a result; None where it has one unit for all."""
    axis = cut.axis - len(result) + len(shape)
    return axis if axis >= 0 and shape[axis] == result[cut.axis] else None
