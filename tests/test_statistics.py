"""The pure statistics: exact truths, naive loops, ranges, and what they estimate."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from torch import Tensor

from bounds import hoeffding_band
from mcdrop import statistics
from mcdrop.errors import SettingError


def naive_entropy(probs: np.ndarray) -> float:
    return -sum(float(p) * math.log(float(p)) for p in probs if p > 0)


def dirichlet(concentration: list[float], *shape: int, seed: int = 0) -> Tensor:
    """float64 draws (*shape, classes)."""
    return torch.from_numpy(np.random.default_rng(seed).dirichlet(concentration, shape))


@st.composite
def probabilities(draw: st.DrawFn) -> Tensor:
    """(samples, batch, classes), float64, from flat to one-hot."""
    samples, batch, classes = draw(st.integers(2, 9)), draw(st.integers(1, 3)), draw(st.integers(2, 6))
    concentration = draw(st.sampled_from([0.01, 0.3, 1.0, 30.0]))
    return dirichlet([concentration] * classes, samples, batch, seed=draw(st.integers(0, 2**31)))


DISAGREEING = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])  # two samples, one row


def test_samples_that_contradict_each_other_have_a_mutual_information_of_log_2() -> None:
    assert statistics.plugin_mutual_information(DISAGREEING).tolist() == pytest.approx([math.log(2)])
    assert statistics.expected_entropy(DISAGREEING).tolist() == [0.0]
    assert statistics.mutual_information(DISAGREEING).tolist() == pytest.approx([math.log(2)])  # the upper limit
    assert statistics.variation_ratio(DISAGREEING).tolist() == [0.5]


@pytest.mark.parametrize("row", [[1.0, 0.0, 0.0], [0.1, 0.2, 0.7], [1 / 3, 1 / 3, 1 / 3]])
@pytest.mark.parametrize("samples", [2, 3, 7, 100])
def test_samples_that_agree_have_no_mutual_information(row: list[float], samples: int) -> None:
    probs = torch.tensor(row).expand(samples, 2, 3)
    for measure in (
        statistics.plugin_mutual_information,
        statistics.mutual_information,
        statistics.jackknife_mutual_information,
        statistics.variation_ratio,
    ):
        assert measure(probs).tolist() == [0.0, 0.0]
    assert statistics.brier_uncertainty(probs).epistemic.tolist() == [0.0, 0.0]


def test_certain_distributions_have_no_entropy_and_no_nan() -> None:
    assert statistics.entropy(torch.tensor([[0.0, 1.0, 0.0]])).tolist() == [0.0]
    assert statistics.binary_entropy(torch.tensor([0.0, 1.0])).tolist() == [0.0, 0.0]
    assert statistics.binary_entropy(torch.tensor([0.5])).tolist() == pytest.approx([math.log(2)])


@pytest.mark.parametrize("rows", [1, 1000])
def test_what_rounding_left_below_0_counts_as_0(rows: int) -> None:
    probs = torch.tensor([[0.5, 0.5, -1e-9]]).repeat(rows, 1)
    assert statistics.entropy(probs)[0].item() == pytest.approx(math.log(2))


def test_gaussian_entropy_is_that_of_scipy_and_minus_infinity_without_variance() -> None:
    got = statistics.gaussian_entropy(torch.tensor([0.0, 0.25, 9.0], dtype=torch.float64))
    assert got.tolist() == pytest.approx([-math.inf, stats.norm(scale=0.5).entropy(), stats.norm(scale=3).entropy()])


@settings(max_examples=40, deadline=None)
@given(probabilities())
def test_every_statistic_is_its_naive_loop(probs: Tensor) -> None:
    count, batch, classes = probs.shape
    for row in range(batch):
        passes = probs[:, row].numpy()
        total = naive_entropy(passes.mean(axis=0))
        expected = sum(naive_entropy(one) for one in passes) / count
        spread = passes.var(axis=0, ddof=1)
        bias = sum(s / p for s, p in zip(spread, passes.mean(axis=0), strict=True) if s > 0) / (2 * count)
        left_out = []
        for k in range(count):
            rest = np.delete(passes, k, axis=0)
            left_out.append(naive_entropy(rest.mean(axis=0)) - sum(map(naive_entropy, rest)) / len(rest))
        jackknife = count * (total - expected) - (count - 1) * sum(left_out) / count
        votes = [int(one.argmax()) for one in passes]
        shares = [votes.count(c) / count for c in range(classes)]

        def limited(value: float) -> float:
            return min(max(value, 0.0), math.log(classes))

        close = pytest.approx
        assert statistics.predictive_entropy(probs)[row].item() == close(total, abs=1e-12)
        assert statistics.expected_entropy(probs)[row].item() == close(expected, abs=1e-12)
        assert statistics.plugin_mutual_information(probs)[row].item() == close(total - expected, abs=1e-12)
        assert statistics.mutual_information(probs)[row].item() == close(limited(total - expected + bias), abs=1e-12)
        assert statistics.jackknife_mutual_information(probs)[row].item() == close(limited(jackknife), abs=1e-11)
        assert statistics.vote_shares(probs)[row].tolist() == close(shares)
        assert statistics.variation_ratio(probs)[row].item() == close(1 - max(shares))
        parts = statistics.brier_uncertainty(probs)
        assert parts.aleatoric[row].item() == close(1 - (passes**2).sum(axis=1).mean(), abs=1e-12)
        assert parts.epistemic[row].item() == close(spread.sum(), abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(probabilities())
def test_ranges_hold_and_the_order_of_samples_means_nothing(probs: Tensor) -> None:
    count, _, classes = probs.shape
    order = torch.randperm(count, generator=torch.Generator().manual_seed(count))
    for measure in (
        statistics.predictive_entropy,
        statistics.expected_entropy,
        statistics.plugin_mutual_information,
        statistics.mutual_information,
        statistics.jackknife_mutual_information,
    ):
        value = measure(probs)
        assert ((value >= 0) & (value <= math.log(classes) + 1e-12)).all()
        torch.testing.assert_close(measure(probs[order]), value, rtol=0, atol=1e-11)
    assert (statistics.plugin_mutual_information(probs) <= math.log(min(count, classes)) + 1e-12).all()
    parts = statistics.brier_uncertainty(probs)
    gini = 1 - probs.mean(dim=0).square().sum(dim=-1)
    torch.testing.assert_close(parts.total, gini + parts.epistemic / count)


def test_positions_between_batch_and_classes_are_distributions_of_their_own() -> None:
    probs = dirichlet([0.5] * 4, 6, 2, 3, 5)
    whole = statistics.mutual_information(probs)
    assert whole.shape == (2, 3, 5)
    torch.testing.assert_close(whole[:, 1, 2], statistics.mutual_information(probs[:, :, 1, 2]))


def test_dirichlet_passes_have_their_analytic_entropies() -> None:
    """Right code fails at most once in a million; a mean wrong by 0.0188 (twice the bands) would pass as rarely.

    The estimates lie in [0, log 3] and the rows are independent, so Hoeffding's band holds; to the mutual information's
    it adds 0.003 for the bias that is left, of second order. The plug-in's bias of -0.025 lies outside: shown.
    """
    expected = special.psi(4) - special.psi(2)  # psi(a0 + 1) - sum_c (a_c / a0) psi(a_c + 1) for a = (1, 1, 1)
    truth = math.log(3) - expected
    rows = 100_000
    probs = dirichlet([1.0, 1.0, 1.0], 10, rows, seed=5)
    band = hoeffding_band(math.log(3), rows, 1e-6 / 3)
    assert statistics.expected_entropy(probs).mean().item() == pytest.approx(expected, abs=band)
    assert statistics.mutual_information(probs).mean().item() == pytest.approx(truth, abs=band + 0.003)
    assert statistics.jackknife_mutual_information(probs).mean().item() == pytest.approx(truth, abs=band + 0.003)
    assert statistics.plugin_mutual_information(probs).mean().item() < truth - band - 0.003


# ---- quantiles


def test_quantiles_of_samples_are_those_of_numpy() -> None:
    samples = torch.randn(13, 4, 2, generator=torch.Generator().manual_seed(1))
    levels = (0.01, 0.05, 0.5, 0.77, 0.99)
    want = np.quantile(samples.numpy(), levels, axis=0)
    np.testing.assert_allclose(statistics.sample_quantiles(samples, levels).numpy(), want, rtol=1e-5, atol=1e-6)


def test_mixture_quantiles_invert_the_mixture_distribution() -> None:
    generator = torch.Generator().manual_seed(2)
    means = torch.randn(9, 5, generator=generator, dtype=torch.float64) * 3
    variances = torch.rand(9, 5, generator=generator, dtype=torch.float64) + 0.01
    levels = (0.001, 0.3, 0.5, 0.975)
    got = statistics.mixture_quantiles(means, variances, levels)
    for level, quantiles in zip(levels, got, strict=True):
        below = stats.norm.cdf(quantiles.numpy(), means.numpy(), variances.sqrt().numpy()).mean(axis=0)
        np.testing.assert_allclose(below, level, rtol=1e-9)


def test_mixture_quantiles_of_one_gaussian_and_of_two_far_apart() -> None:
    same = torch.full((4, 1), 2.0, dtype=torch.float64)
    got = statistics.mixture_quantiles(same, torch.full_like(same, 9.0), (0.05, 0.95))
    assert got.flatten().tolist() == pytest.approx(list(stats.norm(2, 3).ppf([0.05, 0.95])))
    apart = torch.tensor([[0.0], [10.0]], dtype=torch.float64)  # sd of the mixture 5.10: its Gaussian would say -3.4
    got = statistics.mixture_quantiles(apart, torch.ones_like(apart), (0.05,))
    assert got.item() == pytest.approx(stats.norm.ppf(0.1), abs=1e-6)


def test_mixture_quantiles_without_variance_are_those_of_the_samples() -> None:
    samples = torch.randn(7, 3)
    got = statistics.mixture_quantiles(samples, torch.zeros(7, 3), (0.1, 0.9))
    torch.testing.assert_close(got, statistics.sample_quantiles(samples, (0.1, 0.9)))
    half = statistics.mixture_quantiles(torch.tensor([[0.0], [0.0]]), torch.tensor([[0.0], [1.0]]), (0.5,))
    assert half.item() == pytest.approx(0.0, abs=1e-6)  # one point mass and one Gaussian: a jump, and no NaN
    points = torch.tensor([-4.0, 0.0, 4.0, 4.0, 1.0]).view(5, 1)  # bisection meets the point at 0 exactly
    variances = torch.tensor([0.0, 0.0, 0.0, 0.0, 1e-20]).view(5, 1)
    got = statistics.mixture_quantiles(points, variances, (0.3, 0.5))
    assert got.flatten().tolist() == pytest.approx([0.0, 1.0], abs=1e-6)


# ---- dtypes, empty batches, errors


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_kept_and_an_empty_batch_answered(dtype: torch.dtype) -> None:
    empty = torch.empty(4, 0, 3, dtype=dtype)
    for measure in (
        statistics.predictive_entropy,
        statistics.expected_entropy,
        statistics.plugin_mutual_information,
        statistics.mutual_information,
        statistics.jackknife_mutual_information,
        statistics.variation_ratio,
    ):
        assert measure(empty).shape == (0,)
        assert measure(empty).dtype == dtype
    assert statistics.vote_shares(empty).shape == (0, 3)
    assert statistics.mixture_quantiles(empty, empty, (0.5,)).shape == (1, 0, 3)


@pytest.mark.parametrize(
    "measure", [statistics.mutual_information, statistics.jackknife_mutual_information, statistics.brier_uncertainty]
)
def test_one_sample_has_no_spread(measure: object) -> None:
    with pytest.raises(SettingError, match="1 samples have no spread.*num_samples"):
        measure(torch.ones(1, 2, 3) / 3)  # type: ignore[operator]  # parametrized over functions


@pytest.mark.parametrize("level", [0, 1, 1.5, -0.1, math.nan, True, "0.5"])
def test_a_level_lies_between_0_and_1(level: object) -> None:
    with pytest.raises(SettingError, match="quantiles: .* is no level"):
        statistics.check_levels([level])
