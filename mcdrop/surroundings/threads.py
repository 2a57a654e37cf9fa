"""How many threads PyTorch computes with on the CPU while a network is trained.

The threads of one operation wait for one another. A small network's operations last microseconds, so that more threads
gain nothing on an idle machine, and where other programs compute too, each wait lasts until the scheduler gives every
thread its turn: two threads on two busy cores took 8 to 50 times as long as one.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mcdrop.errors import SettingError

__all__ = ["fitting_threads", "limited_threads"]

FEW_PARAMETERS = 500_000
SHORT_ROW = 1024  # numbers in a row of inputs; longer ones are images and sequences, in which a parameter works often


def fitting_threads(network: nn.Module, inputs: Tensor) -> int:
    """1 for a small network on short rows, else as many as PyTorch has now."""
    small = sum(parameter.numel() for parameter in network.parameters()) <= FEW_PARAMETERS
    return 1 if small and inputs[:1].numel() <= SHORT_ROW else torch.get_num_threads()


@contextmanager
def limited_threads(count: int) -> Iterator[None]:
    """Compute with `count` threads inside, and with as many as before afterwards. Raises SettingError below 1."""
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise SettingError(f"threads={count!r}; expected a whole number of at least 1, or None to choose by size.")
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
