"""Fused parts: the numbers of the plain ones, whatever the batch, the passes and the masks, by less work."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from mcdrop import MCDropout
from mcdrop.engines.engine import GraphEngine
from mcdrop.shortcuts.fusing import fused
from mcdrop.shortcuts.lean import convolution, dropped_linear, is_small, smaller_side
from mcdrop.splitting.lowering import scale_folded
from mcdrop.splitting.part import Part


def graph(mc: MCDropout) -> GraphEngine:
    assert isinstance(mc._engine, GraphEngine)
    return mc._engine


def targets(part: Part | None) -> list[str]:
    assert part is not None
    return [getattr(n.target, "__name__", str(n.target)) for n in part.module.graph.nodes if n.op == "call_function"]


def with_statistics(network: nn.Module, *shape: int) -> nn.Module:
    """The network in evaluation mode, its BatchNorm with averages that are not those it began with."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        for norm in network.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.affine:
                nn.init.uniform_(norm.weight, -2, 2)
                nn.init.normal_(norm.bias)
        network.train()
        for _ in range(3):
            network(torch.randn(8, *shape) * 3 + 1)
    return network.eval()


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
            nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4, affine=False),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return (self.body(x) + x).relu()


def residual_network() -> nn.Module:
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(), Residual(), nn.Dropout2d(0.3),
        Residual(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, 3),
    )  # fmt: skip
    return with_statistics(network, 2, 8, 8)


def head_network() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Dropout(0.5), nn.Linear(40, 3)).eval()


def bare_head() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.Dropout(0.5), nn.Linear(40, 3, bias=False)).eval()


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True, activation="gelu")
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual": (residual_network, (2, 8, 8)),
    "head": (head_network, (6,)),
    "head without a bias": (bare_head, (6,)),
    "encoder": (encoder, (5, 8)),
}


@pytest.fixture(scope="module", params=NETWORKS)
def pair(request: Any) -> tuple[MCDropout, MCDropout, tuple[int, ...]]:
    """A network with fused parts and with plain ones."""
    make, shape = NETWORKS[request.param]
    torch.manual_seed(1)
    network = make()
    both = [MCDropout(network, torch.randn(2, *shape), task="raw", fast=fast) for fast in (True, False)]
    return both[0], both[1], shape


@pytest.mark.parametrize("masks", ["shared", "independent"])
@pytest.mark.parametrize(("rows", "num_samples"), [(1, 40), (3, 40), (50, 4), (2, 2)])
def test_fused_parts_give_the_numbers_of_plain_ones(pair: Any, rows: int, num_samples: int, masks: Any) -> None:
    fast, plain, shape = pair
    assert (graph(fast).fused, graph(plain).fused) == (True, False)
    x = torch.randn(rows, *shape, generator=torch.Generator().manual_seed(rows))
    kept = x.clone()
    ours, truth = (mc.sample(x, num_samples=num_samples, seed=5, masks=masks) for mc in (fast, plain))
    torch.testing.assert_close(ours, truth, rtol=1e-5, atol=1e-5 * float(truth.abs().max()))
    assert torch.equal(fast.sample(x, num_samples=num_samples, seed=5, masks=masks), ours), "nothing was overwritten"
    assert torch.equal(x, kept)


def test_frontier_draws_and_weights_stay_as_they_are(pair: Any) -> None:
    engine, x = graph(pair[0]), torch.randn(3, *pair[2])
    prepared = engine.prepare([x])
    draws = engine.draws([x], passes=range(5), seed=1, rows=None)
    assert engine.parts.folded is not None
    read = [x, *prepared, *draws, *engine.parts.prefix.weights, *engine.parts.folded.weights]
    before = [tensor.clone() for tensor in read]
    engine.apply([x], prepared, draws, "folded")
    assert all(torch.equal(a, b) for a, b in zip(read, before, strict=True))


# ---- fold


def test_batch_norm_goes_into_the_convolution_before_it() -> None:
    mc = MCDropout(residual_network(), torch.randn(2, 2, 8, 8), task="raw")
    parts = graph(mc).parts
    assert not any("batch_norm" in name for part in (parts.prefix, parts.folded) for name in targets(part))
    assert sum("batch_norm" in name for name in targets(parts.mapped)) == 2, "the program stays as it was captured"


