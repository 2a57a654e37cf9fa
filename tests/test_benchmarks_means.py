"""The benchmarks of ordinary means and of starting run, on something tiny."""

import torch
from torch import nn

from benchmarks.cases import Case, Network, Point
from benchmarks.means import measure_means
from benchmarks.starting import starting_seconds


def _network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))


def test_means_are_measured_beside_the_plain_engine() -> None:
    tiny = Network(_network, lambda rows: torch.randn(rows, 4))
    found = measure_means(Case("tiny", "a tiny network", tiny, tiny, {}), Point(2, 30), rounds=1, least=1e-6)
    assert min(found.seconds, found.one_thread, found.bfloat16) > 0
    assert found.compiled == found.both == 0  # not asked for
    assert 0 < found.mean < found.error
    assert 0 < found.entropy < 0.02


def test_a_start_is_measured() -> None:
    operations, captured, loaded = starting_seconds(lambda: (_network(), torch.randn(2, 4)))
    assert operations == 4
    assert captured > 0
    assert loaded > 0
