"""Stochastic operations become visible draws: the table of these operations, and `expose`, which walks a traced graph.

Each is replaced by a draw (`draws.noise`) and plain arithmetic, whatever way the author wrote it. A row of `TABLE` is
one operation of ATen; one that ATen tags as random and that has no row is an error, because its law is not known.
"""

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from mcdrop.errors import UnsupportedRandomnessError
from mcdrop.graph.draws import draw_operators
from mcdrop.graph.sites import ONE_LAYER, Found, Law, kept_value, path_of, source_of

__all__ = ["TABLE", "expose"]

Node = Any  # fx.Node, whose arguments are typed too widely to be of use

aten = torch.ops.aten


class _Rewriter:
    """Builds the replacement of one node at its place."""

    def __init__(self, graph: fx.Graph, node: Node, found: list[Found]) -> None:
        self.graph, self.node, self.found = graph, node, found
        self.args = _bound(node)

    def call(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> Node:
        return self.graph.call_function(target, args, kwargs)

    def size(self, x: Node, axis: int) -> Any:
        size = x.meta["val"].shape[axis]
        return size if isinstance(size, int) else self.call(aten.sym_size.int, x, axis % x.meta["val"].ndim)

    def sizes(self, x: Node) -> list[Any]:
        return [self.size(x, axis) for axis in range(x.meta["val"].ndim)]

    def broadcast_sizes(self, tensors: list[Node]) -> list[Any]:
        """The sizes of the shape to which `tensors` broadcast."""
        sizes: list[Any] = [1] * max(x.meta["val"].ndim for x in tensors)
        for x in tensors:
            for axis, length in enumerate(x.meta["val"].shape, start=len(sizes) - x.meta["val"].ndim):
                if not (isinstance(length, int) and length == 1):
                    sizes[axis] = self.size(x, axis - len(sizes))
        return sizes

    def site(self, kind: str, *, p: float | None = None, law: Law = "bernoulli", scale: float = 1.0) -> int:
        """Record an active site; its provisional number."""
        self.found.append(Found(kind, p, law, scale, path_of(self.node), source_of(self.node)))
        return len(self.found) - 1

    def inactive(self, kind: str, p: float, reason: str) -> None:
        self.found.append(Found(kind, p, "bernoulli", 1.0, path_of(self.node), source_of(self.node), reason))

    def draw(self, index: int, sizes: list[Any]) -> Node:
        return self.call(draw_operators.noise.default, index, sizes)

    def cast(self, drawn: Node, dtype: torch.dtype | None) -> Node:
        dtype = dtype or torch.get_default_dtype()
        return drawn if dtype == torch.float32 else self.call(aten._to_copy.default, drawn, dtype=dtype)

    def switched_off(self, kind: str, p: float, train: bool) -> bool:
        if train and p == 0:
            self.inactive(kind, 0.0, "p is 0")
        return not train or p == 0


def _bound(node: Node) -> dict[str, Any]:
    """The arguments of a call by the names of its schema, defaults filled in."""
    target: Any = node.target
    bound = {}
    for position, argument in enumerate(target._schema.arguments):
        if position < len(node.args):
            bound[argument.name] = node.args[position]
        else:
            bound[argument.name] = node.kwargs.get(
                argument.name, argument.default_value if argument.has_default_value() else None
            )
    return bound


def _dropout(kind: str) -> Callable[[_Rewriter], Node]:
    """Plain, feature, alpha and feature alpha dropout."""
    by_feature, alpha = kind.startswith("feature"), "alpha" in kind

    def rewrite(r: _Rewriter) -> Node:
        x, p = r.args["input"] if "input" in r.args else r.args["self"], float(r.args["p"])
        if r.switched_off(kind, p, bool(r.args["train"])):
            return x
        if 0 in x.meta["val"].shape:
            r.inactive(kind, p, _EMPTY)
            return x
        if p == 1:  # PyTorch draws nothing here either
            r.inactive(kind, p, "p is 1: its output is always 0, nothing is drawn")
            nothing = r.call(aten.zeros.default, [1] * x.meta["val"].ndim, device=x.meta["val"].device)
            return r.call(draw_operators.scale.default, x, nothing)
        index = r.site(kind, p=p, scale=1.0 if alpha else kept_value(p))
        sizes = r.sizes(x)
        if by_feature:
            sizes = sizes[:2] + [1] * (len(sizes) - 2)
        drawn = r.draw(index, sizes)
        if alpha:
            return r.call(draw_operators.alpha_scale.default, x, drawn, p)
        return r.call(draw_operators.scale.default, x, drawn)

    return rewrite


_EMPTY = "its input has no element: nothing is drawn"


def _attention(r: _Rewriter) -> Node:
    """Scaled dot product attention (Vaswani et al. 2017, eq. 1), with its dropout on the weights made visible."""
    a = r.args
    p = float(a["dropout_p"])
    if p == 0:
        return r.node
    if any(0 in a[name].meta["val"].shape for name in ("query", "key", "value")):
        r.inactive("attention_dropout", p, _EMPTY)
        return r.call(r.node.target, **{**a, "dropout_p": 0.0})
    query, key, value, mask = a["query"], a["key"], a["value"], a["attn_mask"]
    factor = a["scale"] if a["scale"] is not None else 1 / math.sqrt(query.meta["val"].shape[-1])
    if a["enable_gqa"]:
        groups = query.meta["val"].shape[-3] // key.meta["val"].shape[-3]
        if groups > 1:
            key = r.call(aten.repeat_interleave.self_int, key, groups, -3)
            value = r.call(aten.repeat_interleave.self_int, value, groups, -3)
    lengths = [r.size(a["query"], -2), r.size(a["key"], -2)]
    scores = r.call(
        aten.matmul.default, r.call(aten.mul.Tensor, query, factor), r.call(aten.transpose.int, key, -2, -1)
    )
    if a["is_causal"]:
        device = query.meta["val"].device
        seen = r.call(aten.tril.default, r.call(aten.ones.default, lengths, dtype=torch.bool, device=device))
        scores = r.call(aten.masked_fill.Scalar, scores, r.call(aten.logical_not.default, seen), -math.inf)
    if mask is not None and mask.meta["val"].dtype == torch.bool:
        scores = r.call(aten.masked_fill.Scalar, scores, r.call(aten.logical_not.default, mask), -math.inf)
    elif mask is not None:
        scores = r.call(aten.add.Tensor, scores, mask)
    weights = r.call(aten.softmax.int, scores, -1)
    if mask is not None:  # a row that may look nowhere gives 0, not NaN
        nowhere = r.call(aten.all.dim, r.call(aten.eq.Scalar, scores, -math.inf), -1, True)
        weights = r.call(aten.masked_fill.Scalar, weights, nowhere, 0.0)
    leading = [
        size if isinstance(size, int) else r.call(aten.sym_size.int, weights, axis)
        for axis, size in enumerate(r.node.meta["val"].shape[:-2])
    ]
    drawn = r.draw(r.site("attention_dropout", p=p, scale=kept_value(p)), [*leading, *lengths])
    return r.call(aten.matmul.default, r.call(draw_operators.scale.default, weights, drawn), value)


def _recurrent(r: _Rewriter) -> Node:
    """Layers of an LSTM, GRU or RNN one by one, with the draw between them.

    PyTorch draws in the layout (time, batch, features) whatever `batch_first` says; so does this.
    """
    a = r.args
    layers, p = int(a["num_layers"]), float(a["dropout"])
    draws = bool(a["train"]) and p > 0 and layers > 1
    if "batch_sizes" in a:
        raise UnsupportedRandomnessError(_unknown(r.node, "packed sequences"))
    if not draws:
        if a["train"] and layers > 1:
            r.inactive("recurrent_dropout", 0.0, "p is 0")
        elif a["train"] and p > 0:
            r.inactive("recurrent_dropout", p, ONE_LAYER)
        a["train"], a["dropout"] = False, 0.0
        return r.call(r.node.target, *a.values())
    directions = 2 if a["bidirectional"] else 1
    states = list(a["hx"]) if isinstance(a["hx"], (list, tuple)) else [a["hx"]]
    per_layer = len(a["params"]) // layers
    x = a["input"]
    if a["batch_first"]:
        x = r.call(aten.transpose.int, x, 0, 1)
    last: list[list[Node]] = [[] for _ in states]
    lengths = [r.size(a["input"], axis) for axis in ((1, 0) if a["batch_first"] else (0, 1))]
    for layer in range(layers):
        hx = [r.call(aten.slice.Tensor, s, 0, layer * directions, (layer + 1) * directions) for s in states]
        params = list(a["params"][layer * per_layer : (layer + 1) * per_layer])
        one = r.call(
            r.node.target,
            x,
            hx if len(hx) > 1 else hx[0],
            params,
            a["has_biases"],
            1,
            0.0,
            False,
            a["bidirectional"],
            False,
        )
        x = r.call(operator.getitem, one, 0)
        for number, states_of in enumerate(last):
            states_of.append(r.call(operator.getitem, one, number + 1))
        if layer < layers - 1:
            width = directions * _state_width(a)
            drawn = r.draw(r.site("recurrent_dropout", p=p, scale=kept_value(p)), [*lengths, width])
            x = r.call(draw_operators.scale.default, x, drawn)
    if a["batch_first"]:
        x = r.call(aten.transpose.int, x, 0, 1)
    outputs = [x, *(r.call(aten.cat.default, states_of, 0) for states_of in last)]
    for user in list(r.node.users):  # only getitem nodes take a tuple apart
        outputs[user.args[1]].meta = dict(user.meta)
        user.replace_all_uses_with(outputs[user.args[1]])
        r.graph.erase_node(user)
    return x


def _state_width(a: dict[str, Any]) -> int:
    """Features that one direction of one layer gives out: the projection's where there is one."""
    first = a["hx"][0] if isinstance(a["hx"], (list, tuple)) else a["hx"]
    return int(first.meta["val"].shape[-1])


def _bernoulli(r: _Rewriter) -> Node:
    """`torch.bernoulli` and `Tensor.bernoulli_`, with one rate or a tensor of rates."""
    target, p = r.args["self"], r.args.get("p", r.args["self"])
    dtype = target.meta["val"].dtype
    if isinstance(p, fx.Node):
        sizes = r.sizes(target)
        drawn = r.draw(r.site("bernoulli", law="uniform"), sizes)
        return r.call(draw_operators.bernoulli.default, drawn, r.call(aten.expand.default, p, sizes))
    return r.cast(r.draw(r.site("bernoulli", p=1 - float(p)), r.sizes(target)), dtype)


def _numbers(kind: Law, low: str = "", high: str = "") -> Callable[[_Rewriter], Node]:
    """Uniform and normal numbers: new, like a tensor, or in place, where `low` and `high` name the law's arguments."""

    def rewrite(r: _Rewriter) -> Node:
        a = r.args
        like = a.get("self")
        sizes = a["size"] if like is None or "size" in a else r.sizes(like)
        dtype = a.get("dtype") or (like.meta["val"].dtype if like is not None else r.node.meta["val"].dtype)
        drawn = r.draw(r.site(kind, law=kind), list(sizes))
        if low:
            first, second = float(a[low]), float(a[high])
            factor, shift = (second - first, first) if kind == "uniform" else (second, first)
            drawn = r.call(aten.add.Tensor, r.call(aten.mul.Tensor, drawn, factor), shift)
        return r.cast(drawn, dtype)

    return rewrite


def _normal(r: _Rewriter) -> Node:
    """`torch.normal`: a standard normal draw times `std` plus `mean`, each a number or a tensor, broadcast."""
    mean, std = r.args["mean"], r.args["std"]
    tensors = [x for x in (mean, std) if isinstance(x, fx.Node)]
    sizes = r.broadcast_sizes(tensors) if tensors else list(r.args["size"])
    drawn = r.call(aten.mul.Tensor, r.draw(r.site("normal", law="normal"), sizes), std)
    dtype = next((x.meta["val"].dtype for x in tensors), r.node.meta["val"].dtype)  # the first one's, without promotion
    return r.call(aten._to_copy.default, r.call(aten.add.Tensor, drawn, mean), dtype=dtype)


def _exponential(r: _Rewriter) -> Node:
    """Exponential numbers from uniform ones, as Gumbel noise uses them."""
    target = r.args["self"]
    drawn = r.draw(r.site("exponential", law="uniform"), r.sizes(target))
    negative = r.call(aten.log1p.default, r.call(aten.neg.default, drawn))
    return r.cast(r.call(aten.div.Tensor, negative, -float(r.args["lambd"])), target.meta["val"].dtype)


def _leaky(r: _Rewriter) -> Node:
    """RReLU is no dropout: it keeps its slope of evaluation."""
    slope = (float(r.args["lower"]) + float(r.args["upper"])) / 2
    return r.call(aten.leaky_relu.default, r.args["self"], slope)


TABLE: dict[Any, tuple[Callable[[_Rewriter], Node], bool]] = {  # operation -> its rewrite, whether it is in place
    aten.dropout: (_dropout("dropout"), False),
    aten.dropout_: (_dropout("dropout"), True),
    aten.feature_dropout: (_dropout("feature_dropout"), False),
    aten.feature_dropout_: (_dropout("feature_dropout"), True),
    aten.alpha_dropout: (_dropout("alpha_dropout"), False),
    aten.alpha_dropout_: (_dropout("alpha_dropout"), True),
    aten.feature_alpha_dropout: (_dropout("feature_alpha_dropout"), False),
    aten.feature_alpha_dropout_: (_dropout("feature_alpha_dropout"), True),
    aten.scaled_dot_product_attention: (_attention, False),
    aten.lstm: (_recurrent, False),
    aten.gru: (_recurrent, False),
    aten.rnn_tanh: (_recurrent, False),
    aten.rnn_relu: (_recurrent, False),
    aten.bernoulli: (_bernoulli, False),
    aten.bernoulli_: (_bernoulli, True),
    aten.rand: (_numbers("uniform"), False),
    aten.rand_like: (_numbers("uniform"), False),
    aten.uniform_: (_numbers("uniform", "from", "to"), True),
    aten.randn: (_numbers("normal"), False),
    aten.randn_like: (_numbers("normal"), False),
    aten.normal_: (_numbers("normal", "mean", "std"), True),
    aten.normal: (_normal, False),
    aten.exponential_: (_exponential, True),
    aten.rrelu: (_leaky, False),
    aten.rrelu_: (_leaky, True),
}


def expose(module: fx.GraphModule) -> list[Found]:
    """Replace, in `module` and its sub-graphs, every stochastic operation by a visible draw; what was found.

    Raises:
        UnsupportedRandomnessError: an operation is random and has no row in `TABLE`.
    """
    found: list[Found] = []
    for part in module.modules():
        if not isinstance(part, fx.GraphModule):
            continue
        for node in list(part.graph.nodes):
            if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
                continue
            rewrite, in_place = TABLE.get(node.target.overloadpacket, (None, False))
            if rewrite is None:
                if torch.Tag.nondeterministic_seeded in node.target.tags:
                    raise UnsupportedRandomnessError(_unknown(node, str(node.target)))
                continue
            with part.graph.inserting_before(node):
                r = _Rewriter(part.graph, node, found)
                replacement = rewrite(r)
                if replacement is node:
                    continue
                into = node.args[0] if in_place else r.args.get("out")
                if into not in (None, replacement):
                    replacement = r.call(aten.copy_.default, into, replacement)
            if not replacement.meta:
                replacement.meta = dict(node.meta)
            node.replace_all_uses_with(replacement)
            part.graph.erase_node(node)
        part.recompile()
    return found


def _unknown(node: Node, operation: str) -> str:
    return (
        f"{operation} at {source_of(node) or 'an unknown line'} draws random numbers by a law that "
        "mcdrop does not know. "
        "Known are dropout in all its forms, bernoulli, uniform and normal draws; write the noise with one of them, "
        "or switch it off in evaluation mode."
    )
