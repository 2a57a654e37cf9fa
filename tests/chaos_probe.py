"""Asks `/health/live` COUNT times at RATE per second, as an orchestrator does: `chaos_probe.py HOST PORT COUNT RATE`.

A process of its own, so that the load's client does not delay it. Each probe has a connection of its own and starts at
its own time, whether or not earlier ones are answered. Prints the seconds that each took as JSON; null is a failure.
"""

import asyncio
import json
import sys
import time


async def probe(host: str, port: int, at: float) -> float | None:
    """Seconds from connecting to the whole answer."""
    await asyncio.sleep(at - time.monotonic())
    began = time.monotonic()
    try:
        async with asyncio.timeout(10):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(b"GET /health/live HTTP/1.1\r\nHost: probe\r\nConnection: close\r\n\r\n")
            answer = await reader.read()
            writer.close()
    except (OSError, TimeoutError):
        return None
    return time.monotonic() - began if answer.startswith(b"HTTP/1.1 200 ") else None


async def probes(host: str, port: int, count: int, rate: float) -> list[float | None]:
    """All of them, in their order."""
    start = time.monotonic() + 0.1
    return list(await asyncio.gather(*(probe(host, port, start + k / rate) for k in range(count))))


if __name__ == "__main__":
    print(json.dumps(asyncio.run(probes(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])))))
