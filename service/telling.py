"""From the inference thread to the event loops: settling futures, calling functions."""

import asyncio
import contextlib
import functools
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any


def settle(told: Iterable[tuple["asyncio.Future[Any]", Any]]) -> None:
    """Give futures their outcomes, results or exceptions, on their loops; all of one loop in one call."""
    by_loop = defaultdict(list)
    for future, outcome in told:
        by_loop[future.get_loop()].append((future, outcome))
    for loop, settled in by_loop.items():
        _call(loop, functools.partial(_settle, settled))


def call_unless_done(future: "asyncio.Future[Any]", call: Callable[[], Any]) -> None:
    """Call a function on the future's loop, unless the future is settled by then."""
    _call(future.get_loop(), lambda: future.done() or call())


def _settle(settled: list[tuple["asyncio.Future[Any]", Any]]) -> None:
    for future, outcome in settled:
        if future.done():
            continue
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)


def _call(loop: asyncio.AbstractEventLoop, call: Callable[[], Any]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
        loop.call_soon_threadsafe(call)
