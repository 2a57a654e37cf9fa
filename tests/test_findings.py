"""Every finding has a network that triggers it, with the place, and a near miss that does not."""

import dataclasses
import functools
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import mcdrop
import network_findings as nets
from mcdrop import MCDropout
from mcdrop.layers import add_drop_connect
from mcdrop.reporting.findings import KINDS, Evidence, Finding, judge
from network_findings import P

VECTOR = torch.linspace(-1, 1, 24).view(4, 6)
IMAGE = torch.linspace(-1, 1, 216).view(3, 2, 6, 6)
STEPS = torch.linspace(-1, 1, 72).view(3, 4, 6)


@dataclasses.dataclass(frozen=True)
class Case:
    """`sick` has the finding at the module `at`; `near` has not. `measured` says that it takes inputs to see it."""

    code: str
    sick: Callable[[], nn.Module]
    at: str
    near: Callable[[], nn.Module]
    example: Tensor = VECTOR
    measured: bool = False


def small_head() -> nn.Module:
    return nets.head(nn.Dropout(P), nn.Linear(8, 3))


def vgg_head() -> nn.Module:
    return nets.classifier(P)


def wide_resnet() -> nn.Module:
    return nets.WideResNetBlock(nn.Dropout(P), behind=False)


def lstm_of_two() -> nn.Module:
    return nets.Recurrent(2)


def efficientnet() -> nn.Module:
    return nets.StochasticDepth(False)


def two_heads() -> nn.Module:
    return nets.Auxiliary(False)


def all_dropped() -> nn.Module:
    return nets.classifier(0.9)


def dropped_attention() -> nn.Module:
    """PyTorch's attention looks at its weight three times in a pass, and computes with it once."""
    block = nets.TransformerBlock(True)
    add_drop_connect(block.attention, "in_proj_weight", P)
    return block


def norm(track: bool) -> nn.Module:
    return nets.head(nn.BatchNorm1d(8, track_running_stats=track), nn.Dropout(P), nn.Linear(8, 3))


