"""The sweep over dropout rates: from Python, from the command line, on small data."""

import contextlib
import json
import math
import re
import shlex
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mcdrop.cli import main
from mcdrop.command_line import sweep_command
from mcdrop.command_line.parser import make_parser
from mcdrop.digits import digit_mlp, few_digits, load_digits
from mcdrop.errors import NoDropoutError, SettingError
from mcdrop.predictor import MCDropout
from mcdrop.surroundings.terminal import open_console
from mcdrop.surroundings.threads import limited_threads
from mcdrop.sweep import sweep, sweep_report
from mcdrop.sweep.sweeping import ignorant_loss, score
from mcdrop.sweep.trials import Estimate, Score, Sweep, Trial, estimate
from mcdrop.training import Epoch, History, fit

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "rate-sweep.md").read_text(encoding="utf-8")

NETWORKS = """
from torch import nn

def build(p):
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(p), nn.Linear(8, 3))

def regression(p):
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(p), nn.Linear(8, 1))

def without_rate():
    return build(0.5)

def wide(p):
    return nn.Sequential(nn.Linear(5, 8), nn.Dropout(p), nn.Linear(8, 3))

ready = build(0.5)
"""


def mlp(p, outputs=3):
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(p), nn.Linear(16, outputs))


def data(rows=60, *, seed=0):
    inputs = torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed))
    return inputs, inputs[:, :3].argmax(dim=1)


@pytest.fixture(scope="module")
def small():
    """Two rates, two seeds, twelve epochs."""
    epochs = []
    found = sweep(
        mlp, data(), data(40, seed=1), rates=(0.0, 0.3), seeds=2, epochs=12, num_samples=20,
        progress=lambda: epochs.append(1),
    )  # fmt: skip
    assert len(epochs) == 2 * 2 * 12
    return found


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a module of networks and a data file, `data.npz`; the module's name."""
    name = f"swept_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(NETWORKS)
    inputs, targets = data()
    np.savez(tmp_path / "data.npz", inputs=inputs.double().numpy(), targets=targets.numpy())
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def mcdrop(line):
    return main(shlex.split(line))


# ---- the sweep


