"""Slow, obvious truths: what mcdrop computes, computed again without any of it.

`enumerate_masks` runs the user's own network, switched to training, once under every mask that its Bernoulli sites
can draw: a dispatch mode puts the masks where PyTorch would have drawn them. k units have 2**k masks, so mean,
variance, entropies and votes of a tiny network are finite sums, done here in float64.
`train_mode_samples` is the loop that everybody writes.

Nothing here imports mcdrop.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

Inputs = Tensor | tuple[Tensor, ...] | dict[str, Tensor]

KEEPS_ITS_FLAG = (nn.modules.batchnorm._BatchNorm, nn.RReLU)  # training means more than dropout to these


def switch_on(model: nn.Module, frozen: Sequence[str] = ()) -> nn.Module:
    """The ordinary way: `.train()`, then normalisation and what `frozen` names back to evaluation."""
    model.train()
    for name, module in model.named_modules():
        if isinstance(module, KEEPS_ITS_FLAG) or name in frozen:
            module.training = False
    return model


def call(model: nn.Module, inputs: Inputs, output: str | int | None = None) -> Tensor | tuple[Tensor, ...]:
    """One forward pass; of several outputs the one named, else `logits`, else a tuple's tensors."""
    if isinstance(inputs, dict):
        result = model(**inputs)
    elif isinstance(inputs, tuple):
        result = model(*inputs)
    else:
        result = model(inputs)
    if output is not None:
        return result[output]
    if isinstance(result, Mapping):
        return result["logits"]
    return getattr(result, "logits", result)


def repeat(inputs: Inputs, copies: int) -> Inputs:
    """Every row `copies` times, the whole batch one after the other: axis 0 reads (copies, batch)."""
    if isinstance(inputs, dict):
        return {name: repeat(value, copies) for name, value in inputs.items()}
    if isinstance(inputs, tuple):
        return tuple(repeat(value, copies) for value in inputs)
    return inputs.repeat(copies, *[1] * (inputs.ndim - 1))


