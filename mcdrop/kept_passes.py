"""What thinned passes take of weights, kept from call to call under a bound on bytes."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

from torch import Tensor

__all__ = ["KeptPasses", "gathered_bound"]

_BOUND = 128 * 2**20
_ASKED = 2**14  # passes of which it is remembered that they were asked for

Gathered = tuple[Tensor, ...]


def gathered_bound(max_memory: int | None, thinned: bool = True) -> int:
    """Bytes that gathered weights may take beside the draws of `Masks.within`; 0 where passes stay plain."""
    if not thinned:
        return 0
    return _BOUND if max_memory is None else min(_BOUND, max_memory // 8)


class KeptPasses:
    """What passes take, by seed and number. Safe to use from many threads.

    A pass is kept when it is asked for the second time: of a seed that never comes again nothing would be of use.
    Passes come in order, call after call, so once the room is taken by passes of the same seed, those stay: what is
    put out for the next would be missed first. Other seeds go, the least recently used first.
    """

    def __init__(self, bound: int) -> None:
        self.bound, self.held = bound, 0
        self.seeds: OrderedDict[int, dict[int, Gathered]] = OrderedDict()
        self._asked: OrderedDict[tuple[int, int], None] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, seed: int, number: int, make: Callable[[], Gathered]) -> Gathered:
        """What a pass takes; made by `make` where it is not kept."""
        with self._lock:
            if seed in self.seeds:
                self.seeds.move_to_end(seed)
                if number in self.seeds[seed]:
                    return self.seeds[seed][number]
            again = (seed, number) in self._asked
            self._asked[seed, number] = None
            if len(self._asked) > _ASKED:
                self._asked.popitem(last=False)
        made = make()
        if again:
            with self._lock:
                self._keep(seed, number, made)
        return made

    def _keep(self, seed: int, number: int, made: Gathered) -> None:
        size = _bytes(made)
        while self.held + size > self.bound and any(other != seed for other in self.seeds):
            oldest = next(other for other in self.seeds if other != seed)
            self.held -= sum(_bytes(kept) for kept in self.seeds.pop(oldest).values())
        if self.held + size <= self.bound and number not in self.seeds.setdefault(seed, {}):
            self.seeds[seed][number] = made
            self.held += size


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
