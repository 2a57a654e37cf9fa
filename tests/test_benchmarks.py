"""The benchmarks run on tiny cases, know right from wrong, and the README says what their results say."""

import json
import math
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import __main__ as command
from benchmarks import baselines as ways
from benchmarks import estimators, guard, measure, memory, picture, readme, verdicts, wrappers
from benchmarks import floor as floors
from benchmarks.baselines import Sample, moments, replicated, train_mode, train_mode_loop, vmapped
from benchmarks.cases import CASES, Case, Network, Point, chosen, points_of
from benchmarks.floor import Floor
from benchmarks.results import CaseResult, MemoryResult, Result, Results, load, merged, save
from benchmarks.verdicts import Reference, references, verdict
from bounds import hoeffding_band
from mcdrop.layers import DropPath
from mcdrop.predictor import MCDropout


class Hidden(nn.Module):
    """One dropout as a module and one as a function, behind BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.norm, self.drop, self.leave = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(self.norm(self.enter(x)).relu(), 0.5, self.training)
        out: Tensor = self.leave(self.drop(x))
        return out


def _rows(size: int, rows: int) -> Tensor:
    return torch.randn(rows, size)


HIDDEN = Network(Hidden, partial(_rows, 4))
TINY = Case("tiny", "a tiny network", HIDDEN, HIDDEN, {Point(2, 6): {"loop": 1.5}})
ROOMY = replace(TINY, name="roomy", points={Point(2, 6): {}}, keywords={"max_memory": 2**20})


# ---- cases


def test_cases_are_chosen_by_name() -> None:
    assert [case.name for case in chosen(["vit", "lenet"])] == ["lenet", "vit"]
    assert chosen([]) == list(CASES)
    with pytest.raises(LookupError, match="no case is called nothing; there are lenet"):
        chosen(["nothing"])


def test_points_are_a_cases_own_the_grid_or_those_asked_for() -> None:
    bert = next(case for case in CASES if case.name == "bert")
    assert points_of(bert, [], [], grid=False) == [(1, 30)]
    assert points_of(bert, [], [], grid=True) == [(1, 30), (1, 100), (8, 30)]
    assert points_of(bert, [2], [5, 7], grid=False) == [(2, 5), (2, 7)]
    assert len(next(case for case in CASES if case.name == "lenet").grid()) == 6


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_twin_draws_noise_in_training_only(case: Case) -> None:
    model, inputs = case.twin.build(2)
    assert torch.equal(model(inputs), model(inputs))
    training = train_mode(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first = training(inputs)
        assert any(not torch.equal(first, training(inputs)) for _ in range(5))
    assert first.shape[0] == 2


# ---- what is right


def modules_only(model: nn.Module) -> Sample:
    training = train_mode(model).eval()
    for module in training.modules():
        if isinstance(module, nn.Dropout):
            module.train()
    return lambda inputs, passes: torch.stack([training(inputs) for _ in range(passes)])


def all_training(model: nn.Module) -> Sample:
    model.train()
    return lambda inputs, passes: torch.stack([model(inputs) for _ in range(passes)])


def mean_only(model: nn.Module) -> Sample:
    return lambda inputs, passes: model(inputs).expand(passes, -1, -1)


def repeating(model: nn.Module) -> Sample:
    """The law of training in every pass, but one draw serves fifty."""
    sample = replicated(model)
    return lambda inputs, passes: sample(inputs, passes // 50).repeat(50, 1, 1)


def broken(model: nn.Module) -> Sample:
    raise RuntimeError("cannot\nat all")


@pytest.fixture(scope="module")
def truth() -> list[Reference]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return references(TINY)


@pytest.mark.parametrize("way", [train_mode_loop, replicated, vmapped, measure.ours(TINY)])
def test_sampling_by_the_law_of_training_is_right(way: ways.Way, truth: list[Reference]) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        assert verdict(TINY, way, truth) == ""


@pytest.mark.parametrize(
    ("way", "said"),
    [
        (modules_only, "of the variance"),
        (mean_only, "0.00 of the variance, mean off by up to"),
        (repeating, "of the variance, mean off by up to"),
        (all_training, "changes the network: norm.running_mean"),
        (broken, "fails: RuntimeError: cannot"),
    ],
)
def test_other_ways_are_found_wrong(way: ways.Way, said: str, truth: list[Reference]) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        assert said in verdict(TINY, way, truth)


def test_a_mean_that_is_off_is_found(truth: list[Reference]) -> None:
    moved = replace(truth[0], mean=truth[0].mean + 0.05)
    assert verdicts._difference(moved, truth[0]).startswith("1.00 of the variance, mean off by up to")


def test_what_no_module_draws_is_compared_alone(truth: list[Reference]) -> None:
    assert [wanted.modules for wanted in truth] == [True, False]
    found = verdict(TINY, modules_only, truth[1:])
    assert found.startswith("0.00 of the variance of what no module draws")


def test_moments_are_of_probabilities() -> None:
    logits = torch.tensor([[[0.0, math.log(3)]], [[0.0, 0.0]]])
    mean, variance = moments(logits, -1)
    torch.testing.assert_close(mean, torch.tensor([[0.375, 0.625]]))
    torch.testing.assert_close(variance, torch.full((1, 2), 0.03125))
    maps = logits[..., None].expand(-1, -1, -1, 4)
    torch.testing.assert_close(moments(maps, 1)[0], mean[..., None].expand(-1, -1, 4))


def test_wrappers_count_where_their_library_is(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"torch-uncertainty": (broken, "json"), "baal": (broken, "no_such_library.at_all")}
    monkeypatch.setattr(wrappers, "_WRAPPERS", there)
    monkeypatch.setattr(wrappers.importlib.metadata, "version", lambda name: f"{name} 1")
    assert list(ways.baselines()) == ["loop", "replicated", "vmap", "torch-uncertainty"]
    assert wrappers.versions() == {"baal": "not installed", "torch-uncertainty": "torch-uncertainty 1"}


# ---- the floor


def counted(model: nn.Module, *shape: int, monkeypatch: pytest.MonkeyPatch) -> Floor:
    monkeypatch.setattr(floors, "_PATIENCE", math.inf)
    network = Network(lambda: model, lambda rows: torch.randn(rows, *shape))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return floors.floor(replace(TINY, network=network))


def test_floor_leaves_out_dropped_units_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    """A share in [0, 1] averaged over 400 passes: a quarter and a half within 0.135 of what is dropped by turns."""
    layers = [nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 2)]
    found = counted(nn.Sequential(*layers), 4, monkeypatch=monkeypatch)
    assert (found.once, found.whole) == (64, 64 + 96 + 24)
    assert abs(found.kept - (96 / 4 + 24 / 2)) < (96 + 24) * hoeffding_band(1, floors._MOST)


def test_floor_leaves_out_dropped_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [nn.Conv2d(2, 4, 3, padding=1), nn.Dropout2d(0.5), nn.ConvTranspose2d(4, 2, 2, 2), nn.Flatten()]
    found = counted(nn.Sequential(*layers, nn.Linear(288, 1)), 2, 6, 6, monkeypatch=monkeypatch)
    first, middle, last = 2 * (2 * 4 * 9) * 36, 2 * (4 * 2 * 4) * 36, 2 * 288
    assert (found.once, found.whole) == (first, first + middle + last)
    assert abs(found.kept - (middle / 2 + last)) < middle * hoeffding_band(1, floors._MOST)


class Skipping(nn.Module):
    """A branch that is hardly ever kept, behind noise."""

    def __init__(self) -> None:
        super().__init__()
        self.branch, self.drop, self.path = nn.Linear(3, 3), nn.Dropout1d(0.5), DropPath(0.999999)

    def forward(self, x: Tensor) -> Tensor:
        x = x + torch.rand_like(x)
        return x + self.path(self.branch(x))


def test_floor_leaves_out_dropped_branches(monkeypatch: pytest.MonkeyPatch) -> None:
    assert counted(Skipping(), 3, monkeypatch=monkeypatch) == Floor(0, 0, 18)


def test_floor_sees_noise_that_comes_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two passes are mostly the same; that all of 400 are has a probability of 3e-4."""
    layers = [nn.Linear(5, 4), DropPath(0.02), nn.Linear(4, 2)]
    found = counted(nn.Sequential(*layers), 5, monkeypatch=monkeypatch)
    assert (found.once, found.whole) == (40, 40 + 16)
    assert abs(found.kept - 0.98 * 16) < 16 * hoeffding_band(1, floors._MOST)


