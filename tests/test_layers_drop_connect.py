"""DropConnect: weights and names are kept, a pass has one matrix, the output has its closed form."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from bounds import FALSE_ALARM, assert_binomial
from mcdrop import MCDropout
from mcdrop.errors import SettingError
from mcdrop.layers import DropConnect, add_drop_connect, drop_connect
from oracles import enumerate_masks

MODULES: list[tuple[Callable[[], nn.Module], str, tuple[int, ...]]] = [  # module, its weight, an input
    (lambda: nn.Linear(5, 4), "weight", (3, 5)),
    (lambda: nn.Conv1d(4, 6, 3, padding="same"), "weight", (2, 4, 7)),
    (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2), "weight", (2, 4, 9, 9)),
    (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1, bias=False), "weight", (2, 4, 5, 5)),
    (lambda: nn.LSTM(5, 4, 2), "weight_hh_l0", (3, 2, 5)),
    (lambda: nn.GRU(5, 4, bidirectional=True), "weight_hh_l0_reverse", (3, 2, 5)),
]
modules = pytest.mark.parametrize(("make", "name", "shape"), MODULES)


def test_law_of_the_mask() -> None:
    """A rate outside 0.300 +- 0.011 would pass less than once in a million."""
    torch.manual_seed(0)
    dropped = drop_connect(torch.ones(200, 400), 0.3, True)
    assert torch.allclose(dropped[dropped != 0], torch.tensor(1 / 0.7))
    assert_binomial(int((dropped == 0).sum()), n=80_000, p=0.3, false_alarm=FALSE_ALARM)


def test_off_in_evaluation_and_at_rate_zero() -> None:
    weight = torch.randn(3, 4)
    assert torch.equal(drop_connect(weight, 0.5, False), weight)
    assert torch.equal(drop_connect(weight, 0.0, True), weight)
    assert torch.equal(drop_connect(weight, 1.0, True), torch.zeros_like(weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_keeps_the_dtype(dtype: torch.dtype) -> None:
    assert add_drop_connect(nn.Linear(3, 2, dtype=dtype))(torch.ones(1, 3, dtype=dtype)).dtype == dtype


def test_closed_form_of_a_linear_layer() -> None:
    """Mean W x + b, variance p / (1 - p) sum_j W[i, j]**2 x[j]**2, and units that are independent of one another."""
    torch.manual_seed(0)
    layer, x, p = nn.Linear(4, 2).double(), torch.randn(1, 4).double(), 0.3
    weight, mean = layer.weight.detach().clone(), layer(x)[0].detach()
    truth = enumerate_masks(add_drop_connect(layer, p=p), x)
    torch.testing.assert_close(truth.mean(truth.outputs), mean)
    torch.testing.assert_close(truth.variance(truth.outputs), p / (1 - p) * (weight**2 * x**2).sum(1))
    covariance = truth.mean((truth.outputs - mean).prod(1))
    torch.testing.assert_close(covariance, torch.zeros_like(covariance))


@modules
def test_is_the_plain_module_in_evaluation(make: Callable[[], nn.Module], name: str, shape: tuple[int, ...]) -> None:
    """Outputs, classes, settings and state dicts; a checkpoint goes in from a plain module and out to another."""
    plain, ours, third = make().eval(), make().eval(), make().eval()
    x = torch.randn(shape)
    assert add_drop_connect(ours, name, 0.4) is ours
    assert isinstance(ours, type(plain))
    assert ours.extra_repr() == plain.extra_repr()
    assert ours.state_dict().keys() == plain.state_dict().keys()
    ours.load_state_dict(plain.state_dict())
    third.load_state_dict(ours.state_dict())
    for module in (ours, third, copy.deepcopy(ours)):
        torch.testing.assert_close(module(x), plain(x), rtol=0, atol=0)


@modules
def test_drops_in_training_and_passes_gradients(
    make: Callable[[], nn.Module], name: str, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    module = add_drop_connect(make(), name, 0.4).train()
    x = torch.randn(shape)
    first, second = ((out[0] if isinstance(out, tuple) else out) for out in (module(x), module(x)))
    assert not torch.equal(first, second)
    first.sum().backward()
    gradient = module.parametrizations[name].original.grad
    assert 0.2 < (gradient == 0).float().mean() < 0.6  # what is dropped has none
    parametrize.remove_parametrizations(module.eval(), name)
    assert torch.equal(*((out[0] if isinstance(out, tuple) else out) for out in (module.train()(x), module(x))))


def test_state_dicts_of_whole_networks() -> None:
    """Below other modules, with several dropped weights, registered twice, and with another parametrization."""
    plain = nn.Sequential(nn.Linear(5, 4), nn.Sequential(nn.LSTM(4, 3, 2), nn.Linear(3, 2)))
    ours = copy.deepcopy(plain)
    add_drop_connect(add_drop_connect(ours[0]))
    for layer in range(2):
        add_drop_connect(ours[1][0], f"weight_hh_l{layer}")
    assert ours.state_dict().keys() == plain.state_dict().keys()
    changed = {name: value + 1 for name, value in plain.state_dict().items()}
    assert str(ours.load_state_dict(changed)) == "<All keys matched successfully>"
    assert all(torch.equal(value, changed[name]) for name, value in ours.state_dict().items())
    incomplete = {name: value for name, value in changed.items() if name != "1.0.weight_hh_l1"}
    with pytest.raises(RuntimeError, match="Missing key.*weight_hh_l1"):
        ours.load_state_dict(incomplete)
    with pytest.raises(RuntimeError, match="Unexpected key.*other"):
        ours.load_state_dict({**changed, "other": torch.zeros(1)})
    normed = add_drop_connect(nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)))
    assert {name.split(".")[-1] for name in normed.state_dict()} == {"bias", "original0", "original1"}
    normed.load_state_dict(normed.state_dict())
    bounded = nn.Linear(3, 2)
    parametrize.register_parametrization(bounded, "weight", nn.Tanh(), unsafe=True)
    add_drop_connect(bounded)  # what is stored is not the weight, so it does not take its name
    assert bounded.state_dict().keys() == {"bias", "parametrizations.weight.original"}


def test_a_weight_that_is_assigned_is_the_weight_that_is_dropped() -> None:
    layer = add_drop_connect(nn.Linear(3, 2))
    layer.weight = torch.full((2, 3), 7.0)
    assert torch.equal(layer.state_dict()["weight"], torch.full((2, 3), 7.0))


def test_takes_the_mode_of_the_module() -> None:
    layer = nn.Linear(3, 2).eval()
    weight = layer.weight.detach().clone()
    assert torch.equal(add_drop_connect(layer).weight, weight)
    assert not torch.equal(layer.train().weight, weight)


def test_refuses_what_means_nothing() -> None:
    with pytest.raises(SettingError, match=r"LSTM has no parameter 'weight'.* weight_ih_l0, weight_hh_l0, .*"):
        add_drop_connect(nn.LSTM(3, 2))
    with pytest.raises(SettingError, match="its parameters are: none"):
        add_drop_connect(nn.ReLU())
    with pytest.raises(
        SettingError, match=r'name is 0\.2; give the weight\'s name, "weight" say, and the rate as p=0\.2'
    ):
        add_drop_connect(nn.Linear(3, 2), 0.2)  # type: ignore[arg-type]
    for p in (-0.1, 1.5, "0.5"):
        with pytest.raises(SettingError, match="probability of dropping"):
            DropConnect(p)  # type: ignore[arg-type]


def test_gradcheck() -> None:
    def fixed(weight: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        return drop_connect(weight, 0.4, True)

    assert torch.autograd.gradcheck(fixed, (torch.randn(3, 4, dtype=torch.float64, requires_grad=True),))


@pytest.mark.parametrize("grouped", [False, True], ids=["linear", "convolution"])
def test_captured_saved_and_loaded(grouped: bool, tmp_path: Path) -> None:
    """A pass has one weight for all rows, whatever the mask mode."""
    torch.manual_seed(0)
    middle = nn.Conv1d(4, 6, 1, groups=2) if grouped else nn.Linear(4, 6)
    shape, wanted = ((4, 1), (6, 2, 1)) if grouped else ((4,), (6, 4))
    model = nn.Sequential(add_drop_connect(middle, p=0.3), nn.Tanh(), nn.Flatten(), nn.Linear(6, 3)).eval()
    x = torch.randn(1, *shape).repeat(3, *[1] * len(shape))
    mc = MCDropout(model, x, task="classification", engine="graph")
    (site,) = mc.sites
    assert (site.path, site.p, site.shape, site.row_axis) == ("0.parametrizations.weight.0", 0.3, wanted, None)
    mc.save(tmp_path / "model")
    loaded = MCDropout.load(tmp_path / "model")
    for masks in ("shared", "independent"):
        samples = mc.sample(x, num_samples=9, seed=3, masks=masks)
        assert samples[:, 0].std(0).min() > 0
        torch.testing.assert_close(samples, samples[:, :1].expand_as(samples))
        torch.testing.assert_close(loaded.sample(x, num_samples=9, seed=3, masks=masks), samples)
