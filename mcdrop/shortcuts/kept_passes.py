"""What thinned passes take of weights, kept from call to call under a bound on bytes."""

import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence

from torch import Tensor

__all__ = ["KeptPasses", "Span", "gathered_bound"]

_BOUND = 160 * 2**20
_ASKED = 2**12  # spans of which it is remembered when they were asked for

Gathered = tuple[Tensor, ...]


def gathered_bound(max_memory: int | None, thinned: bool = True) -> int:
    """Bytes that gathered weights may take beside the draws of `Masks.within`; 0 where passes stay plain."""
    if not thinned:
        return 0
    return _BOUND if max_memory is None else min(_BOUND, max_memory // 8)


class Span:
    """Passes that follow one another, asked for together, and what groups of them take.

    Attributes:
        key: names the noise and the passes.
        groups: places in the span of the passes that are computed together; empty until something is kept.
        taken: what groups take, tensors (passes, ...), by the group's number.
        asked, before: when it was asked for the last time, and the time before; None: never.
    """

    def __init__(self, key: Hashable, asked: int, before: int | None) -> None:
        self.key, self.asked, self.before = key, asked, before
        self.groups: Sequence[Tensor] = ()
        self.taken: dict[int, Gathered] = {}


class KeptPasses:
    """What groups of passes take, by the span that they are of. Safe to use from many threads.

    Something is kept when its span is asked for the second time: of a seed that never comes again nothing would be of
    use. Where there is no room, spans go that nobody has asked for between these two times, the oldest first. Others
    are asked for as often as the new one, or more: what is put out for one of them would be missed first, as passes
    come in order, call after call.
    """

    def __init__(self, bound: int) -> None:
        self.bound, self.held = bound, 0
        self.spans: OrderedDict[Hashable, Span] = OrderedDict()  # of which something is kept, the oldest first
        self._asked: OrderedDict[Hashable, int] = OrderedDict()
        self._now = 0
        self._lock = threading.Lock()

    def ask(self, key: Hashable) -> Span:
        """The span of a key, with what is kept of it, of which some may go at any time."""
        with self._lock:
            self._now += 1
            before = self._asked.pop(key, None)
            self._asked[key] = self._now
            if len(self._asked) > _ASKED:
                self._asked.popitem(last=False)
            span = self.spans.get(key)
            if span is None:
                return Span(key, self._now, before)
            self.spans.move_to_end(key)
            span.before, span.asked = span.asked, self._now
            return span

    def keep(self, span: Span, groups: Sequence[Tensor], number: int, made: Gathered) -> None:
        """Keep what one of the groups of a span takes, if the span has been asked for before and there is room."""
        size = _bytes(made)
        if span.before is None or not made or size > self.bound:
            return
        with self._lock:
            if self.spans.get(span.key, span) is not span or number in span.taken:
                return  # another thread was faster, whose groups may be others
            while self.held + size > self.bound:
                oldest = next(iter(self.spans.values()), span)
                if oldest is span or oldest.asked >= span.before:
                    return
                del self.spans[oldest.key]
                self.held -= sum(map(_bytes, oldest.taken.values()))
                oldest.taken.clear()
            self.spans[span.key], span.groups, span.taken[number] = span, groups, made
            self.held += size


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