def test_floor_counts_recurrent_layers_once_before_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    lstm = next(case for case in CASES if case.name == "lstm").twin.make().eval()
    found = counted(lstm, 6, 32, monkeypatch=monkeypatch)
    layer, head = 2 * 4 * 8, 2 * 8 * 5
    assert found.once == 6 * layer * (32 + 8) + layer * 8  # the second layer's first step multiplies zeros
    assert found.whole == 6 * layer * (32 + 8) + 6 * layer * (8 + 8) + head


def test_floor_of_a_prediction() -> None:
    counted = Floor(once=10, kept=2, whole=13)
    assert counted.least(3, 5) == 3 * (10 + 5 * 2)
    assert counted.plain(3, 5) == 3 * 5 * 13


def test_operations_of_a_call_are_counted() -> None:
    model, inputs = TINY.network.build(2)
    mc = measure.captured(TINY, model, inputs, 6)  # too small for thinned passes to pay
    mc.sample(inputs)
    assert floors.computed(lambda: mc.sample(inputs)) == 2 * (2 * 4 * 8) + 6 * 2 * (2 * 8 * 3)


# ---- measurements


@pytest.fixture(scope="module")
def tiny() -> Result:
    return measure.timed(
        TINY, Point(2, 6), {"loop": train_mode_loop, "replicated": replicated, "broken": broken}, rounds=1, least=1e-6
    )


