"""Thinned passes: the same numbers as plain ones, for any network; when they are chosen; what they keep."""

import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mcdrop import MCDropout
from mcdrop.capturing.proofs import proved_thinned
from mcdrop.engines.engine import GraphEngine
from mcdrop.layers import DropPath
from mcdrop.shortcuts import kept_units, thinning
from mcdrop.shortcuts.kept_passes import KeptPasses, gathered_bound
from mcdrop.shortcuts.kept_units import Gather
from mcdrop.shortcuts.pass_cost import share
from mcdrop.shortcuts.thinning import Thinned, thin

PASSES = range(3, 8)


def engine_of(network: nn.Module, x: Tensor, **settings: Any) -> GraphEngine:
    found = MCDropout(network.eval(), x, task="raw", thinned=False, **settings)._engine
    assert isinstance(found, GraphEngine)
    return found


def thinned_of(engine: GraphEngine, x: Tensor, bound: int = 2**30) -> Thinned | None:
    draws = engine.draws([x], passes=range(1), seed=0, rows=None)
    arguments = [*engine.parts.sizes([x]), *engine.prepare([x]), *(draw[0] for draw in draws)]
    with torch.no_grad():
        return thin(engine.parts, arguments, len(x), bound=bound)


def check(network: nn.Module, x: Tensor, tolerance: float = 1e-5, **settings: Any) -> Thinned | None:
    """Thinned passes, if there are any, give what plain ones give."""
    engine, x = engine_of(network, x, **settings), x.to(settings.get("dtype"))
    thinned = thinned_of(engine, x)
    if thinned is not None:
        draws = engine.draws([x], passes=PASSES, seed=5, rows=None)
        truths = engine.apply([x], engine.prepare([x]), draws, "loop")
        with torch.no_grad():
            founds = thinned.passes(engine.parts.sizes([x]), engine.prepare([x]), draws, passes=PASSES, seed=5)
        for found, truth in zip(founds, truths, strict=True):
            torch.testing.assert_close(found, truth, rtol=tolerance, atol=tolerance * float(truth.abs().max()))
    return thinned


@pytest.fixture(params=(1, 16))
def lanes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many units are taken together: 1 leaves out most where layers are narrow."""
    monkeypatch.setattr(kept_units, "LANES", request.param)
    number: int = request.param
    return number


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.outer = nn.Linear(6, 12), nn.Linear(12, 24), nn.Linear(24, 12)
        self.drop, self.last, self.head = nn.Dropout(0.4), nn.Dropout(0.3), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(self.first(x).relu())
        x = x + self.outer(self.drop(self.inner(x).relu()))
        out: Tensor = self.head(self.last(x.relu()))
        return out


class Consumers(nn.Module):
    """What one dropout leaves is read by a product, a sigmoid and a norm; what another one sees, by others too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(5, 16), nn.Linear(16, 16), nn.Linear(16, 4)
        self.norm, self.drop, self.twice = nn.LayerNorm(16), nn.Dropout(0.5), nn.Dropout(0.25)

    def forward(self, x: Tensor) -> Tensor:
        dropped = self.drop(self.first(x).tanh())
        hidden = self.second(dropped)
        gate = dropped.sigmoid() + self.norm(dropped)
        return torch.cat([self.third(self.twice(hidden) * gate), self.third(hidden.relu())], 1)


