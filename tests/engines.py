"""Engines of tests: a pass is plain arithmetic on the rows, and what was asked for is noted."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# activations (rows, units), numbers of passes (passes, 1, 1), seed -> outputs (passes, rows, units)
Law = Callable[[Tensor, Tensor, int], Tensor]


def counted(x: Tensor, t: Tensor, seed: int) -> Tensor:
    """Pass t of a row x is x + t."""
    return x + t


def counted_from_seed(x: Tensor, t: Tensor, seed: int) -> Tensor:
    """Pass t of a row x is x + t + seed."""
    return x + (t + seed)


def turned(x: Tensor, t: Tensor, seed: int) -> Tensor:
    """Pass t of a row x is -x where t is even, else x: rows differ in their spread."""
    return x * (t % 2 * 2 - 1)


class ArithmeticEngine:
    """An engine with a law instead of a network. Of more than `most` rows x passes at once it runs out of memory."""

    kind = "test"
    merges = joins = True

    def __init__(
        self, law: Law = counted, *, most: int = 10**9, error: Callable[[], BaseException] | None = None
    ) -> None:
        self.law = law
        self.most, self.error = most, error or (lambda: torch.OutOfMemoryError("no room"))
        self.asked: list[tuple[int, range]] = []  # rows and passes of each call
        self.prepared = 0  # calls

    def prepare(self, inputs: Sequence[Tensor], budget: int | None = None) -> list[Tensor]:
        self.prepared += 1
        return [inputs[0] * 1]

    def join(self, prepared: Sequence[list[Tensor]]) -> list[Tensor]:
        return [torch.cat([each[0] for each in prepared])]

    def part(self, prepared: Sequence[Tensor], start: int, stop: int) -> list[Tensor]:
        return [prepared[0][start:stop]]

    def passes(
        self,
        inputs: Sequence[Tensor],
        prepared: Sequence[Tensor],
        *,
        passes: range,
        seed: int,
        rows: Tensor | None,
        balanced: bool = False,
    ) -> tuple[Tensor, ...]:
        self.asked.append((len(inputs[0]), passes))
        assert torch.equal(prepared[0], inputs[0]), "what is prepared belongs to other rows"
        if len(passes) * len(inputs[0]) > self.most:
            raise self.error()
        t = torch.arange(passes.start, passes.stop, dtype=torch.float32).view(-1, 1, 1)
        return (self.law(prepared[0], t, seed),)

    def bytes_per_pass(self, inputs: Sequence[Tensor]) -> int:
        return 100

    def stretch(self, rows: int) -> int:
        return 1

    def working_bytes(self, inputs: Sequence[Tensor]) -> int:
        return 100
