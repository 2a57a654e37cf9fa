"""Runs in slices: how many passes to compute before somebody else has a turn."""

import time
from collections.abc import Generator

import torch

from mcdrop.errors import InputError
from mcdrop.predictor import MCDropout
from mcdrop.sampling import Run

SLICE_SECONDS = 0.05  # a person does not notice it, and PyTorch's cost per call disappears in it


class Pace:
    """How many passes fit into one slice, learned from the slices before."""

    def __init__(self) -> None:
        self._seconds_per_cost: float | None = None  # cost is rows x passes

    def passes(self, *, rows: int) -> int:
        """Passes of `rows` rows for the next slice: a power of two, since each new batch size costs PyTorch memory."""
        if self._seconds_per_cost is None:
            return 8
        fitting = SLICE_SECONDS / (self._seconds_per_cost * max(rows, 1))
        return int(2 ** max(0, int(min(fitting, 2.0**20)).bit_length() - 1))

    def learn(self, *, rows: int, passes: float, seconds: float) -> None:
        """Take into account that `passes` passes of `rows` rows took `seconds`."""
        seconds_per_cost = max(seconds, 1e-9) / (max(rows, 1) * passes)
        before = seconds_per_cost if self._seconds_per_cost is None else self._seconds_per_cost
        self._seconds_per_cost = (before + seconds_per_cost) / 2


def timed_slices(run: Run, mc: MCDropout, pace: Pace) -> Generator[None]:
    """Advance `run` until it is done, a slice at a time."""
    while not run.done:
        before, started = _computed(run), time.perf_counter()
        try:
            mc.advance(run, pace.passes(rows=run.rows))
        except IndexError as error:  # what an embedding raises; the rules for inputs do not know its size
            raise InputError(
                f"The network cannot compute with these inputs: {error}. "
                "Whole numbers that select something (token ids) have to be in its range."
            ) from error
        if mc.device.type == "cuda":
            torch.cuda.synchronize(mc.device)  # launched is not computed
        pace.learn(rows=run.rows, passes=_computed(run) - before, seconds=time.perf_counter() - started)
        if not run.done:
            yield


def _computed(run: Run) -> float:
    """Passes computed so far, on average over the blocks into which a run with many rows is cut."""
    return sum(block.passes for block in run.blocks) / max(len(run.blocks), 1)
