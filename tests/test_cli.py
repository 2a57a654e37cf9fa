"""The command line, as a user or a script meets it."""

import csv
import functools
import io
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import typing
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mcdrop.cli import main
from mcdrop.client import Client
from mcdrop.command_line.network_arguments import TASKS
from mcdrop.outputs.tasks import TaskName
from mcdrop.predictor import MCDropout
from service.server import serving
from service.settings import Settings, load_settings

COMMANDS = ("demo", "export", "inspect", "predict", "serve", "sweep")
ROOT = Path(__file__).resolve().parents[1]

NETWORK = """
from torch import nn

def build():
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3))

def two():
    return nn.Sequential(nn.Dropout(0.2), nn.AlphaDropout(0.4), nn.Linear(4, 3))

def without_dropout():
    return nn.Sequential(nn.Linear(4, 3))

def batch_statistics():
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False), nn.Dropout(0.5))

class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = build()

    def forward(self, x):
        return self.inner(2 * x if x.sum() > 0 else x)

class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = build()

    def forward(self, features):
        return self.inner(features)
"""


def mcdrop(line):
    """Run the command line `mcdrop <line>` in this process; returns its exit code."""
    return main(shlex.split(line))


def launch(*arguments, cwd, **options):
    """The command in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "mcdrop", *map(str, arguments)],
        cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


def finish(process, *, within=120):
    """Exit code and both outputs."""
    with process:
        out, err = process.communicate(timeout=within)
        return process.returncode, out, err


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A current directory with a module of networks, `nets_<unique>`; yields the module's name."""
    name = "nets_" + re.sub(r"\W", "_", tmp_path.name)
    (tmp_path / f"{name}.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


@pytest.fixture
def folder(here):
    """The exported network; its weights are fixed."""
    torch.manual_seed(0)
    weights = {"0.weight": torch.randn(16, 4), "0.bias": torch.zeros(16)}
    weights |= {"3.weight": torch.randn(3, 16), "3.bias": torch.zeros(3)}
    save_file(weights, "w.safetensors")
    code = mcdrop(
        f"export {here}:build --weights w.safetensors --input 'image: float32[batch, 4]' --task classification "
        "--classes ant,bee,cow --num-samples 20 --seed 5 -o insects"
    )
    assert code == 0
    return Path("insects")


# ---- help, versions, usage


@pytest.mark.parametrize("arguments", [["--help"], *([command, "--help"] for command in COMMANDS), ["predict"]])
def test_help_and_wrong_usage_do_not_wait_for_torch(arguments):
    program = (
        "import sys, mcdrop.cli\n"
        "try: mcdrop.cli.main(sys.argv[1:])\n"
        "except SystemExit: print('torch' in sys.modules, 'rich' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stderr.splitlines()[-1] == "False False"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_examples_within_80_columns(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert f"  mcdrop {command}" in text
    assert max(map(len, text.splitlines())) <= 80


def test_every_setting_is_a_flag_of_serve(capsys):
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    text = capsys.readouterr().out
    flags = ["MODELS" if name == "models" else f"--{name.replace('_', '-')}" for name in Settings.model_fields]
    assert [flag for flag in flags if flag not in text] == []


def test_every_task_can_be_exported():
    assert typing.get_args(TaskName) == TASKS


def test_version_names_what_a_bug_report_needs(capsys):
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0
    line = capsys.readouterr().out
    assert re.fullmatch(r"mcdrop \S+, torch \S+, device .+, threads \d+\n", line)
    assert torch.__version__ in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: COMMAND"),
        (["juggle"], "invalid choice: 'juggle'"),
        (["export", "nets:build"], "required: --task, -o/--folder"),
        (["export", "nets:build", "--task", "guess", "-o", "x"], "invalid choice: 'guess'"),
        (["predict", "folder"], "required: DATA"),
        (["demo", "--port", "70000"], "70000 is no port; expected 0 to 65535"),
        (["demo", "--port", "http"], "argument --port"),
        (
            ["export", "nets:build", "--rate", "head", "--task", "raw", "-o", "x"],
            "'head' is no rate; expected PATTERN=P",
        ),
        (["export", "nets:build", "--rate", "a=b", "--task", "raw", "-o", "x"], "'a=b' is no rate"),
    ],
)
def test_wrong_usage_is_exit_code_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    assert message in capsys.readouterr().err


# ---- errors