def test_every_way_is_timed_or_its_failure_told(tiny: Result) -> None:
    assert set(tiny.seconds) == {"first", "warm", "new seed", "one pass", "product", "loop", "replicated"}
    assert min(tiny.seconds.values()) > 0
    assert tiny.baselines == ["loop", "replicated"]
    assert tiny.failed == {"broken": "RuntimeError: cannot"}


def result(case: str, rows: int, num_samples: int, **seconds: float) -> Result:
    others = {"first": 3.0, "warm": 1.0, "new seed": 2.0, "one pass": 1.0, "product": 1.0}
    return Result(case, rows, num_samples, 7, {**others, **{k.replace("_", " "): v for k, v in seconds.items()}})


def test_quantities_are_ratios_to_mcdrop() -> None:
    found = replace(result("lenet", 1, 10, loop=8.0, replicated=4.0), operations=4e9)
    counted = Floor(once=floors.PRODUCT / 4, kept=floors.PRODUCT / 40, whole=1e9)
    assert found.lead("loop") == 8
    assert found.lead("loop", "new seed") == 4
    assert found.of_floor(counted) == pytest.approx(0.5)
    assert found.saved(counted) == pytest.approx((1 - 1 / 4) / (1 - 4 / 10))


def test_measurements_take_turns() -> None:
    calls: list[str] = []
    found = measure.in_turn({name: lambda name=name: calls.append(name) for name in "ab"}, rounds=3, least=0.0)
    assert calls[-6:] == ["a", "b"] * 3
    assert [len(seconds) for seconds in found.values()] == [3, 3]


def test_slow_calls_are_measured_in_fewer_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_SLOW", 0.0)
    assert [len(each) for each in measure.in_turn({"a": lambda: None}, rounds=7, least=0.0).values()] == [3]


def test_growth_sees_memory_that_is_freed_again() -> None:
    assert 60 < memory.growth(lambda: torch.ones(16 * 2**20)) < 80


def test_a_fresh_process_is_another() -> None:
    assert memory.in_fresh_process(os.getpid) != os.getpid()


def test_memory_case_has_its_own_measurement() -> None:
    assert measure.measure_memory(ROOMY).samples == pytest.approx(2 * 3 * 4 * 6 / 2**20)


# ---- results


FACTS = {"mcdrop": "1", "cpu": "a", "threads": 2, "torch": "2", "baal": "3", "torch-uncertainty": "not installed"}


def test_results_are_read_as_they_were_written(tmp_path: Path, tiny: Result) -> None:
    written = Results(
        FACTS,
        (CaseResult("lenet", Floor(1, 2, 3), {"loop": ""}),),
        (replace(tiny, peak={"loop": 1.0}),),
        (tiny,),
        (MemoryResult("m", 1, 2, 3.0, 4.0, 5.0, 6.0),),
    )
    save(written, tmp_path / "results.json")
    assert load(tmp_path / "results.json") == written


