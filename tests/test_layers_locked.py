"""Locked dropout: one mask for all steps, its law, and Monte Carlo passes that draw it."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bounds import FALSE_ALARM, assert_binomial
from mcdrop import MCDropout
from mcdrop.errors import InputError, SettingError
from mcdrop.layers import LockedDropout, locked_dropout
from oracles import enumerate_masks

X = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0))


class Steps(nn.Module):
    """Sums over time what locked dropout leaves of each feature: (batch, time, features) to (batch, features)."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.dropout = LockedDropout(p)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(x).sum(1)


def test_one_mask_for_all_steps_and_one_for_each_row_and_feature() -> None:
    """Among the 2000 masks of this test a rate off by 0.035 would be seen, in right code less than once in 1e6."""
    torch.manual_seed(0)
    ratio = locked_dropout(X.repeat(500, 1, 1)[:, :, :4], 0.25, True) / X.repeat(500, 1, 1)[:, :, :4]
    first = ratio[:, :1]
    assert torch.allclose(ratio, first.expand_as(ratio))
    assert torch.allclose(first[first != 0], torch.tensor(1 / 0.75))
    for feature in range(4):  # 1500 rows
        assert_binomial(int((first[:, 0, feature] == 0).sum()), n=1500, p=0.25, false_alarm=FALSE_ALARM / 5)
    both = (first[:, 0, 0] == 0) & (first[:, 0, 1] == 0)  # features are independent
    assert_binomial(int(both.sum()), n=1500, p=0.25**2, false_alarm=FALSE_ALARM / 5)


def test_off_in_evaluation_and_at_rate_zero() -> None:
    assert torch.equal(LockedDropout(0.5).eval()(X), X)
    assert torch.equal(LockedDropout(0.0).train()(X), X)
    assert torch.equal(LockedDropout(1.0).train()(X), torch.zeros_like(X))


def test_mean_and_variance_of_a_sum_over_time() -> None:
    """The noise of one feature does not average out over time: variance p / (1 - p) (sum_t x[t])**2."""
    p = 0.3
    truth = enumerate_masks(Steps(p).double(), X[:1].double())
    total = X[0].double().sum(0)
    torch.testing.assert_close(truth.mean(truth.outputs), total)
    torch.testing.assert_close(truth.variance(truth.outputs), p / (1 - p) * total**2)


def test_gradients() -> None:
    x = X.double().requires_grad_()

    def fixed(x: Tensor) -> Tensor:
        torch.manual_seed(1)
        return locked_dropout(x, 0.4, True)

    assert torch.autograd.gradcheck(fixed, (x,))
    (gradient,) = torch.autograd.grad(fixed(x).sum(), x)
    torch.testing.assert_close(gradient * x, fixed(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_keeps_the_dtype(dtype: torch.dtype) -> None:
    assert LockedDropout(0.5)(X.to(dtype)).dtype == dtype


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan"), "0.5", None, True])
def test_refuses_what_is_no_rate(p: object) -> None:
    with pytest.raises(SettingError, match="p is .*probability of dropping"):
        LockedDropout(p)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(4, 6), (6,), (2, 3, 4, 6)])
def test_refuses_what_is_no_batch_of_sequences(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"\(batch, time, features\)"):
        LockedDropout(0.5)(torch.zeros(shape))


def test_captured_saved_and_loaded(tmp_path: Path) -> None:
    mc = MCDropout(Steps(0.3).eval(), X, task="regression", engine="graph")
    (site,) = mc.sites
    assert (site.path, site.p, site.shape) == ("dropout", 0.3, ("batch", 1, 6))
    mc.save(tmp_path / "model")
    loaded = MCDropout.load(tmp_path / "model")
    for masks in ("shared", "independent"):
        samples = mc.sample(X, num_samples=20, seed=3, masks=masks)
        kept = samples / X.sum(1)
        assert torch.isclose(kept, torch.tensor(1 / 0.7), rtol=1e-4).logical_or(kept == 0).all()
        assert torch.equal(kept[:, 0] != 0, kept[:, 1] != 0) is (masks == "shared")
        assert torch.equal(loaded.sample(X, num_samples=20, seed=3, masks=masks), samples)


def test_the_time_axis_may_vary() -> None:
    mc = MCDropout(Steps(0.3).eval(), X, task="regression", engine="graph", dynamic={1: "time"})
    kept = [mc.sample(x, num_samples=9, seed=3) != 0 for x in (X, torch.cat([X, X], 1))]
    assert torch.equal(*kept)