def test_an_error_is_one_sentence_and_exit_code_1(here, capsys):
    assert mcdrop("inspect nowhere") == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("mcdrop: error: ")
    assert "nowhere" in output.err
    assert "Traceback" not in output.err
    assert output.err.count("\n") == 1


@pytest.mark.parametrize("before", [True, False])
def test_traceback_on_request(here, before):
    arguments = ["inspect", "nowhere"]
    code, _, err = finish(launch(*["--traceback"] * before, *arguments, *["--traceback"] * (not before), cwd="."))
    assert code == 1
    assert "Traceback" in err
    assert "BundleError" in err


@pytest.mark.parametrize("command", [["serve"], ["--help"], ["predict", "nowhere", "data.npy"]])
def test_a_package_service_in_the_current_folder_is_named(command, tmp_path):
    (tmp_path / "service").mkdir()
    (tmp_path / "service" / "__init__.py").touch()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    started = [sys.executable, "-m", "mcdrop", *command]
    done = subprocess.run(started, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"mcdrop: error: {tmp_path.resolve() / 'service'} hides the package service")
    assert done.stderr.count("\n") == 1
    other = [sys.executable, "-P", *started[1:]]
    done = subprocess.run(other, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert "hides" not in done.stderr


def test_no_dropout_is_a_clear_error(here, capsys):
    code = mcdrop(f"export {here}:without_dropout --input 'x: float32[batch, 4]' --task raw -o nothing")
    assert code == 1
    assert "dropout" in capsys.readouterr().err
    assert not Path("nothing").exists()


def test_a_reader_that_stops_reading_is_no_error(folder):
    np.save("data.npy", np.zeros((20_000, 4), dtype=np.float32))
    process = launch("predict", folder, "data.npy", cwd=".")
    assert process.stdout.readline().startswith("row,label")
    process.stdout.close()
    with process:
        assert process.stderr.read() == ""
    assert process.returncode == 0


# ---- export and inspect


def test_export_reports_and_saves(folder, capsys):
    mc = MCDropout.load(folder)
    assert mc.task.name == "classification"
    assert mc.task.class_names == ("ant", "bee", "cow")
    assert (mc.num_samples, mc.seed, mc.masks) == (20, 5, "shared")
    assert [str(spec) for spec in mc.signature.inputs] == ["input: float32[batch, 4]"]  # as forward() names it
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "program.json", "weights.safetensors"]


def test_export_as_json(here, capsys):
    code = mcdrop(
        f"export {here}:Named --input 'features: float32[batch, 4]' --task raw --name nm --version 7 "
        "--masks independent -o out --json"
    )
    assert code == 0
    report = json.loads(capsys.readouterr().out)
    assert report["folder"] == "out"
    assert report["name"] == "nm"
    assert report["version"] == "7"
    assert report["defaults"] == {"num_samples": 64, "seed": 0, "masks": "independent"}


def test_export_with_an_example_file(here, capsys):
    np.savez("example.npz", features=np.random.default_rng(0).random((3, 4), dtype=np.float32))
    np.save("example.npy", np.zeros((2, 4), dtype=np.float32))
    for name, network in (("example.npz", "Named"), ("example.npy", "build")):
        code = mcdrop(f"export {here}:{network} --task raw -o out --example {name}")
        assert code == 0, capsys.readouterr().err
    assert MCDropout.load("out").signature.inputs[0].shape == ("batch", 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--input"),
        (["--input", "x float32"], "cannot be read"),
        (["--input", "x: float32[batch, 4]", "--weights", "none.pt"], "there is no weights file none.pt"),
        (["--input", "x: float32[batch, 4]", "--classes", "@none.txt"], "class names cannot be read from none.txt"),
        (["--input", "x: float32[batch, 5]"], r"Sequential cannot be run on inputs like x: float32\[batch, 5\]"),
    ],
)
def test_export_errors(here, capsys, arguments, message):
    code = main(["export", f"{here}:build", "--task", "classification", "-o", "out", *arguments])
    assert code == 1
    assert re.search(message, capsys.readouterr().err)
    assert not Path("out").exists()


def test_class_names_from_a_file(here):
    Path("names.txt").write_text("ant\nbee, small\n\ncow\n")
    code = mcdrop(
        f"export {here}:build --input 'x: float32[batch, 4]' --task classification --classes @names.txt -o out"
    )
    assert code == 0
    assert MCDropout.load("out").task.class_names == ("ant", "bee, small", "cow")


