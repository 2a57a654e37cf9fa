"""Runs: started without work, advanced alone and together, in chunks and blocks, surviving memory that runs out."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engines import ArithmeticEngine
from mcdrop import MCDropout
from mcdrop.answering.runs import Run
from mcdrop.answering.sampling import Sampler
from mcdrop.errors import PassMemoryError, SettingError
from mcdrop.outputs.tasks import Task
from mcdrop.streaming.moments import accumulator


def sampler(engine: Any, max_memory: int | None = 10**6) -> Sampler:
    return Sampler(engine, [True], max_memory)


def begin(of: Sampler, x: Tensor, num_samples: int, *, seed: int = 0, exact: bool = False) -> Run:
    def sink() -> Any:
        return accumulator(Task("raw"), num_samples=num_samples)

    return of.start([x], rows=len(x), num_samples=num_samples, seed=seed, masks="shared", make_sink=sink, exact=exact)


def assert_counted(run: Run, x: Tensor, passes: int) -> None:
    prediction = run.prediction()
    times = torch.arange(float(passes))
    assert prediction.num_samples == passes
    torch.testing.assert_close(prediction.mean, x + times.mean(), check_dtype=False)
    torch.testing.assert_close(prediction.variance, times.var().expand_as(x), check_dtype=False)


def test_start_computes_nothing_and_a_run_can_be_dropped() -> None:
    engine = ArithmeticEngine()
    run = begin(sampler(engine), torch.ones(3, 2), 8)
    assert (engine.prepared, engine.asked, run.passes, run.done) == (0, [], 0, False)
    del run
    assert engine.prepared == 0


def test_prediction_at_any_time() -> None:
    engine, x = ArithmeticEngine(), torch.randn(3, 2)
    of = sampler(engine)
    run = begin(of, x, 9)
    for passes in (0, 1):
        with pytest.raises(SettingError, match="at least 2"):
            run.prediction()
        assert run.passes == passes
        of.advance([run], 1)
    for passes in (2, 5, 8, 9):
        assert_counted(run, x, passes)
        assert run.done == (passes == 9)
        of.advance([run], 3)
    assert engine.prepared == 1, "the prefix runs once"
    assert sum(len(passes) for _, passes in engine.asked) == 9


def test_chunks_fit_the_budget() -> None:
    engine, x = ArithmeticEngine(), torch.randn(2, 2)
    of = sampler(engine, max_memory=1600)  # two rows of 100 bytes, a headroom of two: four passes at a time
    run = begin(of, x, 10)
    of.advance([run], None)
    assert [(passes.start, passes.stop) for _, passes in engine.asked] == [(0, 4), (4, 8), (8, 10)]
    assert_counted(run, x, 10)


def test_rows_are_cut_into_blocks() -> None:
    engine, x = ArithmeticEngine(), torch.randn(7, 2)
    of = sampler(engine, max_memory=600)
    run = begin(of, x, 4)
    of.advance([run], None)
    assert max(rows for rows, _ in engine.asked) == 3
    assert_counted(run, x, 4)


@pytest.mark.parametrize("error", [lambda: torch.OutOfMemoryError("full"), lambda: MemoryError()])
def test_out_of_memory_halves_the_chunk(error: Callable[[], BaseException]) -> None:
    engine, x = ArithmeticEngine(most=6, error=error), torch.randn(2, 2)
    of = sampler(engine)
    run = begin(of, x, 16)
    of.advance([run], None)
    assert [len(passes) for _, passes in engine.asked] == [16, 8, 4, *[2] * 8]
    assert_counted(run, x, 16)


def test_cpu_allocator_counts_as_out_of_memory() -> None:
    refusal = "[enforce fail] DefaultCPUAllocator: can't allocate memory"
    engine = ArithmeticEngine(most=6, error=lambda: RuntimeError(refusal))
    of, x = sampler(engine), torch.randn(2, 2)
    run = begin(of, x, 4)
    of.advance([run], None)
    assert_counted(run, x, 4)


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), LookupError("no word")])
def test_other_errors_surface_as_themselves(error: Exception) -> None:
    engine = ArithmeticEngine(most=1, error=lambda: error)
    of = sampler(engine)
    with pytest.raises(type(error), match=str(error.args[0])):
        of.advance([begin(of, torch.ones(2, 2), 4)], None)
    assert len(engine.asked) == 1


def test_one_pass_of_one_row_that_does_not_fit() -> None:
    of = sampler(ArithmeticEngine(most=0))
    with pytest.raises(PassMemoryError, match="does not fit into memory"):
        of.advance([begin(of, torch.ones(1, 2), 4)], None)


def test_an_engine_that_does_not_merge_gets_one_pass_at_a_time() -> None:
    engine, x = ArithmeticEngine(), torch.randn(3, 2)
    engine.merges = False
    of = sampler(engine, max_memory=1)
    runs = [begin(of, x, 3), begin(of, x + 1, 3)]
    of.advance(runs, None)
    assert [(rows, len(passes)) for rows, passes in engine.asked] == [(3, 1)] * 6
    assert_counted(runs[1], x + 1, 3)


def test_runs_together_share_passes_and_end_on_their_own() -> None:
    engine = ArithmeticEngine()
    of = sampler(engine)
    inputs = [torch.randn(rows, 2) for rows in (1, 3, 2)]
    runs = [begin(of, x, passes) for x, passes in zip(inputs, (4, 9, 6), strict=True)]
    of.advance(runs, 3)
    assert engine.asked == [(6, range(3))]
    of.advance(runs, None)
    assert all(run.done for run in runs)
    for run, x, passes in zip(runs, inputs, (4, 9, 6), strict=True):
        assert_counted(run, x, passes)


def test_runs_together_draw_the_masks_they_draw_alone() -> None:
    ones = torch.ones(3, 40)
    mc = MCDropout(nn.Sequential(nn.Dropout(0.4)), ones, task="raw")
    for masks in ("shared", "independent", "balanced"):
        runs = [
            mc.start(ones[:rows], num_samples=passes, seed=seed, masks=masks, samples=True)
            for rows, passes, seed in ((3, 6, 1), (1, 9, 1), (2, 4, 1), (2, 5, 2))
        ]
        mc.advance(runs, budget=3)
        mc.advance(runs)
        for run in runs:
            alone = mc.sample(ones[: run.rows], num_samples=run.num_samples, seed=run.seed, masks=masks)
            assert torch.equal(run.prediction().samples, alone)


@pytest.mark.parametrize("masks", ["shared", "independent", "balanced"])
def test_out_of_memory_keeps_the_masks(masks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ones = torch.ones(3, 40)
    mc = MCDropout(nn.Sequential(nn.Dropout(0.4)), ones, task="raw")
    whole = mc.sample(ones, num_samples=20, masks=masks)
    passes = mc._engine.passes

    def scarce(*args: Any, **keywords: Any) -> Any:
        if len(keywords["passes"]) > 3:
            raise torch.OutOfMemoryError("no room")
        return passes(*args, **keywords)

    monkeypatch.setattr(mc._engine, "passes", scarce)
    assert torch.equal(whole, mc.sample(ones, num_samples=20, masks=masks))


@pytest.mark.parametrize("rows", [0, 1])
def test_empty_batch_and_one_row(rows: int) -> None:
    engine, x = ArithmeticEngine(), torch.randn(rows, 2)
    of = sampler(engine)
    run = begin(of, x, 4)
    of.advance([run], None)
    assert_counted(run, x, 4)


def test_advancing_what_is_done_does_nothing() -> None:
    engine = ArithmeticEngine()
    of = sampler(engine)
    run = begin(of, torch.ones(2, 2), 4)
    of.advance([run], None)
    before = len(engine.asked)
    of.advance([run], None)
    of.advance([], None)
    assert len(engine.asked) == before


def test_blocks_of_rows_stand_at_the_same_pass() -> None:
    of, x = sampler(ArithmeticEngine(), max_memory=600), torch.randn(7, 2)
    run = begin(of, x, 8)
    for passes in (2, 4, 6, 8):
        of.advance([run], 2)
        assert_counted(run, x, passes)


def test_out_of_memory_at_one_pass_cuts_rows() -> None:
    of, x = sampler(ArithmeticEngine(most=3)), torch.randn(8, 2)
    run = begin(of, x, 4)
    of.advance([run], None)
    assert_counted(run, x, 4)


def test_runs_together_stay_under_the_budget() -> None:
    engine = ArithmeticEngine()
    of = sampler(engine, max_memory=800)
    inputs = [torch.randn(2, 2) for _ in range(10)]
    runs = [begin(of, x, 4) for x in inputs]
    of.advance(runs, None)
    assert max(rows * len(passes) for rows, passes in engine.asked) * 100 * 2 <= 800


def test_the_prefix_of_runs_together_runs_once() -> None:
    engine = ArithmeticEngine()
    of = sampler(engine)
    runs = [begin(of, torch.ones(2, 2), 8), begin(of, torch.ones(2, 2), 8)]
    for _ in range(4):
        of.advance(runs, 2)
    assert engine.prepared <= 2


def test_runs_that_cannot_be_joined_go_alone_and_keep_their_prefix() -> None:
    engine = ArithmeticEngine()
    engine.joins = False
    of = sampler(engine)
    inputs = [torch.randn(2, 2), torch.randn(3, 2)]
    runs = [begin(of, x, 8) for x in inputs]
    for _ in range(4):
        of.advance(runs, 2)
    assert engine.prepared == 2
    assert {rows for rows, _ in engine.asked} == {2, 3}
    for run, x in zip(runs, inputs, strict=True):
        assert_counted(run, x, 8)


def test_a_run_given_twice_advances_once() -> None:
    of, x = sampler(ArithmeticEngine()), torch.randn(2, 2)
    run = begin(of, x, 8)
    of.advance([run, run], None)
    assert_counted(run, x, 8)


def test_an_interrupted_run_goes_on_and_does_not_call_unequal_rows_a_prediction() -> None:
    engine, x = ArithmeticEngine(), torch.randn(3, 2)
    of = sampler(engine, max_memory=1)  # every row is a block
    run = begin(of, x, 10)
    of.advance([run], 4)
    assert_counted(run, x, 4)
    compute = engine.passes

    def interrupted(inputs: Sequence[Tensor], *rest: Any, **keywords: Any) -> tuple[Tensor, ...]:
        if torch.equal(inputs[0], x[1:2]):
            raise KeyboardInterrupt
        return compute(inputs, *rest, **keywords)

    engine.passes = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        of.advance([run], 4)
    with pytest.raises(SettingError, match="4 passes are computed of some rows and 8 of others"):
        run.prediction()
    engine.passes = compute  # type: ignore[method-assign]
    of.advance([run], None)
    assert_counted(run, x, 10)


def test_runs_that_agree_in_everything_are_computed_as_one() -> None:
    x = torch.randn(6, 4)
    mc = MCDropout(nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.4), nn.Linear(8, 3)), x, task="classification")
    for masks in ("shared", "independent", "balanced"):
        runs = [mc.start(x[i : i + 2], num_samples=20, masks=masks, standard_errors=True) for i in (0, 2, 4)]
        mc.advance(runs, 20)
        assert all(run.done and run.share is not None for run in runs)
        assert len({id(run.share.whole) for run in runs if run.share}) == 1
        for run in runs:
            alone = mc(run.inputs[0], num_samples=20, masks=masks, standard_errors=True)
            torch.testing.assert_close(run.prediction().to_dict(), alone.to_dict(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"num_samples": 9}, {"masks": "independent"}, {"quantiles": (0.5,)}, {"exact": True}]
)
def test_runs_that_differ_are_not_computed_as_one(other: dict[str, Any]) -> None:
    x = torch.randn(2, 4)
    mc = MCDropout(nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.4)), x, task="raw")
    runs = [mc.start(x, **{"num_samples": 10, **keywords}) for keywords in ({}, other)]
    mc.advance(runs)
    assert all(run.done and run.share is None for run in runs)
    keywords = {"num_samples": 10, **other}
    keywords.pop("exact", None)
    torch.testing.assert_close(runs[1].prediction().to_dict(), mc(x, **keywords).to_dict(), rtol=1e-5, atol=1e-6)


def test_runs_that_are_not_finished_now_are_not_computed_as_one() -> None:
    x = torch.randn(2, 4)
    mc = MCDropout(nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.4)), x, task="raw")
    runs = [mc.start(x, num_samples=10), mc.start(x, num_samples=10)]
    mc.advance(runs, 9)
    assert [run.passes for run in runs] == [9, 9]
    assert all(run.share is None for run in runs)


def test_seeds_share_a_prefix_and_not_their_passes() -> None:
    engine = ArithmeticEngine()
    of, x = sampler(engine), torch.randn(2, 2)
    runs = [begin(of, x, 8, seed=seed) for seed in (1, 2, 3)]
    of.advance(runs, 4)
    assert engine.prepared == 1
    assert engine.asked == [(2, range(4))] * 3


def test_few_sizes_of_batch() -> None:
    engine = ArithmeticEngine()
    of = sampler(engine)
    inputs = [torch.randn(rows, 2) for rows in (1, 3, 2, 1)]
    runs = [begin(of, x, 6, seed=seed) for x, seed in zip(inputs, (0, 0, 1, 2), strict=True)]
    of.advance(runs, 4, batch_sizes=(1, 2, 8))
    of.advance(runs, None, batch_sizes=(1, 2, 8))
    assert {rows for rows, _ in engine.asked} == {1, 2, 8}
    for run, x in zip(runs, inputs, strict=True):
        assert_counted(run, x, 6)


@pytest.mark.parametrize("masks", ["shared", "independent", "balanced"])
def test_filled_up_rows_change_nothing(masks: str) -> None:
    x = torch.randn(3, 1, 8, 8)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Dropout2d(0.5), nn.Conv2d(4, 2, 3), nn.Flatten())
    mc = MCDropout(network, x, task="raw")
    run = mc.start(x, num_samples=12, masks=masks)
    mc.advance(run, batch_sizes=(8,))
    torch.testing.assert_close(run.prediction().to_dict(), mc(x, num_samples=12, masks=masks).to_dict())


@pytest.mark.parametrize("masks", ["shared", "independent", "balanced"])
def test_a_run_can_be_split_by_rows(masks: str) -> None:
    x = torch.randn(7, 4)
    mc = MCDropout(nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.4)), x, task="raw")
    runs = mc.split(mc.start(x, num_samples=6, masks=masks), 3)
    assert [run.rows for run in runs] == [3, 3, 1]
    for run in reversed(runs):
        mc.advance(run)
    whole = mc(x, num_samples=6, masks=masks)
    torch.testing.assert_close(torch.cat([run.prediction().mean for run in runs]), whole.mean)
    assert mc.split(runs[0], 3) == [runs[0]]


@pytest.mark.parametrize("masks", ["shared", "independent", "balanced"])
def test_exact_answers_have_the_same_bits_in_any_company(masks: str) -> None:
    x = torch.randn(5, 300)
    network = nn.Sequential(nn.Linear(300, 200), nn.Dropout(0.5), nn.Linear(200, 200), nn.Tanh(), nn.Linear(200, 10))
    mc = MCDropout(network, x, task="classification")

    def answers(budget: int | None, company: int) -> Any:
        run = mc.start(x, num_samples=50, masks=masks, exact=True)
        others = [mc.start(x[:3], num_samples=50, masks=masks) for _ in range(company)]
        while not run.done:
            mc.advance([*others, run], budget)
        return run.prediction()

    first = answers(None, 0)
    for budget, company in ((3, 0), (17, 2), (None, 3)):
        again = answers(budget, company)
        assert torch.equal(first.mean, again.mean)
        assert torch.equal(first.variance, again.variance)
        assert torch.equal(first.entropy, again.entropy)
    if masks == "shared":
        alone = mc.start(x[2:3], num_samples=50, exact=True)
        mc.advance(alone)
        assert torch.equal(alone.prediction().mean[0], first.mean[2])


def test_an_exact_run_that_does_not_fit_says_so() -> None:
    of, x = sampler(ArithmeticEngine(most=3)), torch.randn(2, 2)
    run = begin(of, x, 8, exact=True)
    with pytest.raises(PassMemoryError, match="exact"):
        of.advance([run], None)


def test_out_of_memory_before_the_first_pass_takes_fewer_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(16, 30)
    mc = MCDropout(nn.Sequential(nn.Linear(30, 50), nn.Tanh(), nn.Dropout(0.4)), x, task="raw")
    whole = mc(x)
    prefix = mc._engine.parts.prefix

    def scarce(inputs: Tensor, most: int) -> Any:
        if len(inputs) > most:
            raise torch.OutOfMemoryError("no room")
        return prefix(inputs)

    monkeypatch.setattr(mc._engine, "parts", dataclasses.replace(mc._engine.parts, prefix=lambda x: scarce(x, 3)))
    torch.testing.assert_close(mc(x).mean, whole.mean)
    monkeypatch.setattr(mc._engine, "parts", dataclasses.replace(mc._engine.parts, prefix=lambda x: scarce(x, 0)))
    with pytest.raises(PassMemoryError, match="once for each row"):
        mc(x)
