"""What is measured of servers, and the results."""

import asyncio
import contextlib
import itertools
import statistics
import sys
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import orjson
import torch

from benchmarks.disturbance import Disturbance
from benchmarks.serving.cases import CONTENDERS, NUM_SAMPLES, Case, Contender
from benchmarks.serving.load import Client, Load, Target, asyncio_closed_loop, closed_loop, open_loop, percentile
from benchmarks.serving.processes import Server, running
from mcdrop import MCDropout
from service.pace import SLICE_SECONDS

__all__ = [
    "FairnessResult",
    "HttpResult",
    "LoadResult",
    "measure_fairness",
    "measure_http",
    "measure_load",
    "measure_open_loop",
    "saved",
]

OURS = CONTENDERS[0]
LARGE = 10_000  # rows of the large request
OPEN_LOOP = 0.7  # of the capacity
HTTP_RUNS = 5
HTTP_SECONDS = 10.0


@dataclass(frozen=True)
class LoadResult:
    """Requests of one row per second, and milliseconds. `clients` is None in an open loop, whose rate is `offered`.

    `disturbed` is the share of the cores that other processes took; `rates` are those of all rounds.
    """

    case: str
    contender: str
    loop: str
    clients: int | None
    offered: float | None
    requests: int
    failed: int
    rate: float
    p50: float
    p99: float
    disturbed: float
    rates: list[float]


@dataclass(frozen=True)
class HttpResult:
    """Milliseconds: medians of medians of a request with one connection and of a library call, and the difference."""

    case: str
    body: str
    request: float
    library: float
    cost: float
    requests: list[float]
    library_calls: list[float]


@dataclass(frozen=True)
class FairnessResult:
    """Milliseconds of a request of one row by itself (median), and beside one of `rows` rows (99th percentile)."""

    case: str
    rows: int
    body: str
    large: float
    requests: int
    alone: float
    slice: float
    p99: float
    limit: float


def saved(case: Case, folder: Path) -> Path:
    """The folder of a case's network as mcdrop serves it."""
    mc = MCDropout(case.build(), case.rows(2), task="classification", name=case.name, num_samples=NUM_SAMPLES)
    mc.save(folder / case.name)
    return folder / case.name


def measure_load(
    case: Case, folder: Path, contenders: Sequence[Contender], clients: Sequence[int], seconds: float, rounds: int
) -> Iterator[LoadResult]:
    """Each contender with each number of clients in a closed loop; in turn, round after round.

    Of the rounds, the one that other processes disturbed least is the result.
    """
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(running(each, case.name, folder, _json(case))) for each in contenders]
        print("measuring", file=sys.stderr, flush=True)
        found: dict[tuple[str, int], list[LoadResult]] = defaultdict(list)
        for number, _, server in itertools.product(clients, range(rounds), servers):
            target, others = _target(case, server.contender, server.port), Disturbance(server.group)
            load = closed_loop(target, clients=number, seconds=seconds)
            runs = found[server.contender.name, number]
            runs.append(_result(case, server, load, others.share(), clients=number))
            if len(runs) == rounds:
                yield _calmest(runs)


def measure_open_loop(case: Case, folder: Path, clients: int, seconds: float, rounds: int) -> LoadResult:
    """mcdrop in an open loop, at a share of what it has just answered to the same generator in a closed one."""
    runs = []
    with running(OURS, case.name, folder, _json(case)) as server:
        target = _target(case, OURS, server.port)
        for _ in range(rounds):
            offered = OPEN_LOOP * asyncio_closed_loop(target, clients=clients, seconds=seconds).rate
            others = Disturbance(server.group)
            load = open_loop(target, rate=offered, seconds=seconds)
            runs.append(_result(case, server, load, others.share(), offered=offered))
    return _calmest(runs)


def _calmest(runs: Sequence[LoadResult]) -> LoadResult:
    return replace(min(runs, key=lambda run: run.disturbed), rates=[run.rate for run in runs])


def _result(
    case: Case,
    server: Server,
    load: Load,
    disturbed: float,
    *,
    clients: int | None = None,
    offered: float | None = None,
) -> LoadResult:
    return LoadResult(
        case=case.name,
        contender=server.contender.name,
        loop="open" if clients is None else "closed",
        clients=clients,
        offered=offered,
        requests=load.requests,
        failed=load.failed,
        rate=load.rate,
        p50=load.p50,
        p99=load.p99,
        disturbed=disturbed,
        rates=[load.rate],
    )


