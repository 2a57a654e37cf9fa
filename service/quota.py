"""How many CPU threads to compute with, by the cores of the machine and a container's CPU limit.

PyTorch starts as many threads as the machine has cores, and they wait for each other at the end of each operation.
While the event loop has one of the cores, all wait for the thread that would have it; so one core is left to it. Under
a limit (docker run --cpus, a Kubernetes limit, systemd's CPUQuota) they use it up early in each period and the kernel
then stops them all, so that fewer threads are faster.
"""

import logging
import math
import os
from collections.abc import Iterator
from pathlib import Path

import torch

log = logging.getLogger("service.quota")

UNLIMITED = math.inf


def set_threads(wanted: int | None) -> None:
    """Compute with `wanted` threads, or as many as fit a container's CPU limit. On the thread that computes."""
    threads = wanted or threads_within_quota()
    if threads is not None:
        torch.set_num_threads(threads)
    log.info("computing with %d CPU threads", torch.get_num_threads())


def threads_within_quota() -> int | None:
    """CPU threads for the cores and the limit of this process, or None where OMP_NUM_THREADS has decided.

    One CPU is left to the event loop; part of a CPU is no CPU. Without a limit no more than PyTorch would take.
    """
    if "OMP_NUM_THREADS" in os.environ:
        log.info("OMP_NUM_THREADS=%s decides the number of CPU threads", os.environ["OMP_NUM_THREADS"])
        return None
    cpus = quota()
    if cpus == UNLIMITED:
        return max(1, min(torch.get_num_threads(), _cores() - 1))
    threads = max(1, min(math.floor(cpus), _cores()) - 1)
    log.info("the CPU limit here is %.2f CPUs, so %d CPU threads", cpus, threads)
    return threads


def quota(root: Path = Path("/")) -> float:
    """CPUs that this process may use at a time by its control groups, which may be a fraction; inf without a limit.

    Every group above a process limits it too, so the smallest counts. Inside a container the own group is mostly
    mounted as the topmost; the path in /proc is then that of the host and leads nowhere, which is no error.
    """
    limits = [_version_2(folder) for folder in _folders(root, "", "sys/fs/cgroup")]
    limits += [_version_1(folder) for folder in _folders(root, "cpu", "sys/fs/cgroup/cpu")]
    return min(limits, default=UNLIMITED)


def _folders(root: Path, controller: str, mounted: str) -> Iterator[Path]:
    """The folders of the own control group and of those above it, as far as they can be seen from here."""
    top = root / mounted
    yield top
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return
    for line in lines:  # "0::/path" is version 2, "4:cpu,cpuacct:/path" version 1
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controller in controllers.split(","):
            folder = top / path.strip("/")
            yield from (each for each in (folder, *folder.parents) if each.is_relative_to(top) and each != top)


def _version_2(folder: Path) -> float:
    """`cpu.max` holds "quota period" in microseconds, or "max period"."""
    try:
        limit, period = (folder / "cpu.max").read_text(encoding="ascii").split()
        return UNLIMITED if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return UNLIMITED


def _version_1(folder: Path) -> float:
    """Two files of microseconds; a quota of -1 is none."""
    try:
        limit, period = (
            int((folder / f"cpu.cfs_{name}_us").read_text(encoding="ascii")) for name in ("quota", "period")
        )
        return limit / period if limit > 0 else UNLIMITED
    except (OSError, ValueError, ZeroDivisionError):
        return UNLIMITED


def _cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