class Tied(nn.Module):
    """One weight on both sides of a dropout, and one dropout applied twice in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.tied, self.drop = nn.Linear(4, 10), nn.Linear(10, 10), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.tied(self.first(x)))
        x = self.drop(self.drop(self.tied(x).relu()))
        return nn.functional.linear(x, self.tied.weight[:3], self.tied.bias[:3]) + self.tied(x)[:, :3]


def mlp(p: float = 0.5, width: int = 20) -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, width), nn.ReLU(), nn.Dropout(p),
        nn.Linear(width, width), nn.ReLU(), nn.Dropout(p), nn.Linear(width, 3),
    )  # fmt: skip


def bare() -> nn.Module:
    """A chain without biases, one of its dropouts before the first weight; its frontier is read as it is."""
    return nn.Sequential(
        nn.Dropout(0.5), nn.Linear(6, 20, bias=False), nn.Dropout(0.5), nn.GELU(), nn.Linear(20, 12, bias=False),
        nn.ReLU(), nn.Dropout(0.3), nn.Linear(12, 3),
    )  # fmt: skip


def normed() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 20), nn.Dropout(0.5), nn.Linear(20, 16, bias=False), nn.BatchNorm1d(16), nn.Sigmoid(),
        nn.Dropout(0.5), nn.Linear(16, 12), nn.GELU(), nn.Dropout(0.2), nn.LayerNorm(12), nn.Linear(12, 3),
    )  # fmt: skip


class Skip(nn.Module):
    """A small U-Net: a dropout behind every block, read by a pooling and by a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.middle = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.up, self.merge = nn.ConvTranspose2d(8, 6, 2, 2), nn.Conv2d(12, 6, 3, padding=1)
        self.drop, self.head = nn.Dropout2d(0.5), nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.drop(self.down(x))
        low = self.drop(self.middle(nn.functional.max_pool2d(wide, 2)))
        joined = torch.cat([self.up(low), wide], 1)
        out: Tensor = self.head(self.drop(self.merge(joined).relu()))
        return out


def lenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Dropout2d(0.5), nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6), nn.SiLU(),
        nn.Dropout2d(0.3), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(24, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3),
    )  # fmt: skip


def lines() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 8, 3), nn.Dropout1d(0.5), nn.Conv1d(8, 6, 3, dilation=2), nn.ReLU(), nn.Dropout1d(0.5),
        nn.ConvTranspose1d(6, 3, 3, stride=2),
    )  # fmt: skip


def volumes() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(2, 8, 2), nn.Dropout3d(0.5), nn.Conv3d(8, 4, 1), nn.ReLU(), nn.Dropout3d(0.5),
        nn.ConvTranspose3d(4, 3, 2),
    )  # fmt: skip


def grouped() -> nn.Module:
    """One of two dropouts stands before a product that can be cut."""
    return nn.Sequential(
        nn.Conv2d(2, 8, 3), nn.Dropout2d(0.5), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Dropout2d(0.5),
        nn.Conv2d(8, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2),
    )  # fmt: skip


