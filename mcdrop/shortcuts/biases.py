"""A bias as the weight of one more unit, which is always 1: a product adds it, so that nothing is written twice.

That is where a layer takes units of a matrix that is computed once for all passes, which gets a column of ones.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from mcdrop.shortcuts.kept_units import Gather, Index, Kept, select

__all__ = ["biases_as_units"]

Node = Any  # fx.Node, whose arguments are typed too widely to be of use


def biases_as_units(graph: fx.Graph, kept: Mapping[Kept, Node]) -> tuple[dict[Kept, Node], set[Node]]:
    """Rewrites the graph of a thinned pass, of which `kept` are the placeholders of what it takes.

    Returns:
        What it takes now, in the same order, and the arguments that get a column of ones.
    """
    takes, ones = {node: take for take, node in kept.items()}, set[Node]()
    for node in graph.nodes:
        if node.target is not torch.nn.functional.linear or len(node.args) < 3:
            continue
        selected, weight, bias = node.args
        if selected.target is not select or not _alone(selected, weight):
            continue
        x, axis, units = selected.args
        index, matrix, vector = (takes.get(each) for each in (units, weight, bias))
        if not (isinstance(index, Index) and isinstance(matrix, Gather) and isinstance(vector, Gather)):
            continue
        if x.op == "placeholder" and axis == 1 and selected.meta["axes"] == 2 and _alone(units) and _by_columns(x):
            takes[units] = replace(index, one=selected.meta["size"])
            takes[weight] = replace(matrix, bias=vector.weight)
            node.args = (selected, weight)
            ones.add(x)
    return {take: node for node, take in takes.items()}, ones


def _alone(*nodes: Node) -> bool:
    """Whether each is read once."""
    return all(len(node.users) == 1 for node in nodes)


def _by_columns(x: Node) -> bool:
    """Whether nothing reads a value but to take columns of it."""
    return all(user.target is select and user.args[:2] == (x, 1) for user in x.users)
