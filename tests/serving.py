"""Tiny models on disk, and a real server on a free port of this machine, for tests of the service and the client."""

import atexit
import contextlib
import functools
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import torch
from torch import nn

from mcdrop.predictor import MCDropout
from service.server import serving
from service.settings import Settings, load_settings

CLASSES = ("ant", "bee", "cow")


class Pair(nn.Module):
    """Two inputs, named by `forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 8)
        self.dropout = nn.Dropout(0.5)
        self.outer = nn.Linear(8, 2)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.dropout(self.inner(left + right))
        return self.outer(hidden)


@functools.cache
def models_folder() -> Path:
    """Three models: `insects` in `one` (classification), `slope` (regression, named by its folder), `pair` (raw)."""
    folder = Path(tempfile.mkdtemp(prefix="mcdrop-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    torch.manual_seed(0)
    insects = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3))
    slope = nn.Sequential(nn.Linear(2, 16, bias=False), nn.Dropout(0.3), nn.Linear(16, 1, bias=False))
    two, four = torch.rand(2, 2), torch.rand(2, 4)
    MCDropout(
        insects, four, task="classification", name="insects", version="3", class_names=CLASSES, num_samples=20, seed=5
    ).save(folder / "one")
    MCDropout(slope, two, task="regression").save(folder / "slope")
    MCDropout(Pair(), (torch.rand(2, 3), torch.rand(2, 3)), task="raw", name="pair").save(folder / "pair")
    return folder


@functools.cache
def _numbered() -> Path:
    """A regression whose mean is its bias, for versions that can be told by their answers."""
    folder = Path(tempfile.mkdtemp(prefix="mcdrop-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for number in range(1, 4):
        network = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        nn.init.zeros_(network[2].weight)
        nn.init.constant_(network[2].bias, number)
        MCDropout(network, torch.rand(2, 2), task="regression", num_samples=8).save(folder / str(number))
    return folder


def add_version(repository: Path, name: str, number: int) -> Path:
    """Put version `number` (1, 2 or 3) of a model into a repository. It predicts its number for any two values."""
    return shutil.copytree(_numbered() / str(number), repository / name / str(number))


def damage(folder: Path) -> None:
    """Cut a model's weights off."""
    weights = folder / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])


@functools.cache
def model(folder: str) -> MCDropout:
    """What the server should serve, asked without a server."""
    return MCDropout.load(models_folder() / folder)


def settings(**changes: Any) -> Settings:
    """Settings for a quiet server of the three models."""
    return load_settings(**{"models": models_folder(), "port": 0, "device": "cpu", "log_level": "error", **changes})


@contextlib.contextmanager
def live(**changes: Any) -> Iterator[httpx.Client]:
    """A client of a server that is ready; `changes` are settings."""
    with serving(settings(**changes)) as url, httpx.Client(base_url=url, trust_env=False, timeout=30) as http:
        yield http