class Shared(nn.Module):
    """A convolution that is read twice, and one with weights that are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.norm = nn.Conv2d(2, 4, 3), nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        read_twice = self.one(x)
        computed = nn.functional.conv2d(x, self.two.weight * 2)
        return self.drop(self.norm(read_twice) + read_twice + self.norm(computed))


def test_other_batch_norm_stays() -> None:
    network = with_statistics(Shared(), 2, 6, 6)
    x = torch.randn(3, 2, 6, 6)
    fast, plain = (MCDropout(network, x, task="raw", fast=fast) for fast in (True, False))
    assert sum("batch_norm" in name for name in targets(graph(fast).parts.prefix)) == 2
    torch.testing.assert_close(fast.sample(x, num_samples=4), plain.sample(x, num_samples=4), rtol=1e-5, atol=1e-5)


def test_half_precision_is_not_folded() -> None:
    x = torch.randn(2, 2, 8, 8).bfloat16()
    mc = MCDropout(residual_network(), x, task="raw", dtype=torch.bfloat16)
    assert any("batch_norm" in name for name in targets(graph(mc).parts.prefix))


# ---- unfold


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("stride", "padding"), [([1, 1], [0, 0]), ([2, 1], [1, 2])])
@pytest.mark.parametrize(("channels", "rows"), [(1, 1), (1, 3), (6, 2), (6, 40)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_small_convolutions_are_convolutions(
    channels: int, rows: int, stride: list[int], padding: list[int], bias: bool, layout: torch.memory_format
) -> None:
    plain, shift = torch.randn(8, channels, 3, 5), torch.randn(8) if bias else None
    x = torch.randn(rows, channels, 9, 11).contiguous(memory_format=layout)
    found = convolution(x, plain.contiguous(memory_format=layout), plain, shift, stride, padding)
    truth = nn.functional.conv2d(
        x.double(), plain.double(), shift if shift is None else shift.double(), stride, padding
    )
    torch.testing.assert_close(found.double(), truth, rtol=1e-5, atol=1e-5)
    assert is_small(x.shape, plain.shape, stride, padding) == (rows * channels < 100)


def test_a_counter_of_operations_counts_small_convolutions() -> None:
    x, weight = torch.randn(1, 2, 6, 6), torch.randn(4, 2, 3, 3)
    assert is_small(x.shape, weight.shape, [1, 1], [0, 0])
    with FlopCounterMode(display=False) as counter:
        convolution(x, weight, weight, None, [1, 1], [0, 0])
    assert counter.get_total_flops() == 2 * 4 * 4 * 4 * 2 * 9


def test_convolutions_are_small_by_their_patches_and_products() -> None:
    assert is_small((1, 20, 12, 12), (50, 20, 5, 5), [1, 1], [0, 0])
    assert not is_small((4, 20, 12, 12), (50, 20, 5, 5), [1, 1], [0, 0]), "patches"
    assert not is_small((1, 64, 8, 8), (64, 64, 3, 3), [1, 1], [1, 1]), "products"
    assert not is_small((0, 20, 12, 12), (50, 20, 5, 5), [1, 1], [0, 0]), "no rows"


class Kinds(nn.Module):
    """Convolutions that are one matrix product, and some that are not."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.dilated = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3, padding=2, dilation=2, bias=False)
        self.same, self.grouped = nn.Conv2d(4, 4, 3, padding="same"), nn.Conv2d(4, 4, 3, 2, groups=2)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.grouped(self.same(self.dilated(self.plain(x)))))


def test_dilated_and_grouped_convolutions_stay() -> None:
    network, x = Kinds().eval(), torch.randn(2, 2, 9, 9)
    fast, plain = (MCDropout(network, x, task="raw", fast=fast) for fast in (True, False))
    assert sum(name == "convolution" for name in targets(graph(fast).parts.prefix)) == 1
    torch.testing.assert_close(fast.sample(x, num_samples=4), plain.sample(x, num_samples=4), rtol=1e-5, atol=1e-5)


# ---- factor


