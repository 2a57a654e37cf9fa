"""What a stored program may not say is refused before anything runs."""

import math
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx

from mcdrop.disk.dialect import check_call, check_graph
from mcdrop.disk.operators import name_of
from mcdrop.disk.strictjson import Refused
from mcdrop.graph import sites
from mcdrop.graph.draws import alpha_scale, noise, scale

aten = torch.ops.aten
X = fx.Graph().placeholder("x")
LARGEST = 2**63 - 1


def check(function: Any, *args: Any, **kwargs: Any) -> None:
    name = name_of(function)
    assert name is not None
    check_call(name, function, args, kwargs)


@pytest.mark.parametrize(
    ("function", "args", "kwargs"),
    [
        (aten.add.Tensor, (X, 2.5), {"alpha": 2}),
        (aten.linear.default, (X, X), {}),
        (aten.linear.default, (X, X, None), {}),
        (aten.cat.default, ([X, X], -1), {}),
        (aten.view.default, (X, [X, -1, 4]), {}),
        (aten.slice.Tensor, (X, 1, 0, LARGEST), {}),
        (aten.sum.dim_IntList, (X, [1]), {"dtype": torch.float32}),
        (aten.index.Tensor, (X, [None, X]), {}),
        (aten.full.default, ([X, 2**20], -math.inf), {"device": torch.device("cpu"), "pin_memory": False}),
        (aten.masked_fill.Scalar, (X, X, -(2.0**127)), {}),
        (aten.arange.start_step, (0, 10**6, 2), {}),
        (aten.arange.default, (X,), {}),
        (aten.conv2d.padding, (X, X, None, [1, 1], "same"), {}),
        (aten.max_pool2d.default, (X, 2), {}),
        (aten.upsample_bilinear2d.vec, (X, None, False, [2.0, 2.0]), {}),
        (aten.scaled_dot_product_attention.default, (X, X, X), {}),
        (aten.scaled_dot_product_attention.default, (X, X, X, None, 0.0, True), {}),
        (aten.lstm.input, (X, [X, X], [X, X], False, 1, 0.5, False, False, True), {}),
        (aten.lstm.input, (X, [X, X], [X, X], False, 1, 0.0, True, False, True), {}),
        (aten.dropout.default, (X, 0.5, False), {}),
        (aten.rrelu.default, (X,), {}),
        (aten.batch_norm.default, (X, None, None, X, X, False, 0.1, 1e-5, True), {}),
        (aten.batch_norm.default, (X, None, None, None, None, True, 0.1, 1e-5, True), {}),
        (operator.mul, (X, 4), {}),
        (operator.getitem, (X, 1), {}),
        (operator.pow, (X, 2), {}),
        (torch.sym_max, (X, 2), {}),
        (noise, (0, [X, 1024]), {}),
        (scale, (X, X), {}),
        (alpha_scale, (X, X, 0.5), {}),
    ],
)
def test_ordinary_calls_pass(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    check(function, *args, **kwargs)


@pytest.mark.parametrize(
    ("function", "args", "kwargs", "message"),
    [
        (aten.linear.default, (X,), {}, "lacks its argument 'weight'"),
        (aten.linear.default, (X, X, X, X), {}, "takes 3 positional arguments, not 4"),
        (aten.linear.default, (X, X), {"weight": X}, "gets 'weight' twice"),
        (aten.linear.default, (X, X), {"__class__": X}, "has no argument '__class__'"),
        (aten.linear.default, (X, "w"), {}, "takes Tensor as 'weight', not 'w'"),
        (aten.view.default, (X, "abc"), {}, "takes List\\[int\\] as 'size'"),
        (aten.view.default, (X, [[1]]), {}, "takes List\\[int\\] as 'size'"),
        (aten.cat.default, ([X, 3.5j, "x"],), {}, "as 'tensors'"),
        (aten.softmax.int, (X, 1.5), {}, "takes int as 'dim'"),
        (aten.to.dtype, (X, 6), {}, "takes ScalarType as 'dtype'"),
        (aten.to.dtype, (X, torch.strided), {}, "takes ScalarType as 'dtype'"),
        (aten.gelu.default, (X,), {"approximate": 1}, "takes str as 'approximate'"),
        (aten.rrelu.default, (X, 0.1, 0.3, False, X), {}, "as 'generator'"),
        (aten.full.default, ([2**31], 0), {}, "beyond 2147483647"),
        (aten.full.default, ([2**16, 2**16], 0), {}, "more than 1073741824 elements"),
        (aten.zeros.default, ([2**16, 2**16],), {}, "more than 1073741824 elements"),
        (aten.expand.default, (X, [2**30, 2]), {}, "more than"),
        (aten.repeat.default, (X, [2**30, 2]), {}, "more than"),
        (aten.eye.m, (2**20, 2**20), {}, "more than"),
        (aten.constant_pad_nd.default, (X, [2**31 - 1, 2**31 - 1]), {}, "more than"),
        (aten.adaptive_avg_pool2d.default, (X, [2**20, 2**20]), {}, "more than"),
        (aten.upsample_nearest2d.vec, (X, None, [1e9, 1e9]), {}, "factor beyond 10000"),
        (aten.upsample_nearest2d.vec, (X, None, [math.nan, 1.0]), {}, "factor beyond 10000"),
        (aten.arange.default, (10**18,), {}, "more than"),
        (aten.arange.start_step, (0, 1, 1e-12), {}, "more than"),
        (aten.arange.start_step, (0, 1, 0), {}, "more than"),
        (aten.arange.start_step, (0, math.inf, 1), {}, "more than"),
        (aten.arange.start, (X, 10**18), {}, "reaches beyond"),
        (aten.linspace.default, (0, 1, 10**12), {}, "beyond 2147483647"),
        (aten.linspace.default, (0, 1, 2**31 - 1), {}, "more than"),
        (aten.one_hot.default, (X, 2**31 - 1), {}, "more than"),
        (aten.scaled_dot_product_attention.default, (X, X, X, None, 0.1), {}, "only with dropout_p=0.0"),
        (aten.scaled_dot_product_attention.default, (X, X, X, None, X), {}, "only with dropout_p=0.0"),
        (aten.dropout.default, (X, 0.5, True), {}, "only with train=False"),
        (aten.rrelu.default, (X, 0.1, 0.3, True), {}, "only with training=False"),
        (aten.lstm.input, (X, [X, X], [X, X], False, 1, 0.5, True, False, True), {}, "train=False or dropout=0.0"),
        (aten.batch_norm.default, (X, None, None, X, X, True, 0.1, 1e-5, True), {}, "training=False or running_mean"),
        (aten.instance_norm.default, (X, None, None, X, X, True, 0.1, 1e-5, True), {}, "use_input_stats=False or"),
        (operator.mul, (2, 3), {}, "constants only"),
        (operator.mul, (X, "abc"), {}, "nodes and numbers"),
        (operator.mul, (X,), {}, "operator.mul"),
        (operator.pow, (X, 10**9), {}, "exponent"),
        (operator.pow, (2, X), {}, "exponent"),
        (operator.getitem, (X, X), {}, "takes a position"),
        (operator.getitem, (X, "__class__"), {}, "nodes and numbers"),
        (noise, (0, X), {}, "takes a list of sizes"),
        (noise, (0, [2**30, 4]), {}, "more than"),
        (noise, (0,), {}, "mcdrop.noise"),
        (scale, (X, "y"), {}, "nodes and numbers"),
        (alpha_scale, (X, X, 0.5, 0.5), {}, "mcdrop.alpha_scale"),
    ],
)
def test_crafted_calls_are_refused(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(Refused, match=message):
        check(function, *args, **kwargs)


# ---- whole graphs


def site(index: int = 0, active: bool = True) -> sites.Site:
    return sites.Site(
        index=index, path="drop", kind="dropout", p=0.5, law="bernoulli", scale=2.0, shape=("batch", 4), row_axis=0,
        row_major=True, active=active, reason=None if active else "p = 0", source=None,
    )  # fmt: skip


def graph(draws: tuple[Any, ...] = (0,)) -> fx.Graph:
    built = fx.Graph()
    x = built.placeholder("x")
    w = built.create_node("get_attr", "fc.weight", name="w")
    y = built.call_function(aten.linear.default, (x, w))
    for index in draws:
        y = built.call_function(scale, (y, built.call_function(noise, (index, [1, 4]))))
    built.output((y,))
    return built


def test_an_ordinary_graph_passes() -> None:
    check_graph(graph(), weights=["fc.weight"], inputs=1, sites=[site(), site(-1, active=False)])
    check_graph(graph(()), weights=["fc.weight"], inputs=1, sites=[])


@pytest.mark.parametrize(
    ("draws", "weights", "inputs", "table", "message"),
    [
        ((0,), [], 1, [site()], "reads the weight 'fc.weight', which is not there"),
        ((0,), ["fc.weight", "more"], 1, [site()], "the weight 'more' is not used"),
        ((0,), ["fc.weight"], 2, [site()], "has 1 inputs, its description 2"),
        ((0,), ["fc.weight"], 1, [], "site 0 is drawn 1 times by the program and stands 0 times"),
        ((), ["fc.weight"], 1, [site()], "site 0 is drawn 0 times by the program and stands 1 times"),
        ((0, 0), ["fc.weight"], 1, [site()], "site 0 is drawn 2 times"),
        ((0,), ["fc.weight"], 1, [site(1)], "site 0 is drawn 1 times"),
        ((0,), ["fc.weight"], 1, [site(), site(1, active=False)], "inactive ones have -1"),
        ((0.0,), ["fc.weight"], 1, [site()], "draws for a site that is no number"),
        ((True,), ["fc.weight"], 1, [site()], "draws for a site that is no number"),
    ],
)
def test_graphs_that_do_not_fit_their_description(
    draws: tuple[Any, ...], weights: list[str], inputs: int, table: list[sites.Site], message: str
) -> None:
    with pytest.raises(Refused, match=message):
        check_graph(graph(draws), weights=weights, inputs=inputs, sites=table)


def test_graphs_of_another_form() -> None:
    def refused(build: Callable[[fx.Graph, fx.Node], object], message: str) -> None:
        built = fx.Graph()
        build(built, built.placeholder("x"))
        with pytest.raises(Refused, match=message):
            check_graph(built, weights=[], inputs=1, sites=[])

    refused(lambda g, x: None, "there is no output")
    refused(lambda g, x: g.output(x), "not a tuple of nodes")
    refused(lambda g, x: g.output((x, 3)), "not a tuple of nodes")
    refused(lambda g, x: g.output(()), "not a tuple of nodes")
    refused(lambda g, x: g.output((g.call_method("relu", (x,)),)), "is a call_method")
    refused(lambda g, x: g.output((g.call_function(torch.relu, (x,)),)), "may not")
    refused(lambda g, x: g.output((g.call_function(aten.relu_.default, (x,)),)), "relu_")
    refused(lambda g, x: (g.call_function(aten.relu.default, (x,)), g.placeholder("y")), "comes after other nodes")
    refused(lambda g, x: (g.output((x,)), g.call_function(aten.relu.default, (x,))), "comes after the output")


def test_a_reference_to_a_later_node() -> None:
    built = fx.Graph()
    x = built.placeholder("x")
    first = built.call_function(aten.relu.default, (x,))
    second = built.call_function(aten.relu.default, (first,))
    built.output((second,))
    first.args = (second,)
    with pytest.raises(Refused, match="which is no earlier node"):
        check_graph(built, weights=[], inputs=1, sites=[])
