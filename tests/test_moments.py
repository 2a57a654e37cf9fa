"""Streaming statistics against naive float64 loops, in any chunks, and their standard errors against repetition."""

import copy
import gc
import math
import pickle
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from mcdrop.errors import SettingError
from mcdrop.outputs.fields import FIELDS
from mcdrop.outputs.tasks import Task
from mcdrop.prediction import Prediction
from mcdrop.streaming import accumulator as accumulator_module
from mcdrop.streaming.moments import Accumulator, accumulator

LABELS = ("label", "votes")


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def feed(
    task: Task, outputs: Tensor | tuple[Tensor, ...], chunks: Sequence[range] | None = None, **settings: Any
) -> Accumulator:
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    count = len(outputs[0])
    sums = accumulator(task, num_samples=count, **settings)
    for passes in chunks or [range(count)]:
        sums.update(tuple(output[passes.start : passes.stop : passes.step] for output in outputs), passes)
    return sums


def predict(
    task: Task, outputs: Tensor | tuple[Tensor, ...], chunks: Sequence[range] | None = None, **settings: Any
) -> Any:
    return feed(task, outputs, chunks, **settings).prediction(seed=3)


def pieces(count: int, size: int) -> list[range]:
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def numbers(prediction: Prediction) -> dict[str, Tensor]:
    """Every number of a prediction, standard errors and quantiles too."""
    found = {name: getattr(prediction, name) for name in prediction.fields}
    found |= {f"standard error of {name}": error for name, error in (prediction.standard_errors or {}).items()}
    return found if prediction.quantiles is None else {**found, "quantiles": prediction.quantiles}


def _named(name: str) -> Callable[[str], str]:
    return lambda text: f"{name}: {text}"


def assert_same(got: Prediction, want: Prediction, rtol: float = 1e-6, atol: float = 1e-6) -> None:
    assert numbers(got).keys() == numbers(want).keys()
    for name, value in numbers(want).items():
        torch.testing.assert_close(numbers(got)[name], value, rtol=rtol, atol=atol, msg=_named(name))


def classes_last(output: Tensor, axis: int) -> np.ndarray:
    """(samples, distributions, classes) in float64."""
    moved = output.double().movedim(axis, -1)
    return moved.reshape(len(output), -1, moved.shape[-1]).numpy()


def naive_entropy(probs: Any) -> float:
    return -sum(float(p) * math.log(float(p)) for p in probs if p > 0)


def naive_distributions(passes: np.ndarray) -> dict[str, list[Any]]:
    """Each field from (samples, distributions, classes) of probabilities, distribution by distribution."""
    count, _, classes = passes.shape
    answer: dict[str, list[Any]] = {}
    for row in passes.transpose(1, 0, 2):
        mean, variance = row.mean(axis=0), row.var(axis=0, ddof=1)
        total, expected = naive_entropy(mean), sum(map(naive_entropy, row)) / count
        bias = sum(s / p for s, p in zip(variance, mean, strict=True) if p > 0) / (2 * count)
        votes = [int(one.argmax()) for one in row]
        shares = [votes.count(c) / count for c in range(classes)]
        values = {
            "mean": mean.tolist(),
            "variance": variance.tolist(),
            "std": np.sqrt(variance).tolist(),
            "entropy": total,
            "expected_entropy": expected,
            "mutual_information_plugin": total - expected,
            "mutual_information": min(max(total - expected + bias, 0), math.log(classes)),
            "vote_shares": shares,
            "variation_ratio": 1 - max(shares),
            "label": int(mean.argmax()),
            "confidence": mean.max(),
        }
        for name, value in values.items():
            answer.setdefault(name, []).append(value)
    return answer


