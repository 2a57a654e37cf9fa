"""The draws that are kept: right, under their bound, and safe to make from many threads."""

import threading

import pytest
import torch
from torch import Tensor

from mcdrop.engines.masks import _ENTRY, Masks, _Kept
from mcdrop.graph.sites import Law, Site
from mcdrop.randomness.noise import keep_mask


def site(law: Law = "bernoulli", *, p: float = 0.3, axis: int | None = 0, index: int = 2, major: bool = True) -> Site:
    return Site(index, "layer", "dropout", p, law, 1 / (1 - p), ("batch", 6), axis, major, True, None, None)


def draw(masks: Masks, what: Site, sizes: list[int], passes: range, rows: int, numbers: Tensor | None = None):
    return masks.draw(what, sizes, seed=4, passes=passes, row_count=rows, rows=numbers, device=torch.device("cpu"))


def test_shared_draws_are_scaled_masks_with_one_row_for_all() -> None:
    found = draw(Masks(), site(), [5, 6], range(10), 5)
    kept = keep_mask(p=0.3, shape=(1, 6), seed=4, site=2, passes=range(10))
    assert torch.equal(found, kept.float() * torch.tensor(1 / 0.7))


@pytest.mark.parametrize("passes", [range(1), range(31, 33), range(5, 70), range(64, 65)])
def test_any_passes_are_the_slice_of_all(passes: range) -> None:
    masks = Masks()
    whole = draw(Masks(), site(), [5, 6], range(100), 5)
    assert torch.equal(draw(masks, site(), [5, 6], passes, 5), whole[passes.start : passes.stop])
    assert torch.equal(draw(masks, site(), [9, 6], passes, 9), whole[passes.start : passes.stop])  # cached, other rows


def test_few_passes_are_drawn_for_few_and_more_for_more() -> None:
    masks = Masks(ready_bound=0)
    whole = draw(Masks(), site(), [5, 6], range(500), 5)
    for stop, drawn in ((7, 32), (32, 32), (33, 64), (7, 64), (500, 512)):
        assert torch.equal(draw(masks, site(), [5, 6], range(stop), 5), whole[:stop])
        assert [len(bits) for bits in masks._bits.tensors.values()] == [drawn]


def test_masks_that_come_back_when_they_had_to_go_are_packed_and_no_others() -> None:
    masks, what = Masks(ready_bound=_ENTRY + 4 * 6 * 64), site()  # one seed is kept ready

    def asked(seed: int) -> list[int]:
        """Passes that are packed of each seed, after one was asked for in three chunks."""
        for stop in (5, 40, 64):
            where = {"seed": seed, "row_count": 5, "rows": None, "device": torch.device("cpu")}
            found = masks.draw(what, [5, 6], passes=range(stop), **where)
            assert torch.equal(found, Masks().draw(what, [5, 6], passes=range(stop), **where))
        return [len(bits) for bits in masks._bits.tensors.values()]

    assert [asked(0), asked(0), asked(1), asked(2)] == [[], [], [], []]
    assert [asked(1), asked(1), asked(3)] == [[64], [64], [64]]
    assert asked(0) == [64, 64]


def test_of_masks_that_do_not_come_back_little_is_remembered() -> None:
    masks = Masks(bits_bound=10 * _ENTRY)
    for index in range(35):
        draw(masks, site(index=index), [5, 6], range(4), 5)
        assert len(masks._drawn) <= 10


def test_rows_draw_for_themselves() -> None:
    three = draw(Masks(), site(), [3, 6], range(4), 3, torch.arange(3))
    moved = draw(Masks(), site(), [2, 6], range(4), 2, torch.tensor([2, 0]))
    assert torch.equal(moved, three[:, [2, 0]])
    assert len({tuple(mask.tolist()) for mask in three.flatten(0, 1)}) > 6


def test_an_axis_of_rows_and_units() -> None:
    shared = draw(Masks(), site(), [6, 6], range(4), 3)
    assert shared.shape == (4, 2, 6)
    slow = draw(Masks(), site(), [6, 6], range(4), 3, torch.arange(3)).view(4, 3, 2, 6)
    fast = draw(Masks(), site(major=False), [6, 6], range(4), 3, torch.arange(3)).view(4, 2, 3, 6)
    assert torch.equal(slow, fast.transpose(1, 2))


def test_a_weight_has_no_rows() -> None:
    weights = draw(Masks(), site(axis=None), [3, 6], range(4), 7)
    assert torch.equal(weights, draw(Masks(), site(axis=None), [3, 6], range(4), 7, torch.arange(7)))


@pytest.mark.parametrize("law", ["uniform", "normal"])
def test_numbers_are_the_same_kept_or_new(law: Law) -> None:
    masks = Masks()
    first = draw(masks, site(law), [3, 6], range(4), 3)
    assert torch.equal(first, draw(masks, site(law), [3, 6], range(4), 3))
    assert torch.equal(first, draw(Masks(ready_bound=0), site(law), [3, 6], range(4), 3))


