"""Balanced masks: their definition and counts exactly, the law of each pass, and what predictions make of them."""

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from torch import Tensor, nn

from bounds import FALSE_ALARM, assert_binomial
from mcdrop import MCDropout
from mcdrop.errors import SettingError
from mcdrop.layers import GaussianDropout
from mcdrop.modes import BLOCK, block_length
from mcdrop.prediction import Prediction
from mcdrop.randomness.balance import balanced_mask
from mcdrop.randomness.noise import keep_mask
from oracles import Enumeration, enumerate_masks
from test_exact import bernstein_band
from test_noise import reference_hash, word

WHOLE, BROKEN = (0.1, 0.3, 0.5, 0.9), (0.02, 0.25, 0.33, 0.999)


def dropped(p: float, units: int, passes: range = range(BLOCK), seed: int = 0) -> Tensor:
    """(passes, units), True where dropped."""
    return ~balanced_mask(p=p, shape=(units,), seed=seed, site=2, passes=passes)


# ---- the masks


@pytest.mark.parametrize("p", [0.0, 1.0, *WHOLE])
def test_each_unit_is_dropped_p_n_times_in_every_block(p: float) -> None:
    counts = dropped(p, 5000, range(3 * BLOCK)).view(3, BLOCK, -1).sum(1)
    assert bool((counts == round(p * BLOCK)).all())


@pytest.mark.parametrize("p", BROKEN)
def test_counts_that_are_not_whole_are_rounded_up_or_down_with_the_right_mean(p: float) -> None:
    units = 100_000
    counts = dropped(p, units).sum(0)
    low = math.floor(p * BLOCK)
    assert bool(((counts == low) | (counts == low + 1)).all())
    assert_binomial(int((counts - low).sum()), n=units, p=p * BLOCK - low)


def reference(p: float, seed: int, site: int, t: int, coordinates: Sequence[int]) -> bool:
    """Whether a unit drops in pass t: the definition in mcdrop.randomness.balance, on Python integers."""
    block, i = divmod(t, BLOCK)
    limit = round(p * BLOCK * 2**32)
    left = limit // 2**32 + (word(seed, site, 2**63 + block, coordinates, None) >> 32 < limit % 2**32)
    for number in range(i + 1):
        chance = left * 2**32
        drops = reference_hash(seed, site, block * BLOCK + number, coordinates) * (BLOCK - number) < chance
        left -= drops
    return drops


@given(
    p=st.floats(0, 1),
    seed=st.integers(-(2**63), 2**64 - 1),
    site=st.integers(0, 2**20),
    start=st.integers(0, 2**40),
    count=st.integers(1, 2 * BLOCK + 1),
    shape=st.lists(st.integers(1, 3), max_size=3).map(tuple),
)
def test_the_definition(p: float, seed: int, site: int, start: int, count: int, shape: tuple[int, ...]) -> None:
    passes = range(start, start + count)
    kept = balanced_mask(p=p, shape=shape, seed=seed, site=site, passes=passes)
    assert kept.shape == (count, *shape)
    for coordinates in itertools.islice(itertools.product(*map(range, shape)), 4):
        assert [not bool(each[coordinates]) for each in kept] == [
            reference(p, seed, site, t, coordinates) for t in passes
        ]


def test_known_values() -> None:
    """Masks of version 1, for good: a change of any is a new NOISE_VERSION."""
    kept = balanced_mask(p=0.25, shape=(3,), seed=7, site=3, passes=range(BLOCK))
    assert ["".join("01"[bool(bit)] for bit in unit) for unit in kept.T] == KNOWN


KNOWN = ["0111110111", "1101101111", "1011101101"]


@pytest.mark.parametrize("shape", [(7, 300), (70_000,), (2, 3, 20_000), ()])
def test_any_chunk_and_any_length_of_an_axis_have_the_same_masks(shape: tuple[int, ...]) -> None:
    where = {"p": 0.25, "seed": 1, "site": 3}
    whole = balanced_mask(shape=shape, passes=range(30), **where)
    parts = [balanced_mask(shape=shape, passes=range(a, b), **where) for a, b in ((0, 7), (7, 8), (8, 8), (8, 30))]
    assert torch.equal(torch.cat(parts), whole)
    if shape:
        shorter = balanced_mask(shape=(*shape[:-1], 5), passes=range(30), **where)
        assert torch.equal(shorter, whole[..., :5])