# ---- every task against its naive loop


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((5, 4), -1), ((5, 4), 1), ((2, 3, 6), 1), ((2, 3, 4, 5), 1), ((2, 3, 4, 5), -1), ((2, 3, 4), 2)],
)
@pytest.mark.parametrize("kind", ["logits", "probs"])
def test_classification_is_the_naive_loop_in_the_layout_of_the_model(
    shape: tuple[int, ...], axis: int, kind: str
) -> None:
    logits = draw(11, *shape) * 2
    along = axis + 1 if axis > 0 else axis
    probs = logits.softmax(dim=along)
    got = predict(
        Task("classification", output_kind=kind, class_axis=axis),
        logits if kind == "logits" else probs,
    )
    want = naive_distributions(classes_last(logits.double().softmax(dim=along), along))
    assert tuple(got.fields) == tuple(FIELDS["classification"])
    positions = list(shape)
    del positions[axis]
    for name in got.fields:
        values = getattr(got, name)
        if name in ("mean", "variance", "std", "vote_shares"):
            assert tuple(values.shape) == shape
            values = values.movedim(axis, -1).reshape(-1, shape[axis])
        else:
            assert tuple(values.shape) == tuple(positions)
            values = values.reshape(-1)
        np.testing.assert_allclose(values.numpy(), want[name], rtol=2e-5, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("name", ["binary", "multilabel"])
@pytest.mark.parametrize("kind", ["logits", "probs"])
@pytest.mark.parametrize("shape", [(5,), (5, 1), (3, 4), (2, 1, 3, 4)])
def test_yes_or_no_is_the_naive_loop_over_two_classes(name: str, kind: str, shape: tuple[int, ...]) -> None:
    logits = draw(9, *shape) * 2
    yes = logits.double().sigmoid()
    got = predict(Task(name, output_kind=kind), logits if kind == "logits" else logits.sigmoid())
    want = naive_distributions(torch.stack((1 - yes, yes), dim=-1).reshape(9, -1, 2).numpy())
    for field in FIELDS[name]:
        values = getattr(got, field)
        assert tuple(values.shape) == shape
        expected = np.asarray(want[field], dtype=np.float64)
        expected = expected[:, 1] if expected.ndim == 2 else expected
        np.testing.assert_allclose(values.reshape(-1).numpy(), expected, rtol=2e-5, atol=2e-6, err_msg=field)


@pytest.mark.parametrize("shape", [(4,), (4, 1), (2, 3, 5)])
@pytest.mark.parametrize("noise", [None, 0.5, "per element"])
def test_regression_adds_the_noise_to_the_spread(shape: tuple[int, ...], noise: Any) -> None:
    outputs = draw(12, *shape)
    given_noise = torch.linspace(0.1, 2, shape[-1]) if noise == "per element" and len(shape) > 1 else noise
    given_noise = 0.25 if given_noise == "per element" and len(shape) == 1 else given_noise
    got = predict(Task("regression", noise_variance=given_noise), outputs)
    values = outputs.double()
    spread = values.var(dim=0)
    aleatoric = torch.zeros(shape).double() + (0 if given_noise is None else given_noise)
    torch.testing.assert_close(got.mean, values.mean(dim=0).float())
    torch.testing.assert_close(got.epistemic_variance, spread.float())
    torch.testing.assert_close(got.aleatoric_variance, aleatoric.float())
    torch.testing.assert_close(got.variance, (spread + aleatoric).float())
    torch.testing.assert_close(got.std, got.variance.sqrt())
    entropies = stats.norm(scale=(spread + aleatoric).sqrt().numpy()).entropy()
    np.testing.assert_allclose(got.entropy.numpy(), entropies, rtol=1e-5)


@pytest.mark.parametrize("as_pair", [True, False])
def test_heteroscedastic_adds_the_mean_of_the_predicted_variances(as_pair: bool) -> None:
    means, log_variances = draw(10, 4, 3), draw(10, 4, 3, seed=1)
    outputs = (means, log_variances) if as_pair else torch.stack((means, log_variances), dim=-1)
    got = predict(Task("heteroscedastic"), outputs, samples=True)
    aleatoric = log_variances.double().exp().mean(dim=0)
    torch.testing.assert_close(got.mean, means.double().mean(dim=0).float())
    torch.testing.assert_close(got.aleatoric_variance, aleatoric.float())
    torch.testing.assert_close(got.variance, (means.double().var(dim=0) + aleatoric).float())
    kept = got.samples if as_pair else (got.samples,)
    for mine, theirs in zip(kept, outputs if as_pair else (outputs,), strict=True):
        assert torch.equal(mine, theirs)


def test_a_predicted_variance_beyond_float32_is_infinite_and_not_nan() -> None:
    outputs = torch.stack((draw(10, 4), torch.full((10, 4), 95.0)), dim=-1)
    got = predict(Task("heteroscedastic"), outputs)
    assert got.aleatoric_variance.tolist() == got.variance.tolist() == [math.inf] * 4
    assert got.epistemic_variance.isfinite().all()


def test_passes_at_0_and_10_with_sigma_1_have_a_deviation_of_5_10_not_1() -> None:
    """Kendall & Gal: variances are averaged, never parameters. (5.10 is with ddof 0; two passes have sqrt(51).)"""
    means = torch.tensor([0.0, 10.0]).repeat(5000).view(-1, 1)
    got = predict(Task("heteroscedastic"), (means, torch.zeros_like(means)))
    assert got.std.item() == pytest.approx(math.sqrt(26), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool])