def test_each_trial_is_that_network_trained_and_scored(small):
    """The last trial, done again by hand: its scores are those of MCDropout and of one pass in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = mlp(0.3).eval()
    (inputs, targets), trial = data(40, seed=1), small.of(0.3)[1]
    history = fit(model, data(), (inputs, targets), epochs=12, batch_size=32, seed=1)
    assert history == trial.history
    with torch.no_grad():
        logits = model(inputs)
    assert trial.deterministic.nll == pytest.approx(F.cross_entropy(logits, targets).item(), rel=1e-5)
    assert trial.deterministic.measure == history.epochs[-1].validation_accuracy
    mean = MCDropout(model, inputs[:2], task="classification")(inputs, num_samples=20, seed=1).mean
    assert trial.mc.nll == pytest.approx(F.nll_loss(mean.log(), targets).item(), rel=1e-5)
    assert trial.mc.measure == pytest.approx((mean.argmax(1) == targets).double().mean().item())


def test_without_dropout_there_is_no_mc(small):
    assert [trial.mc for trial in small.of(0.0)] == [None, None]
    assert all(trial.mc is not None and trial.mc != trial.deterministic for trial in small.of(0.3))
    assert small.of(0.0)[0].score == small.of(0.0)[0].deterministic
    assert small.of(0.3)[0].score == small.of(0.3)[0].mc


def test_networks_of_one_seed_start_from_the_same_weights():
    made = {}

    def factory(p):
        made.setdefault(p, []).append(network := mlp(p))
        network.first = network[0].weight.detach().clone()
        return network

    state = torch.get_rng_state()
    sweep(factory, data(20), data(20), rates=(0.0, 0.5), seeds=2, epochs=1, num_samples=2)
    assert torch.equal(torch.get_rng_state(), state)
    starts = {p: [network.first for network in networks[1:]] for p, networks in made.items()}  # after the first check
    assert all(torch.equal(a, b) for a, b in zip(starts[0.0], starts[0.5], strict=True))
    assert not torch.equal(*starts[0.0])


@pytest.mark.parametrize("task", ["binary", "multilabel", "regression"])
def test_other_tasks(task):
    outputs = 2 if task == "multilabel" else 1
    inputs, _ = data()
    targets = inputs[:, :outputs] if task == "regression" else (inputs[:, :outputs] > 0).float()
    found = sweep(
        lambda p: mlp(p, outputs), (inputs, targets), (inputs, targets), rates=(0.0, 0.2), task=task, seeds=2,
        epochs=40, learning_rate=1e-2, num_samples=20,
    )  # fmt: skip
    assert found.measure == ("rmse" if task == "regression" else "accuracy")
    for trial in found.trials:
        assert math.isfinite(trial.score.nll)
        assert trial.score.measure < 0.5 if task == "regression" else trial.score.measure > 0.8


def test_scores_by_hand():
    probs = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.9, 0.0]], dtype=torch.float64)
    assert score("classification", probs, torch.tensor([0, 0])) == Score(
        pytest.approx((math.log(2) + math.log(10)) / 2), 0.5
    )
    yes = score("binary", torch.tensor([0.8, 0.4]).double(), torch.tensor([1, 1]))
    assert yes == Score(pytest.approx(-(math.log(0.8) + math.log(0.4)) / 2, rel=1e-6), 0.5)
    values = torch.tensor([1.0, 5.0]).double(), torch.tensor([3.0, 5.0]), torch.tensor([4.0, 1.0]).double()
    numbers = score("regression", values[0], values[1], variance=values[2])
    by_hand = 0.5 * (0.5 * math.log(8 * math.pi) + 4 / 8 + 0.5 * math.log(2 * math.pi))
    assert numbers == Score(pytest.approx(by_hand), pytest.approx(math.sqrt(2)))
    assert math.isfinite(score("classification", probs[1:], torch.tensor([2])).nll)


def test_the_loss_of_one_who_ignores_the_input():
    assert ignorant_loss("classification", torch.tensor([0, 0, 1, 7])) == pytest.approx(1.5 * math.log(2))
    assert ignorant_loss("regression", torch.tensor([[1.0], [3.0]])) == 1.0
    assert ignorant_loss("binary", torch.tensor([0, 1])) == pytest.approx(math.log(2))
    assert ignorant_loss("multilabel", torch.tensor([[0.0, 1.0], [1.0, 1.0]])) == pytest.approx(math.log(2) / 2)


# ---- what the trials say together


def made(nlls, *, validation=(0.2,) * 12):
    """A sweep with these NLLs, by rate and seed, and this validation loss by epoch."""
    curve = tuple(Epoch(number, 0.1, loss, 0.9) for number, loss in enumerate(validation, 1))
    trials = [
        Trial(rate, seed, History(curve, len(curve), False), Score(nll, 0.9), Score(nll, 0.9) if rate else None)
        for rate, values in nlls.items()
        for seed, nll in enumerate(values)
    ]
    return Sweep("classification", "accuracy", 100, 1.0, tuple(nlls), tuple(trials))


def test_an_estimate_by_hand():
    assert estimate([1.0, 2.0, 3.0]) == Estimate(2.0, pytest.approx(1 / math.sqrt(3)))
    assert Estimate(2.0, 0.99).clear
    assert not Estimate(-2.0, 1.0).clear
    assert Estimate(-2.1, 1.0).clear


def test_rates_are_compared_seed_by_seed():
    """The seeds differ by 1, the rates by 0.1 +- 0.01 in each seed: unpaired nothing could be said."""
    found = made({0.0: [1.11, 2.10, 3.09], 0.5: [1.0, 2.0, 3.0]})
    assert found.best == 0.5
    assert found.behind(0.0).mean == pytest.approx(0.1)
    assert found.behind(0.0).standard_error == pytest.approx(0.01 / math.sqrt(3))
    assert found.behind(0.0).clear
    assert found.behind(0.5) == Estimate(0.0, 0.0)
    assert found.gain() is None


def test_no_gain_from_dropout_is_said():
    found = made({0.0: [1.0, 2.1, 3.0], 0.2: [1.1, 2.0, 3.0], 0.5: [2.0, 3.0, 4.0]})
    assert found.gain().code == "no-gain"
    assert made({0.2: [1.1, 2.0, 3.0], 0.5: [2.0, 3.0, 4.0]}).gain() is None  # nothing to compare with


def test_short_curves_are_not_judged():
    short = made({0.0: [1.0, 1.1], 0.5: [1.0, 1.1]}, validation=[0.2] * 9)
    assert (short.judged, short.troubles(0.0)) == (False, ())
    assert made({0.0: [1.0, 1.1], 0.5: [1.0, 1.1]}, validation=[0.2] * 10).judged


def test_everything_as_json(small):
    document = json.loads(json.dumps(small.to_dict(), allow_nan=False))
    zero, some = document["rates"]
    assert (zero["rate"], some["rate"], document["seeds"]) == (0.0, 0.3, [0, 1])
    assert np.shape(zero["training_loss"]) == np.shape(zero["validation_loss"]) == (2, 12)
    assert zero["mc"] is None
    assert some["mc"]["nll"]["by_seed"] == [trial.mc.nll for trial in small.of(0.3)]
    assert some["mc"]["accuracy"]["mean"] == pytest.approx(np.mean([trial.mc.measure for trial in small.of(0.3)]))
    best = next(rate for rate in document["rates"] if rate["rate"] == document["best"])
    assert [rate["nll_behind_best"] is None for rate in document["rates"]] == [rate is best for rate in (zero, some)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rates": (0.5,)}, "rates 0.5: expected at least two different"),
        ({"rates": (0.5, 0.5)}, "rates 0.5, 0.5: expected at least two different"),
        ({"rates": (0.0, 1.0)}, "each at least 0 and below 1"),
        ({"rates": ()}, "rates are empty"),
        ({"seeds": 1}, "seeds=1; expected at least 2"),
        ({"task": "raw"}, "task='raw' cannot be swept; choose one of classification"),
    ],
)
def test_settings_that_mean_nothing_are_named(settings, message):
    with pytest.raises(SettingError, match=message):
        sweep(mlp, data(), data(), **{"rates": (0.0, 0.5), **settings})


def test_a_factory_that_ignores_its_rate_is_found_before_training():
    epochs = []
    with pytest.raises(NoDropoutError, match=r"factory makes for the rate 0\.5: .*no dropout"):
        sweep(
            lambda p: nn.Sequential(nn.Linear(4, 3)), data(), data(), rates=(0.0, 0.5), epochs=1,
            progress=lambda: epochs.append(1),
        )  # fmt: skip
    assert epochs == []


def test_a_factory_with_a_rate_of_its_own_is_found_before_training():
    """Its table would say that no rate is better than another."""
    epochs = []
    with pytest.raises(SettingError, match=r"same dropout for every rate \(2: p = 0\.2\)"):
        sweep(lambda p: mlp(0.2), data(), data(), rates=(0.0, 0.5), epochs=1, progress=lambda: epochs.append(1))
    assert epochs == []


# ---- the digits


def test_the_digits_of_the_sweep_are_apart():
    train, validation = few_digits()
    assert (len(train[0]), len(validation[0])) == (400, 1037)
    parts = [{image.numpy().astype(np.uint8).tobytes() for image in inputs} for inputs in (train[0], validation[0])]
    parts.append({image.tobytes() for image in load_digits()[1].images})
    assert not parts[0] & parts[1]
    assert not (parts[0] | parts[1]) & parts[2]


def test_the_mlp_has_three_layers_and_two_dropouts():
    kinds = [type(module).__name__ for module in digit_mlp(0.2)]
    assert (kinds.count("Linear"), kinds.count("Dropout")) == (3, 2)
    assert digit_mlp(0.2)(torch.zeros(2, 8, 8)).shape == (2, 10)


# ---- on the command line


def test_digits_from_end_to_end(tmp_path, monkeypatch, capsys):
    """The newcomer's command, with few epochs: a table, sentences, three files."""
    monkeypatch.chdir(tmp_path)
    assert mcdrop("sweep --data digits --rates 0,0.5 --seeds 2 --epochs 2 --num-samples 5") == 0
    out, err = capsys.readouterr()
    lines = [re.sub(r", accuracy [\d.]+, NLL [\d.]+$", "", line) for line in err.splitlines()]
    assert lines == [
        "1 of 4: seed 0, p = 0",
        "2 of 4: seed 0, p = 0.5",
        "3 of 4: seed 1, p = 0",
        "4 of 4: seed 1, p = 0.5",
    ]
    assert "digit_mlp on digits: 400 rows to train on, 1,037 to validate on." in out
    assert out.count(" ± ") == 3 + 5 + 1 + 1 + 1  # rate 0, rate 0.5, the explanation, the best, the other
    assert "Best by NLL: p = 0" in out
    assert "two standard errors" in out
    assert "Too little to judge: it takes 10 epochs." in out
    assert max(map(len, out.splitlines())) <= 80
    folder = tmp_path / "mcdrop-sweep"
    assert f"Written to {folder.name}: sweep.txt, sweep.json, sweep.png" in out
    assert (folder / "sweep.txt").read_text(encoding="utf-8") == out.partition("\nWritten")[0]
    document = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    assert (document["network"], document["epochs"], document["training_rows"]) == ("digit_mlp", 2, 400)
    assert_png(folder / "sweep.png")


