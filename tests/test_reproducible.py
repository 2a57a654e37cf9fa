"""What a seed promises: the same masks bit for bit, and the same numbers, however the work was done.

Masks are seen as they are through networks that return nothing else: dropout of ones. Numbers are compared over
networks that mix rows' work in different ways, alone, in a batch, permuted, padded longer, in chunks of any size,
saved and loaded, and from eight threads at once.
"""

import functools
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mcdrop import MCDropout
from networks import NETWORKS, Network, padding
from oracles import repeat

NAMES = (
    "nn.Dropout",
    "early nn.Dropout2d",
    "BatchNorm and dropout",
    "randn_like",
    "DropPath",
    "DropConnect",
    "DropBlock, torchvision",
    "PatchDropout, ranks",
    "nn.AlphaDropout",
    "SDPA, bool mask",
    "heads merged, heads first",
    "nn.TransformerEncoder",
    "logits of the last token",
    "nn.LSTM, bidirectional",
)
CHOSEN = tuple(network for network in NETWORKS if network.name in NAMES)
FIELDS = ("mean", "variance", "entropy", "expected_entropy", "mutual_information", "variation_ratio")

chosen = pytest.mark.parametrize("network", CHOSEN, ids=lambda network: network.name)
both_masks = pytest.mark.parametrize("masks", ["shared", "independent", "balanced"])


@functools.cache
def captured(network: Network) -> MCDropout:
    return MCDropout(network.build(), network.example(2), task=network.task, seed=5, num_samples=20, **network.keywords)


def assert_close(ours: Any, theirs: Any, rows: Any = slice(None)) -> None:
    """Every field of `ours` equals that of the rows of `theirs` to 1e-5."""
    assert ours.num_samples == theirs.num_samples
    assert ours.seed == theirs.seed
    for field in FIELDS:
        torch.testing.assert_close(getattr(ours, field), getattr(theirs, field)[rows], rtol=1e-5, atol=1e-5, msg=field)


def rows_of(inputs: Any, rows: Any) -> Any:
    if isinstance(inputs, dict):
        return {name: value[rows] for name, value in inputs.items()}
    if isinstance(inputs, tuple):
        return tuple(value[rows] for value in inputs)
    return inputs[rows]


# ---- the masks themselves


def masks_of(layer: nn.Module, shape: tuple[int, ...]) -> MCDropout:
    return MCDropout(layer, torch.ones(2, *shape), task="raw")


def test_a_mask_depends_on_nothing_but_seed_pass_and_unit() -> None:
    layers, ones = nn.Sequential(nn.Dropout(0.3)), torch.ones(3, 40)
    mc = masks_of(layers, (40,))
    masks = mc.sample(ones, num_samples=9, seed=11)
    assert sorted(masks.unique().tolist()) == pytest.approx([0, 1 / 0.7])
    assert torch.equal(masks[:, 0], masks[:, 1])
    assert torch.equal(masks[:, :1], mc.sample(ones[:1], num_samples=9, seed=11))
    assert torch.equal(masks[:4], mc.sample(ones, num_samples=4, seed=11))
    assert torch.equal(masks, masks_of(nn.Sequential(nn.Dropout(0.3)), (40,)).sample(ones, num_samples=9, seed=11))
    assert not torch.equal(masks, mc.sample(ones, num_samples=9, seed=12))
    assert len({tuple(mask.flatten().tolist()) for mask in masks}) == 9


def test_sites_draw_different_masks() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dropout = nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([self.dropout(x), self.dropout(x)], 1)

    both = masks_of(Two(), (64,)).sample(torch.ones(1, 64), num_samples=4, seed=0)
    assert not any(torch.equal(one, other) for one, other in zip(both[:, 0, 0], both[:, 0, 1], strict=True))


def test_an_independent_mask_depends_on_the_index_of_its_row() -> None:
    mc = masks_of(nn.Sequential(nn.Dropout(0.3)), (40,))
    three = mc.sample(torch.ones(3, 40), num_samples=6, seed=2, masks="independent")
    assert len({tuple(mask.tolist()) for mask in three.flatten(0, 1)}) == 18
    assert torch.equal(three, mc.sample(torch.ones(5, 40), num_samples=6, seed=2, masks="independent")[:, :3])
    scaled = torch.tensor([2.0, 1.0, 4.0])[:, None] * torch.ones(3, 40)
    moved = mc.sample(scaled, num_samples=6, seed=2, masks="independent")
    assert torch.equal(moved, three * scaled)  # what a row contains does not move its mask


@both_masks
@pytest.mark.parametrize(
    "layer", [nn.Dropout(0.4), nn.Dropout1d(0.4), nn.AlphaDropout(0.4)], ids=lambda layer: type(layer).__name__
)
def test_a_longer_input_keeps_the_masks_of_its_beginning(layer: nn.Module, masks: str) -> None:
    mc = MCDropout(nn.Sequential(layer), torch.ones(2, 4, 6), task="raw", dynamic={"input": {2: "length"}})
    short = mc.sample(torch.ones(2, 4, 6), num_samples=5, seed=1, masks=masks)
    long = mc.sample(torch.ones(2, 4, 11), num_samples=5, seed=1, masks=masks)
    assert torch.equal(short, long[..., :6])


