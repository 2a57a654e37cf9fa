"""The last dropout in closed form: the noise of a final Linear needs no passes.

Where the output is affine in the draw n of one site, whose units are independent, of mean 1 and variance p / (1 - p),

    f = b + sum_j w_j h_j n_j
    E[f | h] = b + sum_j w_j h_j
    Var[f | h] = p / (1 - p) sum_j w_j^2 h_j^2

with h what comes into the dropout, itself random where the network draws before it. Over all draws, by the laws of
total expectation and variance, E f = E E[f | h] and Var f = Var E[f | h] + E Var[f | h]: passes are needed for h alone.

`integrate` proves the pattern on the graph, operation by operation from the dropout to the output, and gives the
program without that draw, which returns E[f | h] and Var[f | h].
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from mcdrop.errors import SettingError
from mcdrop.graph.draws import noise, scale
from mcdrop.graph.program import Program
from mcdrop.graph.sites import Site

__all__ = ["INTEGRATED", "integrate"]

Node = Any  # fx.Node, whose arguments are typed too widely to be of use

INTEGRATED = 'integrated in closed form: last_layer="exact"'

aten = torch.ops.aten

# Every element of the result is one element of the first argument, none of them twice.
_LAYOUT = {
    aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.flatten.using_ints, aten.squeeze.default,
    aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default, aten.permute.default, aten.transpose.int,
    aten.t.default, aten.select.int, aten.slice.Tensor,
}  # fmt: skip
_SAME = {aten._to_copy.default, aten.clone.default, aten.contiguous.default, aten.alias.default, aten.neg.default}
_SUMS = {aten.add.Tensor, aten.sub.Tensor, aten.rsub.Scalar}
_LOW_PRECISION = (torch.float16, torch.bfloat16)


def integrate(program: Program) -> Program:
    """The program without its last draw, with two outputs: mean and variance over that draw of the one it had.

    Raises:
        SettingError: the output is not affine in the last draw, as far as the graph shows.
    """
    sites = {site.index: site for site in program.active_sites}
    output = next(node for node in program.graph.nodes if node.op == "output")
    if len(output.args[0]) != 1:
        raise _refused(f"the network has {len(output.args[0])} outputs that count, and this is for one")
    shapes = _shapes(program)
    reasons = []
    for node in reversed([node for node in program.graph.nodes if node.target is noise]):
        site = sites[node.args[0]]
        chain = _chain(node, site, shapes)
        if not isinstance(chain, str):
            return _rewritten(program, node, site, chain)
        reasons.append(f"{site.path or '(network)'} (#{site.index}): {chain}")
    raise _refused(reasons[0])


def _refused(reason: str) -> SettingError:
    return SettingError(
        f'last_layer="exact" does not fit this network: {reason}. Expected is dropout on values that go through one '
        'Linear, and through nothing else but factors, sums and reshaping, to the output. Use last_layer="sampled".'
    )


def _chain(drawn: Node, site: Site, shapes: Mapping[Node, torch.Size]) -> list[Node] | str:
    """The operations from the application of a draw to the output, or what is wrong with them."""
    users = list(drawn.users)
    if len(users) != 1 or users[0].target is not scale or users[0].args[1] is not drawn:
        return f"its draw of kind {site.kind} does not simply multiply what comes in"
    node = users[0]
    if shapes[drawn] != shapes[node.args[0]] or not math.isclose(site.scale * (1 - (site.p or 0.0)), 1):
        return f"{site.kind} drops units together"
    chain, mixed = [node], False
    while True:
        users = list(node.users)
        if len(users) != 1 or _times(node, users[0]) != 1:
            return "what it gives is used more than once"
        node, before = users[0], node
        if node.op == "output":
            return chain
        if node.target is aten.linear.default:
            if mixed:
                return "more than one Linear follows it"
            if node.args[0] is not before or node.args[1].op != "get_attr":
                return "it reaches the weight of a Linear"
            mixed = True
        elif node.target in _LAYOUT or node.target in _SAME:
            pass
        elif not _is_affine(node, before) or shapes[node] != shapes[before]:
            return f"{node.target} stands between it and the output"
        chain.append(node)


def _times(node: Node, user: Node) -> int:
    """How often a node is among the arguments of another."""
    found: list[Node] = []
    fx.node.map_arg((user.args, user.kwargs), found.append)
    return found.count(node)


def _is_affine(node: Node, before: Node) -> bool:
    """Whether a node adds to `before`, element by element, or multiplies it by, what does not depend on it."""
    if node.target in _SUMS:
        return node.kwargs.get("alpha", 1) == 1 and len(node.args) == 2
    return node.target is aten.mul.Tensor or (
        node.target is aten.div.Tensor and node.args[0] is before and not node.kwargs
    )


def _rewritten(program: Program, drawn: Node, site: Site, chain: list[Node]) -> Program:
    graph, copies = fx.Graph(), dict[Node, Node]()
    outputs: Node = graph.graph_copy(program.graph, copies)
    mean = outputs[0]
    weights = dict(program.weights)
    applied = copies[chain[0]]
    x = applied.args[0]
    variance = _squared(graph, x)
    for node, before in zip(chain[1:], chain, strict=False):
        if node.target is aten.linear.default:
            name, squared = str(node.args[1].target), f"{node.args[1].target}_squared"
            weight = weights[name]
            weights[squared] = (weight.float() if weight.dtype in _LOW_PRECISION else weight).square()
            variance = graph.call_function(aten.linear.default, (variance, graph.get_attr(squared)))
        elif node.target in _LAYOUT:
            rest = fx.node.map_arg(node.args[1:], copies.__getitem__)
            variance = graph.call_function(node.target, (variance, *rest), dict(node.kwargs))
        elif node.target in (aten.mul.Tensor, aten.div.Tensor):
            other = node.args[1] if node.args[0] is before else node.args[0]
            factor = _squared(graph, copies[other]) if isinstance(other, fx.Node) else other**2
            variance = graph.call_function(node.target, (variance, factor))
    p = site.p or 0.0
    variance = graph.call_function(aten.mul.Tensor, (variance, p / (1 - p)))
    graph.output((x if mean is applied else mean, variance))
    applied.replace_all_uses_with(x)
    graph.erase_node(applied)
    graph.erase_node(copies[drawn])
    done = replace(site, index=-1, active=False, reason=INTEGRATED)
    active = tuple(other for other in program.active_sites if other is not site)
    rest = tuple(other for other in program.sites if not other.active)
    return replace(program, graph=graph, weights=weights, sites=(*active, done, *rest), integrated=True)


def _squared(graph: fx.Graph, x: Node) -> Node:
    """The square in float32 at least."""
    wide = graph.call_function(_wide, (x,))
    return graph.call_function(aten.mul.Tensor, (wide, wide))


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x.float() if x.dtype in _LOW_PRECISION else x


def _shapes(program: Program) -> dict[Node, torch.Size]:
    """The shape of every tensor of a program, for two rows."""
    graph, copies = fx.Graph(), dict[Node, Node]()
    graph.output(graph.graph_copy(program.graph, copies))
    found = _Shapes(fx.GraphModule(dict(program.weights), graph))
    sizes = {name: max(least, min(greatest or 5, 5)) for name, (least, greatest) in program.dims.items()} | {"batch": 2}
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        found.run(
            *(
                torch.zeros(
                    [sizes.get(size, 5) if isinstance(size, str) else size for size in spec.shape],
                    dtype=spec.dtype,
                    device=program.device,
                )
                for spec in program.inputs
            )
        )
    return {node: found.shapes[copy] for node, copy in copies.items() if copy in found.shapes}


class _Shapes(fx.Interpreter):
    """Runs a program on tensors without values and notes their shapes."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[Node, torch.Size] = {}

    def run_node(self, n: fx.Node) -> Any:
        if n.target is noise:
            result = torch.empty([int(size) for size in self.fetch_args_kwargs_from_env(n)[0][1]])
        else:
            result = super().run_node(n)
        if isinstance(result, torch.Tensor):
            self.shapes[n] = result.shape
        return result