def assert_png(path):
    """Signature, size and end of a PNG."""
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", content[16:24]) == (1200, 400)
    assert content.endswith(b"IEND\xaeB`\x82")
    assert len(content) < 150_000


def test_a_factory_and_a_file(here, capsys):
    line = f"sweep {here}:build --data data.npz --rates 0,0.2 --seeds 2 --epochs 10 --num-samples 5 --json"
    assert mcdrop(line) == 0
    out, err = capsys.readouterr()
    assert len(err.splitlines()) == 4
    document = json.loads(out)
    assert (document["training_rows"], document["validation_rows"]) == (48, 12)
    assert document["judged"]
    assert {trouble["code"] for rate in document["rates"] for trouble in rate["troubles"]} >= {"not-converging"}
    assert mcdrop(line) == 0
    assert json.loads(capsys.readouterr().out) == document


def test_validation_data_in_the_file_are_used(here, tmp_path, capsys):
    inputs, targets = data()
    held = {"validation_inputs": inputs[:7].numpy(), "validation_targets": targets[:7, None].float().numpy()}
    np.savez(tmp_path / "r.npz", inputs=inputs.numpy(), targets=targets[:, None].float().numpy(), **held)
    line = f"sweep {here}:regression --data r.npz --task regression --rates 0,0.2 --seeds 2 --epochs 1 -o out/here"
    assert mcdrop(line) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "60 rows to train on, 7 to validate on" in out
    assert "RMSE" in out
    assert_png(tmp_path / "out" / "here" / "sweep.png")