class Depth(nn.Module):
    """Stochastic depth, by our layer and by hand; one branch changes the number of channels that its shortcut has."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1)
        self.first, self.second = (nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.ReLU()) for _ in range(2))
        self.third, self.path, self.head = nn.Conv2d(6, 1, 1), DropPath(0.5), nn.Linear(6, 3)

    def by_hand(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(0.6).div(0.6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.path(self.first(x))
        x = self.by_hand(self.second(x)) + x
        x = x + self.path(self.third(x))
        out: Tensor = self.head(x.mean((2, 3)))
        return out


NETWORKS = {  # how to make it, the shape of a row, the draws whose dropped units are left out, how passes are computed
    "stochastic depth": (Depth, (2, 8, 8), 0, "loop"),
    "channels to units": (lenet, (1, 8, 8), 3, "loop"),
    "skip connection": (Skip, (2, 8, 8), 3, "loop"),
    "in one dimension": (lines, (2, 14), 2, "loop"),
    "in three dimensions": (volumes, (2, 4, 4, 4), 2, "loop"),
    "depthwise convolution": (grouped, (2, 8, 8), 1, "loop"),
    "mlp": (mlp, (6,), 2, "grouped"),
    "all but all dropped": (lambda: mlp(0.95, 6), (6,), 2, "grouped"),
    "without biases": (bare, (6,), 3, "grouped"),
    "residual branch": (Residual, (6,), 3, "mapped"),
    "several consumers": (Consumers, (5,), 2, "mapped"),
    "tied weights": (Tied, (4,), 3, "mapped"),
    "norms between": (normed, (6,), 3, "mapped"),
}
NOT_HERE = {
    "alpha dropout": (lambda: nn.Sequential(nn.Linear(6, 8), nn.SELU(), nn.AlphaDropout(0.5), nn.Linear(8, 3)), (6,)),
    "sequences": (lambda: nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3)), (4, 6)),
    "no product": (lambda: nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.LayerNorm(8)), (6,)),
}


@pytest.mark.usefixtures("lanes")
@pytest.mark.parametrize("name", NETWORKS)
def test_equals_plain_passes(name: str):
    make, shape, draws, mode = NETWORKS[name]
    torch.manual_seed(1)
    thinned = check(make(), torch.randn(4, *shape))
    assert thinned is not None
    assert len(thinned.draws) == draws
    assert thinned.mode == mode


@pytest.mark.parametrize("name", NOT_HERE)
def test_stays_plain_where_nothing_can_be_left_out(name: str):
    make, shape = NOT_HERE[name]
    assert check(make(), torch.randn(4, *shape)) is None


class Flat(nn.Module):
    """Channels that a dropout keeps, joined with the space behind them in some way, before a Linear."""

    def __init__(self, joined: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.maps, self.drop, self.head = nn.Conv2d(1, 6, 3), nn.Dropout2d(0.5), nn.Linear(6 * 16, 3)
        self.joined = joined

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.joined(self.drop(self.maps(x).relu())))
        return out


@pytest.mark.usefixtures("lanes")
@pytest.mark.parametrize(
    "joined",
    [
        nn.Flatten(), lambda x: x.flatten(1), lambda x: x.reshape(x.shape[0], -1), lambda x: x.reshape(-1, 96),
        lambda x: x.contiguous().view(x.shape[0], 96),
    ],
)  # fmt: skip
def test_channels_become_units_however_it_is_written(joined: Callable[[Tensor], Tensor]) -> None:
    thinned = check(Flat(joined), torch.randn(4, 1, 6, 6))
    assert thinned is not None
    assert (thinned.draws, thinned.mode) == ((0,), "loop")


class Lengths(nn.Module):
    """Joins channels with an axis of free size."""

    def __init__(self) -> None:
        super().__init__()
        self.maps, self.drop = nn.Conv1d(1, 64, 3, padding=1), nn.Dropout1d(0.5)
        self.more, self.last = nn.Conv1d(64, 64, 3, padding=1), nn.Linear(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.drop(self.more(self.drop(self.maps(x)))).flatten(1).mean(1, keepdim=True))
        return out


def test_rows_of_another_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Thinned, "pays", lambda self, rows: True)
    network = Lengths().eval()
    plain, thinned = (
        MCDropout(network, torch.randn(2, 1, 8), task="raw", dynamic={2: "length"}, thinned=each)
        for each in (False, True)
    )
    assert thinned._engine.thinned is not None  # type: ignore[attr-defined]
    for length in (8, 5, 13):
        x = torch.randn(3, 1, length)
        torch.testing.assert_close(thinned.sample(x), plain.sample(x))


class Drawn(nn.Module):
    """A network drawn at random: each step reads any earlier value."""

    ACTIVATIONS = (nn.ReLU, nn.GELU, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Identity)

    def __init__(self, seed: int, width: int = 7) -> None:
        super().__init__()
        choose = random.Random(seed)
        self.steps = nn.ModuleList()
        self.reads: list[tuple[int, ...]] = []
        shared = nn.Linear(width, width)
        for number in range(choose.randint(6, 14)):
            kinds = [
                nn.Dropout(choose.choice((0.1, 0.5, 0.8))), nn.Dropout(0.5), nn.Linear(width, width), shared,
                choose.choice(self.ACTIVATIONS)(), nn.BatchNorm1d(width), nn.LayerNorm(width),
            ]  # fmt: skip
            reads = [choose.randint(max(0, number - 2), number) for _ in range(choose.choice((1, 1, 1, 2)))]
            self.steps.append(choose.choice(kinds) if len(reads) == 1 else nn.Identity())
            self.reads.append(tuple(reads))
        self.multiplies = choose.random() < 0.5
        self.first, self.drop, self.last = nn.Linear(4, width), nn.Dropout(0.5), nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        values = [self.drop(self.first(x).relu())]
        for step, reads in zip(self.steps, self.reads, strict=True):
            read = values[reads[0]]
            for other in reads[1:]:
                read = read * values[other] if self.multiplies else read + values[other]
            values.append(step(read))
        out: Tensor = self.last(self.drop(values[-1]))
        return out


@pytest.mark.parametrize("seed", range(8))
def test_networks_drawn_at_random_equal_plain_passes(seed: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kept_units, "LANES", 1 + seed % 3)
    torch.manual_seed(seed)
    x = torch.randn(3, 4, dtype=torch.float64)
    thinned = check(Drawn(seed).double(), x, 1e-11, dtype=torch.float64)
    assert thinned is not None  # at least the last dropout stands before a product


@pytest.mark.parametrize("name", ["channels to units", "stochastic depth", "norms between", "mlp"])
def test_equals_plain_passes_in_half_precision(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kept_units, "LANES", 4)
    make, shape, *_ = NETWORKS[name]
    torch.manual_seed(1)
    assert check(make(), torch.randn(4, *shape), 3e-2, dtype=torch.bfloat16) is not None


class Promoted(nn.Module):
    """A gate that makes a branch, and so the sum, wider than its shortcut: the shortcut cannot stand for the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.branch, self.head = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        gate = torch.empty(x.shape[0], 1, device=x.device).bernoulli_(0.5 if self.training else 1.0)
        x = x * gate.to(x.dtype)
        gate = torch.empty(x.shape[0], 1, device=x.device).bernoulli_(0.5 if self.training else 1.0)
        return (x + self.branch(x) * gate).to(x.dtype) + self.head(x).sum(1, keepdim=True)


