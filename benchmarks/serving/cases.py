"""The networks that are served, and the servers. To add one, add a row."""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks import networks

__all__ = ["CASES", "CONTENDERS", "NUM_SAMPLES", "Case", "Contender", "case"]

NUM_SAMPLES = 100


@dataclass(frozen=True)
class Case:
    """A network that takes rows of 784 floats."""

    name: str
    make: Callable[[], nn.Sequential]

    def build(self) -> nn.Sequential:
        """The network in evaluation mode, the same at every call."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.make().eval()

    @staticmethod
    def rows(count: int) -> Tensor:
        """What clients send: numbers between 0 and 1 with four digits, the same at every call."""
        return (torch.rand(count, 784, generator=torch.Generator().manual_seed(1)) * 1e4).round() / 1e4


def _lenet() -> nn.Sequential:
    return nn.Sequential(nn.Unflatten(1, (1, 28, 28)), *networks.lenet().children())


def _mlp() -> nn.Sequential:
    return nn.Sequential(*networks.mlp().children())


CASES = {each.name: each for each in (Case("lenet", _lenet), Case("mlp", _mlp))}


def case(name: str) -> Case:
    """The case of this name."""
    return CASES[name]


@dataclass(frozen=True)
class Contender:
    """A way to serve a network.

    Attributes:
        name: as in the results.
        what: one line about it.
        command: starts it, given the case's name, a folder with the model saved by mcdrop, and a port.
        path: where it answers.
        new_seeds: each request has a seed of its own.
        needs: a module that has to be there.
    """

    name: str
    what: str
    command: Callable[[str, Path, int], Sequence[str]]
    path: str = "/predict"
    new_seeds: bool = False
    needs: str | None = None

    @property
    def available(self) -> bool:
        """Whether it can be started here."""
        return self.needs is None or importlib.util.find_spec(self.needs) is not None


def _mcdrop(name: str, folder: Path, port: int) -> Sequence[str]:
    limits = ["--max-rows", "10000", "--max-body-bytes", str(2**28)]  # for the request of 10,000 rows
    address = ["--port", str(port), "--log-level", "warning"]
    return [sys.executable, "-m", "mcdrop", "serve", str(folder), *address, *limits]


def _module(module: str, *options: str) -> Callable[[str, Path, int], Sequence[str]]:
    start = [sys.executable, "-m", f"benchmarks.serving.{module}"]
    return lambda name, folder, port: [*start, name, str(port), *options]


CONTENDERS = (
    Contender("mcdrop", "mcdrop serve, default seed", _mcdrop, path="/v1/predict"),
    Contender("mcdrop-seeds", "mcdrop serve, a seed of its own per request", _mcdrop, "/v1/predict", new_seeds=True),
    Contender("naive", "FastAPI, a loop of train-mode passes in the handler", _module("naive")),
    Contender(
        "good", "FastAPI, one inference thread, batching, orjson, replicated batch", _module("batched", "replicated")
    ),
    Contender("litserve", "LitServe, batching, replicated batch", _module("lit"), needs="litserve"),
    Contender("split", "as good, but prefix and suffix split by hand, masks per row", _module("batched", "split")),
)
