"""`python -m mcdrop serve`, on a device whose memory runs out by chance: `chaos_server.py FILE serve MODELS ...`.

While FILE holds a probability, each computation of passes fails with it, as PyTorch would fail.
"""

import contextlib
import random
import runpy
import sys
from pathlib import Path
from typing import Any

import torch

from mcdrop.engines.engine import GraphEngine


def run_out_by(switch: Path) -> None:
    """Have every engine of this process obey the file."""
    compute, chance = GraphEngine.passes, random.Random(0)

    def passes(self: GraphEngine, *arguments: Any, **keywords: Any) -> Any:
        with contextlib.suppress(OSError, ValueError):  # no file, or one that is being written
            if chance.random() < float(switch.read_text()):
                raise torch.OutOfMemoryError("out of memory, as a test wants it")
        return compute(self, *arguments, **keywords)

    GraphEngine.passes = passes  # type: ignore[method-assign]


if __name__ == "__main__":
    run_out_by(Path(sys.argv.pop(1)))
    runpy.run_module("mcdrop", run_name="__main__", alter_sys=True)