def test_without_matplotlib_the_table_is_there_and_a_line_says_how_to_get_the_picture(
    here, tmp_path, capsys, monkeypatch
):
    for module in (sweep_report, sweep_command):
        monkeypatch.setattr(module, "can_draw", lambda: False)
    (tmp_path / "mcdrop-sweep").mkdir()
    (tmp_path / "mcdrop-sweep" / "sweep.png").write_bytes(b"of an older sweep")
    assert mcdrop(f"sweep {here}:build --data data.npz --rates 0,0.2 --seeds 2 --epochs 1") == 0
    out = capsys.readouterr().out
    assert "Best by NLL" in out
    assert "No picture: matplotlib is not installed. From a clone: pip install '.[plot]'" in out
    assert {path.name for path in (tmp_path / "mcdrop-sweep").iterdir()} == {"sweep.txt", "sweep.json"}


def test_troubles_are_shown_with_what_to_try(capsys):
    """Both rates rise after epoch 4, and dropout brings nothing."""
    curve = [0.5, 0.4, 0.3, 0.2, 0.2, 0.2, 0.3, 0.3, 0.3, 0.3]
    facts = {"network": "mlp", "data": "here", "training_rows": 60, "validation_rows": 40, "epochs": 10,
             "batch_size": 32, "learning_rate": 1e-3, "weight_decay": 1e-2}  # fmt: skip
    found = made({0.0: [1.0, 1.1], 0.5: [1.0, 1.3]}, validation=curve)
    sweep_report.report(open_console(), found, facts)
    out = " ".join(capsys.readouterr().out.split())
    assert "still-overfitting p = 0 the validation loss rose by 50% after epoch 5, to 0.3 " in out
    assert "p = 0.5 the validation loss rose by 50% after epoch 5, to 0.3 " in out
    assert out.count("a higher dropout rate, early stopping (patience)") == 1
    assert "no-gain with dropout the NLL changes by +0.1 ± 0.1 at best" in out
    assert "Best by NLL: p = 0, 1.050 ± 0.050 p = 0.5 worse by 0.10 ± 0.10 within two standard errors" in out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--data data.npz", "which network to train on data.npz is not known. Name a function"),
        ("{}:build --data nowhere.npz", "there is no data file nowhere.npz"),
        ("{}:build --data lone.npy", "lone.npy holds one array; expected an .npz file with inputs and targets"),
        ("{}:build --data half.npz", "half.npz has no array 'targets'"),
        ("{}:build --data odd.npz", "odd.npz has an array 'weights' that means nothing here"),
        ("{}:build --data ragged.npz", "inputs has shape (60, 4) and targets (59,); expected as many rows"),
        ("{}:build --data held.npz", "held.npz has no array 'validation_targets'"),
        ("{}:build --data words.npz", "targets holds <U3; expected numbers"),
        ("{}:build --data few.npz", "few.npz has 5 rows, too few to hold some out; give at least 10"),
        ("{}:build --data floats.npz", "the targets are float32[24] and the output has shape [24, 3]"),
        ("{}:build --data data.npz --rates 0,2", "rates 0, 2: expected at least two different probabilities"),
        ("{}:without_rate --data data.npz", "called with one argument, the dropout rate"),
        ("{}:ready --data data.npz", "ready is a Sequential; name a function that takes a dropout rate"),
        ("{}:wide --data data.npz", "cannot be trained on inputs of torch.float32 [48, 4]; it raises RuntimeError"),
        ("{}:build --data data.npz -o data.npz", "data.npz cannot be made: File exists"),
    ],
)
def test_errors_say_what_to_do(line, message, here, tmp_path, capsys):
    inputs, targets = (part.numpy() for part in data())
    np.save(tmp_path / "lone.npy", inputs)
    np.savez(tmp_path / "half.npz", inputs=inputs)
    np.savez(tmp_path / "odd.npz", inputs=inputs, targets=targets, weights=targets)
    np.savez(tmp_path / "ragged.npz", inputs=inputs, targets=targets[1:])
    np.savez(tmp_path / "held.npz", inputs=inputs, targets=targets, validation_inputs=inputs)
    np.savez(tmp_path / "words.npz", inputs=inputs, targets=targets.astype(str).astype("<U3"))
    np.savez(tmp_path / "few.npz", inputs=inputs[:5], targets=targets[:5])
    np.savez(tmp_path / "floats.npz", inputs=inputs, targets=targets.astype(float))
    assert mcdrop("sweep --seeds 2 --epochs 1 " + line.format(here)) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("mcdrop: error: ")
    assert message in err


