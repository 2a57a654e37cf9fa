"""What single layers of mcdrop.layers promise beside the contract of test_kinds.py, and how sites take their names."""

import math
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

import mcdrop
from mcdrop import MCDropout, layers
from mcdrop.errors import InputError, SettingError
from mcdrop.layers import (
    ConcreteDropout,
    DropBlock1d,
    DropBlock2d,
    DropPath,
    GaussianDropout,
    LinearSchedule,
    ShakeShake,
    TokenDropout,
    WordDropout,
    drop_block,
    linear_depth_rates,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_layers_are_at_the_front_door() -> None:
    assert mcdrop.layers is layers
    assert layers.__all__ == sorted(layers.__all__)


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan, True, "0.5"])
@pytest.mark.parametrize(
    "make",
    [
        DropPath,
        TokenDropout,
        GaussianDropout,
        ConcreteDropout,
        DropBlock1d,
        lambda p: WordDropout(p, 0),
        lambda p: linear_depth_rates(p, 3),
    ],
)
def test_a_rate_is_a_probability(make: type, p: object) -> None:
    with pytest.raises(SettingError, match=r"p is .*the share that is dropped"):
        make(p)


@pytest.mark.parametrize("training", [True, False])
def test_functions_check_their_settings_as_layers_do(training: bool) -> None:
    maps = torch.ones(2, 1, 4)
    for p in (-0.5, 1.0, 1.5):
        with pytest.raises(SettingError, match="less than 1"):
            layers.gaussian_dropout(maps, p, training)
    with pytest.raises(SettingError, match="number from 0 to 1"):
        layers.drop_block(maps, 1.5, 2, training)
    with pytest.raises(SettingError, match="block_size is 0"):
        layers.drop_block(maps, 0.5, 0, training)


def test_maps_without_positions_have_no_blocks() -> None:
    assert layers.drop_block(torch.ones(2, 3, 0, 4), 0.5, 2, True).shape == (2, 3, 0, 4)


def test_rates_that_a_law_does_not_have() -> None:
    for make in (GaussianDropout, ConcreteDropout):
        with pytest.raises(SettingError, match="less than 1"):
            make(1)
    with pytest.raises(SettingError, match="cannot move"):
        ConcreteDropout(0)
    with pytest.raises(SettingError, match="temperature"):
        ConcreteDropout(0.1, temperature=0)


@pytest.mark.parametrize("layer", [DropPath(1.0), TokenDropout(1.0), DropBlock1d(1.0, 1), DropBlock1d(1.0, 9)])
def test_everything_dropped_is_zero_and_not_nan(layer: nn.Module) -> None:
    assert layer.train()(torch.randn(2, 3, 5)).tolist() == torch.zeros(2, 3, 5).tolist()


def test_inputs_that_do_not_fit() -> None:
    with pytest.raises(InputError, match=r"\(batch, time, features\)"):
        TokenDropout(0.1)(torch.ones(2, 3))
    with pytest.raises(InputError, match="before the embedding"):
        WordDropout(0.1, 0)(torch.ones(2, 3))
    with pytest.raises(InputError, match=r"DropBlock2d takes .* 4 axes; got .*\(2, 3, 4\)"):
        DropBlock2d(0.1)(torch.ones(2, 3, 4))
    with pytest.raises(InputError, match="one to three axes"):
        drop_block(torch.ones(2, 3), 0.1, 2, True)
    with pytest.raises(InputError, match="one shape"):
        ShakeShake()(torch.ones(2, 3), torch.ones(2, 4))
    with pytest.raises(SettingError, match="unknown_id"):
        WordDropout(0.1, -1)
    with pytest.raises(SettingError, match="block_size"):
        DropBlock2d(0.1, 0)


# ---- stochastic depth, words


def test_linear_depth_rule() -> None:
    """Huang et al. 2016, section 4: p_L = 0.5 over 54 blocks; the survival of block l is 1 - l / L (1 - p_L)."""
    rates = linear_depth_rates(0.5, 54)
    assert len(rates) == 54
    assert rates == pytest.approx([1 - (1 - block / 54 * (1 - 0.5)) for block in range(1, 55)])
    assert linear_depth_rates(0.2, 1) == [0.2]
    with pytest.raises(SettingError, match="depth"):
        linear_depth_rates(0.2, 0)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.uint8])
