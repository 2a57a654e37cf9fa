"""What comes over the server, one after the other, on top of the load that is always there."""

import asyncio
import contextlib
import random
import shutil
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from chaos_ledger import Ledger
from chaos_requests import Ask, bad_requests, bombs, good_requests, large_request, versioned_request
from chaos_wire import Answer, Connection, connected
from serving import add_version, damage

CROWD = 300  # clients of one wave
SLOW = 100  # that dribble at the same time
KEY = "an-admin-key-for-chaos"


@dataclass
class Field:
    """Where it happens: the server, its models, and the book that is kept."""

    host: str
    port: int
    repository: Path
    switch: Path  # the file by which memory runs out
    ledger: Ledger = field(default_factory=Ledger)
    chance: random.Random = field(default_factory=lambda: random.Random(0))
    canaries: list[tuple[float, float]] = field(default_factory=list)  # when one was sent, seconds until its answer

    def __post_init__(self) -> None:
        self.good = good_requests(self.repository)
        self.bad, self.bombs, self.large = bad_requests(), bombs(), large_request(self.repository)
        self.versioned = versioned_request()
        self.canary = next(ask for ask in self.good if ask.kind == "json" and "insects" in ask.path)

    async def ask(self, ask: Ask, connection: Connection | None = None) -> int:
        """Send a request, judge its answer and return the status; 0 where there was none."""
        request_id, answer = self.ledger.issue(ask.kind), None
        try:
            if connection is not None:
                answer = await connection.ask(ask.wire(request_id))
            else:
                async with connected(self.host, self.port) as own:
                    answer = await own.ask(ask.wire(request_id))
        except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError) as error:
            self.ledger.complain(request_id, f"{type(error).__name__}: {error}")
            return 0
        return self.ledger.settle(request_id, ask, answer)

    async def administer(self, path: str) -> Answer | None:
        """The answer to an admin's request."""
        headers = f"Host: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 0\r\n"
        async with connected(self.host, self.port) as connection:
            return await connection.ask(f"POST {path} HTTP/1.1\r\n{headers}\r\n".encode())

    async def first_answer(self) -> float:
        """Seconds that a small request takes now."""
        began = time.monotonic()
        await self.ask(self.canary)
        self.canaries.append((began, time.monotonic() - began))
        return time.monotonic() - began


async def load(here: Field, stop: asyncio.Event) -> None:
    """A client that asks for one thing after the other, now and then by a new connection."""
    while not stop.is_set():
        async with connected(here.host, here.port) as connection:
            for _ in range(here.chance.randint(1, 60)):
                one = here.versioned if here.chance.random() < 0.05 else here.chance.choice(here.good)
                status = await here.ask(one, connection)
                if stop.is_set() or status == 0:
                    break
                if status == 429:
                    await asyncio.sleep(0.2)


async def canaries(here: Field, stop: asyncio.Event) -> None:
    """A small request, now and then."""
    while not stop.is_set():
        await here.first_answer()
        await asyncio.sleep(0.25)


async def together(tasks: Iterable[Awaitable[object]]) -> None:
    """All of them at once."""
    await asyncio.gather(*tasks)


# ---- the storms; each goes on for some seconds


async def leavers(here: Field, seconds: float) -> str:
    """Waves of clients who close the connection in the middle of their request, half of them rudely."""

    async def leave() -> None:
        ask = here.large if here.chance.random() < 0.2 else here.chance.choice(here.good)
        with contextlib.suppress(OSError):
            async with connected(here.host, here.port) as connection:
                await connection.send(ask.wire(here.ledger.issue("left")))
                await asyncio.sleep(here.chance.random() * 0.3)
                if here.chance.random() < 0.5:
                    connection.abort()

    until, waves = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        await together([*(leave() for _ in range(CROWD)), asyncio.sleep(1.5)])
        waves += 1
    return f"{waves} waves of {CROWD}"