def test_rates_that_are_no_numbers_are_wrong_usage(capsys):
    with pytest.raises(SystemExit) as left:
        mcdrop("sweep --rates 0,half")
    assert left.value.code == 2
    assert "'0,half' are no rates; expected numbers as in 0,0.2,0.5" in capsys.readouterr().err


def interrupted_after(epochs, monkeypatch):
    """Ctrl-C in the epoch after so many."""
    done = []

    def count(*_):
        done.append(1)
        if len(done) > epochs:
            raise KeyboardInterrupt

    monkeypatch.setattr(sweep_command, "progress", lambda *_: contextlib.nullcontext(count))


@pytest.mark.parametrize("options", ["", "--json -o kept"])
def test_ctrl_c_reports_the_seeds_that_every_rate_has(options, here, tmp_path, capsys, monkeypatch):
    line = f"sweep {here}:build --data data.npz --rates 0,0.2 --epochs 3 --num-samples 4 {options}"
    interrupted_after(3 * 5, monkeypatch)  # two seeds at both rates, the third at one
    assert mcdrop(line) == 130
    out, err = capsys.readouterr()
    assert "stopped: 2 of 10 seeds are trained at every rate; these are reported" in err
    assert err.endswith("interrupted\n")
    document = json.loads((tmp_path / ("kept" if options else "mcdrop-sweep") / "sweep.json").read_text())
    assert document["seeds"] == [0, 1]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert mcdrop(f"{line.removesuffix(options)} --json --seeds 2") == 0
    assert json.loads(capsys.readouterr().out) == document
    assert options or "standard error over 2 seeds" in " ".join(out.split())


