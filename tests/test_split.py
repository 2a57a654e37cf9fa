"""Prefix and suffix: where the cut falls, and that every way to compute passes gives the same."""

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mcdrop import MCDropout
from mcdrop.engines.engine import GraphEngine
from mcdrop.splitting.split import split


def graph(mc: MCDropout) -> GraphEngine:
    assert isinstance(mc._engine, GraphEngine)
    return mc._engine


def convolution() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 8), nn.Dropout(0.5), nn.Linear(8, 3)
    )


def test_everything_before_the_first_draw_is_prefix() -> None:
    mc = MCDropout(convolution(), torch.randn(2, 1, 4, 4), task="classification")
    parts = graph(mc).parts
    assert (parts.prefix_calls, parts.suffix_calls) == (4, 2)  # conv, relu, flatten, linear | scale, linear
    assert parts.frontier_axes == (0,)
    assert [site.index for site, _ in parts.draws] == [0]


def test_weights_are_freed_with_the_model_at_once(tmp_path: Path) -> None:
    """Not at the next garbage collection: a server that replaces models holds two otherwise."""
    MCDropout(convolution(), torch.randn(2, 1, 4, 4), task="classification").save(tmp_path / "model")
    gc.collect()
    gc.disable()
    try:
        mc = MCDropout.load(tmp_path / "model")
        mc.warm()
        weights = [weakref.ref(weight) for weight in graph(mc).program.weights.values()]
        del mc
        assert [weight() for weight in weights] == [None] * 6
    finally:
        gc.enable()


def test_a_branch_without_noise_is_prefix() -> None:
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.dropout = nn.Linear(4, 3), nn.Linear(4, 3), nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            return self.one(self.dropout(x)) + torch.tanh(self.two(x))

    parts = graph(MCDropout(Skip(), torch.randn(2, 4), task="raw")).parts
    assert (parts.prefix_calls, parts.suffix_calls) == (2, 3)


def test_prefix_runs_once_for_all_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    mc, x = MCDropout(convolution(), torch.randn(2, 1, 4, 4), task="classification"), torch.randn(2, 1, 4, 4)
    mc(x)  # what is measured once is measured now
    calls: list[int] = []
    prepare = graph(mc).prepare
    monkeypatch.setattr(graph(mc), "prepare", lambda *args: (calls.append(1), prepare(*args))[1])
    run = mc.start(x, num_samples=30)
    while not run.done:
        mc.advance(run, budget=4)
    assert len(calls) == 1


class Turned(nn.Module):
    """A linear layer of activations whose axes are turned around, as in PyTorch's attention with the batch first."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.linear = nn.Dropout(0.5), nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(self.drop(x).transpose(0, 1)).transpose(0, 1)
        return out


class Products(TorchDispatchMode):
    """Notes which operations take products."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen |= {func.overloadpacket.__name__} & {"mm", "bmm", "addmm", "baddbmm"}
        return func(*args, **(kwargs or {}))


def test_a_linear_layer_is_one_product_whatever_the_order_of_its_input() -> None:
    """As a batch of products, PyTorch's choice, it would copy the weight for every place of the sequence."""
    x = torch.randn(2, 5, 4)
    mc = MCDropout(Turned().eval(), x, task="raw")
    assert graph(mc).mode == "folded"
    with Products() as products:
        mc.sample(x, num_samples=3)
    assert products.seen <= {"mm", "addmm"}


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_prefix_in_parts_is_the_prefix(rows: int) -> None:
    mc, x = MCDropout(convolution(), torch.randn(2, 1, 4, 4), task="classification"), torch.randn(rows, 1, 4, 4)
    whole, parts = graph(mc).prepare([x]), graph(mc).prepare([x], budget=1)
    torch.testing.assert_close(parts, whole, rtol=1e-6, atol=1e-6)


class Picks(nn.Module):
    """`arange(batch)` is made before the first draw: repeated it would read pass 0 only."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.dropout, self.head = nn.Embedding(9, 8), nn.Dropout(0.5), nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        rows, last = torch.arange(ids.shape[0]), (ids != 0).int().sum(1) - 1
        return self.head(self.dropout(self.embedding(ids)))[rows, last]


class TwiceTheBatch(nn.Module):
    """Both inputs as one batch: the rows are the fast index of their axis."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.dropout = nn.Linear(4, 3), nn.Dropout(0.5)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        both, rows = self.dropout(self.layer(torch.cat([x, y]))), x.shape[0]
        return both[:rows] - 2 * both[rows:]


