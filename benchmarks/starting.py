"""`python -m benchmarks.starting`: how long it takes until something can be asked.

Seconds to capture and to load networks of a hundred operations, and of `import mcdrop.client` as a ratio to `import
numpy, httpx`, which it cannot do without. Imports are measured in fresh interpreters, in turn; medians of 7.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.report import conditions
from mcdrop import MCDropout

__all__ = ["NETWORKS", "import_seconds", "main", "starting_seconds"]

ROUNDS = 7
_NEEDED, _CLIENT = "import numpy, httpx", "import mcdrop.client"


def _tower() -> tuple[nn.Module, Tensor]:
    """25 blocks of a linear layer, normalisation, ReLU and dropout."""
    blocks = [nn.Sequential(nn.Linear(256, 256), nn.LayerNorm(256), nn.ReLU(), nn.Dropout(0.1)) for _ in range(25)]
    return nn.Sequential(*blocks, nn.Linear(256, 10)), torch.randn(2, 256)


def _convolutions() -> tuple[nn.Module, Tensor]:
    """25 blocks of a convolution, batch normalisation, ReLU and dropout of channels."""
    blocks = [
        nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout2d(0.1))
        for _ in range(25)
    ]
    stem = nn.Conv2d(3, 16, 3, padding=1)
    return nn.Sequential(stem, *blocks, nn.Flatten(), nn.Linear(4096, 10)), torch.randn(2, 3, 16, 16)


def _transformer() -> tuple[nn.Module, Tensor]:
    """Three layers of an encoder, 122 operations."""
    layer = nn.TransformerEncoderLayer(128, 4, 256, dropout=0.1, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    return nn.Sequential(encoder, nn.Flatten(), nn.Linear(32 * 128, 10)), torch.randn(2, 32, 128)


NETWORKS: Mapping[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "mlp": _tower,
    "convolutions": _convolutions,
    "transformer": _transformer,
}


def starting_seconds(make: Callable[[], tuple[nn.Module, Tensor]]) -> tuple[int, float, float]:
    """Operations of a network, seconds to capture it, and to load it."""
    network, inputs = make()
    begin = time.perf_counter()
    mc = MCDropout(network.eval(), inputs, task="classification", engine="graph")
    captured = time.perf_counter() - begin
    with tempfile.TemporaryDirectory() as folder:
        mc.save(Path(folder) / "model")
        begin = time.perf_counter()
        MCDropout.load(Path(folder) / "model")
        loaded = time.perf_counter() - begin
    return mc.cost["prefix_operations"] + mc.cost["suffix_operations"], captured, loaded


def import_seconds(rounds: int = ROUNDS) -> tuple[float, float]:
    """Seconds to import what the client needs, and to import the client, each in fresh interpreters."""
    found: dict[str, list[float]] = {_NEEDED: [], _CLIENT: []}
    for _ in range(rounds):
        for statement, seconds in found.items():
            seconds.append(_in_fresh_interpreter(statement))
    return statistics.median(found[_NEEDED]), statistics.median(found[_CLIENT])


def _in_fresh_interpreter(statement: str) -> float:
    code = f"import time; begin = time.perf_counter(); {statement}; print(time.perf_counter() - begin)"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout)


def main() -> int:
    """Measure and print everything."""
    print(", ".join(f"{name} {value}" for name, value in conditions().items()), end="\n\n")
    needed, client = import_seconds()
    print(f"{_NEEDED}: {needed * 1000:.0f} ms; {_CLIENT}: {client * 1000:.0f} ms, {client / needed:.2f} times\n")
    print(f"{'network':<14}{'operations':>12}{'capture s':>12}{'again s':>10}{'load s':>10}", flush=True)
    for name, make in NETWORKS.items():
        count, first, _ = starting_seconds(make)
        _, again, loaded = starting_seconds(make)
        print(f"{name:<14}{count:>12}{first:>12.2f}{again:>10.2f}{loaded:>10.3f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
