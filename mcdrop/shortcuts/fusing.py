"""Parts rewritten so that the same numbers take fewer operations and less memory.

    fold        BatchNorm behind a convolution goes into the weights of the convolution
    unfold      a small convolution becomes one matrix product with the patches of its input
    factor      dropout before a small linear map multiplies the smallest of activations, weights and masks
    overwrite   an operation unit by unit writes into an operand that nothing else reads, which then is in the cache

Numbers are those of the plain part up to rounding, as `proofs` checks before a fused part is used. Folded weights are
kept beside those of the network.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from mcdrop.shortcuts.lean import PATCHES, add_into, convolution, dropped_linear, scale_into
from mcdrop.splitting.lowering import scale_folded
from mcdrop.splitting.part import Part

__all__ = ["fused"]

Node = Any  # fx.Node, whose arguments are typed too widely to be of use

aten = torch.ops.aten

_CONVOLUTIONS = {torch.conv2d, aten.conv1d.default, aten.conv2d.padding, aten.conv3d.default}
_CONV2D = (None, 1, 0, 1, 1)  # bias, stride, padding, dilation and groups, where they are not given
_WIDE = (torch.float32, torch.float64)  # in which folded weights are as exact as those of the network


def fused(part: Part) -> Part:
    """The same function of the same arguments, by less work."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(part.module.graph, {}))
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    weights: dict[str, Tensor] = {}
    first = len(inputs) - len(part.weights)
    for number, (node, weight) in enumerate(zip(inputs[first:], part.weights, strict=True)):
        name = f"weight_{number}"
        weights[name] = weight
        with graph.inserting_after(node):
            node.replace_all_uses_with(graph.get_attr(name))
        graph.erase_node(node)
    _fold(graph, weights)
    _unfold(graph, weights)
    _factor(graph)
    _overwrite(graph)
    graph.eliminate_dead_code()
    return Part(graph, weights)


# ---- fold


def _fold(graph: fx.Graph, weights: dict[str, Tensor]) -> None:
    """w x + b, then (y - mean) s + t with s = weight / sqrt(variance + eps), is (s w) x + (b - mean) s + t."""

    def known(value: Any) -> bool:
        return value is None or (isinstance(value, fx.Node) and value.op == "get_attr")

    for node in [node for node in graph.nodes if node.target is aten.batch_norm.default]:
        x, *of_norm, training, _, eps = node.args[:8]
        if x.target not in _CONVOLUTIONS or len(x.users) > 1 or training or x.kwargs or None in of_norm[2:]:
            continue
        entering, weight, bias, *rest = (*x.args, None)[: max(len(x.args), 3)]
        if not (known(weight) and known(bias) and all(map(known, of_norm))):
            continue
        w, mean, variance = (weights[value.target] for value in (weight, *of_norm[2:]))
        if w.dtype not in _WIDE or mean.dtype not in _WIDE:
            continue
        b, factor, shift = (
            torch.full_like(mean, default).double() if value is None else weights[value.target].double()
            for value, default in ((bias, 0.0), (of_norm[0], 1.0), (of_norm[1], 0.0))
        )
        s = (variance.double() + eps).rsqrt() * factor
        names = [f"{weight.target}_{node.name}", f"shift_{node.name}"]
        weights[names[0]] = (w.double() * s.view(-1, *[1] * (w.ndim - 1))).to(w.dtype)
        weights[names[1]] = ((b - mean.double()) * s + shift).to(w.dtype)
        with graph.inserting_before(node):
            folded = graph.call_function(x.target, (entering, *map(graph.get_attr, names), *rest))
        node.replace_all_uses_with(folded)
        graph.erase_node(node)
        graph.erase_node(x)


# ---- unfold


