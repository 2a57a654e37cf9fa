"""Stochastic depth: a residual branch whose gate is closed in a pass is not computed (Huang et al. 2016)."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from mcdrop.shortcuts.unit_operations import QUOTIENTS
from mcdrop.splitting.lowering import scale_by_draw, spread_draw

__all__ = ["skip_blocks"]

Node = Any  # fx.Node, whose arguments are typed too widely to be of use


def skip_blocks(graph: fx.Graph, gates: Mapping[Node, float]) -> int:
    """Compute residual branches only in passes whose gate is open; how many there are.

    A sum of a shortcut and a branch that a gate multiplies is the shortcut where the gate is closed. What serves the
    branch alone moves into a function of its own. `gates` are draws, each with the probability that it is open; nodes
    have shape and type of all their units as `meta["kind"]`, None where they hold fewer, and what they cost as
    `meta["cost"]`.
    """
    skipped = 0
    for node in list(graph.nodes):
        if node.target is not torch.add or node.kwargs:
            continue
        for shortcut, branch in (node.args, node.args[::-1]):
            gate = _gate_of(branch, gates)
            if gate is not None and isinstance(shortcut, fx.Node) and _same_kind(node, shortcut):
                _skip(graph, node, shortcut, branch, gate, gates[gate])
                skipped += 1
                break
    return skipped


def _same_kind(node: Node, shortcut: Node) -> bool:
    kind = node.meta.get("kind")
    return kind is not None and shortcut.meta.get("kind") == kind


def _skip(graph: fx.Graph, node: Node, shortcut: Node, branch: Node, gate: Node, kept: float) -> None:
    inside, waiting = {node}, [branch]
    while waiting:  # a node is looked at again for each of its users
        serving = waiting.pop()
        if serving.op != "call_function" or serving is shortcut:
            continue
        if all(user in inside for user in serving.users):
            inside.add(serving)
            waiting.extend(serving.all_input_nodes)
    block = [each for each in graph.nodes if each in inside]
    outside = list(dict.fromkeys(x for each in block for x in each.all_input_nodes if x not in inside))
    inner = fx.Graph()
    env = {x: inner.placeholder(x.name) for x in outside}
    for each in block:
        env[each] = inner.node_copy(each, env.__getitem__)
    inner.output(env[node])
    with graph.inserting_before(node):
        new = graph.call_function(_where_open(fx.GraphModule({}, inner)), (gate, shortcut, *outside))
    new.meta["kind"] = node.meta["kind"]
    new.meta["cost"] = kept * sum(each.meta.get("cost", 0.0) for each in block)
    new.meta["calls"] = 1 + kept * sum(each.meta.get("calls", 1) for each in block)
    node.replace_all_uses_with(new)
    for each in reversed(block):
        graph.erase_node(each)


def _gate_of(node: Any, gates: Mapping[Node, float]) -> Node | None:
    """The gate without which a value is zero, if there is one."""
    if not isinstance(node, fx.Node):
        return None
    if node.target is scale_by_draw:
        return node.args[1] if node.args[1] in gates else None
    if node.target is spread_draw:
        return node.args[0] if node.args[0] in gates else None
    if node.target in QUOTIENTS:
        return _gate_of(node.args[0], gates)
    if node.target is torch.mul:
        return _gate_of(node.args[0], gates) or _gate_of(node.args[1], gates)
    return None


def _where_open(module: fx.GraphModule) -> Callable[..., Tensor]:
    """The block as a function of its gate, its shortcut and what it reads."""
    function = type(module).forward

    def block(gate: Tensor, shortcut: Tensor, *values: Any) -> Tensor:
        computed: Tensor = function(module, *values) if gate.any() else shortcut
        return computed

    return block
