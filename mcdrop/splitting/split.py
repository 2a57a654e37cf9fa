"""Program -> prefix and suffix: what runs once per row, and what runs once per row and pass.

The prefix is all that no draw reaches; its results that the suffix needs are the *frontier*. The suffix is lowered in
two forms, in which draws and sizes have become arguments:

    mapped    one pass: meant for `torch.func.vmap` over passes, draws mapped on axis 0, the frontier not mapped
    folded    all passes at once: passes stand in the batch axis, slowest (passes * rows), and a draw multiplies its
              activations by broadcasting, so that neither masks nor the frontier are repeated where it can be helped

The mapped form is the meaning; the folded one is faster where it is right, which shapes alone cannot tell (an index
`arange(batch)` made before the first draw would read pass 0 only). Who uses it has to prove it first.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode

from mcdrop.graph.draws import alpha_scale, noise, scale
from mcdrop.graph.program import Program
from mcdrop.graph.sites import Site
from mcdrop.splitting.lowering import APPLY, MAPPED, repeat, spread_draw, spread_folded
from mcdrop.splitting.part import Part

__all__ = ["Split", "is_size", "measure", "split"]

Node = Any  # fx.Node, whose arguments are typed too widely to be of use

aten = torch.ops.aten

_ARITHMETIC = {
    operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod, operator.neg, operator.pow,
    torch.sym_max, torch.sym_min,
}  # fmt: skip


@dataclass(frozen=True)
class Split:
    """The two parts of a program, ready to run.

    Attributes:
        prefix: inputs -> the tensors of the frontier.
        mapped: (sizes..., frontier..., draws of one pass...) -> outputs of one pass.
        folded: (sizes..., frontier..., draws of all passes...) -> outputs of (passes * rows, ...); None where a site
            is shared by the rows of a pass (a weight) or rows stand where they cannot be folded.
        roots: which sizes of the inputs the suffix takes, as (number of the input, axis).
        draws: for each active site the sizes of its draw, as ints or nodes of size arithmetic.
        prefix_calls: number of operations that run once per row; `suffix_calls` once per row and pass.
        stochastic_outputs: of each output, whether a draw reaches it.
        fixed: whether all sizes of the inputs are fixed but the number of rows.
    """

    prefix: Part
    mapped: Part
    folded: Part | None
    roots: tuple[tuple[int, int], ...]
    draws: tuple[tuple[Site, tuple[Any, ...]], ...]
    prefix_calls: int
    suffix_calls: int
    frontier_axes: tuple[int | None, ...] | None  # of each frontier tensor, the axis of the rows; None if unclear
    stochastic_outputs: tuple[bool, ...]
    fixed: bool

    def sizes(self, inputs: Sequence[Tensor]) -> tuple[int, ...]:
        """The values of `roots` for these inputs."""
        return tuple(inputs[number].shape[axis] for number, axis in self.roots)


class _Program:
    """A program with what its nodes are: size arithmetic, stochastic, or made from sizes alone."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.nodes = list(program.graph.nodes)
        self.placeholders = [node for node in self.nodes if node.op == "placeholder"]
        self.sites = {site.index: site for site in program.active_sites}
        self.sizes = {node for node in self.nodes if is_size(node)}
        self.noises = [node for node in self.nodes if node.target is noise]
        self.stochastic: set[Node] = set()
        made: dict[Node, bool] = {}  # tensors made from sizes and constants alone -> whether from the number of rows
        rows = {node for node in self.sizes if self._counts_rows(node)}
        for node in self.nodes:
            if node in self.noises or any(parent in self.stochastic for parent in node.all_input_nodes):
                self.stochastic.add(node)
            elif node.op == "call_function" and node not in self.sizes:
                tensors = [parent for parent in node.all_input_nodes if parent not in self.sizes]
                if all(parent in made for parent in tensors):
                    made[node] = any(p in rows for p in node.all_input_nodes) or any(made[p] for p in tensors)
        self.made = {node for node, from_rows in made.items() if from_rows}
        output = next(node for node in self.nodes if node.op == "output")
        self.outputs: tuple[Node, ...] = tuple(output.args[0])
        self.stochastic.discard(output)
        self.frontier = self._frontier()

    def _counts_rows(self, node: Node) -> bool:
        if node.target is aten.sym_size.int:
            spec = self.program.inputs[self.placeholders.index(node.args[0])]
            return bool(spec.shape[node.args[1]] == "batch")
        return any(self._counts_rows(parent) for parent in node.all_input_nodes)

    def _frontier(self) -> list[Node]:
        needed: dict[Node, None] = {}
        wanted = [node for node in self.nodes if node in self.stochastic and node not in self.noises]
        parents = [parent for node in wanted for parent in node.all_input_nodes] + list(self.outputs)
        seen: set[Node] = set()
        while parents:
            parent = parents.pop()
            if parent in seen or parent in self.stochastic or parent in self.sizes or parent.op == "get_attr":
                continue
            seen.add(parent)
            if parent in self.made:
                parents.extend(parent.all_input_nodes)
            else:
                needed[parent] = None
        return [node for node in self.nodes if node in needed]