def test_arguments_are_checked() -> None:
    for p, passes in ((1.5, range(3)), (-0.1, range(3)), (0.5, range(-1, 3)), (0.5, range(0, 4, 2))):
        with pytest.raises(SettingError, match=r"p = |passes = "):
            balanced_mask(p=p, shape=(3,), seed=0, site=0, passes=passes)


@pytest.mark.parametrize("p", [0.3, 0.25])
def test_each_pass_by_itself_drops_units_at_rate_p_independently(p: float) -> None:
    """A true rate of a pass outside p +- 0.008, or of pairs outside p**2 +- 0.01, would pass less than once in a
    million."""
    units, rate = 200_000, FALSE_ALARM / 3 / BLOCK
    drops = dropped(p, units, range(3 * BLOCK, 4 * BLOCK))
    for one in drops:
        assert_binomial(int(one.sum()), n=units, p=p, false_alarm=rate)
        for step in (1, 1000):
            pairs = one[: units // 2 * 2].view(-1, 2) if step == 1 else torch.stack([one[:-step], one[step:]], 1)[::2]
            assert_binomial(int(pairs.all(1).sum()), n=len(pairs), p=p * p, false_alarm=rate)


def test_every_subset_of_the_passes_of_a_block_is_equally_likely() -> None:
    units, subsets = 200_000, list(itertools.combinations(range(BLOCK), 2))
    drops = dropped(0.2, units)
    for pair in subsets:
        count = int(drops[list(pair)].all(0).sum())
        assert_binomial(count, n=units, p=1 / len(subsets), false_alarm=FALSE_ALARM / len(subsets))


def test_blocks_and_units_are_independent() -> None:
    """Of a unit in two blocks, and of two units in two passes of a block, drops coincide by chance."""
    units, p = 200_000, 0.3
    drops = dropped(p, units, range(2 * BLOCK))
    cases = [drops[i] & drops[BLOCK + j] for i in (0, 4, 9) for j in (0, 4, 9)]
    cases += [(drops[i, :-1] & drops[j, 1:])[::2] for i in (0, 4, 9) for j in (1, 5, 8)]
    for both in cases:
        assert_binomial(int(both.sum()), n=len(both), p=p * p, false_alarm=FALSE_ALARM / len(cases))


# ---- copies of a small network in one pass: each is a draw of its own


class Copies(nn.Module):
    """A network of two dropout layers, `copies` times side by side: (batch, 4) to (batch, copies).

    All copies share their weights and none its masks, so that one run is many runs of the network.
    """

    def __init__(self, copies: int, rates: tuple[float, float] = (0.3, 0.25)) -> None:
        super().__init__()
        self.copies = copies
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            self.first, self.second, self.third = nn.Linear(4, 5), nn.Linear(5, 6), nn.Linear(6, 1)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.mul_(2)
        self.drops = nn.ModuleList(map(nn.Dropout, rates))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x)).unsqueeze(1).expand(-1, self.copies, -1)
        hidden = torch.relu(self.second(self.drops[0](hidden)))
        return self.third(self.drops[1](hidden)).squeeze(-1)


ROW = torch.tensor([[0.5, -1.0, 2.0, 0.25]])
COPIES = 20_000


@pytest.fixture(scope="module")
def truth() -> Enumeration:
    return enumerate_masks(Copies(1).double().eval(), ROW.double())


@pytest.fixture(scope="module")
def mc() -> MCDropout:
    return MCDropout(Copies(COPIES).eval(), ROW, task="raw", masks="balanced", num_samples=BLOCK)


def test_each_pass_has_the_law_of_the_network(mc: MCDropout, truth: Enumeration) -> None:
    """Mean and square of the output over the masks of one pass, against all 2048 masks; the band is Bernstein's."""
    for outputs in mc.sample(ROW)[:, 0].double():
        for got, values in ((outputs, truth.outputs), (outputs.square(), truth.outputs.square())):
            exact = truth.mean(values)
            largest = (values - exact).abs().amax(0)
            band = bernstein_band(truth.variance(values), largest, COPIES, FALSE_ALARM / 2 / BLOCK)
            assert abs(float(got.mean() - exact)) <= float(band) + 1e-5


def zscore(values: Tensor, exact: float) -> float:
    """How many of its standard errors the mean of independent values lies from what it should be."""
    return float((values.double().mean() - exact) / values.double().std() * math.sqrt(values.numel()))


MOST = norm.isf(FALSE_ALARM / 2)  # of a standard normal number


