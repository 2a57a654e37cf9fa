"""The limit of an answer's numbers holds where their count depends on the inputs."""

import pytest
import torch
from torch import nn

from mcdrop import MCDropout
from serving import live


@pytest.fixture(scope="module")
def http(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sizes")
    network = nn.Sequential(nn.Conv1d(2, 4, 3, padding=1), nn.Dropout1d(0.5), nn.Conv1d(4, 3, 1))
    mc = MCDropout(
        network, torch.rand(2, 2, 8), task="classification", class_axis=1, dynamic={2: "length<=512"}, name="positions"
    )
    mc.save(folder / "positions")
    with live(models=folder, max_answer_values=10_000) as http:
        yield http


def ask(http, length: int, rows: int = 1, **more):
    return http.post("/v1/predict", json={"inputs": [[[0.5] * length] * 2] * rows, "num_samples": 16, **more})


def test_long_inputs_have_many_numbers(http):
    assert ask(http, 100, outputs=["samples"]).status_code == 200  # 3 x 100 x (4 + 16)
    answer = ask(http, 400, outputs=["samples"])
    assert answer.status_code == 422
    assert answer.json()["code"] == "limit-exceeded"
    assert "max_answer_values" in answer.json()["detail"]
    assert ask(http, 400).status_code == 200  # without the samples
    assert ask(http, 400, rows=3).status_code == 422


def test_one_that_is_too_large_harms_no_other(http):
    for length in (8, 400, 8, 400):
        assert ask(http, length, outputs=["quantiles"]).status_code == (200 if length == 8 else 422)