def test_words_stay_ids(dtype: torch.dtype) -> None:
    ids = torch.arange(1, 200, dtype=torch.int64).to(dtype)[None]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dropped = WordDropout(0.5, 200).train()(ids)
    assert dropped.dtype == dtype
    assert set(dropped.unique().tolist()) - {200} < set(ids.unique().tolist())
    assert bool(((dropped == ids) | (dropped == 200)).all())


# ---- DropBlock


@pytest.mark.parametrize(("shape", "side"), [((2, 9), 4), ((1, 5, 6), 3), ((2, 3, 4, 3), 2), ((2, 2, 8), 5)])
def test_blocks_are_those_of_a_loop(shape: tuple[int, ...], side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mask from the seeds that were drawn, by loops over the map; axes shorter than a block have short blocks."""
    seeds: list[Tensor] = []
    rates: list[float] = []
    plain = nn.functional.dropout

    def spied(ones: Tensor, p: float) -> Tensor:
        drawn = plain(ones, p)
        seeds.append(drawn == 0)
        rates.append(p)
        return drawn

    monkeypatch.setattr(nn.functional, "dropout", spied)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        output = drop_block(torch.ones(2, *shape), 0.4, side, True)
    size = shape[1:]
    block = [min(side, length) for length in size]
    places = [length - each + 1 for length, each in zip(size, block, strict=True)]
    (rate,), (found,) = rates, seeds
    assert rate == pytest.approx(0.4 / math.prod(block) * math.prod(size) / math.prod(places))
    assert found.any()
    kept = torch.ones(2, *shape)
    for row, channel, *corner in found.nonzero().tolist():
        kept[(row, channel, *(slice(start, start + each) for start, each in zip(corner, block, strict=True)))] = 0
    count = kept.flatten(1).sum(1).view(-1, *[1] * len(shape))
    torch.testing.assert_close(output, kept * math.prod(shape) / count)


def test_schedule_raises_the_rates_in_a_line() -> None:
    model = nn.Sequential(DropBlock2d(0.2, 3), nn.Sequential(DropBlock1d(0.1, 2)), nn.Dropout(0.5))
    schedule = LinearSchedule(model, steps=4)
    seen = []
    for step in (0, 1, 4, 9):
        schedule.set(step)
        seen.append((model[0].p, model[1][0].p, model[2].p))
    assert seen == [(0.0, 0.0, 0.5), (0.05, 0.025, 0.5), (0.2, 0.1, 0.5), (0.2, 0.1, 0.5)]
    with pytest.raises(SettingError, match="no DropBlock"):
        LinearSchedule(nn.Sequential(nn.Dropout(0.2)), steps=4)
    with pytest.raises(SettingError, match="steps"):
        LinearSchedule(model, steps=0)


# ---- shake-shake


def test_shake_shake_goes_back_by_another_mix() -> None:
    """Value alpha a + (1 - alpha) b; gradients beta and 1 - beta, of each row alone, both uniform and independent."""
    a, b = torch.randn(4000, 2, generator=seeded(1)), torch.randn(4000, 2, generator=seeded(2))
    a.requires_grad_(), b.requires_grad_()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        y = ShakeShake().train()(a, b)
    y.sum().backward()
    with torch.no_grad():
        alpha = (y - b) / (a - b)
        spread = (alpha[:, 0] - alpha[:, 1]).abs() * (a - b).abs().amin(1)
    assert spread.max() < 1e-5  # one number for each row
    beta = a.grad[:, 0]
    assert torch.equal(a.grad[:, 0], a.grad[:, 1])
    torch.testing.assert_close(a.grad + b.grad, torch.ones_like(a))
    alpha = alpha[torch.arange(4000), (a - b).abs().argmax(1)]
    # The correlation of 4000 independent pairs has a standard error of 0.016; 0.09 is 5.7 of them, one in 1e8.
    for values in (alpha, beta):
        assert abs(float(values.detach().mean()) - 0.5) < 0.026  # 5.7 standard errors of a uniform number's mean
    assert abs(float(torch.corrcoef(torch.stack([alpha, beta]).detach())[0, 1])) < 0.09


# ---- concrete dropout


def test_concrete_rate_learns_by_its_gradient() -> None:
    """The gradient of the mean output in logit p is the difference quotient under the same uniform numbers."""
    layer, x = ConcreteDropout(0.3).double().train(), torch.randn(50, 4, dtype=torch.float64, generator=seeded())

    def loss(shift: float) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(6)
            with torch.no_grad():
                layer.logit.add_(shift)
            result = layer(x).square().mean()
            with torch.no_grad():
                layer.logit.sub_(shift)
            return result

    (gradient,) = torch.autograd.grad(loss(0.0), layer.logit)
    quotient = float((loss(1e-6) - loss(-1e-6)).detach()) / 2e-6
    assert quotient != 0
    assert float(gradient) == pytest.approx(quotient, rel=1e-5)


def test_concrete_regulariser_is_its_formula() -> None:
    layer, weight = ConcreteDropout(0.2), torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]])
    entropy = -(0.2 * math.log(0.2) + 0.8 * math.log(0.8))
    wanted = (0.25 / 2 * 15.25 / 0.8 - 3 * entropy) / 50
    assert layer.regulariser(weight, num_rows=50, length_scale=0.5).item() == pytest.approx(wanted, rel=1e-6)
    with pytest.raises(SettingError, match="num_rows"):
        layer.regulariser(weight, num_rows=0)


def test_concrete_regulariser_without_weights_draws_the_rate_to_one_half() -> None:
    """Entropy is largest there; with heavy weights the rate falls instead."""
    rates = []
    for size in (0.0, 100.0):
        layer = ConcreteDropout(0.2)
        optimiser = torch.optim.SGD(layer.parameters(), lr=0.2)
        for _ in range(100):
            optimiser.zero_grad()
            layer.regulariser(torch.full((1, 4), size), num_rows=1 if size == 0 else 10**5).backward()
            optimiser.step()
        rates.append(layer.p)
    assert rates[0] == pytest.approx(0.5, abs=0.01)
    assert rates[1] < 0.2


# ---- what modules say of the draws inside them


class Noisy(nn.Module):
    """Noise by hand in a module with a kind and a rate; a plain dropout inside takes the kind and has its own rate."""

    dropout_kind: ClassVar[str] = "mine"

    def __init__(self) -> None:
        super().__init__()
        self.drop_prob = 0.4
        self.dropout = nn.Dropout(0.2)
        self.path = DropPath(0.1)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = x * (torch.rand_like(x) >= self.drop_prob) / (1 - self.drop_prob)
        return self.path(self.dropout(x))


class ByHand(nn.Module):
    """No kind, but a rate."""

    def __init__(self) -> None:
        super().__init__()
        self.drop_rate = 0.25

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + torch.randn_like(x)) if self.training else x


class NoRate(nn.Module):
    """Its `p` is no rate, and its draw stays without one."""

    def __init__(self) -> None:
        super().__init__()
        self.p = 7.0

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x) if self.training else x


@pytest.mark.parametrize("p", [1e-8, 0.1, 0.2, 0.3, 0.5, 0.999])
def test_a_rate_to_learn_is_listed_as_it_was_given(p):
    assert ConcreteDropout(p).p == p


@pytest.mark.parametrize("engine", ["graph", "eager"])
def test_the_innermost_module_with_a_kind_names_a_site(engine: str) -> None:
    noisy = Noisy()
    model = nn.Sequential(noisy, nn.Linear(3, 3), noisy, ByHand(), NoRate()).eval()
    mc = MCDropout(model, torch.randn(2, 3), task="raw", engine=engine)
    inside = ["mine", "mine", "drop_path"]
    assert [site.kind for site in mc.sites] == [*inside, *inside, "normal", "normal"]
    assert [site.p for site in mc.sites[:7]] == pytest.approx([0.4, 0.2, 0.1, 0.4, 0.2, 0.1, 0.25])
    assert mc.sites[7].p is None


def test_an_inactive_site_is_named_too() -> None:
    mc = MCDropout(nn.Sequential(DropPath(0.0), nn.Dropout(0.5)).eval(), torch.randn(2, 3), task="raw")
    assert [(site.kind, site.p, site.reason) for site in mc.sites if not site.active] == [("drop_path", 0.0, "p is 0")]
