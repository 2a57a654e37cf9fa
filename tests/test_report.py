"""The report: what it measures agrees with other ways to compute it, and it has something to say about any network."""

import json
import math

import pytest
import torch
from scipy.stats import norm
from torch import Tensor, nn

import mcdrop
from bounds import FALSE_ALARM
from mcdrop import MCDropout
from mcdrop.engines.engine import GraphEngine
from mcdrop.errors import InputError, SettingError
from mcdrop.outputs.scores import gap, passes_for, read_targets, scores
from mcdrop.outputs.tasks import Task
from mcdrop.reporting.measures import cost_of
from network_modules import conv_classifier
from network_vision import TorchvisionDropBlock
from oracles import enumerate_masks

X = torch.linspace(-1, 1, 24).view(6, 4)


def network(first: float, second: float, activation: nn.Module) -> nn.Sequential:
    """Two sites, of 4 and 3 units."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        layers = [nn.Dropout(first), nn.Linear(4, 3), activation, nn.Dropout(second), nn.Linear(3, 2)]
        return nn.Sequential(*layers).eval()


# ---- variance_alone

P = (0.3, 0.4)


def test_variance_alone_is_that_of_the_network_with_the_other_rates_at_zero():
    """Exactly: site 0 keeps its number, so its masks are the same."""
    both = mcdrop.inspect(network(*P, nn.Tanh()), X, X, task="regression")
    first = MCDropout(network(P[0], 0.0, nn.Tanh()), X, task="regression", num_samples=64)
    direct = first(X, masks="independent").epistemic_variance.mean()
    assert both.sites[0].variance_alone == pytest.approx(float(direct), rel=1e-5)
    assert both.sites[0].variance_alone != pytest.approx(both.measured.variance, rel=0.1)


def test_a_report_computes_rows_apart_where_masks_would_mix() -> None:
    mc = MCDropout(conv_classifier(TorchvisionDropBlock()), torch.rand(3, 2, 6, 6), task="raw")
    assert mc._engine.apart
    x, twin = torch.rand(4, 2, 6, 6), mc._with_program(mc._engine.program)
    wanted, found = (each.sample(x, num_samples=20, masks="independent") for each in (mc, twin))
    torch.testing.assert_close(found, wanted)


def test_variance_alone_in_closed_form():
    """Linear layers: p/q sum_j (w_j x_j)^2."""
    model, row = network(*P, nn.Identity()).double().requires_grad_(False), X[:1].double()
    first, second = model[1], model[4]
    hidden = first(row)
    weights = (second.weight @ first.weight, second.weight)
    truths = [
        float((p / (1 - p) * (weight**2 * inputs**2).sum(-1)).mean())
        for p, weight, inputs in zip(P, weights, (row, hidden), strict=True)
    ]
    assert_variances_alone(nn.Identity(), row, truths)


def test_variance_alone_of_a_non_linear_network():
    """Against the enumeration of all masks of the network that has this dropout alone."""
    row = X[3:4].double()
    truths = []
    for rates in ((P[0], 0.0), (0.0, P[1])):
        every = enumerate_masks(network(*rates, nn.Tanh()).double(), row)
        truths.append(float(every.variance(every.outputs).mean()))
    assert_variances_alone(nn.Tanh(), row, truths)


def assert_variances_alone(activation: nn.Module, row: Tensor, truths: list[float]) -> None:
    """The mean of s^2 over many equal rows is near the truth.

    The variance of s^2 comes from the fourth moment over all masks, so right code fails once in a million; a variance
    that is 5 % off would be seen.
    """
    rows, passes = 2000, 32
    model = network(*P, activation)
    found = mcdrop.inspect(model, X, row.float().repeat(rows, 1), task="regression", num_samples=passes).sites
    for site, rates, truth in zip(found, ((P[0], 0.0), (0.0, P[1])), truths, strict=True):
        every = enumerate_masks(network(*rates, activation).double(), row)
        deviations = every.outputs - every.mean(every.outputs)
        second, fourth = (every.expectation(deviations**power) for power in (2, 4))
        error = ((fourth - second**2 * (passes - 3) / (passes - 1)) / passes / rows).sqrt().mean()
        band = norm.isf(FALSE_ALARM / 2 / len(truths)) * float(error)  # outputs wholly correlated at worst
        assert band < 0.025 * truth
        assert abs(site.variance_alone - truth) < band, f"{site.variance_alone:.5g}; expected {truth:.5g} +- {band:.2g}"


def test_the_full_variance_stands_beside_them():
    report = mcdrop.inspect(network(*P, nn.Tanh()), X, X, task="regression")
    mc = MCDropout(network(*P, nn.Tanh()), X, task="regression")
    assert report.measured.variance == pytest.approx(float(mc(X, masks="independent").variance.mean()), rel=1e-5)
    assert all(0 < site.variance_alone < report.measured.variance for site in report.sites)


def test_noise_that_only_the_network_can_leave_out_has_no_variance_alone():
    class ByHand(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * (torch.rand_like(x) > 0.5) if self.training else x

    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 4), ByHand(), nn.Linear(4, 2)).eval()
    sites = mcdrop.inspect(model, X, X).sites
    assert [site.variance_alone is None for site in sites] == [True, False]


# ---- cost


def test_floating_point_operations_of_layers():
    """2 m n of a Linear(m, n) and of every step and gate of an LSTM; what the noise reaches is the suffix."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.conv = nn.LSTM(4, 3, batch_first=True), nn.Conv1d(5, 2, 3)
            self.drop, self.out = nn.Dropout(0.5), nn.Linear(2, 7)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.drop(self.conv(self.lstm(x)[0]).squeeze(-1)))

    cost = mcdrop.inspect(Net().eval(), torch.rand(2, 5, 4), num_samples=10).cost
    once = 5 * 2 * (4 * 3) * (4 + 3) + 2 * 2 * 5 * 3
    each = 2 * 2 * 7
    assert (cost.prefix_flops, cost.suffix_flops) == (once, each)
    assert cost.prefix_fraction == pytest.approx(once / (once + each))
    assert cost.relative == pytest.approx((once + 10 * each) / (once + each))