@both_masks
def test_masks_are_the_same_in_any_chunks_and_threads(masks: str) -> None:
    mc, ones = masks_of(nn.Sequential(nn.Dropout(0.3)), (40,)), torch.ones(3, 40)
    whole = mc.sample(ones, num_samples=16, seed=3, masks=masks)
    small = MCDropout(nn.Sequential(nn.Dropout(0.3)), ones, task="raw", max_memory=4096)
    assert torch.equal(whole, small.sample(ones, num_samples=16, seed=3, masks=masks))
    found = in_threads([functools.partial(mc.sample, ones, num_samples=16, seed=3, masks=masks)] * 8)
    assert all(torch.equal(whole, other) for other in found)


# ---- the numbers


@chosen
def test_alone_in_a_batch_and_permuted(network: Network) -> None:
    mc, inputs = captured(network), network.example(6)
    together = mc(inputs)
    for row in range(6):
        assert_close(mc(rows_of(inputs, slice(row, row + 1))), together, slice(row, row + 1))
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    assert_close(mc(rows_of(inputs, order)), together, order)
    assert_close(mc(repeat(inputs, 3)), together, torch.arange(6).repeat(3))


@chosen
@both_masks
def test_independent_of_chunks(network: Network, masks: str) -> None:
    mc, inputs = captured(network), network.example(3)
    whole = mc(inputs, masks=masks)
    for budget in (1, 7, 20):
        run = mc.start(inputs, masks=masks)
        while not run.done:
            mc.advance(run, budget=budget)
        assert_close(run.prediction(), whole)


@chosen
def test_independent_of_the_memory(network: Network) -> None:
    """Under a small budget rows are computed in parts, before the first draw and after it."""
    inputs = network.example(12)
    for budget in (2**12, 2**15):
        small = MCDropout(
            network.build(), network.example(2), seed=5, num_samples=20, task=network.task, max_memory=budget
        )
        for masks in ("shared", "independent"):
            wanted = captured(network)(inputs, num_samples=5, masks=masks)
            assert_close(small(inputs, num_samples=5, masks=masks), wanted)


@chosen
def test_independent_of_runs_beside(network: Network) -> None:
    """Runs of other rows, seeds and numbers of passes advance together, a few passes at a time."""
    mc = captured(network)
    wanted = [
        {"inputs": network.example(rows), "seed": seed, "num_samples": passes, "masks": masks}
        for rows, seed, passes, masks in (
            (1, 5, 20, "shared"),
            (4, 5, 20, "shared"),
            (2, 5, 9, "shared"),
            (3, 8, 20, "shared"),
            (2, 5, 20, "independent"),
            (3, 8, 13, "independent"),
        )
    ]
    runs = [mc.start(**keywords) for keywords in wanted]
    while not all(run.done for run in runs):
        mc.advance([run for run in runs if not run.done], budget=7)
    for run, keywords in zip(runs, wanted, strict=True):
        assert_close(run.prediction(), mc(**keywords))


@chosen
@both_masks
def test_saved_and_loaded(network: Network, masks: str, tmp_path: Path) -> None:
    mc, inputs = captured(network), network.example(3)
    mc.save(tmp_path / "model")
    loaded = MCDropout.load(tmp_path / "model")
    assert_close(loaded(inputs, masks=masks), mc(inputs, masks=masks))
    assert torch.equal(loaded.sample(inputs, masks=masks), mc.sample(inputs, masks=masks))


def test_padded_longer() -> None:
    """Padding positions that a mask hides change nothing, masks of the real ones included."""
    network = next(network for network in NETWORKS if network.name == "token ids and padding")
    mc = MCDropout(
        network.build(),
        network.example(2),
        task="classification",
        seed=5,
        num_samples=20,
        dynamic={"ids": {1: "length<=16"}, "padding": {1: "length<=16"}},
    )
    inputs = {"ids": network.example(4)["ids"], "padding": padding(5)(4)}
    for longer in (6, 9, 16):
        padded = {
            "ids": nn.functional.pad(inputs["ids"], (0, longer - 5)),
            "padding": nn.functional.pad(inputs["padding"], (0, longer - 5), value=True),
        }
        for masks in ("shared", "independent"):
            assert_close(mc(padded, masks=masks), mc(inputs, masks=masks))


def in_threads(work: list[Any]) -> list[Any]:
    """All calls at once, their results in order; an error of any thread surfaces."""
    gate, results = threading.Barrier(len(work)), [None] * len(work)
    raised: list[BaseException] = []

    def run(index: int) -> None:
        gate.wait()
        try:
            results[index] = work[index]()
        except BaseException as error:  # raised again below, in the thread of the test
            raised.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if raised:
        raise raised[0]
    return results


@chosen
def test_eight_threads_at_once(network: Network) -> None:
    """Each thread has rows, seed and number of passes of its own, and gets what it gets alone."""
    mc = captured(network)
    wanted = [
        functools.partial(mc, network.example(1 + index % 4), seed=index // 2, num_samples=10 + index, masks=masks)
        for index, masks in enumerate(["shared", "independent"] * 4)
    ]
    for found, alone in zip(in_threads(wanted), [work() for work in wanted], strict=True):
        assert_close(found, alone)


def test_a_call_does_not_touch_the_global_generators() -> None:
    mc, inputs = captured(CHOSEN[0]), CHOSEN[0].example(2)
    torch.manual_seed(0)
    first = torch.rand(3)
    torch.manual_seed(0)
    mc(inputs, seed=1)
    assert torch.equal(first, torch.rand(3))