def is_size(node: Any) -> bool:
    """Whether a node is integer arithmetic on sizes rather than a tensor."""
    if not isinstance(node, fx.Node) or node.op != "call_function":
        return False
    if node.target is aten.sym_size.int:
        return True
    return node.target in _ARITHMETIC and all(
        is_size(argument) for argument in node.args if isinstance(argument, fx.Node)
    )


def measure(size: Any, roots: Mapping[tuple[int, int], int], inputs: Sequence[Node]) -> int:
    """The value of a size for given sizes of the inputs."""
    if isinstance(size, int):
        return size
    if size.target is aten.sym_size.int:
        return roots[inputs.index(size.args[0]), size.args[1]]
    function: Any = size.target
    return int(function(*(measure(argument, roots, inputs) for argument in size.args)))


def split(program: Program) -> Split:
    """Cut a program where noise first enters, and lower both parts."""
    p = _Program(program)
    roots = sorted({(p.placeholders.index(n.args[0]), n.args[1]) for n in p.sizes if n.target is aten.sym_size.int})
    prefix, prefix_calls = _prefix(p)
    axes = _row_axes(p, prefix)
    suffix_calls = sum(node.op == "call_function" for node in p.stochastic) - len(p.noises)
    foldable = (
        axes is not None
        and all(site.row_axis is not None and site.row_major for site in p.sites.values())
        and all(node in p.stochastic for node in p.outputs)
    )
    return Split(
        prefix=prefix,
        mapped=_suffix(p, roots, None),
        folded=_suffix(p, roots, axes) if foldable else None,
        roots=tuple(roots),
        draws=tuple((p.sites[node.args[0]], tuple(node.args[1])) for node in p.noises),
        prefix_calls=prefix_calls,
        suffix_calls=suffix_calls,
        frontier_axes=None if axes is None else tuple(axes[node] for node in p.frontier),
        stochastic_outputs=tuple(node in p.stochastic for node in p.outputs),
        fixed=not program.dims,
    )


def _prefix(p: _Program) -> tuple[Part, int]:
    graph, env = fx.Graph(), dict[Node, Node]()
    needed, waiting = set(), list(p.frontier)
    while waiting:
        node = waiting.pop()
        if node not in needed:
            needed.add(node)
            waiting.extend(node.all_input_nodes)
    for node in p.nodes:
        if node.op == "placeholder" or node in needed:
            env[node] = graph.node_copy(node, env.__getitem__)
    graph.output(tuple(env[node] for node in p.frontier))
    return Part(graph, p.program.weights), sum(node.op == "call_function" and node not in p.sizes for node in needed)