class ManyUnits(nn.Module):
    """Positions merged with the rows."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.dropout = nn.Linear(4, 3), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.layer(x).flatten(0, 1)).unflatten(0, (x.shape[0], -1)).sum(1)


class WeightToo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        weight = nn.functional.dropout(self.head.weight, 0.5, self.training)
        return nn.functional.linear(nn.functional.dropout(self.layer(x), 0.3, self.training), weight)


def examples(model: nn.Module, rows: int) -> Any:
    if isinstance(model, Picks):
        return torch.tensor([[1, 2, 3, 0], [4, 5, 0, 0], [1, 0, 0, 0], [5, 6, 7, 8]])[:rows]
    if isinstance(model, TwiceTheBatch):
        return torch.randn(rows, 4), torch.randn(rows, 4)
    return torch.randn(rows, 5, 4) if isinstance(model, ManyUnits) else torch.randn(rows, 4)


@pytest.mark.parametrize("rows", [1, 2, 4])
@pytest.mark.parametrize("make", [Picks, TwiceTheBatch, ManyUnits, WeightToo])
def test_every_mode_gives_what_one_pass_at_a_time_gives(make: type[nn.Module], rows: int) -> None:
    model = make()
    mc = MCDropout(model, examples(model, 2), task="raw")
    inputs = examples(model, rows)
    tensors = list(inputs) if isinstance(inputs, tuple) else [inputs]
    for numbers in (None, torch.arange(rows) + 3):
        draws = graph(mc).draws(tensors, passes=range(4), seed=1, rows=numbers)
        prepared = graph(mc).prepare(tensors)
        one_by_one = graph(mc).apply(tensors, prepared, draws, "loop")
        for mode in {"mapped", graph(mc).mode}:
            torch.testing.assert_close(graph(mc).apply(tensors, prepared, draws, mode), one_by_one)
    assert not torch.equal(one_by_one[0][0], one_by_one[0][1])


def test_folding_needs_a_proof() -> None:
    assert graph(MCDropout(WeightToo(), torch.randn(2, 4), task="raw")).mode == "mapped"  # a draw without rows
    picks = Picks()
    ids = examples(picks, 4)
    mc = MCDropout(picks, ids, task="raw")
    folded = mc.sample(ids, num_samples=20)
    assert len({tuple(row.tolist()) for row in folded[:, 3]}) > 5, "every pass reads its own draw"


def test_memory_of_a_pass_is_measured() -> None:
    mc = MCDropout(nn.Sequential(nn.Linear(4, 100), nn.Dropout(0.5), nn.Linear(100, 3)), torch.randn(2, 4), task="raw")
    once = graph(mc).bytes_per_pass([torch.randn(5, 4)])
    assert 400 <= once <= 4000
    assert graph(mc).bytes_per_pass([torch.randn(1, 4)]) == once


def test_convolutions_have_their_weights_channels_last_on_a_cpu(tmp_path: Path) -> None:
    network = convolution()
    mc = MCDropout(network, torch.randn(2, 1, 4, 4), task="classification")
    mc.save(tmp_path / "model")
    for each in (mc, MCDropout.load(tmp_path / "model"), mc.to("cpu")):
        program = graph(each).program
        weight = next(weight for weight in program.weights.values() if weight.ndim == 4)
        assert weight.stride() == (9, 1, 3, 1), "which of the layouts it is shows with one channel too"
        assert torch.equal(weight, network[0].weight)
    assert network[0].weight.stride() == nn.Conv2d(1, 3, 3).weight.stride()


@pytest.mark.parametrize(
    "read",
    [
        lambda x: torch.view_as_real(torch.view_as_complex(x.contiguous().view(*x.shape[:-1], 2, 2)) * 2j),
        lambda x: x.contiguous().view(torch.int16).view(torch.float32),
        lambda x: x.as_strided((x.shape[0], 3), (x[0].numel(), 2)),
    ],
    ids=["view_as_complex", "view as another dtype", "as_strided"],
)
def test_what_reads_memory_by_strides_finds_the_layout_of_the_network(read: Any) -> None:
    class Reading(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution, self.dropout = nn.Conv2d(2, 3, 3, padding=1), nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            return self.dropout(read(self.convolution(x))).flatten(1)

    network, x = Reading().eval(), torch.randn(2, 2, 4, 4)
    mc = MCDropout(network, x, task="raw")
    samples = mc.sample(x, num_samples=8)
    assert mc.engine == "graph"
    torch.testing.assert_close(samples, (2 * network(x)).expand_as(samples).where(samples != 0, 0))


def test_a_part_takes_its_weights_along_and_runs_as_its_graph() -> None:
    program = graph(MCDropout(convolution(), torch.randn(2, 1, 4, 4), task="classification")).program
    part = split(program).prefix
    x = torch.randn(3, 1, 4, 4)
    assert len(part.weights) == 4
    torch.testing.assert_close(part(x), fx.Interpreter(part.module).run(x, *part.weights))
