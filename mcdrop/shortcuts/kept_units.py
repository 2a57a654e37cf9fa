"""Kept units of passes: which a site keeps, and the parts of activations and weights that belong to them.

So many dropped units stand behind the kept ones that they fill whole vector registers. Products run at full speed then,
convolutions see few different widths, for each of which oneDNN would compile code anew, and a pass in which a site
drops all units needs nothing special. A dropped unit among them is multiplied by its draw, which is zero.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mcdrop.graph.draws import scale

__all__ = [
    "LANES",
    "Cut",
    "Gather",
    "Index",
    "Kept",
    "Scales",
    "Selection",
    "Turned",
    "filled",
    "select",
    "turned",
    "widths",
]

LANES = 16  # float32 numbers of a vector register of 512 bits


class Cut(NamedTuple):
    """The units of one axis that a site keeps; `block` neighbours on the axis share the fate of one unit."""

    draw: int
    axis: int
    block: int = 1


class Selection:
    """What some passes keep, of every site and of every weight, all of them with as many units of a site.

    Args:
        drawn: the draws of these passes, (passes, ...).
        weights: of the network.
        turned: what `turned` made of those that are matrices.
    """

    def __init__(self, drawn: Sequence[Tensor], weights: Sequence[Tensor], turned: "Turned") -> None:
        self._drawn, self._weights, self._turned = drawn, weights, turned
        self._units: dict[tuple[int, int], Tensor] = {}
        self._counts: dict[int, list[int]] = {}

    def units(self, draw: int, block: int = 1) -> Tensor:
        """Numbers of the units, (passes, units): those that are kept, then some that are dropped."""
        if (draw, block) not in self._units:
            if block > 1:
                self._units[draw, block] = _neighbours(self.units(draw), block)
            else:
                self._units[draw, 1], self._counts[draw] = _filled_up(self._drawn[draw].flatten(1))
        return self._units[draw, block]

    def scales(self, draw: int) -> Tensor:
        """The draw at these units, (passes, units)."""
        return self._drawn[draw].flatten(1).gather(1, self.units(draw))

    def weight(self, number: int, cuts: Sequence[Cut], scaled: Cut | None, bias: int | None = None) -> Tensor:
        """A weight (passes, ...) at the units of `cuts`, times the draw along the axis of `scaled`.

        A weight of more than two axes is taken for a single pass. A bias stands behind the last column of a matrix.
        """
        weight, units = self._weights[number], {cut.axis: self.units(cut.draw, cut.block) for cut in cuts}
        if weight.ndim > 2:
            for axis, (one,) in units.items():
                weight = select(weight, axis, one)
            if scaled is not None:
                weight = scale(weight, along(self.scales(scaled.draw)[0], weight.ndim - scaled.axis))
            return weight.unsqueeze(0)
        if 1 not in units:
            return weight.index_select(0, units[0].flatten()).view(*units[0].shape, *weight.shape[1:])
        turned = self._turned[number, scaled and scaled.draw]
        counts = None if scaled is None else [scaled.block * count for count in self._counts[scaled.draw]]
        last = None if bias is None else self._weights[bias]
        weight = _columns(turned, units[1], units.get(0), counts, last).mT  # as products read it fastest
        return weight.contiguous() if weight.shape[1] < LANES else weight


Turned = Mapping[tuple[int, int | None], Tensor]


def turned(weights: Sequence[Tensor], gathers: Iterable["Gather"], scales: Sequence[float]) -> Turned:
    """Of matrices of which columns are taken, the transposed ones, times what kept units are multiplied by.

    By the number of the weight and that of the draw whose scale is in it; `scales` holds that of every draw.
    """
    made: dict[tuple[int, int | None], Tensor] = {}
    for gather in gathers:
        if gather.takes_columns(weights):
            draw = gather.scaled and gather.scaled.draw
            weight = weights[gather.weight]
            factor = torch.tensor(1.0 if draw is None else scales[draw], dtype=torch.float32, device=weight.device)
            made[gather.weight, draw] = scale(weight, factor).t().contiguous()
    return made


def _columns(
    turned: Tensor, entering: Tensor, leaving: Tensor | None, counts: list[int] | None, last: Tensor | None
) -> Tensor:
    """Rows and columns of a transposed matrix, (passes, entering, leaving); zero in rows from `counts` on.

    Where `last` is given, it is one row more.
    """
    passes, rows = entering.shape
    width = turned.shape[1] if leaving is None else leaving.shape[1]
    columns = turned.new_empty(passes, rows + (last is not None), width)
    if last is not None:
        columns[:, rows] = last if leaving is None else last[leaving]
    for place, (column, numbers) in enumerate(zip(columns[:, :rows], entering, strict=True)):  # one fits into caches
        if leaving is None:
            torch.index_select(turned, 0, numbers, out=column)
        else:
            torch.gather(turned.index_select(0, numbers), 1, leaving[place].expand(len(numbers), -1), out=column)
        if counts is not None:
            column[counts[place] :] = 0
    return columns


@dataclass(frozen=True)
class Index:
    """Numbers of the units of a site, each `block` times; behind them `one`, where that is given."""

    draw: int
    block: int
    one: int | None = None

    def of(self, selection: Selection) -> Tensor:
        units = selection.units(self.draw, self.block)
        return units if self.one is None else torch.nn.functional.pad(units, (0, 1), value=self.one)


@dataclass(frozen=True)
class Scales:
    """The draw of a site at its units, on the first of so many axes."""

    draw: int
    axes: int

    def of(self, selection: Selection) -> Tensor:
        scales = selection.scales(self.draw)
        return scales.view(*scales.shape, *[1] * (self.axes - 1))


@dataclass(frozen=True)
class Gather:
    """A weight at the units of some cuts, times the draw of one of them where that is left to it.

    A bias, where one is given, is what it takes of a unit that is always 1, and the last that enters.
    """

    weight: int
    cuts: tuple[Cut, ...]
    scaled: Cut | None = None
    bias: int | None = None

    def of(self, selection: Selection) -> Tensor:
        return selection.weight(self.weight, self.cuts, self.scaled, self.bias)

    def elements(self, weights: Sequence[Tensor], widths: Mapping[int, int]) -> int:
        """How many numbers it takes for a pass in which the draws keep as many units."""
        sizes = list(weights[self.weight].shape)
        for cut in self.cuts:
            sizes[cut.axis] = cut.block * widths[cut.draw]
        return math.prod(sizes)

    def takes_columns(self, weights: Sequence[Tensor]) -> bool:
        return weights[self.weight].ndim == 2 and any(cut.axis == 1 for cut in self.cuts)


Kept = Index | Scales | Gather


def along(x: Tensor, axes: int) -> Tensor:
    """A vector as the first of so many axes."""
    return x.view(-1, *[1] * (axes - 1))


def _filled_up(drawn: Tensor) -> tuple[Tensor, list[int]]:
    """Numbers (passes, units) of kept units, then dropped ones, up to whole registers for the pass that keeps most.

    With them, how many of each pass are kept.
    """
    is_kept = drawn != 0
    counts = is_kept.sum(1).tolist()
    width = _width(max(counts), drawn.shape[1])
    kept = is_kept.nonzero()[:, 1].split(counts)
    dropped = is_kept.logical_not_().nonzero()[:, 1].split([drawn.shape[1] - count for count in counts])
    units = torch.stack(
        [torch.cat([first, rest[: width - len(first)]]) for first, rest in zip(kept, dropped, strict=True)]
    )
    return units, counts


def widths(drawn: Tensor) -> list[int]:
    """Of how many units each pass has what is kept, by its draw (passes, units): whole registers."""
    return [_width(count, drawn.shape[1]) for count in drawn.count_nonzero(1).tolist()]


def _width(kept: int, units: int) -> int:
    return min(-(-max(1, kept) // LANES) * LANES, units)


def _neighbours(units: Tensor, block: int) -> Tensor:
    return (units.unsqueeze(2) * block + torch.arange(block, device=units.device)).flatten(1)


def select(x: Tensor, axis: int, units: Tensor) -> Tensor:
    """Units of an axis, in the layout that `x` has."""
    if x.ndim == 4 and axis == 1 and _is_channels_last(x):
        last = x.permute(0, 2, 3, 1)  # channels by `gather`, which is faster along the last axis than `index_select`
        return last.gather(3, units.expand(*last.shape[:3], -1)).permute(0, 3, 1, 2)
    if x.ndim == 4 and axis == 0 and _is_channels_last(x):
        return x.permute(0, 2, 3, 1).index_select(0, units).permute(0, 3, 1, 2)
    if x.ndim == 2 and axis == 1:
        return torch.nn.functional.embedding(units, x.t()).t()
    return x.index_select(axis, units)


def filled(x: Tensor, axis: int, units: Tensor, size: int) -> Tensor:
    """All units of an axis, zero where there are none in `x`, in the layout that `x` has."""
    shape = [*x.shape[:axis], size, *x.shape[axis + 1 :]]
    if x.ndim == 4 and axis == 1 and _is_channels_last(x):
        last = x.new_zeros([shape[0], *shape[2:], size])
        return last.index_copy_(3, units, x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    if x.ndim == 2:  # by an operation that can be mapped over passes
        return x.new_zeros(shape).scatter(axis, units.view(-1, *[1] * (1 - axis)).expand_as(x), x)
    return x.new_zeros(shape).index_copy_(axis, units, x)


def _is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