CASES = (
    Case("no-dropout", lambda: nets.head(nn.Linear(8, 3)), "", small_head),
    Case("no-dropout", lambda: nets.classifier(0.0), "", vgg_head),
    Case("rows-interact", lambda: norm(False), "", lambda: norm(True)),
    Case("unknown-randomness", lambda: nets.Chosen(False), "", lambda: nets.Chosen(True)),
    Case("capture-failed", lambda: nets.Counting(True), "", lambda: nets.Counting(False)),
    Case("eager-engine", lambda: nets.StochasticDepth(True), "", efficientnet),
    Case("random-in-evaluation", lambda: nets.Functional(False), "", lambda: nets.Functional(True)),
    Case("shared-training-flag", two_heads, "", lambda: nets.Auxiliary(True)),
    Case("no-effect", lambda: nets.ThrownAway(False), "lost", lambda: nets.ThrownAway(True)),
    Case("no-effect", lambda: nets.Residual(0.0), "drop", lambda: nets.Residual(0.1), measured=True),
    Case("unreached-module", lambda: nets.AttentionRate(False), "attn_drop", lambda: nets.AttentionRate(True), STEPS),
    Case(
        "dropout-before-batchnorm",
        wide_resnet,
        "drop",
        lambda: nets.WideResNetBlock(nn.Dropout2d(P), behind=True),
        IMAGE,
    ),
    Case(
        "dropout-before-batchnorm",
        lambda: nets.on_maps(nn.Dropout2d(P), nn.ReLU(), nn.MaxPool2d(2), nn.BatchNorm2d(4)),
        "1",
        lambda: nets.on_maps(nn.Dropout2d(P), nn.GroupNorm(2, 4)),
        IMAGE,
    ),
    Case("batchnorm-after-join", lambda: nets.DenseLayers(True), "", lambda: nets.DenseLayers(False), IMAGE),
    Case(
        "dropout-before-activation",
        lambda: nn.Sequential(nn.Linear(6, 8), nn.Dropout(P), nn.GELU(), nn.Linear(8, 3)),
        "1",
        lambda: nn.Sequential(nn.Linear(6, 8), nn.Dropout(P), nn.LeakyReLU(), nn.Linear(8, 3)),
    ),
    Case(
        "dropout-before-activation",
        lambda: nn.Sequential(nn.Linear(6, 8), nn.AlphaDropout(P), nn.SELU(), nn.Linear(8, 3)),
        "1",
        lambda: nn.Sequential(nn.Linear(6, 8), nn.SELU(), nn.AlphaDropout(P), nn.Linear(8, 3)),
    ),
    Case(
        "dropout-before-activation",
        lambda: nn.Sequential(nn.Linear(6, 8), nn.Dropout(P), nn.Hardtanh(), nn.Linear(8, 3)),
        "1",
        lambda: nn.Sequential(nn.Linear(6, 8), nn.Dropout(P), nn.ReLU6(), nn.Linear(8, 3)),
    ),
    Case("dropout-before-activation", lambda: nets.Unrolled(True), "", lambda: nets.Unrolled(False), STEPS),
    Case(
        "dropout-on-output",
        lambda: nets.head(nn.Linear(8, 3), nn.Dropout(P), nn.Softmax(-1)),
        "3",
        lambda: nets.head(nn.Dropout(P), nn.Linear(8, 3), nn.Softmax(-1)),
    ),
    Case(
        "unit-wise-on-maps",
        lambda: nets.on_maps(nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(P)),  # the head of FCN
        "3",
        lambda: nets.on_maps(nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout2d(P)),
        IMAGE,
    ),
    Case(
        "unit-wise-on-maps",
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.Dropout(P), nn.Conv2d(4, 3, 1), nn.AvgPool2d(4), nn.Flatten()),
        "1",
        lambda: nn.Sequential(  # Inception v3 drops maps of one position
            nn.Conv2d(2, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Dropout(P), nn.Flatten(), nn.Linear(4, 3)
        ),
        IMAGE,
    ),
    Case(
        "unit-wise-on-maps",
        lambda: nets.on_maps(nn.Dropout(P)),
        "1",
        lambda: nets.on_maps(nets.Patches()),
        IMAGE,
    ),
    Case(
        "unit-wise-on-maps", lambda: nets.on_maps(nn.AlphaDropout(P)), "1", lambda: nets.on_maps(nets.Blocks()), IMAGE
    ),
    Case(  # PyTorch's example for MNIST, and AlexNet, drop what a linear layer reads
        "unit-wise-on-maps",
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.Dropout(P), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3)),
        "1",
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.MaxPool2d(2), nn.Dropout(P), nn.Flatten(), nn.Linear(16, 3)),
        IMAGE,
    ),
    Case("last-layer-only", small_head, "", vgg_head),
    Case(
        "input-rate",
        lambda: nn.Sequential(nn.Dropout(0.5), nets.classifier(P)),
        "0",
        lambda: nn.Sequential(nn.Dropout(0.1), nets.classifier(P)),
    ),
    Case(
        "input-rate",
        lambda: nn.Sequential(nn.Unflatten(1, (2, 3)), nn.Flatten(), nn.Dropout(0.5), nets.classifier(P)),
        "2",
        lambda: nn.Sequential(nets.Sum(nn.Linear(6, 6)), nn.Dropout(0.5), nets.classifier(P)),
    ),
    Case("unusual-rate", all_dropped, "4", lambda: nets.classifier(0.5)),
    Case("unusual-rate", lambda: nets.classifier(0.01), "4", lambda: nets.classifier(0.2)),
    Case(
        "unusual-rate",
        lambda: nets.TransformerBlock(True, p=0.5),
        "drops.2",
        lambda: nets.TransformerBlock(True, p=0.05),
        STEPS,
    ),
    Case(
        "rate-one",
        lambda: nets.head(nn.Dropout(1.0), nn.Linear(8, 8), nn.Dropout(P), nn.Linear(8, 3)),
        "2",
        lambda: nets.head(nn.Dropout(0.5), nn.Linear(8, 8), nn.Dropout(P), nn.Linear(8, 3)),
    ),
    Case(  # timm writes nn.Dropout(0.) where there is to be none
        "rate-zero",
        lambda: nets.head(nn.Dropout(0.0), nn.Linear(8, 8), nn.Dropout(P), nn.Linear(8, 3)),
        "2",
        lambda: nets.head(nn.Identity(), nn.Linear(8, 8), nn.Dropout(P), nn.Linear(8, 3)),
    ),
    Case("recurrent-one-layer", lambda: nets.Recurrent(1), "lstm", lstm_of_two, STEPS),
)