def test_results_of_another_format_are_refused(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text(json.dumps({"results": []}))
    with pytest.raises(ValueError, match=r"has format 1; this reads 2\. Measure it again"):
        load(tmp_path / "old.json")


def test_what_is_measured_again_is_replaced() -> None:
    old = Results(FACTS, results=(result("mlp-half", 1, 100, loop=1.0), result("lenet", 1, 100, loop=1.0)))
    new = Results(FACTS, results=(result("mlp-half", 1, 100, loop=2.0), result("mlp-half", 64, 100, loop=3.0)))
    found = merged(old, new).results
    assert [(r.case, r.rows, r.seconds["loop"]) for r in found] == [
        ("lenet", 1, 1.0),
        ("mlp-half", 1, 2.0),
        ("mlp-half", 64, 3.0),
    ]
    with pytest.raises(ValueError, match="measured with other threads"):
        merged(old, Results({**FACTS, "threads": 4}))


def test_command_prints_and_adds_what_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "judge", lambda case: CaseResult(case.name, Floor(1, 1, 9e9), {"loop": "late"}))
    monkeypatch.setattr(command, "measure", lambda case, point: result(case.name, *point, loop=60.0, replicated=2.0))
    monkeypatch.setattr(command, "timed", lambda case, point, ways: result(case.name, *point, loop=5.0))
    file = tmp_path / "results.json"
    monkeypatch.setattr(command.Disturbance, "share", lambda self: 0.05)
    assert command.main(["mlp-half", "--rows", "2", "--passes", "7", "--scaling", "--json", str(file)]) == 0
    monkeypatch.setattr(command.Disturbance, "share", lambda self: 0.5)
    assert command.main(["lenet", "--json", str(file)]) == 0
    out, err = capsys.readouterr()
    assert err.count("Other processes took 50% of the cores meanwhile") == err.count("Other processes") == 1
    assert "lenet, B 1, T 100: loop 60, target 60 reached" in out
    assert "lenet, B 32, T 100: loop 60, target 75 NOT reached" in out
    assert "mlp-half: not right are\n  loop: late" in out
    found = load(file)
    assert [(r.case, r.rows, r.num_samples) for r in found.results] == [
        ("lenet", 1, 100), ("lenet", 32, 100), ("mlp-half", 2, 7),
    ]  # fmt: skip
    assert len(found.scaling) == 10
    with pytest.raises(SystemExit):
        command.main(["nothing"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "0"], "--rows takes numbers from 1 on"),
        (["--passes", "30", "1"], "--passes from 2 on"),
        (["--json", "no/such/folder.json"], "there is no folder no/such for folder.json"),
    ],
)
def test_what_cannot_be_measured_or_kept_is_said_first(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command.main(["lenet", *arguments])
    assert message in capsys.readouterr().err


# ---- the README


def test_readme_says_what_the_results_say() -> None:
    page = readme.README.read_text(encoding="utf-8")
    assert page == readme.placed(page, readme.section(load(guard.COMMITTED)))


def test_who_asks_for_help_or_lacks_matplotlib_changes_no_readme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(readme, "README", tmp_path / "README.md")
    monkeypatch.setattr(readme, "PICTURE", tmp_path / "speed.svg")
    readme.README.write_text(f"{readme.BEGIN}\nold\n{readme.END}\n", encoding="utf-8")
    with pytest.raises(SystemExit):
        readme.main(["--help"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        readme.main([])
    assert "pip install '.[plot]'" in capsys.readouterr().err
    assert "old" in readme.README.read_text(encoding="utf-8")
    assert not readme.PICTURE.exists()


def test_picture_is_of_these_results() -> None:
    assert picture.digest(guard.COMMITTED) in readme.PICTURE.read_text(encoding="utf-8")


RESULTS = Results(
    FACTS,
    (CaseResult("lenet", Floor(1, 1, 1e9), {"mcdrop": "", "loop": "", "baal": "0.00 of the variance"}),),
    (
        replace(result("lenet", 1, 100, loop=8.0, replicated=4.0, baal=0.5), failed={"vmap": "RuntimeError"}),
        result("lenet", 32, 100, loop=8.0, replicated=1.5, vmap=1.2),
    ),
)


def test_readme_says_where_mcdrop_is_slower_and_who_is_wrong() -> None:
    text = readme.section(RESULTS)
    assert (
        "| LeNet, dropout before the last layer | 100 | 1 | 3000 | 1000 | 2000 | 8.0 | 4.0 | 0.5† | fails | 4.0 |"
        in text
    )
    slower = text[text.index("**Slower than a baseline**") :]
    assert "B = 1, T = 100, warm: baal† 0.50 of the time." in slower
    assert "B = 32, T = 100, with a new seed: replicated 0.75, vmap 0.60 of the time." in slower
    assert "- baal: `lenet` (0.00 of the variance)." in slower
    faster = replace(RESULTS, results=(result("lenet", 1, 100, loop=8.0, replicated=4.0),))
    assert "Nowhere in this table is mcdrop slower than a baseline" in readme.section(faster)


def test_section_goes_between_the_two_comments() -> None:
    page = f"above\n{readme.BEGIN}\nold\n{readme.END}\nbelow\n"
    assert readme.placed(page, "new") == f"above\n{readme.BEGIN}\nnew\n{readme.END}\nbelow\n"


def test_picture_shows_leads_and_growth(tmp_path: Path) -> None:
    scaling = [result("lenet", b, t, loop=2.0, replicated=3.0) for b, t in ((1, 10), (8, 10), (8, 100))]
    source = tmp_path / "results.json"
    save(replace(RESULTS, scaling=tuple(scaling)), source)
    picture.draw(load(source), tmp_path / "a.svg", source)
    picture.draw(load(source), tmp_path / "b.svg", source)
    drawn = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert picture.digest(source) in drawn
    assert drawn == (tmp_path / "b.svg").read_text(encoding="utf-8")


# ---- the guard


def test_guard_fails_where_half_of_a_lead_is_lost() -> None:
    before = result("lenet", 1, 100, loop=8.0, replicated=4.0)
    assert guard.lost(result("lenet", 1, 100, loop=4.1, replicated=2.1), before) == []
    assert guard.lost(result("lenet", 1, 100, loop=3.9, replicated=4.0), before) == [
        "loop / warm is 3.90, and was 8.00", "loop / new seed is 1.95, and was 4.00",
    ]  # fmt: skip
    slow = result("lenet", 1, 100, loop=8.0, replicated=4.0, new_seed=4.1)
    assert [line.partition(" is")[0] for line in guard.lost(slow, before)] == [
        "loop / new seed",
        "replicated / new seed",
    ]


def test_guard_tries_three_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save(Results(FACTS, results=(result("lenet", 1, 100, loop=8.0, replicated=4.0),)), tmp_path / "r.json")
    asked = ["--against", str(tmp_path / "r.json")]
    times = iter([1.0, 1.0, 8.0, 1.0, 1.0, 1.0])
    monkeypatch.setattr(
        guard, "timed", lambda case, point, ways, rounds: result(case.name, *point, loop=next(times), replicated=4.0)
    )
    assert guard.main(asked) == 0
    assert guard.main(asked) == 1
    assert next(times, None) is None
    first, second = capsys.readouterr().out.splitlines()
    assert first == "lenet: as fast as before, beside its baselines"
    assert second.startswith("lenet: loop / warm is 1.00, and was 8.00")


def test_guard_that_has_nothing_to_guard_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "found.json"
    for content, said in ((None, "No such file"), ("{}", "has format 1"), (Results({}), "no result of a case that is")):
        if isinstance(content, Results):
            save(content, file)
        elif content is not None:
            file.write_text(content, encoding="utf-8")
        with pytest.raises(SystemExit):
            guard.main(["--against", str(file)])
        assert said in capsys.readouterr().err


def test_guarded_points_are_measured_by_default() -> None:
    points = {case.name: case.points for case in CASES}
    assert all(point in points[name] for name, point in guard.GUARDED.items())


# ---- what fewer passes are worth


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


def test_small_convolutions_are_counted() -> None:
    network = nn.Sequential(nn.Conv2d(1, 3, 2), nn.Flatten(), nn.Dropout(), nn.Linear(27, 2)).eval()
    mc = MCDropout(network, torch.randn(2, 1, 4, 4), task="raw", num_samples=4)
    inputs = torch.randn(1, 1, 4, 4)
    mc(inputs)  # measures what a pass of this shape takes
    assert floors.computed(lambda: mc(inputs)) == 2 * (3 * 9 * 4 + 4 * 27 * 2)
