"""What answers the draws of a network that runs itself: at their mean, noted, given, or by seed.

The n-th draw of a pass is site n, as in a captured program, so that both engines give the same numbers.
"""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mcdrop.graph import draws
from mcdrop.graph.choosing import Choice, Place
from mcdrop.graph.sites import LIBRARIES, Law, own_path
from mcdrop.randomness.balance import balanced_mask
from mcdrop.randomness.noise import keep_mask, normal, uniform

__all__ = ["Chosen", "Drawn", "Given", "Neutral", "Places", "Seeded", "Supply", "Traced", "caller"]


class Supply:
    """Answers the draws of one forward pass, in the order in which they come.

    `count` says how many came, `kind` which kind of dropout PyTorch is computing, if it is.
    """

    def __init__(self) -> None:
        self.count = 0
        self.shapes: list[tuple[int, ...]] = []
        self.uniforms = self.normals = 0
        self.kind: str | None = None

    def next(self, law: Law, shape: torch.Size, p: float, device: torch.device) -> Tensor:
        """A draw of float32 numbers: 0 or 1 for "bernoulli" (dropping with probability `p`), else numbers."""
        index, self.count = self.count, self.count + 1
        self.shapes.append(tuple(shape))
        self.uniforms += law == "uniform"
        self.normals += law == "normal"
        return self.make(index, law, tuple(shape), p, device)

    def make(self, index: int, law: Law, shape: tuple[int, ...], p: float, device: torch.device) -> Tensor:
        raise NotImplementedError

    def leaves_out(self, kind: str, p: float) -> bool:
        """Whether a dropout function that is about to draw gives its input back instead."""
        return False

    def rate(self, kind: str) -> float | None:
        """The rate to use instead of the network's, if there is one."""
        return None

    def bernoulli(self, probs: Tensor) -> Tensor:
        """A draw of zeros and ones with a tensor of probabilities of a one."""
        return draws.bernoulli(self.next("uniform", probs.shape, 0.0, probs.device), probs)


class Neutral(Supply):
    """Every draw at its mean, so that dropout is the identity; masks with the value `kept`, if that is given.

    With `deviation`, normal numbers take every size up to it and no two are equal.
    """

    def __init__(self, kept: float | None = None, deviation: float = 0.0) -> None:
        super().__init__()
        self.kept, self.deviation = kept, deviation

    def make(self, index: int, law: Law, shape: tuple[int, ...], p: float, device: torch.device) -> Tensor:
        if law == "normal" and self.deviation:
            count = math.prod(shape)
            steps = torch.linspace(-self.deviation, self.deviation, count, device=device, dtype=torch.float64)
            return steps.reshape(shape)
        return _at_mean(law, shape, p if self.kept is None else 1 - self.kept, device)

    def leaves_out(self, kind: str, p: float) -> bool:
        """What no value of a mask makes the identity: alpha dropout, affine in its mask, and p = 1."""
        return "alpha" in kind or p == 1

    def bernoulli(self, probs: Tensor) -> Tensor:
        self.count += 1
        self.shapes.append(tuple(probs.shape))
        return probs.clone()


def _at_mean(law: Law, shape: tuple[int, ...], p: float, device: torch.device) -> Tensor:
    return torch.full(
        shape, {"bernoulli": 1 - p, "uniform": 0.5, "normal": 0.0}[law], device=device, dtype=torch.float64
    )


class Places:
    """Which module of a private copy is running, noted by hooks."""

    def __init__(self, network: nn.Module) -> None:
        self.stack = [""]
        self.handles = []
        self._kinds = {name: getattr(module, "dropout_kind", None) for name, module in network.named_modules()}
        for name, module in network.named_modules():
            if not isinstance(module, torch.jit.ScriptModule):
                self.handles.append(module.register_forward_pre_hook(partial(self._enter, name)))
                self.handles.append(module.register_forward_hook(self._leave, always_call=True))

    def _enter(self, name: str, *_: Any) -> None:
        self.stack.append(name)

    def _leave(self, *_: Any) -> None:
        self.stack.pop()

    @property
    def path(self) -> str:
        """The module, as a path in the user's network."""
        return own_path(self.stack[-1])

    def kind(self, kind: str) -> str:
        """What a draw of this kind is called here: the innermost module that names its draws decides."""
        return next((told for name in reversed(self.stack) if isinstance(told := self._kinds[name], str)), kind)

    def close(self) -> None:
        """Take the hooks off again."""
        for handle in self.handles:
            handle.remove()


@dataclass(frozen=True)
class Drawn:
    """One draw of a forward pass."""

    path: str
    kind: str
    law: Law
    p: float | None
    source: str