def test_raw_outputs_of_any_kind_have_mean_and_variance(dtype: torch.dtype) -> None:
    outputs = (draw(8, 3, 2) * 3).to(dtype)
    got = predict(Task("raw"), outputs)
    torch.testing.assert_close(got.mean, outputs.double().mean(dim=0).float())
    torch.testing.assert_close(got.variance, outputs.double().var(dim=0).float())


# ---- hard numbers


@pytest.mark.parametrize("size", [1, 7, 200])
def test_ten_thousand_plus_or_minus_a_hundredth_keeps_its_deviation(size: int) -> None:
    outputs = 1e4 + 0.01 * draw(200, 50)
    got = predict(Task("regression"), outputs, pieces(200, size))
    assert (got.std.double() / outputs.double().std(dim=0) - 1).abs().max() < 1e-6  # float32's rounding is in the data
    assert got.std.mean().item() == pytest.approx(0.01, rel=0.05)


def test_a_first_pass_far_out_does_not_spoil_the_variance() -> None:
    outputs = draw(100, 20)
    outputs[0] += 1000
    torch.testing.assert_close(predict(Task("raw"), outputs).variance, outputs.double().var(dim=0).float())


TASKS: dict[str, tuple[Task, tuple[int, ...]]] = {
    "classification": (Task("classification"), (3, 4)),
    "segmentation": (Task("classification", class_axis=1), (2, 4, 3, 2)),
    "binary": (Task("binary"), (3, 1)),
    "multilabel": (Task("multilabel"), (3, 5)),
    "regression": (Task("regression", noise_variance=0.3), (3, 2)),
    "heteroscedastic": (Task("heteroscedastic"), (3, 2)),
    "raw": (Task("raw"), (3, 2, 2)),
}
each_task = pytest.mark.parametrize(("task", "shape"), TASKS.values(), ids=TASKS)


@each_task
@pytest.mark.parametrize("count", [2, 3, 7, 100])
def test_equal_passes_have_no_variance_no_mutual_information_and_no_nan(
    task: Task, shape: tuple[int, ...], count: int
) -> None:
    outputs = draw(1, *shape).expand(count, *shape) * 3
    got = predict(task, outputs, pieces(count, 2), standard_errors=True)
    for name, values in numbers(got).items():
        assert not values.isnan().any(), name
    for name in ("mutual_information", "mutual_information_plugin", "variation_ratio", "epistemic_variance"):
        assert torch.as_tensor(getattr(got, name, 0)).eq(0).all(), name
    if task.name in ("classification", "binary", "multilabel"):
        assert got.variance.eq(0).all()
        assert got.expected_entropy.equal(got.entropy)
        assert got.standard_errors["mean"].min() > 0  # 0 by luck is never reported for a probability


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("classes", [2, 7, 8, 15, 16, 17])
def test_few_classes_or_many_in_rows_of_any_number(classes: int, dtype: torch.dtype) -> None:
    """Those that do not fill a vector register are computed in another order than those that do."""
    for rows in (1, 7, 33):
        logits = 4 * draw(6, rows, classes, dtype=dtype)
        got, equal = predict(Task("classification"), logits), logits[:1].expand(6, -1, -1)
        assert got.mean.is_contiguous()
        torch.testing.assert_close(got.mean, logits.double().softmax(-1).mean(0).to(dtype))
        assert predict(Task("classification"), equal).variance.eq(0).all()


