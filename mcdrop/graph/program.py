"""A captured network: a pure function of (inputs, noise), as a graph of plain tensor operations.

The graph is a `torch.fx.Graph` in a narrow dialect, so that it can be split, rewritten, proved and stored:

    placeholder     one per tensor input, in the order of `inputs`
    get_attr        a parameter, buffer or constant, by its name in `weights`
    call_function   a functional ATen overload, integer arithmetic on sizes, or one of the three functions of `sites`:
                    `noise` (a draw), `scale` and `alpha_scale` (its application)
    output          one tuple of tensors: those that count

Nothing in it mutates, reads a file or knows a device, and nothing but the `noise` nodes is random.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx

from mcdrop.graph.inputs import InputSpec
from mcdrop.graph.sites import Site

__all__ = ["Program"]

_CONVOLUTIONS = {
    torch.ops.aten.conv2d, torch.ops.aten.conv3d, torch.ops.aten.conv_transpose2d, torch.ops.aten.conv_transpose3d,
    torch.ops.aten.convolution,
}  # fmt: skip
_BY_STRIDES = {
    torch.ops.aten.as_strided.default, torch.ops.aten.as_strided_copy.default,
    torch.ops.aten.as_strided_scatter.default, torch.ops.aten.view.dtype, torch.ops.aten.view_copy.dtype,
    torch.ops.aten.view_as_complex.default, torch.ops.aten.view_as_complex_copy.default,
}  # fmt: skip
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # by the number of a weight's axes


@dataclass(frozen=True)
class Program:
    """A network as a function of its inputs and its noise. Read-only; shared by all threads.

    Attributes:
        graph: the calls, in order, in the dialect above.
        weights: parameters, buffers and constants by the name that `get_attr` nodes use, all on one device.
        inputs: one spec per placeholder, in order.
        sites: every place where noise enters; the active ones first, in the order in which they draw; each active one
            stands in the graph as one `noise` node with its index.
        dims: the dynamic dimensions besides the batch, each with its bounds (least, greatest or None).
        integrated: whether the outputs are mean and variance over a draw that is no longer in the graph (`last_layer`).
        neutral: whether every draw at its mean is known to leave the network as it is in evaluation mode.
    """

    graph: fx.Graph
    weights: Mapping[str, Tensor]
    inputs: tuple[InputSpec, ...]
    sites: tuple[Site, ...]
    dims: Mapping[str, tuple[int, int | None]] = field(default_factory=dict)
    neutral: bool = False
    integrated: bool = False

    @property
    def active_sites(self) -> tuple[Site, ...]:
        """The sites that draw, in the order in which they draw."""
        return tuple(site for site in self.sites if site.active)

    @property
    def device(self) -> torch.device:
        """Where the weights lie; CPU for a network without any."""
        return next((weight.device for weight in self.weights.values()), torch.device("cpu"))

    def channels_last(self) -> "Program":
        """The same program, on a CPU with the weights of its convolutions laid out channels last.

        Activations follow the weights, and convolutions, pooling and interpolation are then up to five times as fast.
        Where an operation reads memory by strides, as in `view_as_complex`, the layout stays as it was traced.
        """
        if self.device.type != "cpu" or any(node.target in _BY_STRIDES for node in self.graph.nodes):
            return self
        weights = dict(self.weights)
        for node in self.graph.nodes:
            if getattr(node.target, "overloadpacket", None) in _CONVOLUTIONS and node.args[1].op == "get_attr":
                weight = weights[node.args[1].target]
                if weight.ndim in _CHANNELS_LAST:
                    layout = _CHANNELS_LAST[weight.ndim]  # `contiguous` would leave the strides of one channel
                    weights[node.args[1].target] = torch.empty_like(weight, memory_format=layout).copy_(weight)
        return replace(self, weights=weights)

    def to(self, device: torch.device) -> "Program":
        """The same program with its weights, and the constants that name a device, on `device`."""
        graph = fx.Graph()
        graph.output(graph.graph_copy(self.graph, {}))
        for node in graph.nodes:
            if node.op == "call_function":
                node.args = fx.node.map_aggregate(node.args, lambda value: _moved(value, device))
                node.kwargs = fx.node.map_aggregate(node.kwargs, lambda value: _moved(value, device))
        weights = {
            name: weight.to(device, memory_format=torch.contiguous_format) for name, weight in self.weights.items()
        }
        return replace(self, graph=graph, weights=weights).channels_last()


def _moved(value: Any, device: torch.device) -> Any:
    return device if isinstance(value, torch.device) else value