def test_ctrl_c_before_there_is_anything_to_compare_leaves_nothing(here, tmp_path, capsys, monkeypatch):
    before = sorted(tmp_path.iterdir())
    interrupted_after(3 * 3, monkeypatch)  # one seed at both rates, the second at one
    assert mcdrop(f"sweep {here}:build --data data.npz --rates 0,0.2 --epochs 3 --num-samples 4 -o some/where") == 130
    out, err = capsys.readouterr()
    assert out == ""
    assert "3 of 20 trainings were finished; it takes 2 seeds at every rate" in err
    assert sorted(path for path in tmp_path.iterdir() if path.name != "__pycache__") == before


def test_small_networks_are_swept_on_one_thread_unless_asked(monkeypatch):
    seen = []

    class Watching(nn.Sequential):
        def forward(self, x):
            seen.append(torch.get_num_threads())
            return super().forward(x)

    def trained(**settings):
        seen.clear()
        sweep(
            lambda p: Watching(*mlp(p)), data(20), data(20), rates=(0.0, 0.5), seeds=2, epochs=1, num_samples=2,
            **settings,
        )  # fmt: skip
        return set(seen)

    monkeypatch.setattr("mcdrop.sweep.sweeping._capture", lambda *_: None)
    with limited_threads(3):
        assert trained() == {1}
        assert trained(threads=2) == {2}
        assert torch.get_num_threads() == 3
    with pytest.raises(SettingError, match=r"threads=0; expected a whole number of at least 1, or None"):
        trained(threads=0)


# ---- the page


def test_the_page_shows_a_sweep_as_it_is_printed(tmp_path, monkeypatch, capsys):
    """The same words around other numbers, up to the verdicts, which depend on them."""
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    commands = [line.removeprefix("$ ") for kind, text in blocks if kind == "console" for line in text.splitlines()]
    assert [make_parser().parse_args(shlex.split(command)[1:]).command for command in commands] == ["sweep"] * 3
    (shown,) = (text for kind, text in blocks if kind == "text")
    monkeypatch.chdir(tmp_path)
    assert main([*shlex.split(commands[0])[1:], "--seeds", "2", "--epochs", "1", "--num-samples", "2"]) == 0
    shapes = [
        " ".join(re.sub(r"[\d.,]+", "#", text).partition("Best by NLL")[0].split())
        for text in (shown, capsys.readouterr().out)
    ]
    assert shapes[0] == shapes[1]


def test_the_page_has_every_trouble_and_its_picture():
    codes = set(
        re.findall(r'Trouble\(\s+"([a-z-]+)"', (ROOT / "mcdrop" / "sweep" / "troubles.py").read_text(encoding="utf-8"))
    )
    assert len(codes) == 4
    assert set(re.findall(r"^\| `([a-z-]+)` \|", PAGE, flags=re.MULTILINE)) == codes
    assert "(rate-sweep.png)" in PAGE
    assert_png(ROOT / "docs" / "rate-sweep.png")
