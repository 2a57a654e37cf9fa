"""Servers as processes: started on a free port, waited for, ended."""

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.serving.cases import Contender

__all__ = ["Server", "keep_to_cores", "running"]

_PATIENCE = 120  # seconds until a server has to answer


@dataclass(frozen=True)
class Server:
    """A server that runs: its port, and the number of its process group."""

    contender: Contender
    port: int
    group: int


@contextlib.contextmanager
def running(contender: Contender, name: str, folder: Path, body: bytes) -> Iterator[Server]:
    """A server that has answered a first request. At the end it and all that it started are gone."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    with (folder.parent / f"{contender.name}.log").open("w") as log:
        command = contender.command(name, folder, port)
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)  # a group of its own
    try:
        _wait(process, f"http://127.0.0.1:{port}{contender.path}", body, Path(log.name))
        yield Server(contender, port, process.pid)
    finally:
        _end(process)


def _wait(process: subprocess.Popen[bytes], url: str, body: bytes, log: Path) -> None:
    give_up = time.monotonic() + _PATIENCE
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    while True:
        try:
            with urllib.request.urlopen(request, timeout=_PATIENCE):
                return
        except urllib.error.HTTPError as error:
            trouble = f"{error}: {error.read().decode(errors='replace')}"
            if error.code != 503:
                raise RuntimeError(f"{url} answers {trouble}") from error
        except OSError as error:
            trouble = str(error)
        if process.poll() is not None or time.monotonic() > give_up:
            raise RuntimeError(f"no answer from {url} ({trouble}); its log:\n{log.read_text()}")
        time.sleep(0.1)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask the process to end, then end its whole group."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def keep_to_cores(count: int) -> int:
    """Keep this process, and what it starts, to so many cores. How many there are."""
    cores = sorted(os.sched_getaffinity(0))[:count]
    os.sched_setaffinity(0, cores)
    return len(cores)
