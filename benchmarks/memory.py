"""How far a process's resident memory grows during a call (Linux)."""

import ctypes
import gc
import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import ParamSpec, TypeVar

__all__ = ["growth", "in_fresh_process"]

_EVERY = 0.002  # seconds between two looks

P = ParamSpec("P")
R = TypeVar("R")


def in_fresh_process(function: Callable[P, R], *arguments: P.args, **keywords: P.kwargs) -> R:
    """What a function gives in a process of its own, in which nothing was computed before."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments, **keywords).result()


def growth(call: Callable[[], object]) -> float:
    """MiB by which resident memory grows at most while `call` runs.

    What the allocator keeps from earlier work goes back to the system first, or the call would grow into it unseen.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    exact = _forget_peak()
    before = peak = _resident()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(_EVERY):
            peak = max(peak, _resident())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        call()
    finally:
        done.set()
        watcher.join()
    return (max(peak, _resident(), _peak() if exact else 0) - before) / 2**20


def _resident() -> int:
    with open("/proc/self/statm") as facts:
        return int(facts.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def _forget_peak() -> bool:
    """Let the kernel's own record of the peak begin anew; False where it does not allow that."""
    try:
        with open("/proc/self/clear_refs", "w") as order:
            order.write("5")
    except OSError:
        return False
    return True


def _peak() -> int:
    with open("/proc/self/status") as facts:
        return next(int(line.split()[1]) * 1024 for line in facts if line.startswith("VmHWM:"))
