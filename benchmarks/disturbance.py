"""How much other processes of this machine took part while something was measured."""

import contextlib
import os
import time
from pathlib import Path

__all__ = ["Disturbance"]

_TICK = 1 / os.sysconf("SC_CLK_TCK")


class Disturbance:
    """From its making on; `share` is the share of all cores that was taken by neither us nor a measured server.

    `group` is the process group of that server, if there is one. Linux only: it reads /proc.
    """

    def __init__(self, group: int | None = None) -> None:
        self._group = group
        self._begin, self._before = time.perf_counter(), self._others()

    def share(self) -> float:
        """Between 0 and 1."""
        seconds = (time.perf_counter() - self._begin) * (os.cpu_count() or 1)
        return max(0.0, self._others() - self._before) / seconds

    def _others(self) -> float:
        ours = os.times()
        mine = sum((ours.user, ours.system, ours.children_user, ours.children_system))
        return _busy() - mine - (0.0 if self._group is None else _of(self._group))


def _busy() -> float:
    """Seconds of all cores in which they were not idle."""
    user, nice, system, _, _, *interrupts = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9])
    return (user + nice + system + sum(interrupts)) * _TICK


def _of(group: int) -> float:
    """Seconds of a process group."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[2]) == group:
                ticks += int(fields[11]) + int(fields[12])
    return ticks * _TICK