HEALTHY: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "VGG's head": (vgg_head, VECTOR),
    "MobileNetV2's head": (lambda: nets.on_maps(nn.BatchNorm2d(4), nn.ReLU6()), IMAGE),
    "EfficientNet's stochastic depth": (efficientnet, VECTOR),
    "LSTM of two layers": (lstm_of_two, STEPS),
    "BERT's block": (lambda: nets.TransformerBlock(True), STEPS),
    "ViT's block": (lambda: nets.TransformerBlock(False), STEPS),
    "attention whose weights are dropped": (dropped_attention, STEPS),
}


@functools.cache
def findings(make: Callable[[], nn.Module], example: Tensor, measured: bool = False) -> tuple[Finding, ...]:
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.manual_seed(0)
        warnings.simplefilter("ignore")  # nn.LSTM warns itself, and so does a network that runs eagerly
        network = make().eval()
        return mcdrop.inspect(network, example, example if measured else None, num_samples=32).findings


def test_every_finding_has_a_case():
    assert {case.code for case in CASES} == set(KINDS)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.code}, {case.at}")
def test_a_sick_network_and_its_near_miss(case):
    found = [each for each in findings(case.sick, case.example, case.measured) if each.code == case.code]
    assert len(found) == 1
    assert case.at in {place.path for place in found[0].places}
    kind = KINDS[case.code]
    assert (found[0].severity, found[0].title, found[0].source) == (kind.severity, kind.title, kind.source)
    assert found[0].reason.endswith(".")
    assert case.code not in {each.code for each in findings(case.near, case.example, case.measured)}


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_network_has_no_warning(name):
    make, example = HEALTHY[name]
    assert {each.code for each in findings(make, example)} <= {"last-layer-only"}


def test_places_with_one_reason_are_one_finding():
    (found,) = (each for each in findings(all_dropped, VECTOR) if each.code == "unusual-rate")
    assert [place.path for place in found.places] == ["4", "7"]


def test_an_lstm_of_one_layer_has_no_dropout():
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(6, 3, dropout=P, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.lstm(x)[0][:, -1]

    found = {each.code: [place.path for place in each.places] for each in findings(Last, STEPS)}
    assert found == {"no-dropout": [""], "recurrent-one-layer": ["lstm"]}


def test_the_gravest_come_first():
    severities = [each.severity for each in findings(two_heads, VECTOR)]
    assert severities == sorted(severities, key=["error", "warning", "note"].index)
    assert len(set(severities)) > 1


def test_a_network_from_disk_is_judged_as_the_one_that_was_saved(tmp_path):
    mc = MCDropout(wide_resnet().eval(), IMAGE, task="raw")
    mc.save(tmp_path / "model")
    kept = MCDropout.load(tmp_path / "model").inspect().findings
    assert [each.code for each in kept] == [each.code for each in mc.inspect().findings]
    assert {"dropout-before-batchnorm", "unit-wise-on-maps"} <= {each.code for each in kept}


def test_sites_that_are_not_chosen_are_not_judged():
    network = nn.Sequential(nn.Dropout(0.5), nets.classifier(P)).eval()
    chosen = MCDropout(network, VECTOR, task="raw", exclude="0").inspect().findings
    assert "input-rate" in {each.code for each in MCDropout(network, VECTOR, task="raw").inspect().findings}
    assert "input-rate" not in {each.code for each in chosen}


def test_nothing_known_nothing_found():
    assert judge(Evidence()) == ()
