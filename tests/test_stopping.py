"""Rules to stop by: where they look and how often they are wrong; confidence sequences against slow, obvious truths."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from torch import Tensor

import oracles
from benchmarks.jumps import coverage_of_jumps
from bounds import FALSE_ALARM, assert_binomial, hoeffding_band
from mcdrop.outputs.tasks import Task
from mcdrop.prediction import Prediction
from mcdrop.streaming.adaptive import AdaptiveSink
from mcdrop.streaming.moments import accumulator
from mcdrop.streaming.sequences import ConfidenceSequence
from mcdrop.streaming.stopping import Rule, looks

# ---- looks


def test_looks_of_a_thousand_passes() -> None:
    first = (16, 32, 48, 64, 80, 112, 144, 192, 240, 304, 384, 480, 608, 768, 960)
    assert looks(1000) == (*first, 1000)


@pytest.mark.parametrize("maximum", [1, 2, 15, 16, 17, 100, 128, 144, 145, 10**6])
def test_looks_are_those_of_the_oracle(maximum: int) -> None:
    found = looks(maximum)
    assert list(found) == oracles.looks(maximum)
    assert found[-1] == maximum
    assert all(count % 16 == 0 for count in found[:-1])


@pytest.mark.parametrize(
    ("rule", "least", "first"),
    [
        (Rule(1000, tolerance=0.02), 150, 160),
        (Rule(1000, tolerance=0.5), 6, 16),
        (Rule(155, tolerance=0.02), 150, 155),
        (Rule(1000, tolerance=0.02, certified=True), 369, 384),
        (Rule(1000, tolerance=5.0, task="regression"), 64, 64),
        (Rule(1000, until="label"), 32, 16),  # 16 to choose the candidate
        (Rule(1000, until="label", task="binary"), 16, 16),
    ],
)
def test_no_row_can_stop_before_the_first_look(rule: Rule, least: int, first: int) -> None:
    assert (rule.least, rule.looks[0], rule.looks[-1]) == (least, first, rule.maximum)
    assert all(count % 16 == 0 for count in rule.looks[:-1])


def test_looks_of_a_tolerance_and_of_sequences() -> None:
    eighths = (160, 192, 224, 256, 288, 336, 384, 432, 496, 560, 640, 720, 816, 928, 1000)
    assert Rule(1000, tolerance=0.02).looks == eighths
    assert Rule(1000, tolerance=0.02, certified=True).looks == (384, 480, 608, 768, 960, 1000)
    assert Rule(100, until="label").looks == (16, 32, 48, 64, 80, 100)


# ---- sequences


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.sampled_from([0.5, 0.05, 0.001]), st.integers(1, 40))
def test_a_sequence_is_the_papers_in_any_chunks(values: list[float], level: float, chunk: int) -> None:
    sequence = ConfidenceSequence(level)
    for part in torch.tensor(values, dtype=torch.float64)[:, None].split(chunk):
        sequence.add(part)
    lower = oracles.lower_bound(values, level)
    upper = 1 - oracles.lower_bound([1 - x for x in values], level)
    assert math.isclose((sequence.center - sequence.radius).item(), lower, rel_tol=1e-9, abs_tol=1e-9)
    assert math.isclose((sequence.center + sequence.radius).item(), upper, rel_tol=1e-9, abs_tol=1e-9)
    assert math.isclose(sequence.mean.item(), sum(values) / len(values), abs_tol=1e-12)


def test_a_long_sequence_is_the_papers() -> None:
    """Long enough for weights below their bound of 1/2."""
    values = torch.rand(120, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4)).pow(4)
    sequence = ConfidenceSequence(0.025)
    for part in values.split(50):
        sequence.add(part)
    expected = [oracles.lower_bound(x, 0.025) for x in values.T.tolist()]
    torch.testing.assert_close(sequence.center - sequence.radius, torch.tensor(expected, dtype=torch.float64))


def test_a_sequence_begins_anew_at_half_its_level_and_keeps_rows() -> None:
    values = torch.rand(30, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sequence = ConfidenceSequence(0.1)
    sequence.add(values[:10])
    sequence.restart(torch.tensor([[False, True], [False, False], [True, False]]))
    assert sequence.radius[0, 1] == math.inf
    sequence.add(values[10:20])
    sequence.keep(torch.tensor([0, 2]))
    sequence.add(values[20:, [0, 2]])
    lower = sequence.center - sequence.radius
    expected = [
        [oracles.lower_bound(values[:, 0, 0].tolist(), 0.1), oracles.lower_bound(values[10:, 0, 1].tolist(), 0.05)],
        [oracles.lower_bound(values[10:, 2, 0].tolist(), 0.05), oracles.lower_bound(values[:, 2, 1].tolist(), 0.1)],
    ]
    torch.testing.assert_close(lower, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("p", [0.5, 0.05, 0.002])
def test_a_sequence_is_rarely_wrong_anywhere(p: float) -> None:
    """Watched after every pass. A rate of 0.1 instead of 0.05 would be seen; right code fails once in a million."""
    rows, level = 2000, 0.05
    values = torch.bernoulli(
        torch.full((500, rows), p, dtype=torch.float64), generator=torch.Generator().manual_seed(1)
    )
    sequence, wrong = ConfidenceSequence(level), torch.zeros(rows, dtype=torch.bool)
    for each in values:
        sequence.add(each[None])
        wrong |= sequence.center - sequence.radius > p
    assert int(wrong.sum()) <= binom.isf(FALSE_ALARM, rows, level)


# ---- simulations of the rules: each row of a sink is a repetition

Draw = Callable[[np.random.Generator, int, int], np.ndarray]  # passes, rows -> (passes, rows, ...)


def stopped(rule: Rule, task: Task, draw: Draw, *, rows: int, seed: int = 0) -> Prediction:
    """The prediction for rows whose passes are drawn independently."""
    rng, sink, done, here = np.random.default_rng(seed), None, 0, torch.arange(rows)
    for look in rule.looks:
        outputs = torch.from_numpy(draw(rng, look - done, rows))[:, here]
        sink = sink or AdaptiveSink(rule, accumulator(task, num_samples=rule.maximum))
        sink.update((outputs,), range(done, look))
        stay, done = sink.leave(), look
        here = here if stay is None else here[stay]
        if not len(here):
            break
    assert sink is not None
    return sink.prediction(seed=0)


def bernoulli(p: float, low: float = 0.0, high: float = 1.0) -> Draw:
    return lambda rng, passes, rows: np.where(rng.random((passes, rows)) < p, high, low)


def beta(a: float, b: float) -> Draw:
    return lambda rng, passes, rows: rng.beta(a, b, (passes, rows))


OF_PROBABILITIES = [
    pytest.param(bernoulli(0.05), 0.05, id="5 % jumps"),
    pytest.param(bernoulli(0.01), 0.01, id="1 % jumps"),
    pytest.param(bernoulli(0.05, 0.02, 0.9), 0.02 + 0.05 * 0.88, id="5 % jumps to 0.9"),
    pytest.param(bernoulli(0.3), 0.3, id="votes"),
    pytest.param(beta(0.3, 2.7), 0.1, id="skewed"),
    pytest.param(beta(8, 2), 0.8, id="spread"),
]
ROWS = 8000


@pytest.mark.parametrize("tolerance", [0.02, 0.03, 0.05, 0.1])
@pytest.mark.parametrize(("draw", "truth"), OF_PROBABILITIES)
def test_the_mean_is_as_near_as_the_tolerance_says(draw: Draw, truth: float, tolerance: float) -> None:
    """At least 0.94 of the repetitions; code with 0.953 would fail less than once in a million."""
    task, rule = Task("binary", output_kind="probs"), Rule(20000, tolerance=tolerance, task="binary")
    prediction = stopped(rule, task, draw, rows=ROWS)
    assert bool(prediction.converged.all())
    near = int(((prediction.mean - truth).abs() <= tolerance).sum())
    assert binom.cdf(0.94 * ROWS, ROWS, 0.953) < FALSE_ALARM
    assert near >= 0.94 * ROWS, near / ROWS


@pytest.mark.parametrize("tolerance", [0.02, 0.03, 0.05, 0.1, 0.25])
def test_votes_are_within_the_tolerance_in_95_percent_however_rare(tolerance: float) -> None:
    """Exact, not drawn. Of rarer jumps than the tolerance even none is near; the hardest are a little more frequent."""
    rare, frequent = np.linspace(0.05, 1, 20), np.linspace(1.001, 3, 60)
    coverage, _ = coverage_of_jumps(tolerance, [*tolerance * rare, *tolerance * frequent])
    assert coverage[:20].min() >= 0.99
    assert coverage[20:].min() >= 0.95


@pytest.mark.parametrize("p", [0.06, 0.2])
def test_the_exact_coverage_of_jumps_is_that_of_repetitions(p: float) -> None:
    """Another coverage by 0.02 would be seen; right code fails twice in a million."""
    rule = Rule(20000, tolerance=0.05, task="binary")
    prediction = stopped(rule, Task("binary", output_kind="probs"), bernoulli(p), rows=ROWS)
    coverage, passes = coverage_of_jumps(0.05, [p])
    near = int(((prediction.mean - p).abs() <= 0.05).sum())
    assert_binomial(near, n=ROWS, p=float(coverage[0]))
    band = hoeffding_band(600, ROWS)  # rows take at least 64 passes, and at most 2.3^2 / 4 / 0.05^2 and an eighth
    assert abs(float(prediction.passes.double().mean()) - float(passes[0])) <= band


@pytest.mark.parametrize("p", [0.05, 0.2])
def test_jumps_of_values_are_seen(p: float) -> None:
    """A regression that jumps by 10 in few passes and is still otherwise."""

    def draw(rng: np.random.Generator, passes: int, rows: int) -> np.ndarray:
        return np.where(rng.random((passes, rows, 1)) < p, 10.0, 0.0) + 0.1 * rng.standard_normal((passes, rows, 1))

    rule = Rule(20000, tolerance=0.5, task="regression")
    prediction = stopped(rule, Task("regression"), draw, rows=2000)
    near = int(((prediction.mean - 10 * p).abs() <= 0.5).sum())
    assert near >= 0.93 * 2000, near / 2000


@pytest.mark.parametrize(("draw", "truth"), OF_PROBABILITIES)
def test_a_certified_tolerance_is_hardly_ever_missed(draw: Draw, truth: float) -> None:
    task, rule, rows = (
        Task("binary", output_kind="probs"),
        Rule(6000, tolerance=0.05, certified=True, task="binary"),
        500,
    )
    prediction = stopped(rule, task, draw, rows=rows)
    assert bool(prediction.converged.all())
    missed = int(((prediction.mean - truth).abs() > 0.05).sum())
    assert missed <= binom.isf(FALSE_ALARM, rows, 0.05)


def test_a_certified_mean_is_near_both_bounds_also_where_it_is_not_in_their_middle() -> None:
    """Later passes weigh less in a sequence than in the mean: here some are 0.1 and all later ones 0.9."""
    half, tolerance = 48, 0.1
    path = [0.1] * half + [0.9] * 3000

    def draw(rng: np.random.Generator, passes: int, rows: int) -> np.ndarray:
        begin = seen[0]
        seen[0] += passes
        return np.tile(np.array(path[begin : begin + passes])[:, None], (1, rows))

    def is_near(x: list[float]) -> bool:
        lower, upper = oracles.lower_bound(x, 0.025), 1 - oracles.lower_bound([1 - value for value in x], 0.025)
        return sum(x) / len(x) - lower <= tolerance and upper - sum(x) / len(x) <= tolerance

    seen, rule = [0], Rule(3000, tolerance=tolerance, certified=True, task="binary")
    found = stopped(rule, Task("binary", output_kind="probs"), draw, rows=1)
    assert found.passes.item() == next(n for n in oracles.looks(3000) if n >= 74 and is_near(path[:n]))


@pytest.mark.parametrize("gap", [0.3, 0.1, 0.0])
def test_a_settled_label_is_rarely_wrong(gap: float) -> None:
    """Three classes, of which the first leads the second by `gap`; with 0 each settled label counts as wrong."""
    alpha = 3 * np.array([0.4 + gap / 2, 0.4 - gap / 2, 0.2])

    def draw(rng: np.random.Generator, passes: int, rows: int) -> np.ndarray:
        return rng.dirichlet(alpha, (passes, rows))

    task, rule, rows = Task("classification", output_kind="probs"), Rule(1500, until="label"), 2000
    prediction = stopped(rule, task, draw, rows=rows)
    wrong = prediction.converged & ((prediction.label != 0) | (gap == 0))
    assert int(wrong.sum()) <= binom.isf(FALSE_ALARM, rows, 0.05)
    assert gap == 0 or bool(prediction.converged.all())


@pytest.mark.parametrize("p", [0.6, 0.45, 0.5])
def test_a_settled_side_is_rarely_wrong(p: float) -> None:
    task, rule, rows = Task("binary", output_kind="probs"), Rule(3000, until="label", task="binary"), 2000
    prediction = stopped(rule, task, bernoulli(p), rows=rows)
    wrong = prediction.converged & (prediction.label != int(p >= 0.5))
    assert int(wrong.sum()) <= binom.isf(FALSE_ALARM, rows, 0.05)


def test_a_label_that_another_class_overtakes_is_settled_later() -> None:
    """The first passes say 0, all others 1: the candidate changes, and what it is settled on began with the change."""
    draws: list[int] = []

    def draw(rng: np.random.Generator, passes: int, rows: int) -> np.ndarray:
        draws.append(passes)
        return np.tile([0.95, 0.05] if len(draws) == 1 else [0.1, 0.9], (passes, rows, 1))

    prediction = stopped(Rule(1000, until="label"), Task("classification", output_kind="probs"), draw, rows=1)
    assert (prediction.label.item(), prediction.converged.item()) == (1, True)
    # at 32 class 0 still leads; at 48 class 1 leads and its sequence begins, at level 0.0125
    differences = [(1 + 0.8) / 2]
    settled = next(
        n for n in oracles.looks(1000) if n > 48 and oracles.lower_bound(differences * (n - 48), 0.0125) > 0.5
    )
    assert prediction.passes.item() == settled


def test_spread_of_values_is_that_of_each_number() -> None:
    """One number with a large range does not stop another row, or a row whose numbers are all still."""
    rng = np.random.default_rng(0)
    wide: Tensor = torch.from_numpy(rng.uniform(-5, 5, (64, 1, 2)))
    still = torch.full((64, 1, 2), 3.0, dtype=torch.float64)
    sink = AdaptiveSink(Rule(256, tolerance=0.1, task="raw"), accumulator(Task("raw"), num_samples=256))
    sink.update((torch.cat([wide, still], 1),), range(64))
    stay = sink.leave()
    assert stay is not None
    assert stay.tolist() == [0]