def test_every_unit_dropped_is_zero_and_no_nan() -> None:
    gone = Site(0, "", "dropout", 1.0, "bernoulli", 0.0, (), 0, True, True, None, None)
    assert torch.equal(draw(Masks(), gone, [2, 6], range(3), 2), torch.zeros(3, 1, 6))


@pytest.mark.parametrize("law", ["bernoulli", "uniform", "normal"])
def test_chunks_of_any_length_keep_one_tensor(law: Law) -> None:
    masks, what = Masks(), site(law)
    whole = draw(Masks(), what, [5, 6], range(100), 5)
    for stop in (30, 100, 7, 64):
        assert torch.equal(draw(masks, what, [5, 6], range(stop), 5), whole[:stop])
        assert len(masks._ready.tensors) == 1
    if law == "bernoulli":
        for start in range(1, 60):
            assert torch.equal(draw(masks, what, [5, 6], range(start, 110), 5)[: 100 - start], whole[start:])
        assert [len(kept) for kept in masks._ready.tensors.values()] == [200], "more, for the chunks that come next"


@pytest.mark.parametrize("most", [0, 20, 40, 70, 1000])
def test_only_as_many_passes_as_fit_are_kept_ready(most: int) -> None:
    masks, whole = Masks(), draw(Masks(), site(), [5, 6], range(60), 5)
    for _ in range(2):
        for start in range(0, 60, 10):
            passes = range(start, start + 10)
            found = masks.draw(
                site(), [5, 6], seed=4, passes=passes, row_count=5, rows=None, device=torch.device("cpu"), most=most
            )
            assert torch.equal(found, whole[start : start + 10])
    assert sum(map(len, masks._ready.tensors.values())) == {0: 0, 20: 20, 40: 40, 70: 64, 1000: 64}[most]


def test_passes_that_are_kept_ready_stay_under_the_bound() -> None:
    bound = 3 * _ENTRY + 4 * 6 * 3 * 50
    masks = Masks(ready_bound=bound)
    assert masks.passes_kept(6 * 3, 3) == 50
    assert Masks(ready_bound=10).passes_kept(6 * 3, 3) == 0
    for index in range(3):
        masks.draw(
            site(index=index), [5, 6], seed=4, passes=range(50), row_count=5, rows=None, device=torch.device("cpu"),
            most=50,
        )  # fmt: skip
    assert masks._ready.held == bound, "all of them"


def test_what_is_longer_takes_the_place_of_what_was_kept() -> None:
    kept = _Kept(2**20)
    kept.get("key", lambda: torch.zeros(10))
    assert len(kept.get("key", lambda: torch.zeros(20), 20)) == len(kept.get("key", pytest.fail, 15)) == 20
    assert kept.held == 80 + _ENTRY
    assert kept.find("key", 21) is None


def test_kept_under_the_bound() -> None:
    kept = _Kept(2 * _ENTRY + 100)
    for key in range(20):
        kept.get(key, lambda: torch.zeros(10, dtype=torch.float32))  # 40 bytes
        assert kept.held == sum(tensor.nbytes + _ENTRY for tensor in kept.tensors.values()) <= kept.bound
    assert list(kept.tensors) == [18, 19]
    kept.get(18, lambda: pytest.fail("made again"))
    kept.get(20, lambda: torch.zeros(10))
    assert list(kept.tensors) == [18, 20], "the least recently used goes first"
    assert kept.get("large", lambda: torch.zeros(1000)).shape == (1000,)
    assert "large" not in kept.tensors


def test_what_an_entry_takes_besides_its_numbers_counts() -> None:
    kept = _Kept(2**20)
    for key in range(2000):
        kept.get(key, lambda: torch.zeros(1))
    assert len(kept.tensors) < 2**20 / 1024


def test_bounds_do_not_change_the_draws() -> None:
    small = Masks(bits_bound=_ENTRY + 40, ready_bound=_ENTRY + 300)
    for _ in range(2):
        for index in range(6):
            what = site(index=index)
            assert torch.equal(draw(small, what, [5, 6], range(40), 5), draw(Masks(), what, [5, 6], range(40), 5))
            assert small._bits.held <= _ENTRY + 40
            assert small._ready.held <= _ENTRY + 300


def test_many_threads() -> None:
    masks, wrong, gate = Masks(bits_bound=4 * _ENTRY + 400, ready_bound=4 * _ENTRY + 2000), [], threading.Barrier(8)
    truth = {index: draw(Masks(), site(index=index), [5, 6], range(40), 5) for index in range(8)}

    def work(number: int) -> None:
        gate.wait()
        for turn in range(60):
            index = (number * 3 + turn) % 8
            if not torch.equal(draw(masks, site(index=index), [5, 6], range(40), 5), truth[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert masks._bits.held == sum(tensor.nbytes + _ENTRY for tensor in masks._bits.tensors.values())
    assert masks._bits.held <= masks._bits.bound
