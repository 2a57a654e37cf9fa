"""How many CPU threads to compute with."""

import logging
import os
from pathlib import Path

import torch

log = logging.getLogger("service.quota")


def set_threads(wanted: int | None) -> None:
    """Compute with `wanted` threads, or as many as fit a container's CPU limit. On the thread that computes."""
    threads = wanted or threads_within_quota()
    if threads is not None:
        torch.set_num_threads(threads)
    log.info("computing with %d CPU threads", torch.get_num_threads())


def threads_within_quota() -> int | None:
    """CPU threads under a container's CPU limit, or None without one: more threads than that are throttled.

    One CPU is left to the event loop. OMP_NUM_THREADS, where set, is left alone.
    """
    if "OMP_NUM_THREADS" in os.environ:
        return None
    limit = Path("/sys/fs/cgroup/cpu.max")  # cgroup v2: "quota period" in microseconds, or "max period"
    try:
        quota, period = limit.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else max(1, int(quota) // int(period) - 1)
