"""The last dropout in closed form: against enumeration and repetition, where it fits, and where it is refused."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from scipy.stats import norm
from torch import Tensor, nn

from bounds import FALSE_ALARM
from mcdrop import MCDropout
from mcdrop.cli import main
from mcdrop.engines.engine import GraphEngine
from mcdrop.errors import BundleError, SettingError
from mcdrop.layers import LockedDropout
from mcdrop.outputs.tasks import Task
from mcdrop.streaming.moments import accumulator
from oracles import enumerate_masks
from serving import live
from test_balance import Copies, zscore
from test_exact import enumeration_of, linear_regression, random_case

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))


def network(*layers: nn.Module) -> nn.Module:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = nn.Sequential(*layers).eval()
        for parameter in model.parameters():
            parameter.uniform_(-1, 1)
    return model


def exact(model: nn.Module, x: Any = X, **settings: Any) -> MCDropout:
    return MCDropout(model, x, task="regression", last_layer="exact", **settings)


def engine_of(mc: MCDropout) -> GraphEngine:
    assert isinstance(mc._engine, GraphEngine)
    return mc._engine


# ---- against truths


def test_closed_form_of_a_linear_layer() -> None:
    """Mean w.x, variance p / (1 - p) sum w_j**2 x_j**2, from any number of passes, which are not computed."""
    layer = nn.Linear(4, 1, bias=False)
    layer.weight = nn.Parameter(torch.tensor([[1.0, -2.0, 0.5, 3.0]]))
    row = torch.tensor([[2.0, 1.0, 4.0, 0.5]])
    mc = exact(nn.Sequential(nn.Dropout(0.3), layer).eval(), row)
    for masks, count in itertools.product(("shared", "independent", "balanced"), (2, 64)):
        found = mc(row, num_samples=count, masks=masks, standard_errors=masks != "balanced")
        torch.testing.assert_close(found.mean, torch.tensor([[3.5]]))
        torch.testing.assert_close(found.variance, torch.tensor([[0.3 / 0.7 * 14.25]]))
        assert all(bool((error == 0).all()) for error in (found.standard_errors or {}).values())
    assert mc.cost["suffix_operations"] == 0


@pytest.mark.parametrize("number", range(8))
def test_agrees_with_full_enumeration(number: int) -> None:
    """Random networks with two outputs and dropout before: the passes of all masks of what is still drawn, weighted."""
    case = random_case(linear_regression, number)
    truth, earlier = enumeration_of(case), case.model[0]
    engine = engine_of(exact(case.model, case.row))
    p = earlier.p
    kept = torch.tensor(list(itertools.product((0.0, 1.0), repeat=4)))
    weights = torch.where(kept == 1, 1 - p, p).double().prod(1)
    draws = [(kept / (1 - p)).unsqueeze(1)]
    mean, variance = (
        output[:, 0].double() for output in engine.apply([case.row], engine.prepare([case.row]), draws, "loop")
    )
    of_all = torch.tensordot(weights, mean, 1)
    spread = torch.tensordot(weights, (mean - of_all).square() + variance, 1)
    torch.testing.assert_close(of_all, truth.mean(truth.outputs), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(spread, truth.variance(truth.outputs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("masks", ["shared", "balanced"])
def test_standard_errors_are_right_for_both_parts(masks: str) -> None:
    """20,000 copies of a network side by side are 20,000 runs: their answers and their errors, without bias."""
    row, most = torch.tensor([[0.5, -1.0, 2.0, 0.25]]), norm.isf(FALSE_ALARM / 2)
    truth = enumerate_masks(Copies(1).double().eval(), row.double())
    mean, variance = float(truth.mean(truth.outputs)), float(truth.variance(truth.outputs))
    copies = Copies(20_000).eval()
    mc, plain = exact(copies, row, num_samples=40), MCDropout(copies, row, task="regression", num_samples=40)
    found = mc(row, masks=masks, standard_errors=True)
    assert abs(zscore(found.mean, mean)) <= most
    assert abs(zscore(found.epistemic_variance, variance)) <= most
    errors = (found.mean.double() - mean).square()
    said = {name: error.double().square() for name, error in found.standard_errors.items()}
    assert abs(zscore(errors - said["mean"], 0)) <= most
    shown = found.variance.double().var()
    assert float((said["variance"].mean() / shown).sqrt()) == pytest.approx(1, abs=0.05)
    torch.testing.assert_close(found.error_of_mean.sqrt(), found.standard_errors["mean"])
    sampled = plain(row, masks=masks)
    assert zscore((sampled.mean.double() - mean).square() - errors, 0) > most
    assert float(sampled.variance.double().var()) > 2 * float(shown)


def test_the_errors_of_both_parts_are_their_formulas() -> None:
    """Of passes that predict much variance where they are far from the mean, alone and in blocks of 5."""
    means = torch.randn(30, 2, 1, generator=torch.Generator().manual_seed(0)).double()
    variances = 1 + means.square()
    deviations = means - means.mean(0)
    squares, s2 = deviations.square(), means.var(0)
    for block in (1, 5):
        sums = accumulator(Task("regression"), num_samples=30, standard_errors=True, block=block, integrated=True)
        for part in (range(7), range(7, 30)):
            sums.update((means[part.start : part.stop], variances[part.start : part.stop]), part)
        found = sums.prediction(seed=0)
        if block == 1:
            of_spread = (squares.square().mean(0) - s2.square() * 27 / 29) / 30
            together = ((squares - squares.mean(0)) * (variances - variances.mean(0))).mean(0)
            error = of_spread + variances.var(0) / 30 + 2 * together / 30
            of_mean = s2 / 30
        else:
            error, of_mean = ((x.unflatten(0, (6, 5)).mean(1).var(0) / 6) for x in (squares + variances, means))
        spread = squares.mean(0) + of_mean
        torch.testing.assert_close(found.epistemic_variance, spread + variances.mean(0))
        torch.testing.assert_close(found.standard_errors["variance"], error.sqrt())
        torch.testing.assert_close(found.error_of_mean, of_mean)


# ---- where it fits


class Scaled(nn.Module):
    """Targets were normalised for training; the network gives them back in their unit."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.out = nn.Dropout(0.4), nn.Linear(4, 2)
        self.register_buffer("std", torch.tensor([2.0, 0.5]))
        self.register_buffer("mean", torch.tensor([1.0, -3.0]))

    def forward(self, x: Tensor) -> Tensor:
        return -(self.out(self.drop(torch.tanh(x))) * self.std / 3 + self.mean)


