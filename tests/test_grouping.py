"""Which passes are computed together: all of them, once; cut where it costs least; of like widths."""

import itertools
from collections.abc import Sequence

import torch
from hypothesis import given
from hypothesis import strategies as st

from mcdrop.shortcuts.grouping import alike

WIDTHS = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=9)


def area(widths: tuple[int, ...]) -> float:
    return float(widths[0] * widths[1])


def cost(
    groups: Sequence[Sequence[int]], widths: Sequence[tuple[int, ...]], threads: int = 1, call: float = 0.0
) -> float:
    """Of passes that are as wide as the widest of their group, a thread for each."""
    return sum(
        -(-len(group) // threads) * threads * area(tuple(max(each) for each in zip(*(widths[i] for i in group)))) + call
        for group in groups
    )


@given(WIDTHS, st.integers(1, 4), st.integers(1, 3), st.floats(0, 50))
def test_no_other_cut_of_the_same_order_costs_less(
    widths: list[tuple[int, int]], most: int, threads: int, call: float
) -> None:
    groups = alike(widths, area, most=most, threads=threads, call=call)
    assert sorted(itertools.chain(*groups)) == [*range(len(widths))]
    assert all(group == sorted(group) and len(group) <= most for group in groups)
    order = [*itertools.chain(*alike(widths, area, most=1, threads=1, call=0.0))]
    least = min(
        cost([order[a:b] for a, b in itertools.pairwise((0, *cuts, len(order)))], widths, threads, call)
        for number in range(len(order))
        for cuts in itertools.combinations(range(1, len(order)), number)
        if all(b - a <= most for a, b in itertools.pairwise((0, *cuts, len(order))))
    )
    assert abs(cost(groups, widths, threads, call) - least) <= 1e-9 * least


def test_passes_of_equal_widths_come_together() -> None:
    widths = [(16, 32), (32, 16), (16, 32), (32, 48), (32, 16), (16, 16)]
    assert alike(widths, area, most=8, threads=1, call=1.0) == [[5], [0, 2], [3], [1, 4]]  # there and back again
    assert alike(widths, area, most=8, threads=1, call=1e6) == [[0, 1, 2, 3, 4, 5]]
    assert alike(widths, area, most=2, threads=2, call=1.0) == [[0, 5], [2, 3], [1, 4]]


def test_groups_are_narrower_than_neighbours() -> None:
    """Widths as a dropout of 1/2 gives them: binomial, in whole registers."""
    kept = torch.distributions.Binomial(1024, torch.tensor(0.5)).sample((128, 2)).int()
    widths = [(int(a), int(b)) for a, b in (kept + 15) // 16 * 16]
    neighbours = [[*range(start, start + 4)] for start in range(0, 128, 4)]
    found = alike(widths, area, most=8, threads=2, call=0.2 * 512**2)
    assert cost(found, widths) < 0.98 * cost(neighbours, widths)
    assert len(found) < len(neighbours)