def test_a_sum_of_another_type_than_its_shortcut_is_computed():
    assert check(Promoted(), torch.randn(4, 4), 3e-2, dtype=torch.bfloat16) is None


class Pooled(nn.Module):
    """A pooling in two dimensions that takes (rows, channels, length) for one image, and pools over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop, self.head = nn.Conv1d(2, 32, 3), nn.Dropout1d(0.5), nn.Conv1d(16, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        dropped = self.drop(self.first(x))
        out: Tensor = self.head(nn.functional.max_pool2d(dropped, (2, 1))) + dropped[:, :3]
        return out


def test_a_pooling_over_channels_sees_all_of_them():
    assert check(Pooled(), torch.randn(4, 2, 9)) is None


# ---- from outside


@pytest.fixture(scope="module")
def wide() -> nn.Module:
    torch.manual_seed(0)
    return mlp(0.5, 1024).eval()


@pytest.fixture(scope="module")
def mc(wide: nn.Module) -> MCDropout:
    return MCDropout(wide, torch.randn(4, 6), task="raw", num_samples=12)


@pytest.fixture(scope="module")
def plain(wide: nn.Module) -> MCDropout:
    return MCDropout(wide, torch.randn(4, 6), task="raw", num_samples=12, thinned=False)


@pytest.fixture(scope="module")
def rows(mc: MCDropout) -> Tensor:
    return torch.randn(2 * mc.cost["thinned_from_rows"], 6)


def test_can_be_switched_off_and_gives_the_same(mc: MCDropout, plain: MCDropout, rows: Tensor):
    assert mc.cost["thinned_from_rows"] > 1
    assert plain.cost["thinned_from_rows"] is None
    torch.testing.assert_close(mc.sample(rows, seed=3), plain.sample(rows, seed=3), rtol=1e-5, atol=1e-6)
    few = rows[: mc.cost["thinned_from_rows"] - 1]
    assert torch.equal(mc.sample(few, seed=3), plain.sample(few, seed=3))  # the same path


def test_follows_rates_and_the_choice_of_sites(wide: nn.Module, rows: Tensor):
    for settings in ({"rates": {"2": 0.0, "5": 0.9}}, {"rates": {"2": 0.99}}, {"include": "5"}):
        found, truth = (
            MCDropout(wide, rows[:4], task="raw", num_samples=6, thinned=thinned, **settings).sample(rows, seed=2)
            for thinned in (True, False)
        )
        torch.testing.assert_close(found, truth, rtol=1e-5, atol=1e-6)


def test_exact_answers_have_the_same_bits_whatever_is_kept(mc: MCDropout, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Thinned, "pays", lambda self, rows: True)
    x, found = torch.randn(2, 6), []
    for turn in range(4):  # gathered, gathered and kept, kept, kept beside others
        if turn == 3:
            mc.sample(torch.randn(5, 6), seed=11)
        run = mc.start(x, seed=11, exact=True)
        mc.advance(run)
        found.append(run.prediction().mean)
    assert all(torch.equal(one, found[0]) for one in found)


def test_groups_do_not_depend_on_the_threads_of_a_call(mc: MCDropout):
    """They show in the last bits of exact answers, and what one thread has kept serves the others."""
    engine, before, found = mc._engine, torch.get_num_threads(), []
    assert isinstance(engine, GraphEngine)
    assert engine.thinned is not None
    draws = engine.draws([torch.randn(2, 6)], passes=range(16), seed=11, rows=None)
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            found.append([places.tolist() for places in engine.thinned._groups(draws)])
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1] == found[2]


def test_out_of_memory_takes_fewer_passes(mc: MCDropout, rows: Tensor, monkeypatch: pytest.MonkeyPatch):
    truth, passes, seen = mc.sample(rows, seed=3), Thinned.passes, []

    def scarce(self: Thinned, *arguments: Any, **keywords: Any) -> tuple[Tensor, ...]:
        seen.append(len(keywords["passes"]))
        if seen[-1] > 2:
            raise torch.OutOfMemoryError("DefaultCPUAllocator: can't allocate memory")
        return passes(self, *arguments, **keywords)

    monkeypatch.setattr(Thinned, "passes", scarce)
    torch.testing.assert_close(mc.sample(rows, seed=3), truth, rtol=1e-5, atol=1e-6)
    assert seen[-1] <= 2 < seen[0]


def test_only_on_the_cpu(wide: nn.Module):
    x = torch.randn(3, 6)
    engine = engine_of(wide, x)
    assert proved_thinned(engine, [x], 2**30) is not None
    engine.device = torch.device("cuda")
    assert proved_thinned(engine, [x], 2**30) is None


def test_blocks_are_skipped_unless_it_is_switched_off():
    torch.manual_seed(0)
    x = torch.randn(4, 2, 64, 64)
    skipping, plain = (MCDropout(Depth(), x, task="raw", num_samples=4, thinned=thinned) for thinned in (True, False))
    assert plain.cost["thinned_from_rows"] is None
    assert skipping.cost["thinned_from_rows"] <= 4


def test_rows_alone_in_chunks_and_again_give_the_same(wide: nn.Module, mc: MCDropout, rows: Tensor):
    whole = mc.sample(rows, seed=4)
    for _ in range(2):
        assert torch.equal(mc.sample(rows, seed=4), whole)  # by weights that are kept now, and by those
    for i in (0, 5):
        torch.testing.assert_close(mc.sample(rows[i : i + 1], seed=4), whole[:, i : i + 1], rtol=1e-5, atol=1e-6)
    small = MCDropout(wide, rows[:4], task="raw", num_samples=12, max_memory=64 * 2**20)
    assert small.cost["thinned_from_rows"] <= len(rows)
    torch.testing.assert_close(small.sample(rows, seed=4), whole, rtol=1e-5, atol=1e-6)
    run = mc.start(rows, seed=4)
    while not run.done:
        mc.advance(run, 5)
    torch.testing.assert_close(run.prediction().mean, whole.mean(0), rtol=1e-5, atol=1e-6)


def test_saved_and_loaded(tmp_path: Path, mc: MCDropout, rows: Tensor):
    mc.save(tmp_path / "model")
    loaded, off = MCDropout.load(tmp_path / "model"), MCDropout.load(tmp_path / "model", thinned=False)
    assert loaded.cost["thinned_from_rows"] == mc.cost["thinned_from_rows"]
    assert off.cost["thinned_from_rows"] is None
    assert torch.equal(loaded.sample(rows), mc.sample(rows))


def test_threads_together_give_what_each_gives_alone(mc: MCDropout, rows: Tensor):
    seeds = [7, 8, 7, 9]
    alone = [mc.sample(rows, seed=seed) for seed in seeds]
    engine = mc._engine
    assert isinstance(engine, GraphEngine)
    assert engine.thinned is not None
    engine.thinned.kept = KeptPasses(engine.thinned.kept.bound)  # empty, so that the threads make it
    found: list[Tensor | None] = [None] * len(seeds)
    gate = threading.Barrier(len(seeds))

    def ask(number: int) -> None:
        gate.wait()
        found[number] = mc.sample(rows, seed=seeds[number])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(seeds))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(found, alone, strict=True):
        assert one is not None
        assert torch.equal(one, other)


def test_draws_by_row_stay_plain(mc: MCDropout, plain: MCDropout, rows: Tensor):
    assert torch.equal(mc.sample(rows, masks="independent"), plain.sample(rows, masks="independent"))


# ---- what it costs, what it keeps


def counted(network: nn.Module, x: Tensor) -> tuple[int, list[Tensor]]:
    """FLOPs of thinned passes, and their draws."""
    engine = engine_of(network, x)
    thinned = thinned_of(engine, x)
    assert thinned is not None
    draws = engine.draws([x], passes=PASSES, seed=5, rows=None)
    prepared = engine.prepare([x])
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        thinned.passes(engine.parts.sizes([x]), prepared, draws, passes=PASSES, seed=5)
    return counter.get_total_flops(), draws


def test_only_kept_units_are_computed():
    """As many as fill whole registers, and one unit for the bias between them."""
    flops, draws = counted(mlp(0.5, 100), torch.randn(4, 6))
    first, second = (-(-int((draw != 0).flatten(1).sum(1).max()) // 16) * 16 for draw in draws)  # of these passes
    assert flops == len(PASSES) * 2 * 4 * ((first + 1) * second + second * 3)


def test_the_share_that_is_computed_is_that_of_whole_registers():
    """On average over draws, and as far as remainders are spread evenly over a register."""
    for p, units in ((0.5, 1024), (0.1, 100), (0.9, 64), (0.5, 8)):
        drawn = (torch.rand(2000, units, generator=torch.Generator().manual_seed(units)) >= p).float()
        computed = [kept_units.Selection([each[None]], [], {}).units(0).shape[1] for each in drawn]
        assert sum(computed) / len(computed) / units == pytest.approx(share(p, units), abs=0.05)


def test_dropped_blocks_are_not_computed():
    flops, draws = counted(Depth(), torch.randn(4, 2, 8, 8))
    _, second, third = ((draw != 0).sum() for draw in draws)  # the first block's convolution is in the prefix
    rows = 2 * 4 * 6
    assert flops == int(rows * 64 * (6 * 9 * second + third)) + len(PASSES) * rows * 3


def test_cost_is_that_of_the_kept_units():
    """Layers 1024 - 1024 - 3 behind a dropout of 1/2: a quarter and a half of the products."""
    engine = engine_of(mlp(0.5, 1024), torch.randn(4, 6))
    thinned = thinned_of(engine, torch.randn(4, 6))
    assert thinned is not None
    products = 2 * 1024 * (1024 + 3) / 280
    half = share(0.5, 1024)
    kept = 2 * 1024 * (1024 * half**2 + 3 * half) / 280
    unitwise, taken = 0.2 * 1024, 0.35 * 1024 * half
    assert thinned.cost.plain_row == pytest.approx(products + 4 * unitwise, rel=0.01)
    assert thinned.cost.thinned_row == pytest.approx(kept + unitwise + taken, rel=0.01)


def test_chosen_from_the_number_of_rows_at_which_it_is_cheaper():
    least = {}
    for p in (0.1, 0.5, 0.9):
        engine = engine_of(mlp(p, 1024), torch.randn(4, 6))
        thinned = thinned_of(engine, torch.randn(4, 6))
        assert thinned is not None
        cost = thinned.cost
        assert cost.least_rows is not None
        least[p] = cost.least_rows
        for rows, cheaper in ((cost.least_rows, True), (cost.least_rows - 1, False)):
            assert thinned.pays(rows) is cheaper
            assert (cost.thinned_row * rows + cost.thinned_pass < cost.plain_row * rows) is cheaper
    assert 1 < least[0.9] < least[0.5] < 64 < least[0.1]


def test_one_pass_must_fit_what_may_be_kept():
    engine = engine_of(mlp(0.5, 64), torch.randn(4, 6))
    turned = 4 * 64 * (64 + 3)  # bytes of the transposed weights
    assert thinned_of(engine, torch.randn(4, 6), bound=turned + 6000) is None
    thinned = thinned_of(engine, torch.randn(4, 6), bound=turned + 9000)
    assert thinned is not None
    assert thinned.together == 1
    assert thinned.kept.bound < 3000  # what is kept and what is taken by the passes in hand, together
    assert gathered_bound(8000) == 1000
    assert gathered_bound(None) == gathered_bound(2**40) > 2**20
    assert gathered_bound(None, thinned=False) == 0


def test_spans_that_are_whole_serve_chunks_of_any_length(
    mc: MCDropout, rows: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thinning, "_SPAN", 8)
    engine = mc._engine
    assert isinstance(engine, GraphEngine)
    assert engine.thinned is not None
    whole = mc.sample(rows, num_samples=40, seed=21)
    engine.thinned.kept = KeptPasses(engine.thinned.kept.bound)
    asked: list[range] = []
    taken, spans = Thinned._taken, KeptPasses.ask
    monkeypatch.setattr(KeptPasses, "ask", lambda self, key: asked.append(key[1]) or spans(self, key))
    monkeypatch.setattr(Thinned, "_taken", lambda self, drawn: asked.append(range(0)) or taken(self, drawn))
    for count in (40, 40, 33, 17, 25, 39):
        assert torch.allclose(mc.sample(rows, num_samples=count, seed=21), whole[:count], rtol=1e-5, atol=1e-6)
    first = [range(start, start + 8) for start in range(0, 40, 8)]
    assert [each for each in asked if each][:10] == [*first, *first]
    later = asked[asked.index(range(32, 33)) :]
    made_for = {[one for one in later[:place] if one][-1] for place, each in enumerate(later) if not each}
    assert made_for == {range(32, 33), range(16, 17), range(24, 25), range(32, 39)}  # whole spans are there already
    for budget in (3, 5, 7):
        run = mc.start(rows, num_samples=40, seed=21)
        while not run.done:
            mc.advance(run, budget)
        assert torch.allclose(run.prediction().mean, whole.mean(0), rtol=1e-5, atol=1e-6)
    assert all(each.start // 8 == (each.stop - 1) // 8 for each in asked if each)


class Shared(nn.Module):
    """What the first dropout sees is read by the second path as it is, so that it must not get a column of ones."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.outer = nn.Linear(6, 20), nn.Linear(20, 24), nn.Linear(24, 20)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        out: Tensor = x + self.outer(self.drop(self.inner(self.drop(x)).relu()))
        return out


