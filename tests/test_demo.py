"""The newcomer's command, run as a newcomer runs it."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mcdrop.demo import curl_line, request_body
from mcdrop.predictor import MCDropout

ROOT = Path(__file__).resolve().parents[1]


def launch(*arguments, cwd):
    """A Python process with the repository on its path, its output in a pipe."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80", "PYTHONUNBUFFERED": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *arguments], cwd=cwd, env=environment, **pipes)


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """`mcdrop demo --once --port 0`, run once: the folder it ran in and what it printed."""
    folder = tmp_path_factory.mktemp("demo")
    with launch("-m", "mcdrop", "demo", "--once", "--port", "0", cwd=folder) as process:
        out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert err == ""
    return folder, out


def test_it_learns_to_read(shown):
    accuracy = float(re.search(r"([\d.]+)% of the test digits are read right", shown[1])[1])
    assert accuracy >= 97


def test_it_shows_certain_and_uncertain_digits_and_what_is_none(shown):
    text = shown[1]
    for part in ("Most certain", "Least certain", "random ink", "the letter A", "aleatoric", "epistemic", "head.0"):
        assert part in text
    assert "██" in text
    assert "\nAsk for its least certain digit (this demo does, and its server ends with it):\n" in text
    drawn = [line for line in text.splitlines() if not line.startswith(("curl", "{"))]
    assert max(map(len, drawn)) <= 80


def test_the_uncertain_are_more_uncertain(shown):
    totals = [float(value) for value in re.findall(r"total +([\d.]+)", shown[1])]
    certain, least = totals[:2], totals[2:6]
    assert max(certain) < 0.01
    assert min(least) > 0.5
    assert least == sorted(least, reverse=True)


def test_the_request_it_shows_is_the_request_it_sends(shown):
    """The shown line, taken apart as a shell does, asks what the saved model answers."""
    folder, text = shown
    lines = text.splitlines()
    words = shlex.split(next(line for line in lines if line.startswith("curl ")))
    assert words[:2] == ["curl", "-s"]
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/v1/predict", words[2])
    request = json.loads(words[words.index("-d") + 1])
    answer = json.loads(next(line for line in lines if line.startswith("{")))
    mc = MCDropout.load(folder / "mcdrop-demo")
    expected = mc(np.array(request["inputs"], np.float32), num_samples=request["num_samples"], seed=request["seed"])
    assert answer["model"] == "digits"
    assert (answer["num_samples"], answer["seed"]) == (100, 7)
    assert np.allclose(answer["mean"], expected.mean, atol=1e-5)
    assert np.allclose(answer["expected_entropy"], expected.expected_entropy, atol=1e-5)
    assert answer["label"] == expected.label.tolist()
    assert answer["class_names"] == list("0123456789")


def test_the_shown_line_is_one_line():
    image = np.arange(64, dtype=np.uint8).reshape(8, 8) % 17
    line = curl_line("http://127.0.0.1:1", image)
    assert "\n" not in line
    assert shlex.split(line)[-1] == request_body(image)
    assert json.loads(request_body(image))["inputs"] == [image.tolist()]


def test_it_can_be_interrupted(tmp_path):
    with launch("-m", "mcdrop", "demo", "--port", "0", cwd=tmp_path) as process:
        assert process.stdout.readline() == "\n"
        process.stdout.readline()  # the first heading: it is training now
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "interrupted" in err
    assert "Traceback" not in err


def test_it_serves_until_it_is_stopped(tmp_path):
    with launch("-m", "mcdrop", "demo", "--port", "0", "--folder", "saved", cwd=tmp_path) as process:
        line = next(line for line in process.stdout if line.startswith("curl "))
        words = shlex.split(line)
        done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
        assert len(json.loads(done.stdout)["entropy"]) == 1
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=120)
    assert process.returncode == 0
    assert (tmp_path / "saved" / "model.json").is_file()


def test_a_folder_in_use_is_refused_before_any_work(tmp_path):
    (tmp_path / "mcdrop-demo").mkdir()
    (tmp_path / "mcdrop-demo" / "precious.txt").write_text("mine")
    with launch("-m", "mcdrop", "demo", "--once", "--port", "0", cwd=tmp_path) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert out == ""
    assert "precious.txt" in err
    assert (tmp_path / "mcdrop-demo" / "precious.txt").read_text() == "mine"


def test_train_and_save_only(tmp_path):
    with launch("-m", "mcdrop.demo", "--save", "digits", cwd=tmp_path) as process:
        out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, "")
    assert "saved in digits" in out
    mc = MCDropout.load(tmp_path / "digits")
    assert mc.name == "digits"
    assert len(mc(np.zeros((1, 8, 8), np.float32))) == 1