class FromAbove(nn.Module):
    """What is left of a number."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.out = nn.Dropout(0.4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return 5 - self.out(self.drop(x))


class Residual(nn.Module):
    """The last dropout beside another branch that draws too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop, self.out = nn.Dropout(0.2), nn.Dropout(0.3), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return x * x - self.out(self.drop(x))


class Towers(nn.Module):
    """Two heads that end in dropout and a Linear each, added: one is integrated, the other drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Sequential(nn.Dropout(0.2), nn.Linear(4, 1))
        self.right = nn.Sequential(nn.Dropout(0.3), nn.Linear(4, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (self.left(x) + self.right(x)).squeeze(-1)


class Steps(nn.Module):
    """Sequences: the output at the last step of a reshaped and permuted layer."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.out = nn.Dropout(0.3), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.drop(x.view(-1, 2, 2)).transpose(1, 2))[:, -1].reshape(-1, 3)


class Pooled(nn.Module):
    def __init__(self, drop: nn.Module) -> None:
        super().__init__()
        self.drop, self.out = drop, nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.drop(x[:, :, None, None] ** 3).flatten(1))


FITTING: dict[str, Callable[[], nn.Module]] = {
    "several outputs": lambda: network(nn.Linear(4, 5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, 3)),
    "dropout before": lambda: network(nn.Dropout(0.2), nn.Linear(4, 5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, 1)),
    "no bias": lambda: network(nn.Dropout(0.1), nn.Linear(4, 1, bias=False)),
    "outputs scaled back": lambda: Scaled().eval(),
    "subtracted from a number": lambda: FromAbove().eval(),
    "another branch": lambda: Residual().eval(),
    "two heads": lambda: Towers().eval(),
    "reshaped": lambda: Steps().eval(),
    "after pooling": lambda: Pooled(nn.Dropout(0.3)).eval(),
    "whole channels of one value": lambda: Pooled(nn.Dropout2d(0.3)).eval(),
    "no Linear at all": lambda: network(nn.Linear(4, 3), nn.Dropout(0.3)),
}


