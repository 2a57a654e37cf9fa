"""The eager engine: draws answered below PyTorch's own functions, and nothing global left changed."""

import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mcdrop import MCDropout
from mcdrop.engines.eager import drawing, global_generators, neutral
from mcdrop.engines.supplies import Given, Seeded
from mcdrop.errors import BundleError, CaptureError, SettingError, UnsupportedRandomnessError
from mcdrop.randomness.noise import keep_mask, normal, uniform


def test_neutral_dropout_is_the_identity() -> None:
    x = torch.randn(4, 3, 5)
    layers = (nn.Dropout(0.3), nn.Dropout1d(0.3), nn.AlphaDropout(0.3), nn.FeatureAlphaDropout(0.3), nn.Dropout(0.0))
    for layer in layers:
        with neutral():
            torch.testing.assert_close(layer(x), x)


def test_draws_come_in_order_from_the_seed() -> None:
    where = {"seed": 7, "passes": range(3, 4)}
    with drawing(Seeded(7, 3, None, lambda index, shape: True)):
        mask, numbers, gauss = torch.empty(2, 4).bernoulli_(0.6), torch.rand(2, 4), torch.randn(5)
    assert torch.equal(mask, keep_mask(p=0.4, shape=(2, 4), site=0, **where)[0].float())
    assert torch.equal(numbers, uniform(shape=(2, 4), site=1, **where)[0])
    assert torch.equal(gauss, normal(shape=(5,), site=2, **where)[0])


def test_given_draws() -> None:
    with drawing(Given([torch.tensor([0.0, 2.0]), None])):
        assert nn.functional.dropout(torch.ones(2), 0.5).tolist() == [0, 2]
        assert nn.functional.dropout(torch.ones(2), 0.5).tolist() == [2, 2]


def test_uniform_between_bounds_and_normal_of_mean_and_deviation() -> None:
    supply = [torch.tensor([0.0, 0.5]), torch.tensor([-1.0, 1.0])]
    with drawing(Given(supply)):
        assert torch.empty(2).uniform_(2, 4).tolist() == [2, 3]
        assert torch.empty(2).normal_(10, 3).tolist() == [7, 13]


def test_unknown_law_names_operation_and_line() -> None:
    with drawing(Given([])), pytest.raises(UnsupportedRandomnessError, match=r"randperm.*test_eager\.py:\d+"):
        torch.randperm(4)


def test_generators_are_put_back_after_errors() -> None:
    before = random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state()
    with pytest.raises(LookupError), global_generators(5):
        assert random.random() == random.Random(5).random()
        np.random.rand(), torch.rand(3)
        raise LookupError
    after = random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state()
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])


class Branch(nn.Module):
    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.dropout(x) * (2 if float(x.sum()) > 0 else 1)


def eager(model: nn.Module, x: Tensor, **keywords: object) -> MCDropout:
    return MCDropout(model, x, task="raw", engine="eager", **keywords)  # type: ignore[arg-type]


@pytest.mark.parametrize("masks", ["shared", "independent", "balanced"])
def test_equals_the_graph_engine_bit_for_bit(masks: str) -> None:
    model, x = nn.Sequential(nn.Dropout(0.3), nn.Tanh(), nn.Dropout1d(0.5)), torch.randn(3, 2, 8)
    graph = MCDropout(model, x, task="raw")
    for seed in (0, -5, 2**80):
        one, other = (mc.sample(x, num_samples=6, seed=seed, masks=masks) for mc in (graph, eager(model, x)))
        assert torch.equal(one, other)


def test_rows_are_run_alone() -> None:
    with pytest.warns(UserWarning, match="runs eagerly"):
        mc = MCDropout(nn.Sequential(nn.Dropout(0.5), RowSwitch()), torch.ones(2, 3), task="raw")
    x = torch.tensor([[1.0, 1, 1], [-1, -1, -1]])
    both = mc.sample(x, num_samples=5)
    assert torch.equal(both[:, 1:], mc.sample(x[1:], num_samples=5))


class RowSwitch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if float(x.sum()) > 0 else x


class SkipsALayer(nn.Module):
    """One draw for all rows decides whether the first layer is skipped; then its mask is not drawn."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            if torch.rand(()).item() < 0.5:
                continue
            x = nn.functional.dropout(x, 0.5)
        return x


def test_rows_draw_for_themselves_behind_a_skipped_layer() -> None:
    mc = eager(SkipsALayer(), torch.ones(2, 32))
    samples = mc.sample(torch.ones(2, 32), num_samples=40, seed=3, masks="independent")
    stirred = samples[(samples != 1).any(2).all(1)]
    assert len(stirred) > 20
    assert not (stirred[:, 0] == stirred[:, 1]).all(1).any(), "two rows have one mask"


def test_has_no_folder_and_stays_on_its_device(tmp_path: object) -> None:
    mc = eager(nn.Sequential(nn.Dropout(0.5)), torch.ones(2, 3))
    with pytest.raises(BundleError, match="eager engine"):
        mc.save(str(tmp_path))
    with pytest.raises(SettingError, match="eager engine"):
        mc.to("cpu")
    assert mc.cost["engine"] == "eager"


@pytest.mark.parametrize("rows", [0, 1])
def test_no_rows_and_one_row(rows: int) -> None:
    mc = eager(nn.Sequential(nn.Dropout(0.5)), torch.ones(2, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert mc(torch.ones(rows, 3), num_samples=4).mean.shape == (rows, 3)


def test_a_small_rate_is_still_dropout() -> None:
    mc = eager(nn.Sequential(nn.Dropout(0.001)), torch.ones(2, 3))
    assert len(mc.sites) == 1


def test_buffers_are_put_back_after_every_pass() -> None:
    class Carries(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("sum", torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            self.sum += nn.functional.dropout(x, 0.5).sum(0)
            return self.sum.expand_as(x)

    mc = eager(Carries(), torch.ones(2, 3))
    samples = mc.sample(torch.ones(1, 3), num_samples=8)
    assert set(samples.unique().tolist()) <= {0.0, 2.0}


# ---- why a network runs eagerly


class ByValue(nn.Module):
    """Decides by a number."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.inner(x)
        if x.sum() > 0:  # by value
            return hidden * 2
        return hidden


class OfPacked(nn.Module):
    """Packs its sequences, which the tracer takes for an error in PyTorch."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.LSTM(4, 3, 2, dropout=0.5, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        result: Tensor = self.recurrent(packed)[1][0][-1]  # of packed
        return result


@pytest.mark.parametrize(
    ("network", "example", "comment", "hint"),
    [
        (ByValue(), torch.rand(2, 4), "# by value", "choose with torch.where."),
        (nn.Sequential(ByValue()), torch.rand(2, 4), "# by value", "choose with torch.where."),
        (OfPacked(), (torch.rand(2, 3, 4), torch.tensor([3, 2])), "# of packed", ""),
    ],
)
def test_the_reason_names_the_line_of_the_network(network, example, comment, hint) -> None:
    with pytest.raises(CaptureError) as caught:
        MCDropout(network, example, task="raw", engine="graph")
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    (number,) = (number for number, line in enumerate(lines, 1) if line.endswith(comment))
    code = lines[number - 1].strip()
    assert f"could not trace the network at {__file__}:{number}, `{code}`: " in str(caught.value)
    assert str(caught.value).endswith(hint)
    assert ("torch.where" in str(caught.value)) == bool(hint)