def test_inspect_shows_sites_and_cost(folder, capsys):
    assert mcdrop(f"inspect {folder}") == 0
    text = capsys.readouterr().out
    for part in ("insects", "input: float32[batch, 4]", "classification", "ant, bee, cow", "dropout", "0.5"):
        assert part in text
    assert mcdrop(f"inspect {folder} --json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert [site["kind"] for site in facts["sites"]] == ["dropout"]
    assert facts["sites"][0]["p"] == 0.5
    assert facts["sites"][0]["active"] is True
    assert 0 < facts["cost"]["prefix_fraction"] < 1


def test_inspect_a_network_that_is_no_folder(here, capsys):
    assert mcdrop(f"inspect {here}:build --input 'x: float32[batch, 4]' --json") == 0
    report = json.loads(capsys.readouterr().out)
    assert len(report["sites"]) == 1
    assert [finding["code"] for finding in report["findings"]] == ["last-layer-only"]
    assert (report["cost"]["num_samples"], report["measured"]) == (64, None)


def test_inspect_measures_on_data(folder, capsys):
    rows = np.linspace(-1, 1, 24, dtype=np.float32).reshape(6, 4)
    np.save("data.npy", rows)
    Path("targets.csv").write_text("class\n" + "0\n1\n2\n" * 2)
    assert mcdrop(f"inspect {folder} --data data.npy --targets targets.csv --num-samples 32 --json") == 0
    found = json.loads(capsys.readouterr().out)
    wanted = MCDropout.load(folder).inspect(rows, [0, 1, 2] * 2, num_samples=32)
    assert found["measured"] == json.loads(json.dumps(wanted.to_dict()["measured"]))
    assert found["sites"][0]["variance_alone"] == pytest.approx(found["measured"]["variance"])
    assert mcdrop(f"inspect {folder} --data data.npy --targets targets.csv") == 0
    text = capsys.readouterr().out
    for part in ("Measured on 6 rows, 20 passes, seed 5", "Brier score", "variance alone", "[last-layer-only]"):
        assert part in text


@pytest.mark.parametrize("targets", ["targets.npy", "targets.npz", "targets.csv"])
def test_inspect_measures_a_network_on_data(here, capsys, targets):
    np.savetxt("data.csv", np.ones((3, 4)), delimiter=",")
    np.save("targets.npy", np.zeros((3, 3)))
    np.savez("targets.npz", anything=np.zeros((3, 3)))
    np.savetxt("targets.csv", np.zeros((3, 3)), delimiter=",")
    line = f"inspect {here}:build --input 'x: float32[batch, 4]' --task regression --data data.csv --json"
    assert mcdrop(f"{line} --targets {targets}") == 0
    assert set(json.loads(capsys.readouterr().out)["measured"]["monte_carlo"]) == {"rmse"}


def test_inspect_reports_a_network_that_cannot_be_sampled(here, capsys):
    assert mcdrop(f"inspect {here}:without_dropout --input 'x: float32[batch, 4]'") == 0
    assert "[no-dropout]" in capsys.readouterr().out
    assert mcdrop(f"inspect {here}:batch_statistics --input 'x: float32[batch, 4]' --json") == 0
    assert json.loads(capsys.readouterr().out)["findings"][0]["code"] == "rows-interact"


def test_inspect_with_other_rates(folder, here, capsys):
    for model in (str(folder), f"{here}:build --input 'x: float32[batch, 4]'"):
        assert mcdrop(f"inspect {model} --rate 2=0.9 --json") == 0
        report = json.loads(capsys.readouterr().out)
        assert report["sites"][0]["p"] == 0.9
        assert "unusual-rate" in [finding["code"] for finding in report["findings"]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--targets two.npz", "holds 2 arrays; expected one"),
        ("--targets data.npy", "targets were given without inputs"),
        ("--targets missing.npy", "there is no data file missing.npy"),
        ("--data data.npy --targets data.npy", r"targets have the shape \[3, 4\]; expected \[3\]"),
    ],
)
def test_inspect_refuses_targets_that_do_not_fit(folder, capsys, options, message):
    np.save("data.npy", np.zeros((3, 4), dtype=np.float32))
    np.savez("two.npz", a=np.zeros(3), b=np.zeros(3))
    assert mcdrop(f"inspect {folder} {options}") == 1
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.filterwarnings("default:.*it runs eagerly")
def test_a_network_that_runs_eagerly_is_named_in_one_line(here, capsys):
    assert mcdrop(f"inspect {here}:Branching --input 'x: float32[batch, 4]'") == 0
    output = capsys.readouterr()
    assert output.err.startswith("mcdrop: warning: Branching cannot be captured")
    assert output.err.count("\n") == 1
    assert "it runs eagerly" in output.out
    assert mcdrop(f"export {here}:Branching --input 'x: float32[batch, 4]' --task raw -o out") == 1
    assert not Path("out").exists()