def test_attention_costs_a_product_before_its_dropout_and_one_behind():
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.scaled_dot_product_attention(x, x, x, dropout_p=0.1 * self.training)

    cost = mcdrop.inspect(nn.Sequential(Net()).eval(), torch.rand(2, 5, 4)).cost
    assert (cost.prefix_flops, cost.suffix_flops) == (2 * 5 * 5 * 4, 2 * 5 * 5 * 4)
    assert cost.relative == (1 + 64) / 2


def test_a_network_without_products_is_counted_in_operations():
    cost = mcdrop.inspect(nn.Sequential(nn.ReLU(), nn.Dropout(0.5), nn.Tanh()).eval(), X, num_samples=10).cost
    assert (cost.prefix_flops, cost.suffix_flops) == (0, 0)
    assert (cost.prefix_operations, cost.suffix_operations, cost.relative) == (1, 2, pytest.approx(21 / 3))


def test_cost_does_not_depend_on_the_rows_that_are_given():
    mc = MCDropout(network(*P, nn.ReLU()), X, task="raw")
    engine = mc._engine
    assert isinstance(engine, GraphEngine)
    assert cost_of(engine, [X], mc.signature, 64) == cost_of(engine, None, mc.signature, 64) == mc.inspect(X).cost


# ---- with and without dropout


def test_scores_by_hand():
    probs = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]])
    found = scores(Task("classification"), probs, torch.tensor([0, 2]))
    assert found["nll"] == pytest.approx(-(math.log(0.5) + math.log(0.1)) / 2)
    assert found["brier"] == pytest.approx((0.25 + 0.0625 * 2 + 0.01 + 0.64 + 0.81) / 2)
    assert found["accuracy"] == 0.5
    binary = scores(Task("binary"), torch.tensor([[0.8], [0.4]]), torch.tensor([[1], [1]]))
    assert binary["nll"] == pytest.approx(-(math.log(0.8) + math.log(0.4)) / 2)
    assert (binary["brier"], binary["accuracy"]) == (pytest.approx((0.04 + 0.36) / 2), 0.5)
    assert scores(Task("regression"), torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0])) == {"rmse": math.sqrt(2)}


def test_yes_and_no_are_targets():
    answers = torch.tensor([True, False, True])
    assert torch.equal(read_targets(Task("binary"), answers, torch.rand(3)), answers.long())


def test_a_certain_mistake_scores_a_finite_likelihood():
    found = scores(Task("classification"), torch.tensor([[1.0, 0.0]]), torch.tensor([1]))
    assert math.isfinite(found["nll"])
    assert found["nll"] > 80


def test_scores_of_maps_of_classes():
    """(batch, classes, height, width): targets lose the class axis."""
    probs = torch.rand(2, 3, 4, 5).softmax(1)
    task = Task("classification", class_axis=1)
    targets = read_targets(task, probs.argmax(1).numpy(), probs)
    assert scores(task, probs, targets)["accuracy"] == 1.0