@pytest.mark.parametrize(("count", "excess"), [(20, 0), (24, 0.25), (50, 0), (64, 0.25)])
def test_means_variances_and_their_standard_errors_are_unbiased(
    mc: MCDropout, truth: Enumeration, count: int, excess: float
) -> None:
    """Over 20,000 independent runs; the formulas for independent passes would be seen to be wrong.

    Squared standard errors are compared with the squared errors of the mean that the runs show. Where the last block is
    not whole they may be up to 25 % too large.
    """
    exact, spread = float(truth.mean(truth.outputs)), float(truth.variance(truth.outputs))
    found = mc(ROW, num_samples=count, standard_errors=True)
    errors = (found.mean.double() - exact).square()
    said = found.standard_errors["mean"].double().square()
    assert abs(zscore(found.mean, exact)) <= MOST
    assert abs(zscore(found.variance, spread)) <= MOST
    assert zscore(errors - said, 0) <= MOST
    assert zscore(errors - said / (1 + excess), 0) >= -MOST
    ordinary = mc.sample(ROW, num_samples=count)[:, 0].double().var(0)
    assert zscore(ordinary, spread) > MOST
    assert zscore(errors - ordinary / count, 0) < -MOST


def test_the_standard_error_of_a_variance_is_what_repetition_shows(mc: MCDropout) -> None:
    """Its root mean square over 20,000 runs is within 5 % of the standard deviation of the variances."""
    found = mc(ROW, num_samples=200, standard_errors=True)
    said = found.standard_errors["variance"].double().square().mean().sqrt()
    assert float(said / found.variance.double().std()) == pytest.approx(1, abs=0.05)


def test_balanced_masks_have_smaller_errors_than_shared_ones(mc: MCDropout, truth: Enumeration) -> None:
    exact = truth.mean(truth.outputs)
    errors = [(mc(ROW, num_samples=40, masks=masks).mean - exact).square().mean() for masks in ("shared", "balanced")]
    assert errors[0] > 2 * errors[1]


# ---- predictions


def test_the_mean_of_an_output_that_is_linear_in_the_masks_is_exact() -> None:
    """Whole blocks and p n whole: w.x itself, while the variance is p / (1 - p) sum w_j**2 x_j**2 on average."""
    layer = nn.Linear(4, 1, bias=False)
    layer.weight = nn.Parameter(torch.tensor([[1.0, -2.0, 0.5, 3.0]]))
    row = torch.tensor([[2.0, 1.0, 4.0, 0.5]])
    mc = MCDropout(nn.Sequential(nn.Dropout(0.3), layer).eval(), row, task="regression", masks="balanced")
    for count in (BLOCK, 2 * BLOCK, 7 * BLOCK):
        for seed in range(5):
            found = mc(row, num_samples=count, seed=seed)
            torch.testing.assert_close(found.mean, torch.tensor([[3.5]]), rtol=1e-6, atol=1e-6)
    assert float(mc(row, num_samples=7 * BLOCK, standard_errors=True).standard_errors["mean"]) < 1e-6
    assert float((mc(row, num_samples=BLOCK, masks="shared").mean - 3.5).abs()) > 1e-3
    assert float(mc(row, num_samples=20_000).variance) == pytest.approx(6.1071, rel=0.05)


def network(*middle: nn.Module) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), *middle, nn.Linear(16, 3)).eval()


X = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))


def test_the_masks_of_a_prediction_are_those_of_the_definition() -> None:
    """Seen through dropout of ones; every row has the same."""
    for engine in ("graph", "eager"):
        mc = MCDropout(nn.Sequential(nn.Dropout(0.25)).eval(), torch.ones(2, 6), task="raw", engine=engine)
        seen = mc.sample(torch.ones(3, 6), num_samples=25, seed=4, masks="balanced") != 0
        kept = balanced_mask(p=0.25, shape=(1, 6), seed=4, site=0, passes=range(25))
        assert torch.equal(seen, kept.expand(25, 3, 6)), engine


def test_shared_and_balanced_masks_of_one_seed_are_kept_apart() -> None:
    mc = MCDropout(nn.Sequential(nn.Dropout(0.5)).eval(), torch.ones(2, 40), task="raw")
    for masks, make in (("shared", keep_mask), ("balanced", balanced_mask), ("shared", keep_mask)) * 2:
        seen = mc.sample(torch.ones(1, 40), num_samples=30, masks=masks) != 0
        assert torch.equal(seen, make(p=0.5, shape=(1, 40), seed=0, site=0, passes=range(30)))


def test_sites_that_are_no_masks_stay_as_they_are() -> None:
    mc = MCDropout(network(GaussianDropout(0.2)), X, task="raw")
    assert torch.equal(mc.sample(X, num_samples=20, masks="balanced"), mc.sample(X, num_samples=20, masks="shared"))


