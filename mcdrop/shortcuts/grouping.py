"""Which passes are computed together: those of like widths, since all of a group are as wide as its widest."""

from collections.abc import Callable, Sequence

__all__ = ["alike"]

Widths = tuple[int, ...]


def alike(
    widths: Sequence[Widths], computed: Callable[[Widths], float], *, most: int, threads: int, call: float
) -> list[list[int]]:
    """Groups of passes, by their places: sorted by their widths, and cut where that costs least.

    Args:
        widths: of each pass, how many units of each site it has.
        computed: what a pass of such widths costs.
        most: passes of a group.
        threads: that take a pass each.
        call: what a group costs beside its passes.
    """
    order = _there_and_back(widths)
    least, begins = [0.0], [0]  # cost of the first passes in this order, and where their last group begins
    for stop in range(1, len(order) + 1):
        widest, costs = widths[order[stop - 1]], []
        for start in range(stop - 1, max(stop - most, 0) - 1, -1):
            widest = tuple(map(max, widest, widths[order[start]]))
            turns = -(-(stop - start) // threads) * threads
            costs.append((least[start] + turns * computed(widest) + call, start))
        cost, start = min(costs)
        least.append(cost)
        begins.append(start)
    groups, stop = [], len(order)
    while stop:
        groups.append(sorted(order[begins[stop] : stop]))
        stop = begins[stop]
    return groups[::-1]


def _there_and_back(widths: Sequence[Widths]) -> list[int]:
    """Places by the first width, and by the others up and down in turn, so that neighbours are alike in all of them."""
    order = []
    for turn, first in enumerate(sorted({width[0] for width in widths})):
        places = [place for place, width in enumerate(widths) if width[0] == first]
        order += sorted(places, key=widths.__getitem__, reverse=turn % 2 == 1)
    return order
