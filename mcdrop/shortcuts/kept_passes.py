"""What thinned passes take of weights, kept from call to call under a bound on bytes."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence

from torch import Tensor

__all__ = ["KeptPasses", "gathered_bound"]

_BOUND = 160 * 2**20
_ASKED = 2**12  # groups of passes of which it is remembered that they were asked for

Gathered = tuple[Tensor, ...]


def gathered_bound(max_memory: int | None, thinned: bool = True) -> int:
    """Bytes that gathered weights may take beside the draws of `Masks.within`; 0 where passes stay plain."""
    if not thinned:
        return 0
    return _BOUND if max_memory is None else min(_BOUND, max_memory // 8)


class KeptPasses:
    """What groups of passes take, tensors (passes, ...), by series and first pass. Safe to use from many threads.

    A group is kept when it is asked for the second time: of a seed that never comes again nothing would be of use. The
    longest that begins at a pass serves the shorter ones, so that requests for any number of passes share them. Passes
    come in order, call after call, so once the room is taken by groups of one series, these stay: what is put out for
    the next would be missed first. Other series go, the least recently used first.
    """

    def __init__(self, bound: int) -> None:
        self.bound, self.held = bound, 0
        self.series: OrderedDict[Hashable, dict[int, Gathered]] = OrderedDict()
        self._asked: OrderedDict[tuple[Hashable, int], None] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, series: Hashable, passes: range, make: Callable[[], Gathered]) -> Gathered:
        """What these passes take; made by `make` where it is not kept."""
        first, count = passes.start, len(passes)
        with self._lock:
            if series in self.series:
                self.series.move_to_end(series)
                found = self.series[series].get(first, ())
                if found and len(found[0]) >= count:
                    return tuple(tensor[:count] for tensor in found)
            again = (series, first) in self._asked
            self._asked[series, first] = None
            if len(self._asked) > _ASKED:
                self._asked.popitem(last=False)
        made = make()
        if again:
            with self._lock:
                self._keep(series, first, made)
        return made

    def _keep(self, series: Hashable, first: int, made: Gathered) -> None:
        before = self.series.get(series, {}).pop(first, ())
        self.held -= _bytes(before)
        made = before if before and len(before[0]) > len(made[0]) else made  # by another thread
        size = _bytes(made)
        while self.held + size > self.bound and any(other != series for other in self.series):
            oldest = next(other for other in self.series if other != series)
            self.held -= sum(_bytes(kept) for kept in self.series.pop(oldest).values())
        if self.held + size <= self.bound:
            self.series.setdefault(series, {})[first] = made
            self.held += size


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
