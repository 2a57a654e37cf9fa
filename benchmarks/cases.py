"""The table of cases. To add one, add a row."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.networks import depth, lenet, lstm, mlp, resnet, tabular, unet
from benchmarks.transformers import bert, encoder, vit

__all__ = ["CASES", "MEMORY", "Case", "Network", "Point", "chosen", "points_of"]

GRID_ROWS, GRID_PASSES = (1, 8, 64), (30, 100)


class Point(NamedTuple):
    """How much is asked for: rows, and passes of each."""

    rows: int
    num_samples: int


@dataclass(frozen=True)
class Network:
    """How to build a network and any number of inputs."""

    make: Callable[[], nn.Module]
    inputs: Callable[[int], Tensor]

    def build(self, rows: int) -> tuple[nn.Module, Tensor]:
        """The network in evaluation mode, and its inputs; the same at every call."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.make().eval(), self.inputs(rows)


@dataclass(frozen=True)
class Case:
    """One network at several points.

    Attributes:
        name: as on the command line.
        title: as in tables.
        network: what is measured.
        twin: the same built small and with higher rates; on it samples are compared in law.
        points: what is measured by default, and there the least of some quantities of `Results.quantity`.
        most: rows x passes up to which points of the grid are measured; beyond, one call takes most of a minute.
        rounds: of which the median is taken; of calls that take more than half a second, three.
        keywords: for `MCDropout`.
        scaling: points that show how time grows with rows and with passes.
    """

    name: str
    title: str
    network: Network
    twin: Network
    points: Mapping[Point, Mapping[str, float]]
    most: int = 64 * 100
    rounds: int = 7
    keywords: Mapping[str, Any] = field(default_factory=dict)
    scaling: tuple[Point, ...] = ()

    @property
    def class_axis(self) -> int:
        """Axis of the classes in outputs (batch, ...)."""
        return int(self.keywords.get("class_axis", -1))

    def grid(self) -> list[Point]:
        """Every number of rows with every number of passes, so far as this case goes."""
        return [Point(b, t) for b in GRID_ROWS for t in GRID_PASSES if b * t <= self.most]


def _floats(*shape: int) -> Callable[[int], Tensor]:
    return partial(_random, shape)


def _random(shape: tuple[int, ...], rows: int) -> Tensor:
    return torch.randn(rows, *shape)


def _tokens(length: int) -> Callable[[int], Tensor]:
    return partial(_integers, length)


def _integers(length: int, rows: int) -> Tensor:
    return torch.randint(1000, (rows, length))


_IMAGE = _floats(3, 32, 32)
_SMALL_MLP = Network(partial(mlp, 0.5, 8, 16), _floats(8))
_SMALL = {"width": 16, "heads": 2, "layers": 2, "p": 0.5}
_SCALING = (*(Point(8, t) for t in (10, 30, 100, 300, 1000)), *(Point(b, 100) for b in (1, 4, 16, 64, 256)))

CASES = (
    Case(
        "lenet", "LeNet, dropout before the last layer",
        Network(lenet, _floats(1, 28, 28)), Network(partial(lenet, (2, 4), 16), _floats(1, 28, 28)),
        {Point(1, 100): {"loop": 60}, Point(32, 100): {"loop": 75}},
    ),
    Case(
        "resnet", "ResNet-18 of a quarter's width, dropout before the classifier",
        Network(resnet, _IMAGE), Network(partial(resnet, 2), _floats(3, 8, 8)),
        {Point(16, 50): {"one pass": 1 / 1.25}},
        most=64 * 30,
    ),
    Case(
        "mlp-half", "MLP 784-1024-1024-10, p = 0.5",
        Network(partial(mlp, 0.5), _floats(784)), _SMALL_MLP,
        {
            Point(1, 100): {"loop": 12},
            Point(64, 100): {"loop": 13, "replicated": 4},
            Point(256, 100): {"loop": 13, "replicated": 6, "floor": 0.7},
        },
        scaling=_SCALING,
    ),
    Case(
        "mlp-tenth", "MLP 784-1024-1024-10, p = 0.1",
        Network(partial(mlp, 0.1), _floats(784)), _SMALL_MLP, {Point(1, 100): {}, Point(64, 100): {}},
    ),
    Case(
        "tabular", "MLP for tables, 20-256-256-256-2, p = 0.2",
        Network(tabular, _floats(20)), Network(partial(tabular, 0.5, 16), _floats(20)),
        {Point(1, 100): {}, Point(64, 100): {}},
    ),
    Case(
        "lstm", "LSTM of 2 layers, width 128, 50 steps, p = 0.3",
        Network(lstm, _floats(50, 32)), Network(partial(lstm, 0.5, 8), _floats(6, 32)),
        {Point(1, 30): {}, Point(8, 30): {}},
        most=8 * 100,
    ),
    Case(
        "transformer", "transformer encoder, d 256, 4 layers, length 64, p = 0.1",
        Network(encoder, _tokens(64)), Network(partial(encoder, **_SMALL, length=6), _tokens(6)),
        {Point(1, 30): {"loop": 3.5, "replicated": 1}, Point(4, 30): {"loop": 2.2, "replicated": 1 / 1.1}},
        most=8 * 100,
    ),
    Case(
        "bert", "BERT-base, length 128, p = 0.1",
        Network(bert, _tokens(128)), Network(partial(bert, **_SMALL, length=6), _tokens(6)),
        {Point(1, 30): {}},
        most=8 * 30, rounds=3,
    ),
    Case(
        "vit", "ViT-S/16, images of 224 x 224, p = 0.1",
        Network(vit, _floats(3, 224, 224)), Network(partial(vit, **_SMALL, size=8, patch=4), _floats(3, 8, 8)),
        {Point(1, 30): {}},
        most=8 * 30, rounds=3,
    ),
    Case(
        "unet", "U-Net, Dropout2d, p = 0.5, images of 64 x 64",
        Network(partial(unet, 0.5), _floats(3, 64, 64)), Network(partial(unet, 0.5, 4, 2, 3), _floats(3, 8, 8)),
        {Point(2, 30): {"saved": 0.7}},
        most=8 * 100, keywords={"class_axis": 1},
    ),
    Case(
        "depth", "ConvNet of 8 blocks, stochastic depth, p to 0.5",
        Network(depth, _IMAGE), Network(partial(depth, 4, 3), _floats(3, 8, 8)),
        {Point(8, 30): {"saved": 0.7}},
        most=8 * 100,
    ),
)  # fmt: skip

MEMORY = Case(
    "unet-memory", "U-Net, Dropout2d, p = 0.2, images of 256 x 256",
    Network(partial(unet, 0.2), _floats(3, 256, 256)), CASES[-2].twin,
    {Point(1, 500): {}}, keywords={"class_axis": 1, "max_memory": 384 * 2**20},
)  # fmt: skip


def chosen(names: list[str]) -> list[Case]:
    """The cases of these names; without names all of them.

    Raises:
        LookupError: no case has such a name.
    """
    for name in names:
        if all(case.name != name for case in CASES):
            raise LookupError(f"no case is called {name}; there are {', '.join(case.name for case in CASES)}.")
    return [case for case in CASES if not names or case.name in names]


def points_of(case: Case, rows: list[int], passes: list[int], *, grid: bool) -> list[Point]:
    """What is measured of a case: its own points, with `grid` the whole grid, or all of these rows and passes."""
    if rows or passes:
        return [Point(b, t) for b in rows or GRID_ROWS for t in passes or GRID_PASSES]
    return case.grid() if grid else list(case.points)