def _unfold(graph: fx.Graph, weights: dict[str, Tensor]) -> None:
    nodes: list[Node] = [node for node in graph.nodes if node.target is torch.conv2d and not node.kwargs]
    for node in nodes:
        arguments: list[Any] = [*node.args, *_CONV2D[len(node.args) - 2 :]]
        x, weight, bias, stride, padding, dilation, groups = arguments
        if weight.op != "get_attr" or groups != 1 or _pair(dilation) != [1, 1]:
            continue
        kernel = weights[weight.target]
        if kernel.device.type != "cpu" or kernel.dtype != torch.float32 or kernel.numel() > PATCHES:
            continue
        name = f"{weight.target}_contiguous"
        weights[name] = torch.empty(kernel.shape, device=kernel.device).copy_(kernel)
        with graph.inserting_before(node):
            new = (x, weight, graph.get_attr(name), bias, _pair(stride), _pair(padding))
            node.replace_all_uses_with(graph.call_function(convolution, new))
        graph.erase_node(node)


def _pair(value: Any) -> list[int]:
    each = list(value) if isinstance(value, list | tuple) else [value]
    return each * 2 if len(each) == 1 else each


# ---- factor


def _factor(graph: fx.Graph) -> None:
    for node in [node for node in graph.nodes if node.target is torch.nn.functional.linear]:
        x = node.args[0]
        if x.target is scale_folded and x.kwargs.get("unrepeated") and len(x.users) == 1 and not node.kwargs:
            with graph.inserting_before(node):
                weight, bias = (*node.args[1:], None)[:2]
                together = graph.call_function(dropped_linear, (*x.args[:2], weight, bias, *x.args[2:4]))
            node.replace_all_uses_with(together)
            graph.erase_node(node)
            graph.erase_node(x)


# ---- overwrite

_IN_PLACE: dict[Any, Callable[..., Tensor]] = {
    torch.relu: torch.relu_,
    aten.gelu.default: aten.gelu_.default,
    aten.silu.default: aten.silu_.default,
    aten.sigmoid.default: torch.sigmoid_,
    aten.tanh.default: torch.tanh_,
    aten.leaky_relu.default: aten.leaky_relu_.default,
    aten.hardtanh.default: aten.hardtanh_.default,
    aten.elu.default: aten.elu_.default,
    aten.hardswish.default: aten.hardswish_.default,
}
_FRESH = {
    *_IN_PLACE,
    *_CONVOLUTIONS,
    convolution,
    scale_folded,
    dropped_linear,
    torch.add,
    torch.mul,
    torch.layer_norm,
    torch.matmul,
    torch.nn.functional.linear,
    aten.bmm.default,
    aten.batch_norm.default,
    aten.softmax.int,
}
_OVERWRITING = {*_IN_PLACE.values(), scale_into, add_into}
_VIEWS = {
    torch.reshape, torch.transpose, aten.view.default, aten.permute.default, aten.unsqueeze.default,
    aten.squeeze.dim, aten.flatten.using_ints, aten.unflatten.int,
}  # fmt: skip


def _overwrite(graph: fx.Graph) -> None:
    for node in graph.nodes:
        if node.target in _IN_PLACE and _is_owned(node.args[0]):
            node.target = _IN_PLACE[node.target]
        elif node.target is scale_folded and _is_owned(node.args[0]):
            node.target = scale_into
        elif node.target is torch.add and len(node.args) == 2 and not node.kwargs:
            owned = [value for value in node.args if isinstance(value, fx.Node) and _is_owned(value)]
            if owned and node.args[0] is not node.args[1]:
                other = node.args[1] if owned[0] is node.args[0] else node.args[0]
                node.target, node.args = add_into, (owned[0], other)


def _is_owned(node: Node) -> bool:
    """Whether memory of its own, or a view of such, that one operation alone reads."""
    if not isinstance(node, fx.Node) or len(node.users) != 1:
        return False
    if node.target in _FRESH or node.target in _OVERWRITING:
        return True
    return node.target in _VIEWS and _is_owned(node.args[0])