def test_rows_that_influence_one_another_are_an_error_unless_allowed(here, capsys):
    line = f"export {here}:batch_statistics --input 'x: float32[batch, 4]' --task raw -o out"
    assert mcdrop(line) == 1
    assert "influence one another" in capsys.readouterr().err
    assert mcdrop(f"{line} --allow-row-interaction") == 0


def test_export_with_chosen_sites_and_rates(here, capsys):
    def export(choice):
        line = f"export {here}:two --input 'image: float32[batch, 4]' --task raw -o chosen --json {choice}"
        assert mcdrop(line) == 0
        return [(site["path"], site["p"], site["reason"]) for site in json.loads(capsys.readouterr().out)["sites"]]

    left_out = [("1", 0.4, None), ("0", 0.2, "excluded by exclude='0'")]
    assert export("--exclude 0") == left_out
    assert [(site.path, site.p, site.reason) for site in MCDropout.load("chosen").sites] == left_out
    assert export("--include '[01]' --include alpha") == [("0", 0.2, None), ("1", 0.4, None)]
    assert export("--include '#1'")[1] == ("0", 0.2, "not included by include='#1'")
    assert export("--rate '*=0.5' --rate alpha=0.1") == [("0", 0.5, None), ("1", 0.1, None)]
    assert mcdrop(f"export {here}:two --input 'image: float32[batch, 4]' --task raw -o no --exclude head") == 1
    assert "exclude='head' matches no site" in capsys.readouterr().err


# ---- predict


def test_predict_writes_what_python_computes(folder, capsys):
    rows = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    np.save("data.npy", rows)
    np.savetxt("data.csv", rows, delimiter=",", header="a,b,c,d", comments="")
    expected = MCDropout.load(folder)(rows, num_samples=12, seed=3)
    for data in ("data.npy", "data.csv"):
        for output in ("out.npz", "out.csv", "out.json"):
            assert mcdrop(f"predict {folder} {data} -o {output} --num-samples 12 --seed 3") == 0
        with np.load("out.npz", allow_pickle=False) as arrays:
            assert np.allclose(arrays["mean"], expected.mean, rtol=1e-5)
            assert (int(arrays["num_samples"]), int(arrays["seed"])) == (12, 3)
        with open("out.csv", newline="") as file:
            table = list(csv.DictReader(file))
        assert np.allclose([float(row["entropy"]) for row in table], expected.entropy, rtol=1e-5)
        assert np.allclose([float(row["mean[bee]"]) for row in table], expected.mean[:, 1], rtol=1e-5)
        answer = json.loads(Path("out.json").read_text())
        assert np.allclose(answer["mutual_information"], expected.mutual_information, rtol=1e-4, atol=1e-6)
    assert "5 rows, 12 passes, seed 3: out.npz" in capsys.readouterr().out


def test_predict_into_a_pipe(folder, capsys):
    np.save("data.npy", np.zeros((2, 4), dtype=np.float32))
    assert mcdrop(f"predict {folder} data.npy --standard-errors") == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert len(rows) == 2
    assert float(rows[0]["mean_standard_error[ant]"]) > 0
    assert mcdrop(f"predict {folder} data.npy --json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["num_samples"], answer["seed"]) == (20, 5)
    assert len(answer["label"]) == 2


def test_predict_in_a_terminal_shows_a_table(folder, capsys, monkeypatch):
    np.save("data.npy", np.zeros((30, 4), dtype=np.float32))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    assert mcdrop(f"predict {folder} data.npy") == 0
    text = capsys.readouterr().out
    assert "entropy" in text
    assert "The first 20 of 30 rows" in text
    assert re.search(r"\b(ant|bee|cow)\b", text)
    assert mcdrop(f"predict {folder} data.npy --standard-errors") == 0
    assert "±" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 5), np.float32), "size 5 at axis 1"),
        (np.full((2, 4), np.nan, np.float32), "NaN|finite"),
        (np.array([["a"] * 4]), "dtype|numbers"),
    ],
)
def test_predict_refuses_what_does_not_fit(folder, capsys, array, message):
    np.save("data.npy", array)
    assert mcdrop(f"predict {folder} data.npy") == 1
    assert re.search(message, capsys.readouterr().err)


