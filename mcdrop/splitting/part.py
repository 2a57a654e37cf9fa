"""A part of a program, prefix or suffix, as a plain function."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

__all__ = ["Part"]

aten = torch.ops.aten

# the same operations by a shorter way from Python
_QUICK: dict[Any, Callable[..., Any]] = {
    aten.add.Tensor: torch.add,
    aten.conv2d.default: torch.conv2d,
    aten.layer_norm.default: torch.layer_norm,
    aten.linear.default: torch.nn.functional.linear,
    aten.matmul.default: torch.matmul,
    aten.max_pool2d.default: torch.max_pool2d,
    aten.mul.Tensor: torch.mul,
    aten.relu.default: torch.relu,
    aten.reshape.default: torch.reshape,
    aten.sym_size.int: Tensor.size,
    aten.transpose.int: torch.transpose,
}

_TURNS = {torch.transpose, aten.permute.default}


class Part:
    """A graph as a plain function of its placeholders: a module would look up every weight by name at every call.

    Attributes:
        module: the graph, whose last placeholders are the weights.
        weights: in that order.
    """

    def __init__(self, graph: fx.Graph, weights: Mapping[str, Tensor]) -> None:
        names = dict.fromkeys(str(node.target) for node in graph.nodes if node.op == "get_attr")
        self.weights = tuple(weights[name] for name in names)
        last = next((node for node in reversed(graph.nodes) if node.op == "placeholder"), None)
        with graph.inserting_after(last) if last else graph.inserting_before():
            given = {name: graph.placeholder(f"weight_{number}") for number, name in reversed([*enumerate(names)])}
        for node in list(graph.nodes):
            if node.op == "get_attr":
                node.replace_all_uses_with(given[str(node.target)])
                graph.erase_node(node)
            else:
                node.target = _QUICK.get(node.target, node.target)
            if node.target is torch.nn.functional.linear and node.args[0].target in _TURNS:
                with graph.inserting_before(node):  # else PyTorch takes a batch of products, the weight copied for each
                    node.args = (graph.call_function(aten.contiguous.default, node.args[:1]), *node.args[1:])
        self.module = fx.GraphModule({}, graph)
        self._function = type(self.module).forward

    def __call__(self, *arguments: Any) -> Any:
        return self._function(self.module, *arguments, *self.weights)

    def over_passes(self, shared: Sequence[Any], draws: Sequence[Tensor]) -> Any:
        """What it gives for many passes at once: each of `draws` has one on axis 0, `shared` stand before them."""
        in_dims = (None,) * len(shared) + (0,) * len(draws)
        return torch.func.vmap(self, in_dims=in_dims)(*shared, *draws)