class _LargestProduct(TorchDispatchMode):
    """Notes how many numbers the largest unit-wise product has."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.mul.Tensor:
            self.numel = max(self.numel, result.numel())
        return result


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("rows", "passes", "out"), [(4, 30, 3), (1, 30, 3), (30, 4, 3), (4, 3, 30), (5, 5, 5), (1, 1, 1)]
)
def test_the_mask_multiplies_what_is_smallest(
    rows: int, passes: int, out: int, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mcdrop.shortcuts.lean._WORTH", 0)
    units = 7
    x, drawn = torch.randn(rows, units), torch.rand(passes, 1, units)
    weight, shift = torch.randn(out, units), torch.randn(out) if bias else None
    with _LargestProduct() as largest:
        found = dropped_linear(x, drawn, weight, shift)
    truth = torch.nn.functional.linear((x * drawn).flatten(0, 1).double(), weight.double())
    truth = truth if shift is None else truth + shift
    torch.testing.assert_close(found.double(), truth, rtol=1e-5, atol=1e-5)
    assert largest.numel == units * min(rows * passes, rows * out, passes * out)


def test_more_operations_have_to_be_worth_it() -> None:
    assert smaller_side(1, 100, 10, 500) == "activations"  # 50,000 numbers are soon multiplied
    assert smaller_side(32, 100, 10, 500) == "products"
    assert smaller_side(256, 30, 10, 500) == "weights"
    assert smaller_side(256, 100, 1000, 500) == "activations"


@pytest.mark.parametrize(
    ("x", "drawn"),
    [
        (torch.randn(4, 5, 7), torch.rand(9, 1, 5, 7)),
        (torch.randn(4, 7), torch.rand(9, 4, 7)),
        (torch.randn(4, 7), torch.rand(9, 2, 7)),
        (torch.randn(4, 7).bfloat16(), torch.rand(9, 1, 7)),
    ],
    ids=["positions", "rows of their own", "two units a row", "another dtype"],
)
def test_other_masks_multiply_activations(x: Tensor, drawn: Tensor) -> None:
    weight = torch.randn(2, 7).to(x.dtype)
    plain = torch.nn.functional.linear(scale_folded(x, drawn, 0, True, unrepeated=True), weight)
    assert torch.equal(dropped_linear(x, drawn, weight), plain)


# ---- overwrite


def part_of(make: Callable[[fx.Graph, Sequence[fx.Node]], Any], weights: dict[str, Tensor], inputs: int) -> Part:
    graph = fx.Graph()
    graph.output((make(graph, [graph.placeholder(f"x{number}") for number in range(inputs)]),))
    return Part(graph, weights)


def test_only_what_nothing_else_reads_is_overwritten() -> None:
    add, relu = torch.ops.aten.add.Tensor, torch.ops.aten.relu.default

    def make(g: fx.Graph, x: Sequence[fx.Node]) -> Any:
        of_input = g.call_function(relu, (x[0],))  # new memory
        read_twice = g.call_function(add, (of_input, x[1]))  # over of_input
        once = g.call_function(relu, (read_twice,))  # new memory
        return g.call_function(add, (read_twice, once))  # over once

    plain = part_of(make, {}, 2)
    part = fused(plain)
    assert targets(part) == ["relu", "add_into", "relu", "add_into"]
    for shapes in (((3, 4), (3, 4)), ((1, 4), (3, 4)), ((3, 4), (4,))):
        inputs = [torch.randn(shape) for shape in shapes]
        before = [x.clone() for x in inputs]
        assert torch.equal(part(*inputs)[0], plain(*before)[0])
        assert all(torch.equal(x, b) for x, b in zip(inputs, before, strict=True))


def test_views_of_what_something_else_reads_are_not_overwritten() -> None:
    aten = torch.ops.aten

    def make(g: fx.Graph, x: Sequence[fx.Node]) -> Any:
        own = g.call_function(aten.relu.default, (x[0],))
        view = g.call_function(aten.reshape.default, (own, [-1]))
        negative = g.call_function(aten.tanh.default, (view,))
        return g.call_function(aten.add.Tensor, (g.call_function(aten.reshape.default, (own, [-1])), negative))

    plain = part_of(make, {}, 1)
    x = torch.randn(3, 4)
    assert torch.equal(fused(plain)(x.clone())[0], plain(x)[0])
    assert "tanh_" not in " ".join(targets(fused(plain)))


# ---- the proof


def test_parts_that_give_something_else_stay_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    def doubled(part: Part) -> Part:
        twin = copy.copy(part)
        twin.weights = tuple(2 * weight for weight in part.weights)
        return twin

    monkeypatch.setattr("mcdrop.capturing.proofs.fused", doubled)
    network, x = head_network(), torch.randn(2, 6)
    mc, plain = (MCDropout(network, x, task="raw", fast=fast) for fast in (True, False))
    assert not graph(mc).fused
    assert torch.equal(mc.sample(x, num_samples=4), plain.sample(x, num_samples=4))


def test_loaded_and_moved_models_are_fused_as_asked_for(tmp_path: Path) -> None:
    network, x = residual_network(), torch.randn(3, 2, 8, 8)
    mc = MCDropout(network, x, task="raw")
    mc.save(tmp_path / "model")
    loaded, plain = MCDropout.load(tmp_path / "model"), MCDropout.load(tmp_path / "model", fast=False)
    others = [(mc.to("cpu"), True), (loaded, True), (plain, False), (plain.to("cpu"), False)]
    assert [graph(other).fused for other, _ in others] == [expected for _, expected in others]
    for other, _ in others:
        torch.testing.assert_close(other.sample(x, num_samples=5), mc.sample(x, num_samples=5), rtol=1e-5, atol=1e-5)