async def dribblers(here: Field, seconds: float) -> str:
    """Clients whose headers, or bodies, come byte by byte."""
    told = {"408": 0, "closed": 0}

    async def dribble(head_too: bool) -> None:
        ask = here.canary
        wire = ask.wire(here.ledger.issue("slow"))
        quick = 0 if head_too else wire.index(b"\r\n\r\n") + 4
        async with connected(here.host, here.port) as connection:
            reading = asyncio.ensure_future(connection.some())
            await connection.send(wire[:quick])
            for byte in wire[quick:-1]:
                if reading.done() or time.monotonic() > until:
                    break
                await connection.send(bytes([byte]))
                await asyncio.wait({reading}, timeout=0.5)
            rest = await reading
            told["408" if rest.startswith(b"HTTP/1.1 408 ") else "closed"] += 1
            if rest and not rest.startswith(b"HTTP/1.1 408 "):
                here.ledger.complain("slow", f"{rest[:200]!r}")

    until = time.monotonic() + seconds
    await together(dribble(k % 2 == 0) for k in range(SLOW))
    return f"{told['408']} were told 408, {told['closed']} only cut off"


async def bombers(here: Field, seconds: float) -> str:
    """Small bodies that unpack to a lot."""
    return await _crowd(here, seconds, 10, lambda: here.chance.choice(here.bombs))


async def babblers(here: Field, seconds: float) -> str:
    """NaN, and bodies that mean nothing."""
    return await _crowd(here, seconds, 20, lambda: here.chance.choice(here.bad))


async def queuers(here: Field, seconds: float) -> str:
    """More work than the server holds."""
    before = here.ledger.ended["large", 429]
    said = await _crowd(here, seconds * 0.7, 200, lambda: here.large)
    refused = here.ledger.ended["large", 429] - before
    if refused == 0:
        here.ledger.complain("large", "the queue was never full")
    await asyncio.sleep(seconds * 0.3)
    if (status := await here.ask(here.canary)) != 200:
        here.ledger.complain("large", f"the queue was not empty again: {status}")
    return f"{said}, of which {refused} were told 429"


async def exhaustion(here: Field, seconds: float) -> str:
    """Memory runs out again and again."""
    here.ledger.memory_runs_out = True
    here.switch.write_text("0.5")
    await asyncio.sleep(seconds - min(2, seconds / 4))
    here.switch.unlink()
    await asyncio.sleep(min(2, seconds / 4))
    here.ledger.memory_runs_out = False
    return f"{sum(n for (_, status), n in here.ledger.ended.items() if status == 503)} requests told 503 so far"


async def reloaders(here: Field, seconds: float) -> str:
    """A model is reloaded while its folder is damaged, and put right again."""
    until, statuses = time.monotonic() + seconds, []
    newest = here.repository / "numbered" / "2"
    while time.monotonic() < until:
        shutil.rmtree(newest, ignore_errors=True)
        add_version(here.repository, "numbered", 2)
        loading = asyncio.create_task(here.administer("/v1/models/numbered/load"))
        await asyncio.sleep(here.chance.random() * 0.03)
        damage(newest)
        for task in (loading, asyncio.create_task(here.administer("/v1/models/numbered/load"))):
            answer = await task
            statuses.append(answer.status if answer is not None else 0)
        if statuses[-2] not in (200, 422) or statuses[-1] != 422:
            here.ledger.complain("reload", f"{statuses[-2:]} instead of 200 or 422, then 422")
        await here.ask(here.versioned)
        await asyncio.sleep(0.2)
    return f"{statuses.count(200)} reloads took, {statuses.count(422)} were refused"


async def _crowd(here: Field, seconds: float, clients: int, choose: Callable[[], Ask]) -> str:
    """So many clients that ask again as soon as they are answered, each time by a new connection."""
    until, asked = time.monotonic() + seconds, 0

    async def client() -> None:
        nonlocal asked
        while time.monotonic() < until:
            asked += 1
            await here.ask(choose())

    await together(client() for _ in range(clients))
    return f"{asked} requests"


STORMS = (leavers, dribblers, bombers, babblers, queuers, exhaustion, reloaders)