def test_gap_by_hand():
    first, second = torch.tensor([[0.6, 0.4], [0.9, 0.1]]), torch.tensor([[0.4, 0.6], [0.8, 0.2]])
    assert gap(Task("classification"), first, second) == {
        "mean": pytest.approx(0.15), "largest": pytest.approx(0.2), "labels": 0.5,
    }  # fmt: skip
    assert "labels" not in gap(Task("regression"), first, second)


@pytest.mark.parametrize(("variance", "passes"), [(0.0, 1), (1.0, 10_000), (0.00011, 2)])
def test_passes_for_a_standard_error_of_a_value(variance, passes):
    assert passes_for(Task("regression"), torch.full((3, 2), variance)) == {"typical": passes, "largest": passes}


def test_passes_for_a_standard_error_of_a_probability():
    """The smallest n with (s^2 + 1/n) / n <= e^2: 100 even where no spread was seen."""
    needed = passes_for(Task("classification"), torch.tensor([0.0, 0.0, 0.04]))
    assert needed["typical"] == 100
    n = needed["largest"]
    assert (0.04 + 1 / n) / n <= 1e-4 < (0.04 + 1 / (n - 1)) / (n - 1)


@pytest.mark.parametrize(("task", "said"), [("classification", True), ("regression", False)])
def test_a_report_says_why_a_probability_takes_100_passes(task, said):
    text = str(mcdrop.inspect(network(*P, nn.ReLU()), X, X, task=task))
    assert ("\na probability takes 100 at least: its standard error is sqrt((s^2 + 1/N) / N), never 0" in text) == said


def test_the_deterministic_prediction_is_that_of_evaluation_mode():
    model = network(*P, nn.ReLU())
    targets = torch.tensor([0, 1, 0, 1, 0, 1])
    with torch.no_grad():
        truth = model(X).softmax(-1)
    wanted = scores(Task("classification"), truth, targets)
    report = mcdrop.inspect(model, X, X, targets, task="classification")
    mc = MCDropout(model, X, task="classification")
    prediction = mc(X, masks="independent")
    for measured in (report.measured, mc.inspect(X, targets).measured):
        assert measured.deterministic == pytest.approx(wanted, rel=1e-5)
        assert measured.monte_carlo == pytest.approx(scores(mc.task, prediction.mean, targets), rel=1e-5)
        assert measured.gap == pytest.approx(gap(mc.task, truth, prediction.mean), rel=1e-4)
        assert measured.passes == passes_for(mc.task, prediction.variance)