@pytest.mark.parametrize("settings", [{}, {"standard_errors": True}, {"samples": True, "quantiles": (0.1, 0.9)}])
@pytest.mark.parametrize("classes", [3, 20])
def test_outputs_whose_rows_stand_side_by_side_give_the_same(classes: int, settings: dict[str, Any]) -> None:
    logits = 4 * draw(40, 600, classes)  # more than one block for 20 classes
    turned = logits.mT.contiguous().mT
    for chunks in (None, pieces(40, 7)):
        got, truth = (numbers(predict(Task("classification"), each, chunks, **settings)) for each in (turned, logits))
        for name, value in truth.items():
            torch.testing.assert_close(got[name], value, rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize("turned", [False, True])
def test_every_pass_votes_once(turned: bool) -> None:
    """Where two are highest, or none is a number, for the first: together they look like one vote each."""
    logits = draw(30, 50, 4)
    logits[3, 5] = torch.tensor([0.1, 0.4, 0.1, 0.4])
    logits[4, 5] = math.nan
    truth = torch.stack([torch.bincount(row, minlength=4) for row in logits.max(dim=-1).indices.T])
    votes = predict(Task("classification"), logits.mT.contiguous().mT if turned else logits).votes
    assert torch.equal(votes.long(), truth)


@pytest.mark.parametrize(("task", "shape"), [TASKS["classification"], TASKS["binary"]])
def test_certain_passes_that_contradict_each_other(task: Task, shape: tuple[int, ...]) -> None:
    outputs = torch.full((2, *shape), -200.0)
    outputs[0, ..., 0], outputs[1, ..., -1] = 200.0, (200.0 if shape[-1] > 1 else -200.0)
    got = predict(task, outputs)
    assert got.mutual_information.flatten().tolist() == pytest.approx([math.log(2)] * shape[0], abs=1e-6) or (
        task.name == "classification" and (got.mutual_information >= math.log(2) - 1e-6).all()
    )
    assert got.expected_entropy.eq(0).all()
    for values in numbers(got).values():
        assert not values.isnan().any()


def test_masked_classes_have_probability_0() -> None:
    logits = draw(6, 2, 4)
    logits[..., 3] = -math.inf
    got = predict(Task("classification"), logits)
    assert got.mean[:, 3].eq(0).all()
    assert not any(values.isnan().any() for values in numbers(got).values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@each_task
def test_half_precision_is_computed_in_float32(task: Task, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    outputs = draw(20, *shape).to(dtype)
    got = predict(task, outputs, standard_errors=True, samples=True)
    assert_same(got, predict(task, outputs.float(), standard_errors=True))
    assert got.samples.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_probabilities_of_half_precision_do_not_change_the_mutual_information(dtype: torch.dtype) -> None:
    """Within the rounding of the probabilities themselves: 2^-11 and 2^-8 of each."""
    task, probs = Task("classification", output_kind="probs"), draw(50, 8, 10).softmax(dim=-1)
    exact, rounded = predict(task, probs), predict(task, probs.to(dtype))
    torch.testing.assert_close(rounded.mutual_information, exact.mutual_information, rtol=0.01, atol=2e-3)
    assert (rounded.expected_entropy <= rounded.entropy).all()
    torch.testing.assert_close(rounded.mean.sum(dim=-1), torch.ones(8))  # the rounding of the sum is taken out


def test_double_precision_stays_double() -> None:
    got = predict(Task("classification"), draw(9, 4, 3, dtype=torch.float64), standard_errors=True)
    assert {values.dtype for name, values in numbers(got).items() if name != "label"} == {torch.float64}


# ---- chunks, merging, order


@each_task
@pytest.mark.parametrize("size", [1, 7, 40])
def test_chunks_do_not_matter(task: Task, shape: tuple[int, ...], size: int) -> None:
    outputs = draw(40, *shape)
    settings: dict[str, Any] = {"standard_errors": True, "quantiles": (0.1, 0.9), "samples": True}
    whole = predict(task, outputs, **settings)
    chunks = pieces(40, size)
    got = predict(task, outputs, chunks[::-1], **settings)
    assert_same(got, whole)
    assert torch.equal(got.samples, whole.samples)


@each_task
def test_interleaved_passes_merge(task: Task, shape: tuple[int, ...]) -> None:
    outputs = draw(40, *shape) + 5 * draw(40, 1, *shape[1:])
    settings: dict[str, Any] = {"standard_errors": True, "quantiles": (0.1, 0.9), "samples": True}
    whole = predict(task, outputs, **settings)
    total = accumulator(task, num_samples=40, **settings)
    for start in (2, 0, 1):
        part = accumulator(task, num_samples=40, **settings)
        passes = range(start, 40, 3)
        part.update((outputs[start::3],), passes)
        total.merge(part)
        total.merge(accumulator(task, num_samples=40, **settings))  # an empty one changes nothing
    assert total.passes == 40
    got: Any = total.prediction(seed=3)
    assert_same(got, whole)
    assert torch.equal(got.samples, whole.samples)


@each_task
@pytest.mark.parametrize("limit", [8, 64])
def test_blocks_do_not_matter(task: Task, shape: tuple[int, ...], limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = draw(10, *shape)
    settings: dict[str, Any] = {"standard_errors": True, "quantiles": (0.5,)}
    whole = predict(task, outputs, pieces(10, 4), **settings)
    monkeypatch.setattr(accumulator_module, "_BLOCK", limit)
    monkeypatch.setattr(accumulator_module, "_INNER", 2)
    assert_same(predict(task, outputs, pieces(10, 4), **settings), whole)


@each_task
def test_the_order_of_axes_in_memory_does_not_matter(task: Task, shape: tuple[int, ...]) -> None:
    outputs = draw(6, *shape)
    backwards = outputs.permute(*range(outputs.ndim - 1, -1, -1)).contiguous()
    assert_same(predict(task, backwards.permute(*range(outputs.ndim - 1, -1, -1))), predict(task, outputs))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=2, max_size=8), st.integers(0, 1000), st.sampled_from(sorted(TASKS)))
def test_any_chunks_give_the_same(sizes: list[int], seed: int, name: str) -> None:
    task, shape = TASKS[name]
    outputs = draw(sum(sizes), *shape, seed=seed) * 4
    stops = np.cumsum(sizes).tolist()
    chunks = [range(stop - size, stop) for stop, size in zip(stops, sizes, strict=True)]
    assert_same(predict(task, outputs, chunks[::-1]), predict(task, outputs))


@each_task
def test_a_prediction_on_the_way_is_of_the_passes_so_far_and_stays(task: Task, shape: tuple[int, ...]) -> None:
    outputs = draw(12, *shape)
    sums = accumulator(task, num_samples=12, samples=True)
    sums.update((outputs[:5],), range(5))
    early = sums.prediction(seed=1)
    before = {name: values.clone() for name, values in early.cpu().to_dict().items() if isinstance(values, Tensor)}
    sums.update((outputs[5:],), range(5, 12))
    assert early.num_samples == 5
    assert_same(early, predict(task, outputs[:5]))
    for name, values in before.items():
        assert torch.equal(getattr(early, name), values), name
    assert_same(sums.prediction(seed=1), predict(task, outputs))


def test_samples_of_scattered_passes_come_in_their_order() -> None:
    outputs = draw(6, 2, 3)
    sums = accumulator(Task("raw"), num_samples=6, samples=True)
    sums.update((outputs[4:6],), range(4, 6))
    sums.update((outputs[1:2],), range(1, 2))
    kept: Any = sums.prediction(seed=0).samples
    assert torch.equal(kept, outputs[[1, 4, 5]])


@each_task
def test_an_empty_batch_is_answered(task: Task, shape: tuple[int, ...]) -> None:
    whole = predict(task, draw(4, *shape), standard_errors=True, quantiles=(0.5,), samples=True)
    got = predict(task, draw(4, 0, *shape[1:]), standard_errors=True, quantiles=(0.5,), samples=True)
    assert len(got) == 0
    for name, values in numbers(whole).items():
        mine, axis = numbers(got)[name], int(name == "quantiles")
        assert mine.dtype == values.dtype
        assert mine.shape == values.narrow(axis, 0, 0).shape


@each_task
def test_the_inputs_are_left_alone(task: Task, shape: tuple[int, ...]) -> None:
    outputs = draw(5, *shape, dtype=torch.float64)
    before = outputs.clone()
    predict(task, outputs, standard_errors=True, quantiles=(0.5,))
    assert torch.equal(outputs, before)


# ---- quantiles


def test_quantiles_are_over_passes_of_what_mean_averages() -> None:
    logits = draw(30, 4, 3)
    got = predict(Task("classification"), logits, quantiles=(0.1, 0.5))
    want = logits.softmax(dim=-1).quantile(torch.tensor([0.1, 0.5]), dim=0)
    assert got.quantile_levels == (0.1, 0.5)
    torch.testing.assert_close(got.quantiles, want)


def test_quantiles_of_a_regression_contain_its_noise() -> None:
    """Equal passes leave a Gaussian, whose quantiles scipy knows."""
    outputs = torch.full((20, 3), 2.0)
    got = predict(Task("regression", noise_variance=4.0), outputs, quantiles=(0.05, 0.95))
    want = stats.norm(2, 2).ppf([0.05, 0.95])
    np.testing.assert_allclose(got.quantiles.numpy(), np.tile(want[:, None], 3), rtol=1e-6)
    pair = predict(Task("heteroscedastic"), (outputs, torch.full_like(outputs, math.log(4))), quantiles=(0.05, 0.95))
    np.testing.assert_allclose(pair.quantiles.numpy(), got.quantiles.numpy(), rtol=1e-6)


# ---- standard errors


def test_standard_errors_of_moments_are_their_formulas() -> None:
    outputs = draw(30, 4)
    got = predict(Task("raw"), outputs, standard_errors=True)
    values = outputs.double()
    s2, mu4 = values.var(dim=0), (values - values.mean(dim=0)).pow(4).mean(dim=0)
    torch.testing.assert_close(got.standard_errors["mean"], (s2 / 30).sqrt().float())
    torch.testing.assert_close(got.standard_errors["variance"], ((mu4 - s2.square() * 27 / 29) / 30).sqrt().float())


def test_the_standard_error_of_a_probability_is_never_0_by_luck() -> None:
    """sqrt((s^2 + 1/N) / N), here of logits of which some passes agree."""
    outputs = draw(30, 4, 3)
    outputs[:, :2] = outputs[:1, :2]
    got = predict(Task("classification"), outputs, standard_errors=True)
    s2 = outputs.double().softmax(-1).var(dim=0)
    torch.testing.assert_close(got.standard_errors["mean"], ((s2 + 1 / 30) / 30).sqrt().float())


@pytest.mark.parametrize("name", ["classification", "binary"])
@pytest.mark.parametrize("count", [5, 16, 37])
def test_standard_errors_of_entropies_are_the_jackknife_over_groups(name: str, count: int) -> None:
    """Oracle: Busing's pseudo-values, from predictions without one group."""
    task, shape = TASKS[name]
    outputs = draw(count, *shape)
    got = predict(task, outputs, standard_errors=True)
    groups = sorted({index % 16 for index in range(count)})
    fields = {
        "entropy": "entropy",
        "expected_entropy": "expected_entropy",
        "mutual_information": "mutual_information_plugin",
    }
    for field, plugin in fields.items():
        whole, pseudo, shares = getattr(predict(task, outputs.double()), plugin), [], []
        for group in groups:
            rest = [index for index in range(count) if index % 16 != group]
            share = 1 - len(rest) / count
            without = getattr(predict(task, outputs.double()[rest]), plugin)
            pseudo.append(whole / share - (1 / share - 1) * without)
            shares.append(share)
        center = sum(share * value for share, value in zip(shares, pseudo, strict=True))
        squares = [(v - center).square() / (1 / share - 1) for v, share in zip(pseudo, shares, strict=True)]
        want = (sum(squares) / len(groups)).sqrt().float()
        torch.testing.assert_close(got.standard_errors[field], want, rtol=1e-3, atol=1e-6)


def test_errors_of_entropies_where_one_pass_alone_knows_a_class() -> None:
    """What is left of that class without the pass is 0 but for rounding, and must not make an entropy infinite."""
    probs = draw(60, 30, 3).softmax(-1)
    probs[:, :, 2] = 0
    probs[torch.arange(30), torch.arange(30), 2] = torch.linspace(0.1, 0.9, 30)
    task = Task("classification", output_kind="probs")
    probs = probs / probs.sum(-1, keepdim=True)
    errors = predict(task, probs.repeat(1, 20, 1), standard_errors=True).standard_errors
    for row in range(30):
        alone = predict(task, probs[:, row : row + 1], standard_errors=True).standard_errors
        for name, error in alone.items():
            torch.testing.assert_close(error[0], errors[name][row], rtol=1e-3, atol=1e-6, msg=_named(f"{row} {name}"))


def _normal_pair(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    means = draw(*shape, seed=1)
    return means, means.square().log1p()  # the further from the mean, the more noise: their covariance is half of all


STANDARD_ERRORS: dict[str, tuple[Task, Callable[[], Any], tuple[str, ...]]] = {
    "classification": (
        Task("classification"),
        lambda: draw(64, 4000, 4, seed=4) * 1.5 + torch.tensor([0.0, 1.5, -1.0, 0.5]),
        ("entropy", "expected_entropy", "mutual_information"),
    ),
    "binary": (Task("binary"), lambda: draw(64, 4000, seed=4) * 1.5 + 1.5, ("entropy", "expected_entropy")),
    "regression": (
        Task("regression", noise_variance=0.1),
        lambda: draw(64, 4000, seed=4),
        ("mean", "variance", "epistemic_variance", "entropy"),
    ),
    "heteroscedastic": (
        Task("heteroscedastic"),
        lambda: _normal_pair((64, 4000)),
        ("mean", "variance", "epistemic_variance", "aleatoric_variance"),
    ),
}


@pytest.mark.parametrize("name", STANDARD_ERRORS)
def test_standard_errors_are_what_repetition_shows(name: str) -> None:
    """4,000 rows are 4,000 repetitions: the mean squared standard error is the variance of the estimate.

    A sample variance of so many has a relative deviation of sqrt((kurtosis - 1) / 4000), at most 3 % for the estimates
    here: right code, whose own bias at N = 64 is at most 7 %, strays further than 22 % less than once in a million.
    A standard error wrong by a quarter fails as surely. The mean is kept off the uniform distribution, where the
    entropy has no slope and the jackknife says up to one and a half times too much.
    """
    task, outputs, fields = STANDARD_ERRORS[name]
    got = predict(task, outputs(), standard_errors=True)
    for field in fields:
        ratio = got.standard_errors[field].square().mean() / getattr(got, field).var()
        assert ratio.item() == pytest.approx(1, abs=0.22), field


# ---- errors


@pytest.mark.parametrize("count", [0, 1, -3])
def test_fewer_than_two_passes_have_no_spread(count: int) -> None:
    with pytest.raises(SettingError, match="num_samples=.*at least 2 passes"):
        accumulator(Task("raw"), num_samples=count)


def test_one_pass_so_far_is_no_prediction() -> None:
    sums = accumulator(Task("raw"), num_samples=4)
    sums.update((draw(1, 2),), range(1))
    with pytest.raises(SettingError, match="num_samples=1.*at least 2 passes"):
        sums.prediction(seed=0)


def test_no_passes_at_all_change_nothing() -> None:
    sums = accumulator(Task("raw"), num_samples=4)
    sums.update((draw(0, 2),), range(0))
    assert sums.passes == 0


@pytest.mark.parametrize("wrong", [torch.tensor([0.5, 0.6]), torch.tensor([1.5, -0.5]), torch.tensor([math.nan, 0.5])])
def test_outputs_that_are_no_probabilities_are_refused(wrong: Tensor) -> None:
    outputs = wrong.expand(3, 2, 2)
    with pytest.raises(SettingError, match='output_kind="probs".*sum to 1.*leave output_kind at "logits"'):
        predict(Task("classification", output_kind="probs"), outputs)


def test_a_binary_output_beyond_0_and_1_is_no_probability() -> None:
    with pytest.raises(SettingError, match='output_kind="probs".*expected 0 to 1.*"logits"'):
        predict(Task("binary", output_kind="probs"), draw(3, 4) * 5)


def test_only_like_and_disjoint_accumulators_merge() -> None:
    first, second = feed(Task("raw"), draw(4, 2)), feed(Task("raw"), draw(4, 2))
    with pytest.raises(SettingError, match="pass 0 is in both"):
        first.merge(second)
    with pytest.raises(SettingError, match="different settings"):
        first.merge(feed(Task("regression"), draw(4, 2)))
    other = accumulator(Task("raw"), num_samples=4)
    other.update((draw(1, 3),), range(9, 10))
    with pytest.raises(SettingError, match="cannot be merged"):
        first.merge(other)


# ---- what is put off until it is read


@pytest.mark.parametrize("name", ["classification", "binary"])
def test_a_prediction_stays_what_it_was_although_it_is_read_later(name: str) -> None:
    logits, task = draw(40, 3, 4), Task(name)
    sums = accumulator(task, num_samples=40)
    sums.update((logits[:16],), range(16))
    early = sums.prediction(seed=0)
    sums.update((logits[16:],), range(16, 40))
    whole = sums.prediction(seed=0)
    for got, count in ((early, 16), (whole, 40)):
        want = predict(task, logits[:count])
        for field in FIELDS[name]:
            torch.testing.assert_close(getattr(got, field), getattr(want, field), msg=_named(field))


@pytest.mark.parametrize("rows", [3, 500])  # few numbers are kept until they are read, many are counted at once
def test_what_is_put_off_is_the_same_in_pieces(rows: int) -> None:
    logits, task = draw(24, rows, 10), Task("classification")
    whole, pieced = predict(task, logits), predict(task, logits, pieces(24, 5))
    assert torch.equal(whole.votes, pieced.votes)
    assert whole.votes.sum(-1).unique().tolist() == [24]
    torch.testing.assert_close(whole.expected_entropy, pieced.expected_entropy)


@pytest.mark.parametrize("keywords", [{}, {"standard_errors": True}])
def test_a_prediction_of_many_numbers_holds_none_of_the_sums(keywords: dict[str, bool]) -> None:
    sums = feed(Task("classification"), draw(20, 500, 10), **keywords)
    kept = [weakref.ref(sums._probs.state[1]), weakref.ref(sums)]
    prediction = sums.prediction(seed=0)
    del sums
    gc.collect()
    assert [ref() for ref in kept] == [None, None]
    assert prediction.votes.sum() == 20 * 500


@pytest.mark.parametrize("read", [True, False])
def test_a_prediction_survives_pickle_and_copy(read: bool) -> None:
    prediction = predict(Task("classification"), draw(8, 3, 4))
    if read:
        assert prediction.votes.sum() == 24
    for twin in (pickle.loads(pickle.dumps(prediction)), copy.deepcopy(prediction)):
        for field in FIELDS["classification"]:
            assert torch.equal(getattr(twin, field), getattr(prediction, field)), field
