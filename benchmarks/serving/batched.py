"""A server as an engineer writes it who knows FastAPI well: `python -m benchmarks.serving.batched CASE PORT METHOD`.

One thread computes; whatever has arrived meanwhile is its next batch, so nobody waits while it is free. orjson reads
and writes.
"""

import asyncio
import contextlib
import queue
import sys
import threading
from collections.abc import AsyncIterator
from typing import Any

import orjson
import torch
import uvicorn
from fastapi import FastAPI, Request, Response

from benchmarks.serving.baselines import METHODS, Method, answer
from benchmarks.serving.cases import NUM_SAMPLES, case

MOST = 16  # requests in a batch


class Batcher:
    """Rows of several requests as one batch, on one thread."""

    def __init__(self, method: Method) -> None:
        self._method = method
        self._waiting: queue.SimpleQueue[tuple[torch.Tensor, asyncio.Future[dict[str, Any]]]] = queue.SimpleQueue()
        threading.Thread(target=self._compute, daemon=True).start()

    async def __call__(self, rows: torch.Tensor) -> dict[str, Any]:
        """The answer to these rows."""
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting.put((rows, future))
        return await future

    def _compute(self) -> None:
        while True:
            batch = [self._waiting.get()]
            with contextlib.suppress(queue.Empty):
                while len(batch) < MOST:
                    batch.append(self._waiting.get_nowait())
            whole = answer(self._method, torch.cat([rows for rows, _ in batch]))
            told, start = [], 0
            for rows, future in batch:
                stop = start + len(rows)
                told.append((future, {name: value[start:stop] for name, value in whole.items()}))
                start = stop
            batch[0][1].get_loop().call_soon_threadsafe(_settle, told)


def _settle(told: list[tuple["asyncio.Future[dict[str, Any]]", dict[str, Any]]]) -> None:
    for future, result in told:
        if not future.done():
            future.set_result(result)


def create_app(name: str, method: str) -> FastAPI:
    """One endpoint in front of a batcher."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.batcher = Batcher(METHODS[method](case(name).build(), NUM_SAMPLES))
        yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/predict")
    async def predict(request: Request) -> Response:
        rows = torch.tensor(orjson.loads(await request.body())["inputs"])
        result = await request.app.state.batcher(rows)
        return Response(orjson.dumps(result, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")

    return app


if __name__ == "__main__":
    uvicorn.run(create_app(sys.argv[1], sys.argv[3]), port=int(sys.argv[2]), log_level="warning", access_log=False)