def test_predict_refuses_settings_that_mean_nothing(folder, capsys):
    np.save("data.npy", np.zeros((2, 4), np.float32))
    assert mcdrop(f"predict {folder} data.npy --num-samples 0") == 1
    assert "num_samples" in capsys.readouterr().err
    assert mcdrop(f"predict {folder} data.npy -o out.xlsx") == 1
    assert "end it with .npz, .csv, .json" in capsys.readouterr().err


@pytest.mark.parametrize("binary", [None, False])
def test_predict_by_a_server_writes_the_same_files(folder, capsys, monkeypatch, binary):
    rows = np.random.default_rng(0).standard_normal((300, 4)).astype(np.float32)
    np.save("data.npy", rows)
    np.savetxt("data.csv", rows, delimiter=",")
    monkeypatch.setattr("mcdrop.command_line.remote_command.Client", functools.partial(Client, binary=binary))
    with serving(load_settings(models=folder, port=0, device="cpu", log_level="error")) as url:
        for data, model in (("data.npy", ""), ("data.csv", "--model insects")):
            for output in ("csv", "npz", "json"):
                options = f"--num-samples 12 --seed 3 --standard-errors -o out.{output}"
                assert mcdrop(f"predict {folder} {data} {options}") == 0
                here = Path(f"out.{output}").read_bytes()
                assert mcdrop(f"predict --url {url} {data} {model} {options}") == 0
                assert_near(here, Path(f"out.{output}").read_bytes(), output)
        assert "300 rows, 12 passes, seed 3: out.json" in capsys.readouterr().out
        assert mcdrop(f"predict --url {url} --model cat data.npy") == 1
        assert "There is no model 'cat'" in capsys.readouterr().err
        assert mcdrop(f"predict --url {url} data.npy --device cpu") == 1
        assert "with --url the server decides" in capsys.readouterr().err
    assert mcdrop(f"predict {folder} data.npy --model cat") == 1
    assert "Give --url too" in capsys.readouterr().err


def assert_near(here: bytes, there: bytes, kind: str) -> None:
    """The same names in the same order, and numbers that agree to what a seed promises."""
    if kind == "npz":
        with np.load(io.BytesIO(here)) as a, np.load(io.BytesIO(there)) as b:
            assert a.files == b.files
            assert all(a[name].dtype == b[name].dtype for name in a.files)
            assert all(np.allclose(a[name], b[name], rtol=1e-4, atol=1e-5) for name in a.files)
    elif kind == "json":
        a, b = json.loads(here), json.loads(there)
        assert list(a) == list(b)
        assert all(np.allclose(a[name], b[name], rtol=1e-4, atol=1e-5) for name in a)
    else:
        a, b = (list(csv.reader(text.decode().splitlines())) for text in (here, there))
        assert a[0] == b[0]
        assert np.allclose(np.array(a[1:], float), np.array(b[1:], float), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_no_cuda_device_is_a_clear_error(folder, capsys):
    np.save("data.npy", np.zeros((2, 4), np.float32))
    assert mcdrop(f"predict {folder} data.npy --device cuda") == 1
    assert "sees no CUDA device: use 'cpu'" in capsys.readouterr().err


# ---- serve


def test_serve_until_a_signal(folder):
    process = launch("serve", folder, "--port", "0", "--log-level", "warning", cwd=".")
    url = re.search(r"http://[\d.]+:\d+", process.stdout.readline())[0]
    with urllib.request.urlopen(f"{url}/health/ready", timeout=30) as answer:
        assert answer.status == 200
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == 0


def test_a_taken_port_is_a_clear_error(folder, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for command in (f"serve {folder}", "demo"):
            assert mcdrop(f"{command} --port {port}") == 1
            error = capsys.readouterr().err
            assert str(port) in error
            assert "--port" in error
    assert not Path("mcdrop-demo").exists()


def test_a_folder_without_models_is_a_clear_error(here, capsys):
    Path("empty").mkdir()
    assert mcdrop("serve empty --port 0") == 1
    assert "empty" in capsys.readouterr().err


def test_a_setting_that_means_nothing(folder, capsys):
    assert mcdrop(f"serve {folder} --max-rows many") == 1
    assert "--max-rows" in capsys.readouterr().err
