"""The course of events: a quiet server, load, storms on top of it, quiet again, and an end under load."""

import asyncio
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from chaos_ledger import Ledger
from chaos_storms import KEY, STORMS, Field, canaries, load, together
from chaos_wire import connected

CLIENTS = 12  # of the load that is always there
RATE = 20  # probes of health per second
PROBES = 1000
HERE = Path(__file__).parent
SETTINGS = {
    "port": "0",
    "device": "cpu",
    "log_format": "json",
    "max_pending": "96",  # so that a few hundred clients fill the queue
    "header_timeout": "3",
    "body_timeout": "4",
    "shutdown_delay": "1",
    "enable_model_control": "true",
    "admin_keys": KEY,
}


@dataclass
class Record:
    """What was seen."""

    minutes: float
    idle: list[float | None]  # seconds of each probe of health; None was not answered
    ledger: Ledger
    exit_code: int | None = None
    saturated: list[float | None] = field(default_factory=list)
    stormy: list[float | None] = field(default_factory=list)
    memory: list[tuple[float, int]] = field(default_factory=list)  # seconds since the load began, bytes
    before: list[float] = field(default_factory=list)  # seconds of small requests under load, before any storm
    first: list[tuple[str, float]] = field(default_factory=list)  # and of the first one after each storm
    story: list[str] = field(default_factory=list)
    metrics: str = ""
    logged: dict[str, list[int]] = field(default_factory=dict)  # and the log, and the right answers, at that moment
    right: int = 0
    turned_away: set[str] = field(default_factory=set)  # ids that came to a server which had closed


@contextlib.contextmanager
def server(repository: Path, switch: Path, log: Path) -> Iterator[tuple["subprocess.Popen[str]", str, int]]:
    """A server in a process of its own, once it is ready, with its host and port."""
    paths = os.pathsep.join([str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")])
    settings = {f"MCDROP_{name.upper()}": value for name, value in SETTINGS.items()}
    command = [sys.executable, str(HERE / "chaos_server.py"), str(switch), "serve", str(repository)]
    with (
        log.open("w") as errors,
        subprocess.Popen(
            command,
            env={**os.environ, **settings, "PYTHONPATH": paths},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            words = process.stdout.readline().split()
            assert "at" in words, log.read_text()
            url = httpx.URL(words[words.index("at") + 1])
            yield process, url.host, url.port or 80
        finally:
            process.kill()


async def ordeal(here: Field, process: "subprocess.Popen[str]", log: Path, minutes: float) -> Record:
    """Everything; load comes for so many minutes."""
    seconds = 60 * minutes
    count = min(PROBES, int(RATE * seconds / 6))
    record = Record(minutes, await probes(here, count), here.ledger)
    until = time.monotonic() + seconds
    stop = asyncio.Event()
    clients = [asyncio.create_task(load(here, stop)) for _ in range(CLIENTS)]
    clients.append(asyncio.create_task(canaries(here, stop)))
    clients.append(asyncio.create_task(weigh(process.pid, record, stop)))
    record.saturated = await probes(here, count)
    record.before = [took for _, took in here.canaries]
    rounds = max(1, round(seconds / 150))
    each = (seconds - count / RATE) * 0.9 / rounds / len(STORMS)
    watching = asyncio.create_task(probes(here, count))
    for _ in range(rounds):
        for storm in STORMS:
            said = await storm(here, each)
            took = await here.first_answer()
            record.first.append((storm.__name__, took))
            record.story.append(f"{storm.__name__:11s} {said}; the first answer after {1000 * took:.0f} ms")
    record.stormy = await watching
    await asyncio.sleep(until - time.monotonic())  # some storms are over early
    stop.set()
    await asyncio.gather(*clients)
    await calm(here, record, log)
    await end(here, process, record)
    return record


async def probes(here: Field, count: int) -> list[float | None]:
    """Probes of health from a process of their own."""
    command = [sys.executable, str(HERE / "chaos_probe.py"), here.host, str(here.port), str(count), str(RATE)]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    found: list[float | None] = json.loads(out)
    return found


async def weigh(pid: int, record: Record, stop: asyncio.Event) -> None:
    """Resident memory of the server, twice a second."""
    began, page = time.monotonic(), os.sysconf("SC_PAGE_SIZE")
    while not stop.is_set():
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        record.memory.append((time.monotonic() - began, pages * page))
        await asyncio.sleep(0.5)


async def calm(here: Field, record: Record, log: Path) -> None:
    """Wait until those who left are forgotten, and read what the server has counted."""
    for _ in range(100):
        async with connected(here.host, here.port) as connection:
            answer = await connection.ask(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answer is not None
        record.metrics, record.logged = answer.body.decode(), here.ledger.logged(log)
        record.right = sum(n for (_, status), n in here.ledger.ended.items() if status == 200)
        if "mcdrop_pending_requests 0.0" in record.metrics:
            return
        await asyncio.sleep(0.1)


async def end(here: Field, process: "subprocess.Popen[str]", record: Record) -> None:
    """SIGTERM, while clients go on until they are refused."""

    async def last(number: int) -> None:
        with contextlib.suppress(ConnectionRefusedError):
            while True:
                async with connected(here.host, here.port) as connection:
                    answer = True
                    while answer:
                        answer = await one(connection, number)

    async def one(connection: object, number: int) -> bool:
        ask = here.large if number % 4 == 0 else here.chance.choice(here.good)
        request_id = here.ledger.issue("last")
        try:
            answer = await connection.ask(ask.wire(request_id))  # type: ignore[attr-defined]
        except OSError:
            answer = None
        if answer is None:
            record.turned_away.add(request_id)
            return False
        here.ledger.settle(request_id, ask, answer)
        return True

    clients = asyncio.create_task(together(last(number) for number in range(40)))
    await asyncio.sleep(2)
    process.send_signal(signal.SIGTERM)
    await clients
    record.exit_code = await asyncio.to_thread(process.wait, 60)


def quantile(found: list[float | None], share: float) -> float:
    """Of probes in milliseconds; an unanswered one took for ever."""
    taken = sorted(1000 * each if each is not None else float("inf") for each in found)
    return taken[min(len(taken) - 1, int(share * len(taken)))]


def median(seconds: list[float]) -> float:
    """In milliseconds."""
    return 1000 * statistics.median(seconds)