def _row_axes(p: _Program, prefix: Callable[..., Any]) -> dict[Node, int | None] | None:
    """The axis of each frontier tensor that runs over the rows; None if one has several such axes."""

    def shapes(rows: int) -> list[torch.Size]:
        sizes = {name: max(least, min(greatest or 5, 5)) for name, (least, greatest) in p.program.dims.items()}
        with FakeTensorMode(allow_non_fake_inputs=True):
            inputs = [
                torch.zeros(
                    [rows if s == "batch" else sizes.get(s, 5) if isinstance(s, str) else s for s in spec.shape],
                    dtype=spec.dtype,
                    device=p.program.device,
                )
                for spec in p.program.inputs
            ]
            return [tensor.shape for tensor in prefix(*inputs)]

    axes: dict[Node, int | None] = {}
    for node, two, three in zip(p.frontier, shapes(2), shapes(3), strict=True):
        moving = [axis for axis, (a, b) in enumerate(zip(two, three, strict=True)) if a != b]
        if len(moving) > 1 or any(two[axis] * 3 != three[axis] * 2 for axis in moving):
            return None
        axes[node] = moving[0] if moving else None
    return axes


def _suffix(p: _Program, roots: list[tuple[int, int]], axes: dict[Node, int | None] | None) -> Part:
    """The suffix in its mapped form, or, given the row axes of the frontier, in its folded form."""
    folded = axes is not None
    graph, env = fx.Graph(), dict[Node, Any]()
    sizes = {root: graph.placeholder(f"size_{number}") for number, root in enumerate(roots)}
    for node in p.frontier:
        env[node] = graph.placeholder(f"frontier_{node.name}")
    draws = {node: graph.placeholder(f"draw_{node.args[0]}") for node in p.noises}
    first = next(iter(draws.values()), None)

    def lookup(node: Node) -> Any:
        """The node in the new graph; constants and sizes are copied when first used."""
        if node not in env:
            if node.target is aten.sym_size.int:
                env[node] = sizes[p.placeholders.index(node.args[0]), node.args[1]]
            elif node in p.noises:
                size = _argument((*node.args[1], 1)[p.sites[node.args[0]].row_axis or 0], lookup)  # 1: a single number
                arguments = (draws[node], p.sites[node.args[0]].row_axis, p.sites[node.args[0]].row_major, size)
                env[node] = graph.call_function(spread_folded if folded else spread_draw, arguments)
            else:
                env[node] = graph.node_copy(node, lookup)
                if not folded:
                    env[node].target = MAPPED.get(node.target, node.target)
        return env[node]

    fresh = dict[Node, Node]()
    if axes is not None:
        for node in p.frontier:
            if axes[node] is not None:
                fresh[node] = env[node]
                if not all(_applies(user, node, axes[node], p) for user in node.users):
                    env[node] = graph.call_function(repeat, (env[node], first, axes[node]))
    for node in p.nodes:
        if node not in p.stochastic or node in p.noises:
            continue
        if node.target in (scale, alpha_scale) and node.args[1] in p.noises:
            x, drawn, *rest = node.args
            site = p.sites[drawn.args[0]]
            unrepeated = fresh.get(x) if folded and axes and axes.get(x) == site.row_axis else None
            env[node] = graph.call_function(
                APPLY[node.target, folded],
                (unrepeated or lookup(x), draws[drawn], site.row_axis, site.row_major, *rest),
                {"unrepeated": True} if unrepeated is not None else {},
            )
        else:
            lookup(node)
    graph.output(tuple(lookup(node) for node in p.outputs))
    graph.eliminate_dead_code()
    del lookup  # holds itself, and so would hold the weights until a garbage collection
    return Part(graph, p.program.weights)


def _argument(value: Any, lookup: Callable[[Node], Any]) -> Any:
    return lookup(value) if isinstance(value, fx.Node) else value


def _applies(user: Node, node: Node, axis: int | None, p: _Program) -> bool:
    """Whether `user` does nothing to `node` but apply a draw, by rows on the same axis."""
    return (
        user.target in (scale, alpha_scale)
        and user.args[0] is node
        and user.args[1] in p.noises
        and p.sites[user.args[1].args[0]].row_axis == axis
    )
