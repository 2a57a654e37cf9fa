"""Chains of linear maps for several passes at once, by calls that cost less than those of `torch.func.vmap`.

Values are (passes, rows, units), and what passes take of weights has the passes first. Products of small matrices take
no longer than being mapped, so this counts where batches are small.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from mcdrop.graph.draws import scale
from mcdrop.shortcuts.kept_units import LANES, select
from mcdrop.shortcuts.needs import Kind
from mcdrop.shortcuts.unit_operations import UNIT_WISE, ZERO_KEEPING

__all__ = ["grouped"]

Node = Any  # fx.Node, whose arguments are typed too widely to be of use


def grouped(graph: fx.Graph, kinds: Mapping[Node, Kind]) -> fx.Graph | None:
    """The graph of one pass for several; None where it is more than a chain of linear maps (rows, units).

    `kinds` are those of the plain pass, all of whose results are matrices then.
    """
    if any(len(kind.shape) != 2 for node, kind in kinds.items() if node.op == "call_function"):
        return None
    new, env = fx.Graph(), dict[Node, Node]()
    for node in graph.nodes:
        if node.op != "call_function":
            env[node] = new.node_copy(node, env.__getitem__)
        elif node.target in _FORMS:
            env[node] = new.call_function(_FORMS[node.target], fx.node.map_arg(node.args, env.__getitem__))
        elif node.target in ZERO_KEEPING | UNIT_WISE:
            env[node] = new.node_copy(node, env.__getitem__)
            (x,) = node.all_input_nodes
            if node.target is torch.relu and x.target in _FORMS and len(x.users) == 1:
                env[node].target = torch.relu_
        else:
            return None
    return new


def _select(x: Tensor, axis: int, units: Tensor) -> Tensor:
    """Columns `units` (passes, units) of `x`, for each pass its own."""
    if x.ndim == 2 and axis == 1:
        return torch.embedding(x.t(), units).mT
    return x.gather(axis + 1, units.unsqueeze(1).expand(-1, x.shape[1], -1))


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if weight.ndim == 2:
        return torch.nn.functional.linear(x, weight, bias)
    if x.ndim == 2:
        x = x.expand(len(weight), -1, -1)
    if weight.shape[1] < LANES:  # so few results that rows fill registers instead
        product = torch.bmm(weight, x.mT)
        return (product if bias is None else product.add_(bias.unsqueeze(-1))).mT
    product = torch.bmm(x, weight.mT)
    if bias is None:
        return product
    return product.add_(bias.unsqueeze(1) if bias.ndim == 2 else bias)  # `baddbmm` would write it out first


def _scale(x: Tensor, scales: Tensor) -> Tensor:
    return scale(x, scales.unsqueeze(1))


_FORMS: Mapping[Any, Callable[..., Tensor]] = {select: _select, torch.nn.functional.linear: _linear, scale: _scale}
