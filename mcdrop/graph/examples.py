"""Inputs to try a network on, where there are none or too few."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from mcdrop.graph.inputs import BATCH, InputSpec

__all__ = ["example_inputs", "proof_rows"]

EXAMPLE_BATCH = 2
EXAMPLE_SIZE = 8  # of a dynamic dimension, where its bounds allow it


def example_inputs(specs: Iterable[InputSpec]) -> dict[str, Tensor]:
    """One batch of two rows that fits the specifications: floats in [0, 1), ones for bool, integers 0 and 1.

    Integers begin each row with 1, so that an attention mask never hides a whole row; uint8 goes up to 255, since it
    holds images. Dynamic dimensions get 8, or the bound that is nearest to it.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    return {spec.name: _example(spec, generator) for spec in specs}


def _example(spec: InputSpec, generator: torch.Generator) -> Tensor:
    shape = [
        size if isinstance(size, int) else EXAMPLE_BATCH if size == BATCH else _within(spec.bounds[size])
        for size in spec.shape
    ]
    if spec.dtype.is_floating_point or spec.dtype.is_complex:
        return torch.rand(shape, generator=generator, device="cpu").to(spec.dtype)
    if spec.dtype == torch.bool:
        return torch.ones(shape, dtype=torch.bool, device="cpu")
    values = torch.randint(0, 256 if spec.dtype == torch.uint8 else 2, shape, generator=generator, device="cpu")
    if values.ndim and values.shape[-1]:
        values[..., 0] = 1
    return values.to(spec.dtype)


def _within(bounds: tuple[int, int | None]) -> int:
    least, most = bounds
    return max(least, EXAMPLE_SIZE if most is None else min(EXAMPLE_SIZE, most))


def proof_rows(example: Sequence[Tensor], specs: Sequence[InputSpec]) -> list[Tensor]:
    """Three rows made from the example's; an example of one row is varied, so that rows differ."""
    rows = []
    for tensor, spec in zip(example, specs, strict=True):
        if not spec.batched:
            rows.append(tensor)
        elif tensor.shape[0] >= 3:
            rows.append(tensor[:3].contiguous())
        else:
            first = tensor[:1]
            second = tensor[1:2] if tensor.shape[0] == 2 else _varied(first, 1)
            rows.append(torch.cat([first, second, _varied(first, 2)]))
    return rows


def _varied(row: Tensor, number: int) -> Tensor:
    """A row like `row` but not equal to it: scaled if it holds real numbers, rolled along its last axis if not."""
    if row.is_floating_point():
        return row * (1 - 0.15 * number) + 0.05 * number * (1 if row.any() else 5)
    if row.dtype != torch.bool and row.ndim > 1:
        return row.roll(number, -1)
    return row
