"""Other people's models, in a tier of their own: `pytest -m models` (it takes transformers, and the network never).

Three claims for every row of model_networks.py: passes equal the network itself under the same draws, they have the
mean and variance of training mode, and the user's model is what it was. Then what a graph cannot hold, padding, and
torchvision and timm where they import; how these two write dropout is in networks.py, and always tested.
"""

import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mcdrop
from evidence import assert_same, assert_training_mode, fingerprint
from mcdrop import MCDropout
from mcdrop.errors import CaptureError
from model_networks import ATTENTION, EAGER, GRAPH, LENGTH, SAMPLES, attended, sentences, transformer
from networks import Network, floats

pytestmark = pytest.mark.models

FEW = 300  # passes of a model that runs one row and one pass at a time: sees a mean off by 0.7 standard deviations

ENGINES = ("graph", "eager")

every_graph = pytest.mark.parametrize("network", GRAPH, ids=lambda network: network.name)
every_eager = pytest.mark.parametrize("network", EAGER, ids=lambda network: network.name)
both_masks = pytest.mark.parametrize("masks", ["shared", "independent"])


@pytest.fixture(autouse=True)
def fixed_generators() -> None:
    """SpecAugment draws from NumPy's global generator, which the loop of training mode does not set."""
    np.random.seed(0)


@functools.cache
def captured(network: Network, engine: str = "auto") -> MCDropout:
    return MCDropout(network.build(), network.example(2), task=network.task, **network.keywords, engine=engine)


# ---- captured


@pytest.mark.parametrize("network", GRAPH[::2], ids=lambda network: network.name)
def test_the_report_has_no_warning(network: Network) -> None:
    report = mcdrop.inspect(network.build(), network.example(3), task=network.task, **network.keywords)
    assert [each.code for each in report.findings if each.severity != "note"] == []


@every_graph
def test_every_site_is_active_and_nothing_else_changes(network: Network) -> None:
    model, inputs = network.build(), network.example(2)
    before = fingerprint(model, inputs)
    mc = MCDropout(model, inputs, task=network.task, **network.keywords)
    mc(inputs, num_samples=3)
    assert_same(before, fingerprint(model, inputs))
    assert mc.engine == "graph"
    assert [site.active for site in mc.sites] == [True] * network.sites, str(mc.sites)


@every_graph
@both_masks
def test_equals_the_network_with_the_same_draws(network: Network, masks: str) -> None:
    """The eager engine runs the model itself, pass by pass and row by row, on the draws of the same seed."""
    inputs = network.example(3)
    ours, theirs = (captured(network, engine).sample(inputs, num_samples=5, seed=3, masks=masks) for engine in ENGINES)
    assert not torch.equal(ours, ours[:1].expand_as(ours)), "all passes are the same"
    torch.testing.assert_close(ours, theirs, rtol=0, atol=network.tolerance * (1 + float(theirs.abs().max())))


@every_graph
def test_has_the_law_of_training_mode(network: Network) -> None:
    assert_training_mode(network, captured(network), network.example(2))


@every_graph
def test_saved_and_loaded(network: Network, tmp_path: Path) -> None:
    mc, inputs = captured(network), network.example(3)
    mc.save(tmp_path / "model")
    assert torch.equal(MCDropout.load(tmp_path / "model").sample(inputs), mc.sample(inputs))


# ---- run by the eager engine


@every_eager
def test_runs_eagerly_with_one_warning_and_the_law_of_training_mode(network: Network) -> None:
    model, inputs = network.build(), network.example(2)
    before = fingerprint(model, inputs)
    with pytest.warns(UserWarning, match=rf"runs eagerly.*{network.message}") as warned:
        mc = MCDropout(model, inputs, task=network.task, **network.keywords)
    assert len(warned) == 1, [str(warning.message) for warning in warned]
    assert mc.engine == "eager"
    assert len(mc.sites) == network.sites
    assert torch.equal(mc.sample(inputs, num_samples=4), mc.sample(inputs, num_samples=4))
    assert_same(before, fingerprint(model, inputs))
    assert_training_mode(network, mc, inputs, FEW)


@every_eager
def test_a_graph_of_it_is_refused(network: Network) -> None:
    with pytest.raises(CaptureError, match=network.message):
        MCDropout(network.build(), network.example(2), task=network.task, **network.keywords, engine="graph")


# ---- padding