class Traced(Neutral):
    """Neutral draws that note what each is."""

    def __init__(self, places: Places, chosen: "Chosen | None" = None) -> None:
        super().__init__()
        self.places, self.chosen = places, chosen
        self.found: list[Drawn] = []

    def leaves_out(self, kind: str, p: float) -> bool:
        return False

    def rate(self, kind: str) -> float | None:
        return None if self.chosen is None else self.chosen.rate(kind, self.count)

    def make(self, index: int, law: Law, shape: tuple[int, ...], p: float, device: torch.device) -> Tensor:
        self.found.append(Drawn(self.places.path, self.kind or law, law, p if law == "bernoulli" else None, caller()))
        return super().make(index, law, shape, p, device)

    def bernoulli(self, probs: Tensor) -> Tensor:
        self.found.append(Drawn(self.places.path, "bernoulli", "uniform", None, caller()))
        return super().bernoulli(probs)


class Chosen:
    """What a choice says of the draws of a network while it runs.

    `numbers` are those of the draws, in order, where some that had numbers are gone.
    """

    def __init__(self, choice: Choice, places: Places, numbers: Sequence[int] | None = None) -> None:
        self.choice, self.places, self.numbers = choice, places, numbers or ()
        self._shift = 1 + self.numbers[-1] - len(self.numbers) if self.numbers else 0

    def number(self, index: int) -> int:
        """The number of the draw that comes `index`-th."""
        return self.numbers[index] if index < len(self.numbers) else index + self._shift

    def leaves_out(self, kind: str, index: int) -> bool:
        return self.choice.reason(self._site(kind, index)) is not None

    def rate(self, kind: str, index: int) -> float | None:
        return self.choice.rate(self._site(kind, index))

    def _site(self, kind: str, index: int) -> Place:
        return Place(self.number(index), self.places.path, self.places.kind(kind))


class Given(Supply):
    """Draws made before: `values[n]` for the n-th, None where it does not matter; ones where the shape is another."""

    def __init__(self, values: Sequence[Tensor | None]) -> None:
        super().__init__()
        self.values = values

    def make(self, index: int, law: Law, shape: tuple[int, ...], p: float, device: torch.device) -> Tensor:
        value = self.values[index] if index < len(self.values) else None
        if value is None or tuple(value.shape) != shape:
            return torch.ones(shape, device=device)
        return (value != 0).float() if law == "bernoulli" else value


class Seeded(Supply):
    """The draws of one pass of one row."""

    def __init__(
        self,
        seed: int,
        number: int,
        row: int | None,
        by_row: Callable[[int, tuple[int, ...]], bool],
        chosen: Chosen | None = None,
        balanced: bool = False,
    ) -> None:
        super().__init__()
        self.seed, self.passes, self.row, self.by_row = seed, range(number, number + 1), row, by_row
        self.chosen, self.balanced = chosen, balanced

    def leaves_out(self, kind: str, p: float) -> bool:
        return self.chosen is not None and self.chosen.leaves_out(kind, self.count)

    def rate(self, kind: str) -> float | None:
        return None if self.chosen is None else self.chosen.rate(kind, self.count)

    def make(self, index: int, law: Law, shape: tuple[int, ...], p: float, device: torch.device) -> Tensor:
        if self.chosen is not None and self.chosen.leaves_out(self.kind or law, index):
            return _at_mean(law, shape, p, device)
        site = index if self.chosen is None else self.chosen.number(index)
        where: dict[str, Any] = {"seed": self.seed, "site": site, "passes": self.passes, "device": device}
        if self.row is not None and shape and self.by_row(index, shape):
            where |= {"row_axis": 0, "rows": range(self.row, self.row + 1), "units_per_row": shape[0]}
        if law == "uniform":
            return uniform(shape=shape, **where)[0]
        if law == "normal":
            return normal(shape=shape, **where)[0]
        make = balanced_mask if self.balanced else keep_mask
        return make(p=p, shape=shape, **where)[0].float()

    def bernoulli(self, probs: Tensor) -> Tensor:
        if self.chosen is not None and self.chosen.leaves_out("bernoulli", self.count):
            self.count += 1
            self.shapes.append(tuple(probs.shape))
            return probs.clone()
        return super().bernoulli(probs)


def caller() -> str:
    """The line outside of PyTorch and mcdrop that is running."""
    frame = sys._getframe(1)
    place = "an unknown line"
    while frame.f_back is not None:
        name = frame.f_code.co_filename
        if not name.startswith((*LIBRARIES, "<")):
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back
    return place
