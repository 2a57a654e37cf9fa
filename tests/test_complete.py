"""Every way to write dropout in networks.py: all its sites are active, the draws are right, and nothing else changes.

Three kinds of evidence for each row of the table: the engine's passes equal the network itself replayed with the
same draws; they match PyTorch's own training mode in mean and variance; and the user's network, with every generator
of the process, is bit for bit what it was. Networks to refuse and networks to run eagerly follow.
"""

import functools
import re
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from evidence import PASSES, assert_same, assert_same_moments, assert_training_mode, fingerprint, tensors
from mcdrop import MCDropout, errors
from networks import FALLBACKS, NETWORKS, REFUSED, Network
from oracles import train_mode_samples

pytestmark = [  # PyTorch's own remarks about networks that their users run anyway
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
]

every_network = pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)


def captured(network: Network, engine: str = "auto") -> MCDropout:
    """Captured once for all tests."""
    return capture_and_predict(network, engine)


@functools.cache
def capture_and_predict(network: Network, engine: str) -> MCDropout:
    model, inputs = network.build(), network.example(2)
    before = fingerprint(model, inputs)
    mc = MCDropout(model, inputs, task=network.task, engine=engine, num_samples=8, **network.keywords)
    mc(inputs, num_samples=3)
    traces[network, engine] = (before, fingerprint(model, inputs))
    return mc


traces: dict[tuple[Network, str], tuple[Any, Any]] = {}  # fingerprints around each capture and first prediction


@every_network
def test_sites_are_active(network: Network) -> None:
    mc = captured(network)
    assert mc.engine == "graph"
    assert sum(site.active for site in mc.sites) == network.sites, str(mc.sites)
    assert sum(not site.active for site in mc.sites) >= network.inactive, str(mc.sites)
    assert all(site.reason for site in mc.sites if not site.active), str(mc.sites)


@every_network
@pytest.mark.parametrize("masks", ["shared", "independent"])
def test_equals_the_network_with_the_same_draws(network: Network, masks: str) -> None:
    """The eager engine runs the user's network itself, pass by pass, on the draws of the same seed."""
    inputs = network.example(3)
    got = tensors(captured(network).sample(inputs, num_samples=12, seed=3, masks=masks))
    truth = tensors(captured(network, "eager").sample(inputs, num_samples=12, seed=3, masks=masks))
    for ours, theirs in zip(got, truth, strict=True):
        assert ours.shape == theirs.shape == (12, 3, *ours.shape[2:])
        assert not torch.equal(ours, ours[:1].expand_as(ours)), "all passes are the same"
        torch.testing.assert_close(ours, theirs, rtol=0, atol=network.tolerance * (1 + float(theirs.abs().max())))


@every_network
def test_matches_training_mode(network: Network) -> None:
    assert_training_mode(network, captured(network), network.example(2))


@every_network
def test_any_number_of_rows(network: Network) -> None:
    mc = captured(network)
    alone, three = (tensors(mc.sample(network.example(rows), num_samples=3, seed=2)) for rows in (1, 3))
    none = tensors(mc.sample(network.example(0), num_samples=3, seed=2))
    for one, many, empty in zip(alone, three, none, strict=True):
        torch.testing.assert_close(one, many[:, :1], rtol=0, atol=network.tolerance * (1 + float(many.abs().max())))
        assert empty.shape == (3, 0, *many.shape[2:])
        assert empty.dtype == many.dtype


# ---- harmless


@every_network
@pytest.mark.parametrize("engine", ["auto", "eager"])
def test_leaves_no_trace(network: Network, engine: str) -> None:
    captured(network, engine)
    assert_same(*traces[network, engine])


def test_a_model_in_training_stays_in_training() -> None:
    model = next(network for network in NETWORKS if network.name == "BatchNorm and dropout").build()
    model.train()
    model[1].eval()
    before = fingerprint(model)
    MCDropout(model, torch.zeros(2, 2, 6, 6), task="classification")
    assert_same(before, fingerprint(model))


def test_is_a_snapshot() -> None:
    network = NETWORKS[0]
    model, inputs = network.build(), network.example(2)
    mc = MCDropout(model, inputs, task="classification")
    before = mc.sample(inputs, num_samples=4, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    model[2].p = 0.9
    assert torch.equal(before, mc.sample(inputs, num_samples=4, seed=0))


# ---- refused


@pytest.mark.parametrize("network", REFUSED, ids=lambda network: network.name)
def test_refused(network: Network) -> None:
    model, inputs = network.build(), network.example(3)
    before = fingerprint(model)
    with pytest.raises(getattr(errors, network.error)) as caught:
        MCDropout(model, inputs, task="classification")
    assert re.search(network.message, str(caught.value)), str(caught.value)
    assert_same(before, fingerprint(model))


@pytest.mark.parametrize("engine", ["graph", "eager"])
@pytest.mark.parametrize(
    "network",
    [network for network in REFUSED if network.error in ("UnsupportedRandomnessError", "NoDropoutError")],
    ids=lambda network: network.name,
)
def test_refused_under_every_engine(network: Network, engine: str) -> None:
    with pytest.raises(getattr(errors, network.error), match=network.message):
        MCDropout(network.build(), network.example(3), task="classification", engine=engine)


# ---- run by the eager engine


@pytest.mark.parametrize("network", FALLBACKS, ids=lambda network: network.name)
def test_falls_back_with_one_warning(network: Network) -> None:
    model, inputs = network.build(), network.example(2)
    before = fingerprint(model)
    with pytest.warns(UserWarning) as warned:
        mc = MCDropout(model, inputs, task="classification")
    assert len(warned) == 1, [str(warning.message) for warning in warned]
    assert mc.engine == "eager"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prediction = mc(inputs, num_samples=50, seed=4)
        samples = mc.sample(inputs, num_samples=1000, seed=4)
    assert bool((prediction.variance > 0).any())
    assert_same(before, fingerprint(model))
    truth = train_mode_samples(network.build(), inputs, PASSES, 1)
    assert_same_moments(samples.flatten(1), truth.flatten(1))
    assert torch.equal(samples[:20], mc.sample(inputs, num_samples=20, seed=4))


@pytest.mark.parametrize("network", FALLBACKS, ids=lambda network: network.name)
def test_graph_engine_says_why_not(network: Network) -> None:
    with pytest.raises(errors.CaptureError, match=r"trace|draws"):
        MCDropout(network.build(), network.example(2), task="classification", engine="graph")


@pytest.mark.parametrize(("width", "message"), [(6, "a site was lost or changed"), (5, r"draw 0 has shape \(3, 5\)")])
def test_a_program_that_draws_otherwise_is_refused(width: int, message: str) -> None:
    class Hides(nn.Module):
        """Drops once more where no tracer looks."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            if self.training and not torch.compiler.is_exporting():
                x = torch.cat([nn.functional.dropout(x[:, :width], 0.5), x[:, width:]], 1)
            return self.layer(nn.functional.dropout(x, 0.5, self.training))

    with pytest.raises(errors.CaptureError, match=message):
        MCDropout(Hides(), torch.randn(3, 6), task="classification")


def test_errors_of_the_network_keep_their_type() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.dropout = nn.Linear(6, 3), nn.Dropout(0.3)

        def forward(self, x: Tensor) -> Tensor:
            raise LookupError("no such thing as this word")

    with pytest.raises(LookupError, match="no such thing as this word"):
        MCDropout(Broken(), torch.zeros(2, 6), task="classification")