def test_balanced_is_a_setting_like_the_others(tmp_path) -> None:
    mc = MCDropout(network(nn.Dropout(0.3)), X, task="classification", masks="balanced", num_samples=30)
    assert (mc.masks, block_length(mc.masks), block_length("shared"), block_length("independent")) == (
        "balanced",
        10,
        1,
        1,
    )
    mc.save(tmp_path / "model")
    twin = MCDropout.load(tmp_path / "model")
    assert twin.masks == "balanced"
    torch.testing.assert_close(twin(X).mean, mc(X, masks="balanced").mean)
    assert not torch.allclose(mc(X).mean, mc(X, masks="shared").mean)
    with pytest.raises(SettingError, match=r"masks is 'even'; choose 'shared'.*'independent'.*'balanced'"):
        mc(X, masks="even")


def test_standard_errors_take_more_than_one_block() -> None:
    mc = MCDropout(network(nn.Dropout(0.3)), X, task="classification", masks="balanced")
    for count in (2, BLOCK):
        assert mc(X, num_samples=count).num_samples == count
        with pytest.raises(SettingError, match=r"blocks of 10 passes.*at least 20.*masks='shared'"):
            mc(X, num_samples=count, standard_errors=True)
    for estimate in mc.stream(X, num_samples=15, every=5, standard_errors=True):
        known = {name: bool(error.isfinite().all()) for name, error in estimate.standard_errors.items()}
        assert set(known.values()) == {estimate.num_samples > BLOCK}


def test_the_mutual_information_is_corrected_by_the_error_that_the_mean_has() -> None:
    mc = MCDropout(network(nn.Dropout(0.3)), X, task="classification", masks="balanced")
    found: Prediction = mc(X, num_samples=40, standard_errors=True)
    error = found.standard_errors["mean"].double().square() - 1 / 40**2
    bias = (error / found.mean.double()).sum(-1) / 2
    torch.testing.assert_close(
        (found.mutual_information - found.mutual_information_plugin).double(), bias, rtol=1e-3, atol=1e-7
    )
    assert bool((bias < (found.variance / found.mean).double().sum(-1) / 80).all())


def test_rows_are_told_apart_by_nothing_but_their_values() -> None:
    mc = MCDropout(network(nn.Dropout(0.3)), X, task="classification", masks="balanced", num_samples=30)
    torch.testing.assert_close(mc(X[2:3]).mean, mc(X).mean[2:3])
    assert mc(X[2:3]).error_of_mean.shape == (1, 3)
    assert mc(X)[1:3].error_of_mean.shape == (2, 3)


def test_thinned_passes_take_the_weights_of_their_own_masks() -> None:
    """What is kept for a pass of shared masks is of no use to the same pass of balanced ones."""
    layers = nn.Linear(32, 256), nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, 256), nn.ReLU(), nn.Dropout(0.5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x = nn.Sequential(*layers, nn.Linear(256, 3)).eval(), torch.randn(64, 32)
    thinned, plain = (MCDropout(model, x[:2], task="raw", thinned=flag, num_samples=20) for flag in (True, False))
    assert thinned.cost["thinned_from_rows"] <= len(x)
    for masks in ("shared", "balanced", "balanced", "shared", "shared", "balanced"):
        torch.testing.assert_close(thinned(x, masks=masks).mean, plain(x, masks=masks).mean, rtol=1e-4, atol=1e-5)


def test_a_tolerance_holds_with_room_to_spare_and_is_not_certified() -> None:
    mc = MCDropout(network(nn.Dropout(0.3)), X, task="classification", masks="balanced", num_samples=2000)
    found = mc(X, tolerance=0.03, standard_errors=True)
    assert len(set(found.passes.tolist())) > 1
    assert bool((1.96 * found.standard_errors["mean"] <= 0.03 + 1e-6).all())
    for row, count in enumerate(found.passes.tolist()):
        alone = mc(X[row : row + 1], num_samples=count, standard_errors=True)
        one = found[row : row + 1]
        for name in ("mean", "variance", "mutual_information", "error_of_mean"):
            torch.testing.assert_close(getattr(one, name), getattr(alone, name), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(one.standard_errors, alone.standard_errors, rtol=1e-3, atol=1e-5)
    for rule in ({"tolerance": 0.1, "certified": True}, {"until": "label"}):
        with pytest.raises(SettingError, match="masks='balanced' makes passes depend on one another"):
            mc(X, **rule)
