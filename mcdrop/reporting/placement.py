"""Where a site stands in a captured network: what its draw is applied to, and what reads the result.

The graph is read by the names of its operations alone, so a network that was loaded from disk is judged as one that
was just captured. From a draw onwards, what is computed from the draw and constants is still the mask; the first
operation that brings in activations *applies* it. From there the walk goes on through operations that only move or
rescale numbers, to the first that does more: the reader.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from mcdrop.graph.draws import noise
from mcdrop.graph.program import Program
from mcdrop.graph.sites import Site
from mcdrop.splitting.split import is_size

__all__ = ["Placement", "placements"]

Node = Any  # fx.Node, whose arguments are typed too widely to be of use

_LAYOUT = frozenset(
    """
    alias chunk clone contiguous copy detach expand flatten getitem movedim narrow permute reshape select slice split
    split_with_sizes squeeze swapaxes t _to_copy to transpose unbind unflatten unsqueeze view
    """.split()  # noqa: SIM905
)
_MASKS = frozenset({"scale", "alpha_scale"})  # another site on the way
_RESCALE = frozenset({"mul", "div", "neg"})  # by a constant
_SHIFT = frozenset({"add", "sub", "rsub"})  # by a constant
_POOL = frozenset(
    """
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
    adaptive_max_pool3d avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d max_pool2d_with_indices mean
    """.split()  # noqa: SIM905
)
_GLOBAL = frozenset({"adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "mean"})
_HOMOGENEOUS = frozenset(  # f(0) = 0 and f(cx) = c f(x) for c > 0 (ReLU6 below 6): a mask before or after is the same
    {"relu", "leaky_relu", "prelu", "_prelu_kernel", "abs", "relu6", "clamp_min", "rrelu"}
)
_ACTIVATIONS = frozenset(
    """
    celu elu exp gelu glu hardsigmoid hardswish hardtanh log_sigmoid log_softmax _log_softmax mish selu sigmoid silu
    softmax _softmax softplus softshrink tanh
    """.split()  # noqa: SIM905
)
_NORMS = frozenset({"batch_norm", "group_norm", "instance_norm", "layer_norm", "rms_norm"})
_CONVOLUTIONS = frozenset(
    {
        *(f"conv{n}d" for n in (1, 2, 3)),
        "conv_transpose1d",
        "conv_transpose2d",
        "conv_transpose3d",
        "convolution",
    }
)
_RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell"})
_ATTENTION = frozenset({"scaled_dot_product_attention"})
_PRODUCTS = frozenset({"linear", "addmm", "matmul", "mm", "bmm", "baddbmm", "einsum", "bilinear"})
_WEIGHTED = _CONVOLUTIONS | _RECURRENT | _ATTENTION | _PRODUCTS
_APPLIES = frozenset({"scale", "alpha_scale", "mul", "where", "masked_fill"})
_LIKE = frozenset({f"{value}_like" for value in ("zeros", "ones", "full", "empty")})
_LIKE |= {f"new_{value}" for value in ("zeros", "ones", "full", "empty")}  # of another tensor they take the shape alone
_MOVES = _LAYOUT | _RESCALE | _MASKS


@dataclass(frozen=True)
class Placement:
    """Where the draw of one site goes.

    Attributes:
        masks: whether it multiplies or replaces activations (rather than being added to them, say).
        place: "input", "fully connected", "convolutional", "recurrent", "transformer", "weights", "blocks" (of
            maps) or "path" (a whole branch of a row).
        activation: the non-linear function that reads the result and for which the order matters, or None.
        batch_norm: whether BatchNorm reads the result, at most behind pooling and functions like ReLU.
        batch_norm_joined: whether it does so after the result was joined with other channels.
        on_output: whether the result is the output, at most behind a softmax or pooling.
        unit_wise_on_maps: whether single positions of convolutional maps are masked that are read as maps.
        weighted_after: number of operations with weights or products that the noise reaches.
    """

    masks: bool
    place: str
    activation: str | None
    batch_norm: bool
    batch_norm_joined: bool
    on_output: bool
    unit_wise_on_maps: bool
    weighted_after: int


def placements(program: Program) -> dict[int, Placement]:
    """The placement of every active site, by its number."""
    graph = _Graph(program)
    draws = {node.args[0]: node for node in graph.nodes if node.target is noise}
    return {site.index: graph.placement(site, draws[site.index]) for site in program.active_sites}


def _name(node: Node) -> str:
    """The operation of a node without namespace and overload: "linear", "scale", "output"."""
    if node.op != "call_function":
        return str(node.op)
    if isinstance(node.target, torch._ops.OpOverload):
        name = str(node.target.overloadpacket.__name__)
        return "relu6" if name == "hardtanh" and len(node.args) > 1 and node.args[1] == 0 else name
    return str(getattr(node.target, "__name__", ""))


class _Graph:
    def __init__(self, program: Program) -> None:
        self.nodes = list(program.graph.nodes)
        self.names = {node: _name(node) for node in self.nodes}
        self.floats = {
            node
            for node, spec in zip((n for n in self.nodes if n.op == "placeholder"), program.inputs, strict=True)
            if spec.dtype.is_floating_point
        }
        self.constants: set[Node] = set()  # what is made of weights and sizes alone
        for node in self.nodes:
            made = node.op == "call_function" and node.target is not noise
            made = made and (self.names[node] in _LIKE or self.constants.issuperset(node.all_input_nodes))
            if node.op == "get_attr" or is_size(node) or made:
                self.constants.add(node)
        self.transformer = any(
            name in _ATTENTION or (name in ("softmax", "_softmax") and self._weighs(node))
            for node, name in self.names.items()
        )

    def _weighs(self, node: Node) -> bool:
        """Whether a softmax is that of an attention: something is averaged with it."""
        readers = self.readers([node], _MOVES)
        return any(self.names[reader] in ("matmul", "bmm", "einsum") for reader in readers)

    def placement(self, site: Site, draw: Node) -> Placement:
        family = {draw}  # the draw and what is made of it and constants alone
        applications = []
        for node in self.nodes:
            parents = node.all_input_nodes
            if node in family or not any(parent in family for parent in parents):
                continue
            if all(parent in family or parent in self.constants for parent in parents) and node.op != "output":
                family.add(node)
            else:
                applications.append(node)
        masked = [node for node in applications if self.names[node] in _APPLIES]
        sources = [
            parent
            for node in masked
            for parent in node.all_input_nodes
            if parent not in family and parent not in self.constants
        ]
        near = self.readers(masked, _MOVES | _POOL | _HOMOGENEOUS)
        joined = self.readers(masked, _MOVES | _POOL | _HOMOGENEOUS | {"cat"})
        ends = self.readers(masked, _MOVES | _POOL | _HOMOGENEOUS | _ACTIVATIONS)
        activations = sorted(self.names[node].strip("_") for node in near if self.names[node] in _ACTIVATIONS)
        of_norm = [any(self.names[node] == "batch_norm" for node in nodes) for nodes in (near, joined)]
        place = self._place(site, family, applications, sources)
        maps = self.readers(masked, _MOVES | _HOMOGENEOUS | _ACTIVATIONS)
        read_as_maps = any(self.names[node] not in _PRODUCTS for node in maps)  # not flat, by a linear layer alone
        return Placement(
            masks=bool(masked),
            place=place,
            activation=activations[0] if activations else None,
            batch_norm=of_norm[0],
            batch_norm_joined=of_norm[1] and not of_norm[0],
            on_output=any(node.op == "output" for node in ends),
            unit_wise_on_maps=place == "convolutional" and read_as_maps and _unit_wise(site),
            weighted_after=sum(self.names[node] in _WEIGHTED for node in self._downstream(draw)),
        )

    def _place(self, site: Site, family: set[Node], applications: list[Node], sources: list[Node]) -> str:
        if site.kind == "recurrent_dropout":
            return "recurrent"
        if site.kind == "attention_dropout":
            return "transformer"
        if any(self.names[node] in _WEIGHTED | {"embedding"} for node in applications):
            return "weights"
        if site.row_axis in (0, None) and all(size == 1 for size in site.shape[site.row_axis is not None :]):
            return "path"
        if any(origin in self.floats for origin in self.origins(sources, _LAYOUT | _RESCALE | _SHIFT, constants=True)):
            return "input"
        if any(self.names[node] in _POOL for node in family):
            return "blocks"
        on_maps = _HOMOGENEOUS | _ACTIVATIONS | _NORMS | _MASKS | _SHIFT | (_POOL - _GLOBAL) | {"mul", "cat", "clone"}
        if any(self.names[origin] in _CONVOLUTIONS for origin in self.origins(sources, on_maps)):
            return "convolutional"
        if self.transformer:
            return "transformer"
        over_time = _MOVES | _SHIFT | _HOMOGENEOUS | _ACTIVATIONS | _NORMS
        if any(self.names[origin] in _RECURRENT for origin in self.origins(sources, over_time)):
            return "recurrent"
        return "fully connected"

    # ---- walks

    def readers(self, start: Iterable[Node], through: frozenset[str]) -> set[Node]:
        """The nodes that use what comes out of `start`, behind operations of `through`."""
        return self._walk(start, lambda node: node.users, through, True)

    def origins(self, start: Iterable[Node], through: frozenset[str], *, constants: bool = False) -> set[Node]:
        """The nodes from which `start` is made by operations of `through` (with `constants`: and constants alone)."""
        return self._walk([None], lambda node: start if node is None else node.all_input_nodes, through, constants)

    def _walk(
        self, start: Iterable[Any], following: Callable[[Any], Iterable[Node]], through: frozenset[str], strict: bool
    ) -> set[Node]:
        ends, seen, waiting = set[Node](), set[Node](), list(start)
        while waiting:
            for node in following(waiting.pop()):
                if node in seen or node in self.constants:
                    continue
                seen.add(node)
                if self.names[node] in through and not (strict and self._combines(node)):
                    waiting.append(node)
                else:
                    ends.add(node)
        return ends

    def _combines(self, node: Node) -> bool:
        """Whether arithmetic takes more than one tensor that is no constant: a residual sum, a gate."""
        own = [parent for parent in node.all_input_nodes if parent not in self.constants]
        return self.names[node] in _RESCALE | _SHIFT and len(own) > 1

    def _downstream(self, node: Node) -> Iterator[Node]:
        reached, waiting = set[Node](), [node]
        while waiting:
            for user in waiting.pop().users:
                if user not in reached:
                    reached.add(user)
                    waiting.append(user)
                    yield user


def _unit_wise(site: Site) -> bool:
    """Whether a draw of shape (batch, channels, *space) differs from position to position and from map to map."""
    return len(site.shape) > 2 and site.shape[1] != 1 and any(size != 1 for size in site.shape[2:])