def measure_http(case: Case, folder: Path, seconds: float = HTTP_SECONDS) -> HttpResult:
    """What a request takes besides the library's call; one connection, binary rows where the server takes them."""
    mc, row = MCDropout.load(folder), case.rows(1)
    requests, calls = [], []
    with running(OURS, case.name, folder, _json(case)) as server:
        target = _fastest(case, server.port, case.rows(1))
        for _ in range(HTTP_RUNS):
            requests.append(closed_loop(target, clients=1, seconds=seconds).p50)
            calls.append(_library(mc, row, seconds / 10))
    request, library = statistics.median(requests), statistics.median(calls)
    return HttpResult(case.name, _kind(target), request, library, request - library, requests, calls)


def _library(mc: MCDropout, row: torch.Tensor, seconds: float) -> float:
    """Milliseconds of the median call."""
    waits, end = [], time.perf_counter() + seconds
    while (begin := time.perf_counter()) < end:
        mc(row)
        waits.append(time.perf_counter() - begin)
    return statistics.median(waits) * 1e3


def measure_fairness(case: Case, folder: Path, seconds: float) -> FairnessResult:
    """Requests of one row, one after the other, by themselves and while one of many rows is computed."""
    with running(OURS, case.name, folder, _json(case)) as server:
        small, large = (_fastest(case, server.port, case.rows(count)) for count in (1, LARGE))

        async def drive() -> tuple[list[float], list[float], list[float]]:
            alone: list[float] = []
            beside: list[float] = []
            large_ones: list[float] = []
            async with Client(small) as client, Client(large) as other:
                end = time.perf_counter() + seconds / 4
                while time.perf_counter() < end:
                    alone.append(await _timed(client, small))
                end = time.perf_counter() + seconds
                while time.perf_counter() < end:
                    busy = asyncio.create_task(_timed(other, large))
                    while not busy.done():
                        beside.append(await _timed(client, small))
                    large_ones.append(busy.result())
            return alone, beside, large_ones

        alone, beside, large_ones = asyncio.run(drive())
    time_alone, p99, slice_ = statistics.median(alone), percentile(beside, 99), SLICE_SECONDS * 1e3
    took = statistics.median(large_ones)
    limit = time_alone + 2 * slice_
    return FairnessResult(case.name, LARGE, _kind(large), took, len(beside), time_alone, slice_, p99, limit)


async def _timed(client: Client, target: Target) -> float:
    begin = time.perf_counter()
    if not await client.ask(target.head):
        raise RuntimeError(f"POST {target.path} of {len(target.head)} bytes was not answered with 200.")
    return (time.perf_counter() - begin) * 1e3


# ---- what is sent


def _json(case: Case, rows: torch.Tensor | None = None) -> bytes:
    values = (case.rows(1) if rows is None else rows).double().numpy().round(4)
    return orjson.dumps({"inputs": values}, option=orjson.OPT_SERIALIZE_NUMPY)


def _target(case: Case, contender: Contender, port: int) -> Target:
    body = _json(case)
    if contender.new_seeds:
        return Target(port, contender.path, body[:-1] + b',"seed":', b"}", counts=True)
    return Target(port, contender.path, body)


def _fastest(case: Case, port: int, rows: torch.Tensor) -> Target:
    """Rows as a binary tensor of the Open Inference Protocol, or as JSON where mcdrop does not speak it."""
    about = f"/v2/models/{case.name}"
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{about}", timeout=10) as answer:
            name = orjson.loads(answer.read())["inputs"][0]["name"]
    except urllib.error.HTTPError:
        return Target(port, "/v1/predict", _json(case, rows))
    data = rows.numpy().tobytes()
    tensor = {"name": name, "shape": list(rows.shape), "datatype": "FP32"}
    head = orjson.dumps(
        {
            "inputs": [{**tensor, "parameters": {"binary_data_size": len(data)}}],
            "parameters": {"binary_data_output": True},
        }
    )
    headers = ("Content-Type", "application/octet-stream"), ("Inference-Header-Content-Length", str(len(head)))
    return Target(port, f"{about}/infer", head + data, headers=headers)


def _kind(target: Target) -> str:
    return "binary" if target.path.startswith("/v2") else "JSON"