def test_evaluation_mode_counts_where_the_mean_of_the_noise_does_not():
    """A mask by hand is not the identity at its mean; the network itself knows what it does without noise."""

    class ByHand(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * (torch.rand_like(x) > 0.5) * 2 if self.training else x

    model = nn.Sequential(nn.Linear(4, 4), ByHand(), nn.Linear(4, 1)).eval()
    with torch.no_grad():
        truth = model(X)
    found = mcdrop.inspect(model, X, X, torch.zeros(6, 1), task="regression").measured
    assert found.deterministic["rmse"] == pytest.approx(float(truth.square().mean().sqrt()), rel=1e-5)
    assert MCDropout(model, X, task="regression").inspect(X).measured.gap is None


# ---- any network


def test_mc_inspect_says_the_same():
    model = network(*P, nn.Tanh())
    targets = torch.zeros(6, 2)
    outside = mcdrop.inspect(model, X, X, targets, task="regression").to_dict()
    inside = MCDropout(model, X, task="regression", name="Sequential").inspect(X, targets).to_dict()
    measured = outside.pop("measured"), inside.pop("measured")
    assert outside == inside
    for key in ("deterministic", "monte_carlo", "gap"):
        assert measured[0][key] == pytest.approx(measured[1][key], rel=1e-5)


def test_the_model_is_left_alone():
    model = network(*P, nn.Tanh()).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    mcdrop.inspect(model, X, X)
    assert model.training
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("weight", [math.nan, math.inf, 1e30])
def test_a_network_that_has_diverged_gets_a_report(weight):
    """Its variance is no finite number, so no number of passes is enough."""
    model = network(*P, nn.Tanh())
    nn.init.constant_(model[-1].weight, weight)
    report = mcdrop.inspect(model, X, X, task="regression", num_samples=8)
    assert report.measured.passes == {"typical": None, "largest": None}
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["measured"]["variance"] is None
    assert "no number for the typical output" in str(report)


@pytest.mark.parametrize("choice", [{"exclude": "*"}, {"rates": {"*": 0}}, {"include": []}])
def test_sites_that_are_all_left_out_are_listed_with_the_reason(choice):
    report = mcdrop.inspect(network(*P, nn.Tanh()), X, **choice)
    assert [finding.code for finding in report.findings] == ["no-dropout"]
    assert [(site.path, site.active) for site in report.sites] == [("0", False), ("3", False)]
    assert all(site.reason for site in report.sites)


def test_a_network_without_dropout_is_scored_without_it():
    model = nn.Sequential(nn.Linear(4, 2), nn.Dropout(0.0)).eval()
    report = mcdrop.inspect(model, X, X, torch.zeros(6, 2), task="regression")
    assert (report.cost, report.measured.monte_carlo, report.measured.passes) == (None, None, None)
    with torch.no_grad():
        assert report.measured.deterministic["rmse"] == pytest.approx(float(model(X).square().mean().sqrt()), rel=1e-5)
    assert [(site.path, site.active, site.p) for site in report.sites] == [("1", False, 0.0)]
    assert [finding.code for finding in report.findings] == ["no-dropout", "rate-zero"]
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["cost"] is None


def test_a_choice_among_no_sites_is_a_network_without_dropout():
    report = mcdrop.inspect(nn.Linear(4, 2).eval(), X, exclude="head.*")
    assert [finding.code for finding in report.findings] == ["no-dropout"]


def test_an_eager_network_gets_a_report():
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network(*P, nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(2 * x if x.sum() > 0 else x)

    with pytest.warns(UserWarning, match="runs eagerly"):
        report = mcdrop.inspect(Branching().eval(), X, X, torch.zeros(6, 2), task="regression", num_samples=4)
    assert (report.cost.engine, report.cost.relative) == ("eager", 4.0)
    assert "eager-engine" in {finding.code for finding in report.findings}
    assert report.measured.deterministic["rmse"] > 0
    assert "it runs eagerly" in str(report)


@pytest.mark.filterwarnings("error")
def test_rows_that_interact_are_reported_and_measured_all_the_same():
    model = nn.Sequential(
        nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4, 2)
    )
    report = mcdrop.inspect(model.eval(), X, X)
    assert report.findings[0].code == "rows-interact"
    assert report.measured.variance > 0


def test_json_is_strict():
    """A regression of a huge target, and a variance that is 0: every number is one of JSON's, or null."""
    model = nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Dropout(0.5), nn.Linear(2, 1)).eval()
    nn.init.constant_(model[3].weight, 0.0)
    report = mcdrop.inspect(model, X, X, torch.full((6, 1), 1e300, dtype=torch.float64), task="regression")
    plain = report.to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["measured"]["variance"] == 0.0
    assert plain["measured"]["deterministic"] == {"rmse": None}  # 1e600 is beyond a float


def test_it_prints_well():
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.9), nn.GELU(), nn.Linear(8, 2)).eval()
    text = str(mcdrop.inspect(model, X, X, torch.tensor([0, 1] * 3), task="classification"))
    assert max(map(len, text.splitlines())) <= 100
    for part in (
        "Findings: 1 warning, 2 notes", "[dropout-before-activation]", "arXiv", "variance alone", "once per row",
        "64 passes cost about", "Brier score", "mean over passes", "standard error of 0.01",
    ):  # fmt: skip
        assert part in text


# ---- arguments


@pytest.mark.parametrize(
    ("inputs", "targets", "task", "error", "message"),
    [
        (None, [0], "classification", SettingError, "targets were given without inputs"),
        (X, torch.zeros(6, 2), "raw", SettingError, "targets mean nothing"),
        (X, torch.zeros(5), "classification", InputError, r"shape \[5\]; expected \[6\]"),
        (X, torch.full((6,), 2), "classification", InputError, "whole numbers 0 to 1"),
        (X, torch.full((6,), 0.5), "classification", InputError, "whole numbers 0 to 1"),
        (X, torch.zeros(6), "regression", InputError, r"expected \[6, 2\]"),
        (X, torch.full((6, 2), math.nan), "regression", InputError, "targets hold NaN"),
        (X, torch.full((6,), math.nan), "classification", InputError, "targets hold NaN"),
        (X, ["cat"] * 6, "classification", InputError, "cannot be read as numbers"),
        (X[:0], None, "regression", InputError, "no row"),
        (X[:, :3], None, "regression", InputError, "expected 4"),
        (X * math.nan, None, "regression", InputError, "finite"),
    ],
)
def test_what_does_not_fit_is_refused(inputs, targets, task, error, message):
    with pytest.raises(error, match=message):
        mcdrop.inspect(network(*P, nn.ReLU()), X, inputs, targets, task=task)


def test_a_model_that_is_none_is_refused():
    with pytest.raises(SettingError, match=r"torch\.nn\.Module"):
        mcdrop.inspect(len, X)
