"""Memory goes back to the system: when the process has grown, beside the event loop, and only then."""

import asyncio
import ctypes
import threading
from typing import Any

import pytest

from service import memory


def watch(monkeypatch: pytest.MonkeyPatch, sizes: list[int]) -> list[str]:
    """Look at a process of these sizes, one after the other; the names of the threads that trimmed it."""
    trims: list[str] = []

    class Library:
        def __init__(self, _: Any) -> None:
            pass

        @staticmethod
        def malloc_trim(_: int) -> None:
            trims.append(threading.current_thread().name)

    left = iter(sizes)
    monkeypatch.setattr(ctypes, "CDLL", Library)
    monkeypatch.setattr(memory, "resident", lambda: next(left))

    # a coroutine turns StopIteration into RuntimeError
    with pytest.raises(RuntimeError, match="StopIteration"):
        asyncio.run(memory.trim_as_it_grows(seconds=0, growth=10))
    return trims


def test_a_process_that_has_grown_is_trimmed_beside_the_event_loop(monkeypatch):
    (thread,) = watch(monkeypatch, [100, 105, 111, 101, 108])
    assert thread != threading.main_thread().name


def test_growth_counts_from_the_smallest_size_since(monkeypatch):
    assert len(watch(monkeypatch, [100, 50, 61, 55])) == 1


def test_a_process_that_stays_as_it_is_is_left_alone(monkeypatch):
    assert watch(monkeypatch, [100, 110, 100, 105, 95, 105]) == []


def test_where_nothing_can_be_trimmed_nothing_is_tried(monkeypatch):
    monkeypatch.setattr(memory, "resident", lambda: 0)
    asyncio.run(asyncio.wait_for(memory.trim_as_it_grows(seconds=0), 10))
    monkeypatch.undo()
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    asyncio.run(asyncio.wait_for(memory.trim_as_it_grows(seconds=0), 10))
