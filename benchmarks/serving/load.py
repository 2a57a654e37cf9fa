"""Load: closed loop, where each client waits for its answer before it asks again, and open loop, where none does.

Closed loops are driven by wrk where it is installed, else by the clients below. A closed loop hides queueing: while
the server is slow it is asked less. The open loop asks at random moments (Poisson) at a given mean rate, whatever the
server does, and counts each latency from the moment at which the request was due.
"""

import asyncio
import itertools
import math
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Client", "Load", "Target", "asyncio_closed_loop", "closed_loop", "generator", "open_loop", "percentile"]

_WARM_UP = 0.5  # seconds before a closed loop is measured

_WRK = """
local number = 0
local head, tail = %(head)s, %(tail)s
wrk.method, wrk.body = "POST", head .. tail
%(headers)s
%(request)s
function done(summary, latency, requests)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.write(string.format("result %%d %%f %%f %%f %%d\\n", summary.requests, summary.duration / 1e6,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, failed))
end
"""
_NEW_SEEDS = "function request() number = number + 1; return wrk.format(nil, nil, nil, head .. number .. tail) end"


@dataclass(frozen=True)
class Load:
    """What a run of load has seen: answers, failures, seconds, and milliseconds of the median and the slowest 1 %."""

    requests: int
    failed: int
    seconds: float
    p50: float
    p99: float

    @property
    def rate(self) -> float:
        """Good answers per second."""
        return (self.requests - self.failed) / self.seconds


@dataclass(frozen=True)
class Target:
    """What is asked: a POST of `head`, a number that counts up where `counts`, and `tail`."""

    port: int
    path: str
    head: bytes
    tail: bytes = b""
    counts: bool = False
    headers: tuple[tuple[str, str], ...] = (("Content-Type", "application/json"),)

    def bodies(self) -> Iterator[bytes]:
        """Body after body."""
        numbers = itertools.count(1)
        while True:
            yield self.head + (str(next(numbers)).encode() if self.counts else b"") + self.tail


def generator() -> str:
    """What drives closed loops here."""
    return "wrk" if shutil.which("wrk") else "asyncio"


def closed_loop(target: Target, *, clients: int, seconds: float) -> Load:
    """So many clients, each with one connection, one request after the other."""
    drive = _wrk if generator() == "wrk" else asyncio_closed_loop
    return drive(target, clients=clients, seconds=seconds)


def _wrk(target: Target, *, clients: int, seconds: float) -> Load:
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "post.lua")
        headers = "\n".join(f'wrk.headers["{name}"] = "{value}"' for name, value in target.headers)
        request = _NEW_SEEDS if target.counts else ""
        parts = {"head": _lua(target.head), "tail": _lua(target.tail), "headers": headers, "request": request}
        script.write_text(_WRK % parts)
        url = f"http://127.0.0.1:{target.port}{target.path}"
        command = ["wrk", "-t1", f"-c{clients}", "-s", str(script), "--timeout", "60s", url]
        for duration in (_WARM_UP, seconds):
            shown = subprocess.run(
                [*command, f"-d{max(1, round(duration))}s"], capture_output=True, text=True, check=True
            ).stdout
    values = shown.partition("\nresult ")[2].split()
    return Load(int(values[0]), int(values[4]), float(values[1]), float(values[2]), float(values[3]))


def _lua(text: bytes) -> str:
    return '"' + "".join(f"\\{byte:03d}" for byte in text) + '"'


def asyncio_closed_loop(target: Target, *, clients: int, seconds: float) -> Load:
    """A closed loop by the clients below. It lasts longer where no answer has come until then."""

    async def drive() -> Load:
        bodies, waits, failed = target.bodies(), [], 0
        begin = time.perf_counter() + _WARM_UP

        async def ask_on() -> None:
            nonlocal failed
            async with Client(target) as client:
                while (now := time.perf_counter()) < begin + seconds or not waits:
                    good = await client.ask(next(bodies))
                    if now >= begin:
                        waits.append(time.perf_counter() - now)
                        failed += not good

        await asyncio.gather(*(ask_on() for _ in range(clients)))
        return _load(waits, failed, time.perf_counter() - begin)

    return asyncio.run(drive())


def open_loop(target: Target, *, rate: float, seconds: float, seed: int = 0) -> Load:
    """Requests at random moments, `rate` of them per second in the mean."""

    async def drive() -> Load:
        bodies, free, waits, failed = target.bodies(), list[Client](), list[float](), 0
        chance, due, tasks = random.Random(seed), time.perf_counter(), set[asyncio.Task[None]]()

        async def ask(due: float, body: bytes) -> None:
            nonlocal failed
            client = free.pop() if free else await Client(target).open()
            good = await client.ask(body)
            waits.append(time.perf_counter() - due)
            failed += not good
            free.append(client)

        begin = due
        while due < begin + seconds:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.add(asyncio.create_task(ask(due, next(bodies))))
            due += chance.expovariate(rate)
        await asyncio.gather(*tasks)
        took = time.perf_counter() - begin
        for client in free:
            client.close()
        return _load(waits, failed, took)

    return asyncio.run(drive())


def _load(waits: Sequence[float], failed: int, seconds: float) -> Load:
    return Load(len(waits), failed, seconds, percentile(waits, 50) * 1e3, percentile(waits, 99) * 1e3)


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of all do not exceed."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


class Client(asyncio.Protocol):
    """One connection that is kept; one request at a time. No more of HTTP than these servers speak."""

    def __init__(self, target: Target) -> None:
        lines = [f"POST {target.path} HTTP/1.1", "Host: 127.0.0.1"]
        self._head = "\r\n".join([*lines, *(f"{name}: {value}" for name, value in target.headers)]).encode()
        self._port, self._received = target.port, bytearray()
        self._close: Callable[[], None] = lambda: None
        self._answer: asyncio.Future[bool] | None = None

    async def open(self) -> "Client":
        """Connect."""
        self._transport, _ = await asyncio.get_running_loop().create_connection(lambda: self, "127.0.0.1", self._port)
        self._close = self._transport.close
        return self

    def close(self) -> None:
        """Close the connection."""
        self._close()

    async def __aenter__(self) -> "Client":
        return await self.open()

    async def __aexit__(self, *_: object) -> None:
        self.close()

    async def ask(self, body: bytes) -> bool:
        """Send a body and wait for all of the answer. Whether its status is 200."""
        self._answer = asyncio.get_running_loop().create_future()
        self._received.clear()
        self._transport.write(b"%b\r\nContent-Length: %d\r\n\r\n%b" % (self._head, len(body), body))
        return await self._answer

    def data_received(self, data: bytes) -> None:
        """asyncio's: part of an answer."""
        self._received += data
        end = self._received.find(b"\r\n\r\n")
        if end < 0 or self._answer is None or self._answer.done():
            return
        head = bytes(self._received[:end]).lower()
        length = int(head.partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        if len(self._received) >= end + 4 + length:
            self._answer.set_result(head.startswith(b"http/1.1 200"))

    def connection_lost(self, error: Exception | None) -> None:
        """asyncio's: no more answers."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(False)