def fitting(name: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return FITTING[name]()


@pytest.mark.parametrize("name", FITTING)
def test_mean_and_variance_are_those_over_the_last_draw(name: str) -> None:
    """Given the other draws: against all masks of the last one."""
    model = fitting(name)
    plain, integrated = engine_of(MCDropout(model, X, task="regression")), engine_of(exact(model))
    (done,) = [site for site in integrated.program.sites if not site.active]
    assert "integrated in closed form" in done.reason
    rows = [X]
    draws = plain.draws(rows, passes=range(1), seed=1, rows=None)
    last = draws[-1]
    kept = torch.tensor(list(itertools.product((0.0, 1.0), repeat=last[0].numel())))
    weights = torch.where(kept == 1, 1 - done.p, done.p).double().prod(1)
    all_draws = [draw.expand(len(kept), *draw.shape[1:]) for draw in draws[:-1]]
    all_draws.append((kept / (1 - done.p)).view(-1, *last.shape[1:]))
    (outputs,) = plain.apply(rows, plain.prepare(rows), all_draws, "loop")
    mean = torch.tensordot(weights, outputs.double(), 1)
    variance = torch.tensordot(weights, (outputs.double() - mean).square(), 1)
    passes = integrated.passes(rows, integrated.prepare(rows), passes=range(1), seed=1, rows=None)
    torch.testing.assert_close(passes[0][0].double(), mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(passes[1][0].double(), variance, rtol=1e-4, atol=1e-6)


def test_computed_in_half_precision_the_variance_keeps_its_digits() -> None:
    model = fitting("several outputs")
    found, truth = exact(model, dtype=torch.bfloat16)(X.bfloat16()), exact(model)(X)
    torch.testing.assert_close(found.variance, truth.variance, rtol=0.03, atol=0.01)


@pytest.mark.parametrize("name", ["several outputs", "dropout before", "another branch"])
def test_rows_runs_and_chunks_do_not_matter(name: str) -> None:
    mc = exact(fitting(name), num_samples=24)
    for masks in ("shared", "independent", "balanced"):
        whole = mc(X, masks=masks, standard_errors=True)
        runs = [mc.start(X[i : i + 1], masks="shared" if masks == "independent" else masks) for i in range(3)]
        mc.advance(runs, 7)
        mc.advance(runs)
        estimates = list(mc.stream(X, masks=masks, every=5, standard_errors=True))
        torch.testing.assert_close(estimates[-1].to_dict(), whole.to_dict(), rtol=1e-5, atol=1e-6)
        for i, run in enumerate(runs):
            same = mc(X, masks=run.masks)
            torch.testing.assert_close(run.prediction().variance, same.variance[i : i + 1], rtol=1e-5, atol=1e-6)
    small = exact(fitting(name), num_samples=24, max_memory=1)
    torch.testing.assert_close(small(X).to_dict(), mc(X).to_dict(), rtol=1e-5, atol=1e-6)
    assert mc(X[:0]).mean.shape[0] == 0


def test_the_noise_of_the_targets_comes_on_top_and_is_fitted() -> None:
    model = fitting("dropout before")
    mc, noisy = exact(model), exact(model, noise_variance=0.5)
    torch.testing.assert_close(noisy(X).variance, mc(X).epistemic_variance + 0.5)
    found = mc(X, num_samples=30)
    target = found.mean + torch.tensor([[0.3], [-0.2], [0.1]])
    share = float(found.error_of_mean.mean())
    assert mc.fit_noise_variance(X, target, num_samples=30) == pytest.approx(0.14 / 3 - share, rel=1e-4)


def test_a_report_can_be_made() -> None:
    report = exact(fitting("dropout before")).inspect(X, torch.zeros(3, 1))
    assert [site.active for site in report.sites] == [True, False]
    assert report.measured.variance > 0


# ---- where it does not


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop, self.out = nn.Dropout(0.3), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(x)
        return x + self.out(x)


REFUSED = {
    "ReLU behind": (
        lambda: network(nn.Linear(4, 5), nn.Dropout(0.5), nn.ReLU(), nn.Linear(5, 1)),
        "relu.default stands",
    ),
    "two Linears": (lambda: network(nn.Dropout(0.5), nn.Linear(4, 5), nn.Linear(5, 1)), "more than one Linear"),
    "alpha dropout": (lambda: network(nn.AlphaDropout(0.5), nn.Linear(4, 1)), "kind alpha_dropout does not simply"),
    "used twice": (lambda: Twice().eval(), "used more than once"),
    "whole channels": (
        lambda: network(nn.Unflatten(1, (2, 2, 1)), nn.Dropout2d(0.5), nn.Flatten(), nn.Linear(4, 1)),
        "drops units together",
    ),
    "one mask for all steps": (
        lambda: network(nn.Unflatten(1, (2, 2)), LockedDropout(0.5), nn.Flatten(), nn.Linear(4, 1)),
        "mul.Tensor stands",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_another_pattern_is_refused_with_the_reason(name: str) -> None:
    make, reason = REFUSED[name]
    with pytest.raises(SettingError, match=f'last_layer="exact" does not fit this network: .*{reason}.*"sampled"'):
        exact(make())


def test_other_tasks_and_settings_are_refused() -> None:
    model = fitting("several outputs")
    with pytest.raises(SettingError, match=r'"exact" is for task="regression"; this is \'classification\''):
        MCDropout(model, X, task="classification", last_layer="exact")
    with pytest.raises(SettingError, match="last_layer is 'half'; choose 'sampled' or 'exact'"):
        MCDropout(model, X, task="regression", last_layer="half")
    with pytest.raises(SettingError, match="captured as a graph, and this one runs eagerly"):
        exact(model, engine="eager")
    with pytest.raises(SettingError, match="relu.default stands|more than one Linear"):
        exact(network(nn.Dropout(0.2), nn.Linear(4, 5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, 1)), exclude="#1")


def test_there_are_no_outputs_of_single_passes() -> None:
    mc = exact(fitting("dropout before"))
    for ask in (lambda: mc.sample(X), lambda: mc(X, samples=True), lambda: mc.start(X, quantiles=(0.5,))):
        with pytest.raises(SettingError, match=r'(sample|quantiles).*integrated and not drawn.*last_layer="sampled"'):
            ask()


# ---- saved and served


def test_it_is_saved_with_the_model(tmp_path: Path) -> None:
    mc = exact(fitting("dropout before"), masks="balanced", num_samples=30)
    mc.save(tmp_path / "model")
    about = json.loads((tmp_path / "model" / "model.json").read_text())
    assert about["last_layer"] == "exact"
    twin = MCDropout.load(tmp_path / "model")
    assert (twin.last_layer, mc.last_layer, twin.cost["mode"]) == ("exact", "exact", mc.cost["mode"])
    for other in (twin, twin.to("cpu")):
        assert torch.equal(other(X).variance, mc(X).variance)
    again = MCDropout.load(tmp_path / "model", exclude="#0")  # proved anew
    assert again.cost["suffix_operations"] == 0
    (tmp_path / "model" / "model.json").write_text(json.dumps({**about, "last_layer": "half"}))
    with pytest.raises(BundleError, match="last_layer' should be 'sampled' or 'exact'|choose 'sampled' or 'exact'"):
        MCDropout.load(tmp_path / "model")
    raw = {**about, "task": {**about["task"], "name": "raw"}}
    (tmp_path / "model" / "model.json").write_text(json.dumps(raw))
    with pytest.raises(BundleError, match='"exact" is for task="regression"'):
        MCDropout.load(tmp_path / "model")


def test_it_is_served(tmp_path: Path) -> None:
    mc = exact(fitting("dropout before"), name="slope", num_samples=20)
    mc.save(tmp_path / "model")
    with live(models=tmp_path / "model") as http:
        about = http.get("/v1/models/slope").json()
        assert about["last_layer"] == "exact"
        assert "standard_errors" in about["outputs"]
        assert not {"samples", "quantiles"} & set(about["outputs"])
        assert http.post("/v1/predict", json=about["example"]).status_code == 200
        asked = {"inputs": X.tolist(), "outputs": ["epistemic_variance", "standard_errors"]}
        answer = http.post("/v1/predict", json=asked).json()
        torch.testing.assert_close(torch.tensor(answer["epistemic_variance"]), mc(X).epistemic_variance)
        refused(http, {"outputs": ["samples"]}, "of this model has no 'samples'")
        refused(http, {"quantiles": [0.5]}, "integrated and not drawn")
        tensors = [{"name": "input", "shape": [3, 4], "datatype": "FP32", "data": X.flatten().tolist()}]
        inferred = http.post("/v2/models/slope/infer", json={"inputs": tensors})
        assert inferred.status_code == 200, inferred.text


def refused(http: httpx.Client, more: dict[str, Any], reason: str) -> None:
    answer = http.post("/v1/predict", json={"inputs": X.tolist(), **more})
    assert answer.status_code == 422
    assert reason in answer.json()["detail"]


def test_it_can_be_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    factory = "nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5), nn.Linear(5, 1))"
    (tmp_path / "slopes.py").write_text(f"from torch import nn\n\ndef build():\n    return {factory}\n")
    monkeypatch.chdir(tmp_path)
    arguments = "export slopes:build --task regression --last-layer exact --masks balanced -o out --json"
    assert main([*arguments.split(), "--input", "x: float32[batch, 4]"]) == 0
    assert json.loads(capsys.readouterr().out)["last_layer"] == "exact"
    mc = MCDropout.load("out")
    assert (mc.last_layer, mc.masks) == ("exact", "balanced")


@pytest.mark.parametrize("masks", ["shared", "balanced"])
def test_rows_stop_when_the_mean_is_known(masks: str) -> None:
    """By the spread of what is drawn: a row has the answer of as many passes of its own."""
    mc = exact(fitting("dropout before"), num_samples=3000)
    found = mc(X, masks=masks, tolerance=0.05, standard_errors=True)
    assert len(set(found.passes.tolist())) > 1
    for row, count in enumerate(found.passes.tolist()):
        alone = mc(X[row : row + 1], masks=masks, num_samples=count, standard_errors=True)
        one = found[row : row + 1]
        torch.testing.assert_close(one.variance, alone.variance, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(one.standard_errors, alone.standard_errors, rtol=1e-3, atol=1e-5)
