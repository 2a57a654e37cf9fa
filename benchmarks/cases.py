"""The table of cases. To add one, add a row."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.networks import depth, encoder, lenet, mlp, resnet, unet, unet_half

__all__ = ["CASES", "Case", "chosen"]


@dataclass(frozen=True)
class Case:
    """One network, one batch.

    Attributes:
        name: as on the command line.
        make: builds the network.
        inputs: makes a number of rows.
        rows, num_samples: of the prediction.
        target: how many times as fast as the train-mode loop a warm call has to be.
        growth: where memory is what is measured: MiB by which resident memory may grow during the call.
        keywords: for `MCDropout`.
    """

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[int], Tensor]
    rows: int
    num_samples: int
    target: float | None = None
    growth: float | None = None
    keywords: dict[str, Any] = field(default_factory=dict)

    def build(self) -> tuple[nn.Module, Tensor]:
        """The network in evaluation mode, and its inputs; the same at every call."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.make().eval(), self.inputs(self.rows)


def _floats(*shape: int) -> Callable[[int], Tensor]:
    return lambda rows: torch.randn(rows, *shape)


def _tokens(length: int) -> Callable[[int], Tensor]:
    return lambda rows: torch.randint(1000, (rows, length))


CASES = (
    Case("lenet-1", lenet, _floats(1, 28, 28), 1, 100, target=60),
    Case("lenet-32", lenet, _floats(1, 28, 28), 32, 100, target=75),
    Case("resnet-16", resnet, _floats(3, 32, 32), 16, 50, target=40),
    Case("mlp-1", mlp, _floats(784), 1, 100, target=12),
    Case("mlp-64", mlp, _floats(784), 64, 100, target=13),
    Case("mlp-256", mlp, _floats(784), 256, 100, target=13),
    Case("transformer-1", encoder, _tokens(64), 1, 30, target=2.5),
    Case("transformer-4", encoder, _tokens(64), 4, 30, target=1.6),
    Case("depth-8", depth, _floats(3, 32, 32), 8, 30, target=1),
    Case("unet_half-2", unet_half, _floats(3, 64, 64), 2, 30, target=1, keywords={"class_axis": 1}),
    Case(
        "unet-memory", unet, _floats(3, 256, 256), 1, 500, growth=512,
        keywords={"class_axis": 1, "max_memory": 384 * 2**20},
    ),
)  # fmt: skip


def chosen(names: list[str], *, memory: bool) -> list[Case]:
    """The cases of these names, or of this network; without names those of speed, with `memory` that of memory too.

    Raises:
        LookupError: no case has such a name.
    """
    for name in names:
        if not any(_named(case, name) for case in CASES):
            raise LookupError(f"no case is called {name}; there are {', '.join(case.name for case in CASES)}.")
    if names or memory:
        return [case for case in CASES if (memory and case.growth) or any(_named(case, name) for name in names)]
    return [case for case in CASES if not case.growth]


def _named(case: Case, name: str) -> bool:
    return case.name == name or case.name.rpartition("-")[0] == name
