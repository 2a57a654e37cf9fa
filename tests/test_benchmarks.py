"""The benchmarks run: one tiny case through the table, and what their parts promise."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import __main__ as command
from benchmarks import estimators, memory
from benchmarks.baselines import replicated, train_mode, train_mode_loop
from benchmarks.cases import CASES, Case, chosen
from benchmarks.measure import SpeedResult, in_turn, measure_memory, measure_speed
from benchmarks.report import MEMORY, SPEED, as_json, table


def _network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))


TINY = Case("tiny-2", _network, lambda rows: torch.randn(rows, 4), 2, 6, target=1.5)
ROOMY = Case("tiny-memory", _network, lambda rows: torch.randn(rows, 4), 2, 6, growth=8, keywords={"max_memory": 2**20})


@pytest.fixture(scope="module")
def tiny() -> SpeedResult:
    return measure_speed(TINY, rounds=1, least=1e-6)


def test_ratios_are_of_the_times_beside_them(tiny: SpeedResult) -> None:
    assert tiny.to_loop == tiny.loop / tiny.warm
    assert tiny.to_loop_new_seed == tiny.loop / tiny.new_seed
    assert tiny.to_replicated == tiny.replicated / tiny.warm
    assert min(tiny.first, tiny.warm, tiny.new_seed, tiny.loop, tiny.replicated) > 0


def test_table_has_a_line_for_each_result(tiny: SpeedResult) -> None:
    head, line = table(SPEED, [tiny]).splitlines()
    assert head.startswith("case")
    assert line.startswith("tiny-2")
    assert len(head) == len(line)
    assert all(name in head for name in ("first ms", "warm ms", "new seed ms", "target", "peak MiB"))


def test_memory_case_has_its_own_table() -> None:
    result = measure_memory(ROOMY)
    assert result.samples == pytest.approx(2 * 3 * 4 * 6 / 2**20)
    assert "growth MiB" in table(MEMORY, [result])


def test_command_prints_and_writes_what_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny: SpeedResult
) -> None:
    monkeypatch.setattr(command, "measure_speed", lambda case: tiny)
    assert command.main(["mlp-1", "--json", str(tmp_path / "results.json")]) == 0
    assert "tiny-2" in capsys.readouterr().out
    written = json.loads((tmp_path / "results.json").read_text())
    assert written == json.loads(json.dumps(as_json([tiny])))
    assert set(written["conditions"]) == {"mcdrop", "torch", "python", "threads", "cpu"}


def test_cases_are_chosen_by_name_and_by_network() -> None:
    assert [case.name for case in chosen(["mlp"], memory=False)] == ["mlp-1", "mlp-64", "mlp-256"]
    assert [case.name for case in chosen(["lenet-32"], memory=True)] == ["lenet-32", "unet-memory"]
    assert chosen([], memory=False) == [case for case in CASES if case.target]
    with pytest.raises(LookupError, match="no case is called nothing; there are lenet-1"):
        chosen(["nothing"], memory=False)


def test_baselines_sample_the_same_network() -> None:
    """Means of 4000 passes, each within 1: two of them differ by 0.093 less than once in a million (Hoeffding)."""
    model, inputs = TINY.build()
    training = train_mode(model)
    bound = 2 * math.sqrt(math.log(2 * 12 / 1e-6) / (2 * 4000))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        (a, spread), (b, _) = train_mode_loop(training, inputs, 4000), replicated(training, inputs, 4000)
    assert (a - b).abs().max() < bound
    assert (spread > 0).all()
    assert int(training[1].num_batches_tracked) == 0


def test_measurements_take_turns() -> None:
    calls: list[str] = []
    found = in_turn({name: lambda name=name: calls.append(name) for name in "ab"}, rounds=3, least=0.0)
    assert calls[4:] == ["a", "b"] * 3
    assert [len(seconds) for seconds in found.values()] == [3, 3]


def test_growth_sees_memory_that_is_freed_again() -> None:
    assert 60 < memory.growth(lambda: torch.ones(16 * 2**20)) < 80


def test_what_fewer_passes_are_worth_is_measured_against_shared_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a network that is linear in its masks: balanced masks and an exact last layer leave no error but rounding."""
    monkeypatch.setattr(estimators, "TRUE_PASSES", 200)
    ways = estimators._MASKS | estimators._EXACT
    network = nn.Sequential(nn.Dropout(0.3), nn.Linear(4, 2)).eval()
    case = estimators.Case("tiny", network, torch.randn(3, 4), "regression", estimators.PREDICTED, ways)
    results = estimators.compare(case, (20,), 3)
    assert [(name, count, way) for name, count, way, *_ in results] == [("tiny", 20, way) for way in ways]
    factors = {way: mean for _, _, way, (mean, _), _ in results}
    assert factors["shared"] == 1
    assert min(factors["balanced"], factors["exact last layer"]) > 1e6
    with pytest.raises(SystemExit):
        estimators.main(["unknown"])