@both_masks
@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("head", ["ForSequenceClassification", "ForTokenClassification"])
def test_longer_padding_of_text_changes_no_answer(head: str, attention: str, masks: str) -> None:
    model = Network("padding", transformer("Bert", head, attention), sentences).build()
    ids, kept = sentences(3), attended(LENGTH, 3)(3)
    free = {"input_ids": {1: "length<=24"}, "attention_mask": {1: "length<=24"}}
    mc = MCDropout(model, {"input_ids": ids, "attention_mask": kept}, task="classification", dynamic=free)
    short, long = (
        mc.sample(
            {"input_ids": lengthened(ids, length), "attention_mask": lengthened(kept, length)},
            num_samples=10, seed=4, masks=masks,
        )
        for length in (LENGTH, 19)
    )  # fmt: skip
    if head == "ForTokenClassification":  # of padding itself nothing is promised
        attends = kept.bool()[None, :, :, None]
        short, long = short * attends, long[:, :, :LENGTH] * attends
    torch.testing.assert_close(short, long, rtol=1e-5, atol=1e-5)


@both_masks
@pytest.mark.parametrize("attention", ATTENTION)
def test_longer_padding_of_sound_changes_no_answer(attention: str, masks: str) -> None:
    """With layer norm: the group norm of wav2vec2-base averages over padding, with dropout or without."""
    settings = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
    make = transformer("Wav2Vec2", "ForSequenceClassification", attention, **settings)
    model = Network("padding", make, floats(SAMPLES)).build()
    kept = attended(SAMPLES, 120)(3)
    waves = floats(SAMPLES)(3) * kept
    free = {"input_values": {1: "length=100..400"}, "attention_mask": {1: "length=100..400"}}
    mc = MCDropout(model, {"input_values": waves, "attention_mask": kept}, task="classification", dynamic=free)
    short, long = (
        mc.sample(
            {"input_values": lengthened(waves, length), "attention_mask": lengthened(kept, length)},
            num_samples=10, seed=4, masks=masks,
        )
        for length in (SAMPLES, 260)
    )  # fmt: skip
    torch.testing.assert_close(short, long, rtol=1e-5, atol=1e-5)


def lengthened(x: Tensor, length: int) -> Tensor:
    return nn.functional.pad(x, (0, length - x.shape[1]))


# ---- torchvision and timm, where they import


def package(name: str) -> Any:
    if name == "timm":  # it imports torchvision
        package("torchvision")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(
            name, reason=f"{name} does not import here; networks.py restates its dropout", exc_type=Exception
        )


def tv(build: Callable[[Any], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: build(package("torchvision"))


def tm(name: str, **keywords: Any) -> Callable[[], nn.Module]:
    return lambda: package("timm").create_model(name, num_classes=3, **keywords)


def in_conv(layer: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), layer, nn.Conv2d(4, 3, 32), nn.Flatten())


VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 12, "depth": 2, "num_heads": 3}
PHOTOS = floats(3, 32, 32)

VISION = (
    Network(
        "torchvision DropBlock2d", tv(lambda tv: in_conv(tv.ops.DropBlock2d(0.2, 3))), PHOTOS, alone=True
    ),
    Network("torchvision StochasticDepth, row", tv(lambda tv: in_conv(tv.ops.StochasticDepth(0.3, "row"))), PHOTOS),
    Network("torchvision StochasticDepth, batch", tv(lambda tv: in_conv(tv.ops.StochasticDepth(0.3, "batch"))), PHOTOS),
    Network("torchvision MobileNetV3", tv(lambda tv: tv.models.mobilenet_v3_small(num_classes=3)), PHOTOS),
    Network("torchvision EfficientNet", tv(lambda tv: tv.models.efficientnet_b0(num_classes=3)), PHOTOS, sites=10),
    Network("timm ViT", tm("vit_tiny_patch16_224", **VIT, proj_drop_rate=0.1, attn_drop_rate=0.1, drop_path_rate=0.2),
            PHOTOS, sites=10),
    Network("timm ViT, PatchDropout", tm("vit_tiny_patch16_224", **VIT, patch_drop_rate=0.25), PHOTOS),
)  # fmt: skip


@pytest.mark.parametrize("network", VISION, ids=lambda network: network.name)
def test_torchvision_and_timm(network: Network) -> None:
    inputs = network.example(2)
    mc = captured(network)
    assert mc.engine == "graph"
    assert sum(site.active for site in mc.sites) == network.sites, str(mc.sites)
    for masks in ("shared", "independent"):
        ours, theirs = (
            captured(network, engine).sample(inputs, num_samples=4, seed=3, masks=masks)
            for engine in ("graph", "eager")
        )
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * (1 + float(theirs.abs().max())))