def test_a_bias_is_a_unit_where_nothing_else_reads_the_column() -> None:
    for network, folded in ((mlp(), True), (Shared(), False), (bare(), False)):
        thinned = check(network, torch.randn(4, 6))
        assert thinned is not None
        assert any(isinstance(take, Gather) and take.bias is not None for take in thinned._takes) is folded
        assert any(thinned._columns.values()) is folded


def test_half_precision_adds_the_bias_unit_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_units, "LANES", 1)
    check(mlp(), torch.randn(4, 6), 2e-2, dtype=torch.bfloat16)


def test_a_last_layer_of_few_results_stays_plain() -> None:
    """Plain passes multiply its small weight by masks: to take half of the activations lasts 1.4 to 1.7 as long."""
    least = {}
    for results in (10, 1024):
        head = nn.Sequential(nn.Linear(8, 1152), nn.ReLU(), nn.Dropout(0.5), nn.Linear(1152, results))
        least[results] = MCDropout(head, torch.randn(2, 8), task="raw").cost["thinned_from_rows"]
    assert least[10] is None
    assert least[1024] is not None


def test_channels_are_left_out_from_the_rows_on_where_that_is_faster() -> None:
    """Measured on two cores, 30 passes: with 8 rows 1.15 of the time of plain passes, with 16 rows 0.71."""
    convolutions = [nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Dropout2d(0.5)] * 2
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5)]
    model = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Dropout2d(0.5), *convolutions, *head).eval()
    least = MCDropout(model, torch.randn(2, 3, 16, 16), task="raw").cost["thinned_from_rows"]
    assert 8 <= least <= 16