def train_mode_samples(
    model: nn.Module,
    inputs: Inputs,
    n: int,
    seed: int,
    *,
    frozen: Sequence[str] = (),
    output: str | int | None = None,
    copies: int = 1,
) -> Tensor | tuple[Tensor, ...]:
    """`n` outputs (n, batch, ...) of the network in training mode under PyTorch's own generator.

    `copies` rows for each row of the input save time where rows draw their own masks. The model is left as it was.
    """
    was = {module: module.training for module in model.modules()}
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        switch_on(model, frozen)
        repeated = repeat(inputs, copies)
        passes = [call(model, repeated, output) for _ in range(-(-n // copies))]
    for module, flag in was.items():
        module.training = flag
    for name, value in model.named_buffers():
        assert torch.equal(value, buffers[name]), f"sampling changed the buffer {name}: freeze its module"

    def joined(values: Sequence[Tensor]) -> Tensor:
        stacked = torch.stack(list(values))  # (passes, copies * batch, ...)
        return stacked.reshape(-1, stacked.shape[1] // copies, *stacked.shape[2:])[:n]

    if isinstance(passes[0], tuple):
        return tuple(joined(values) for values in zip(*passes, strict=True))
    return joined(passes)


BERNOULLI_IN_PLACE = (torch.ops.aten.bernoulli_.float, torch.ops.aten.bernoulli_.Tensor)
BERNOULLI = (torch.ops.aten.bernoulli.default, torch.ops.aten.bernoulli.p)


class Draws(TorchDispatchMode):
    """Records every Bernoulli draw, and replaces it where masks are given.

    After a run `shapes` and `keep` say what was drawn: the shape, and each unit's probability of a one.
    """

    def __init__(self, masks: Sequence[Tensor] | None = None) -> None:
        super().__init__()
        self.masks, self.shapes, self.keep = masks, list[torch.Size](), list[Tensor]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in BERNOULLI_IN_PLACE or func in BERNOULLI:
            target = args[0]
            keep = args[1] if len(args) > 1 else kwargs.get("p", target if func in BERNOULLI else 0.5)
            index = len(self.shapes)
            self.shapes.append(target.shape)
            self.keep.append(torch.as_tensor(keep, dtype=torch.float64).expand(target.shape))
            if self.masks is not None:
                mask = self.masks[index].to(target.dtype).reshape(target.shape)
                return target.copy_(mask) if func in BERNOULLI_IN_PLACE else mask
        elif torch.Tag.nondeterministic_seeded in func.tags:
            raise NotImplementedError(f"{func} draws something else than Bernoulli numbers")
        return func(*args, **kwargs)


@dataclasses.dataclass(frozen=True)
class Enumeration:
    """All masks of a network at one input row, float64.

    `weights` (masks,) are their probabilities, `outputs` (masks, ...) the raw outputs, `dropped` (masks, draws) how
    many units of each draw they drop. Every method is the defining sum. Classes are the last axis.
    """

    weights: Tensor
    outputs: Tensor
    dropped: Tensor

    def expectation(self, values: Tensor) -> Tensor:
        """sum_m w_m values_m, for values (masks, ...)."""
        return torch.tensordot(self.weights, values, dims=1)

    def probs(self) -> Tensor:
        return torch.softmax(self.outputs, -1)

    def mean(self, values: Tensor) -> Tensor:
        return self.expectation(values)

    def variance(self, values: Tensor) -> Tensor:
        return self.expectation((values - self.mean(values)) ** 2)

    def entropy(self) -> Tensor:
        """H[E p], nats."""
        return entropy(self.mean(self.probs()))

    def expected_entropy(self) -> Tensor:
        """E H[p], nats."""
        return self.expectation(entropy(self.probs()))

    def votes(self) -> Tensor:
        """One-hot votes (masks, ..., classes) of each mask's network."""
        return nn.functional.one_hot(self.outputs.argmax(-1), self.outputs.shape[-1]).double()

    def vote_shares(self) -> Tensor:
        return self.expectation(self.votes())


def entropy(probs: Tensor) -> Tensor:
    """-sum_c p_c log p_c over the last axis, with 0 log 0 = 0."""
    return -torch.where(probs > 0, probs * torch.log(probs.clamp_min(1e-300)), 0.0).sum(-1)


@contextmanager
def in_training(model: nn.Module, frozen: Sequence[str]) -> Iterator[None]:
    was = {module: module.training for module in model.modules()}
    switch_on(model, frozen)
    try:
        yield
    finally:
        for module, flag in was.items():
            module.training = flag


def enumerate_masks(
    model: nn.Module, inputs: Tensor, *, frozen: Sequence[str] = (), most_units: int = 12
) -> Enumeration:
    """Runs `model` (float64) on one row (1, ...) under all 2**units masks, as its author wrote it, in plain PyTorch.

    The masks ride on the batch axis of one forward pass over copies of the row. Where a draw has no such axis, as on
    a weight, there is one pass for each mask.
    """
    if inputs.shape[0] != 1:
        raise ValueError(f"one row at a time, got {inputs.shape[0]}")
    with torch.no_grad(), torch.random.fork_rng(devices=[]), in_training(model, frozen):
        with Draws() as seen:
            call(model, inputs)
        with Draws() as twice:
            call(model, repeat(inputs, 2))
        sizes = [math.prod(shape) for shape in seen.shapes]
        units = sum(sizes)
        if not 0 < units <= most_units:
            raise ValueError(f"{units} units: from 1 to {most_units} can be enumerated")
        numbers = torch.arange(2**units)[:, None]
        bits = (numbers >> torch.arange(units)) & 1  # (masks, units), 1 = kept
        keep = torch.cat([keep.reshape(-1) for keep in seen.keep])
        weights = torch.where(bits == 1, keep, 1 - keep).prod(1)
        masks = [part.reshape(-1, *shape) for part, shape in zip(bits.split(sizes, 1), seen.shapes, strict=True)]
        axes = [row_axis(*shapes) for shapes in zip(seen.shapes, twice.shapes, strict=True)]
        if None in axes:
            rows = []
            for mask in range(2**units):
                with Draws([site[mask] for site in masks]):
                    rows.append(call(model, inputs)[0])
            outputs = torch.stack(rows)
        else:
            with Draws([site.movedim(0, axis) for site, axis in zip(masks, axes, strict=True)]):
                outputs = call(model, repeat(inputs, 2**units))
    dropped = torch.stack([(1 - mask).flatten(1).sum(1) for mask in masks], 1).double()
    return Enumeration(weights=weights, outputs=outputs.double(), dropped=dropped)


def row_axis(one: torch.Size, two: torch.Size) -> int | None:
    """The axis of a draw that has twice the size for two rows; None if it does not depend on the number of rows."""
    return next((axis for axis, (a, b) in enumerate(zip(one, two, strict=True)) if b == 2 * a), None)


# ---- when to stop


def looks(maximum: int, first: int = 16, part: int = 4) -> list[int]:
    """`first` passes, then each time a `part`-th more, rounded up to 16s; and the maximum."""
    counts = [16 * math.ceil(first / 16)]
    while counts[-1] < maximum:
        counts.append(counts[-1] + 16 * math.ceil(counts[-1] / part / 16))
    return [n for n in counts if n < maximum] + [maximum]


def half_width(values: Sequence[float], *, bounded: bool) -> float:
    """Of the mean of `values`: normal at 97.5 %, and the rule of three for a range that is 1 where they are bounded."""
    n, mean = len(values), math.fsum(values) / len(values)
    variance = math.fsum((x - mean) ** 2 for x in values) / (n - 1)
    spread = 1.0 if bounded else max(values) - min(values)
    return math.hypot(2.241402727604947 * math.sqrt(variance / n), spread * math.log(20) / n)


def half_width_looks(maximum: int, tolerance: float, *, bounded: bool) -> list[int]:
    """Where the half-width of a row is compared with the tolerance."""
    return looks(maximum, math.ceil(math.log(20) / tolerance) if bounded else 64, 8)


def lower_bound(values: Sequence[float], level: float) -> float:
    """The empirical-Bernstein lower bound of the mean after the last of `values`, written down as in the paper."""
    mean, squares, total = 0.5, 0.0, 0.0  # of the passes before
    weights, weighted, penalties = 0.0, 0.0, 0.0
    for t, x in enumerate(values, start=1):
        variance = (0.25 + squares) / t
        weight = min(math.sqrt(2 * math.log(1 / level) / (variance * t * math.log(1 + t))), 0.5)
        weights += weight
        weighted += weight * x
        penalties += (x - mean) ** 2 * (-math.log(1 - weight) - weight)
        total += x
        mean = (0.5 + total) / (t + 1)
        squares += (x - mean) ** 2
    return (weighted - math.log(1 / level) - penalties) / weights
