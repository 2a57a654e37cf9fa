"""What one pass looks at: the kind of each result, and from the outputs back the units at which it is needed."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from mcdrop.graph.sites import Site
from mcdrop.shortcuts.kept_units import Cut
from mcdrop.shortcuts.unit_operations import ARITHMETIC, CHANNEL_WISE, UNIT_WISE, ZERO_KEEPING
from mcdrop.splitting.lowering import scale_by_draw
from mcdrop.splitting.part import Part

__all__ = ["Kind", "Needs", "kinds_of"]

Node = Any  # fx.Node, whose arguments are typed too widely to be of use

aten = torch.ops.aten


class Kind(NamedTuple):
    """Shape and type of a result."""

    shape: torch.Size
    dtype: torch.dtype


def kinds_of(part: Part, arguments: Sequence[Any]) -> Mapping[Node, Kind]:
    """The kind of each result of a graph, found by running it."""
    kinds = _Kinds(part)
    kinds.run(*arguments, *part.weights)
    return kinds.found


class _Kinds(fx.Interpreter):
    """Runs a graph and notes the kind of each result."""

    def __init__(self, part: Part) -> None:
        super().__init__(part.module)
        self.found: dict[Node, Kind] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.found[n] = Kind(result.shape, result.dtype)
        return result


class Needs:
    """The nodes of one pass, with the units at which each is needed.

    Attributes:
        nodes: in order.
        inputs: the placeholders before the weights: sizes, frontier, draws.
        weights, draws: the placeholders that are weights and draws, with their numbers.
        cuts: the dropouts that drop units of one axis, each with those that it keeps.
    """

    def __init__(self, part: Part, kinds: Mapping[Node, Kind], sites: Sequence[Site], candidates: set[int]) -> None:
        self._shapes = {node: kind.shape for node, kind in kinds.items()}
        self.nodes: list[Node] = list(part.module.graph.nodes)
        placeholders = [node for node in self.nodes if node.op == "placeholder"]
        first_weight = len(placeholders) - len(part.weights)
        self.inputs = placeholders[:first_weight]
        self.weights = {node: number for number, node in enumerate(placeholders[first_weight:])}
        self.draws = {node: number for number, node in enumerate(self.inputs[first_weight - len(sites) :])}
        self.cuts = {node: cut for node in self.nodes if (cut := self._cut_by(node, candidates)) is not None}
        self._wanted: dict[Node, Cut | None] = {}
        for node in reversed(self.nodes):
            wanted = {self._wanted_by(user, node) for user in node.users}
            self._wanted[node] = wanted.pop() if len(wanted) == 1 else None

    def wanted(self, node: Node) -> Cut | None:
        """The units of a result that anything looks at; None for all."""
        return self._wanted[node]

    def computable(self, node: Node) -> Cut | None:
        """Those at which it can be computed from its inputs at the same units; None where it needs all of them."""
        wanted = self._wanted[node]
        if wanted is None or node.target in ZERO_KEEPING | UNIT_WISE | ARITHMETIC:
            return wanted
        return wanted if wanted.axis == 1 and self.by_channel(node) else None

    def by_channel(self, node: Node) -> bool:
        """Whether an operation acts on each of the channels (rows, channels, ...) by itself."""
        if node.target in CHANNEL_WISE:
            return len(self._shapes[node]) == 4
        return node.target is aten.batch_norm.default and all(
            value in self.weights for value in node.args[1:5] if isinstance(value, fx.Node)
        )

    def _wanted_by(self, user: Node, node: Node) -> Cut | None:
        """The units of `node` that `user` looks at; None for all."""
        if user in self.cuts:
            return self.cuts[user] if node is user.args[0] else None
        need = self.computable(user)
        if need is None or node not in self._shapes or len(self._shapes[node]) != len(self._shapes[user]):
            return None
        return need if self._shapes[node][need.axis] == self._shapes[user][need.axis] else None

    def _cut_by(self, node: Node, candidates: set[int]) -> Cut | None:
        """The cut that a dropout makes, if it is one of the candidates, in activations that fit its mask."""
        if node.target is not scale_by_draw or self.draws.get(node.args[1]) not in candidates:
            return None
        x, draw, row_axis = node.args[:3]
        drawn, shape = self._shapes[draw], self._shapes[x]
        axes = [axis for axis, size in enumerate(drawn) if size != 1 and axis != row_axis]
        if len(drawn) != len(shape) or len(axes) != 1 or drawn[axes[0]] != shape[axes[0]]:
            return None
        if row_axis is not None and drawn[row_axis] != 1:
            return None
        return Cut(self.draws[draw], axes[0])
