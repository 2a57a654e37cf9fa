"""Many rows as several requests side by side: cutting, keeping a bounded number under way, keeping the order.

`in_threads` and `in_tasks` take batches only as fast as answers come, so a generator of batches is never ahead by more
than `concurrency`. The first failure is raised; what has not been sent by then never is, waits before retries end,
and nothing is left running behind the caller's back: tasks are cancelled, requests of threads are waited for.
"""

import contextlib
import sys
import threading
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

from mcdrop.errors import InputError, SettingError
from mcdrop.wire.api import as_array

Result = TypeVar("Result")

ROWS = 256  # of one request, where the caller does not say
CONCURRENCY = 4

Batches = Iterable[Any] | AsyncIterable[Any]


def check(batch_size: int | None, concurrency: int) -> None:
    """Raises SettingError."""
    for name, value in (("batch_size", batch_size), ("concurrency", concurrency)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise SettingError(f"{name} is {value!r}; expected a whole number of at least 1.")


def cut(inputs: Any, batch_size: int | None) -> tuple[Batches, int | None]:
    """The batches to send, and how many, where that is known before the last.

    Arrays, tensors, nested lists and dicts of them are cut into `batch_size` rows each (256 by default); anything else
    that can be iterated over gives batches, which are sent as they come unless `batch_size` is given. In a dict the
    first array counts the rows, and arrays with another first axis go with every batch as they are. Raises InputError.
    """
    if isinstance(inputs, AsyncIterable):
        return (inputs if batch_size is None else _cut_each_later(inputs, batch_size)), None
    if isinstance(inputs, Mapping | list | tuple | np.generic) or hasattr(inputs, "__array__"):
        pieces = _cut(inputs, batch_size or ROWS)
        return pieces, len(pieces)
    if not isinstance(inputs, Iterable):
        raise InputError(
            f"the inputs are of type {type(inputs).__name__}; expected arrays, or batches to iterate over."
        )
    if batch_size is None:
        return inputs, None
    return (piece for batch in inputs for piece in _cut(batch, batch_size)), None


def in_threads(
    predict: Callable[[Any, Callable[[float], None]], Result],
    batches: Iterable[Any],
    concurrency: int,
    advance: Callable[[], None],
) -> list[Result]:
    """The results in the order of the batches. `predict` gets a batch, and how to wait."""
    from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait  # as in `client`

    stopped = threading.Event()
    running: dict[Future[Result], int] = {}
    results: dict[int, Result] = {}

    def pause(seconds: float) -> None:
        if stopped.wait(seconds):
            raise CancelledError

    def collect() -> None:
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            results[running.pop(future)] = future.result()
            advance()

    with ThreadPoolExecutor(concurrency, "mcdrop-client") as pool:
        try:
            for index, batch in enumerate(batches):
                running[pool.submit(predict, batch, pause)] = index
                if len(running) == concurrency:
                    collect()
            while running:
                collect()
        finally:
            stopped.set()
            for future in running:
                future.cancel()
    return [results[index] for index in sorted(results)]


async def in_tasks(
    predict: Callable[[Any], Awaitable[Result]], batches: Batches, concurrency: int, advance: Callable[[], None]
) -> list[Result]:
    """The same with tasks; batches may come from an asynchronous iterator too."""
    import asyncio  # here, as in `client`

    running: dict[asyncio.Future[Result], int] = {}
    results: dict[int, Result] = {}

    async def collect() -> None:
        done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for future in done:
            results[running.pop(future)] = future.result()
            advance()

    try:
        index = 0
        async for batch in _each(batches):
            running[asyncio.ensure_future(predict(batch))] = index
            index += 1
            if len(running) == concurrency:
                await collect()
        while running:
            await collect()
    finally:
        for future in running:
            future.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    return [results[index] for index in sorted(results)]


@contextlib.contextmanager
def bar(shown: bool | None, total: int | None) -> Iterator[Callable[[], None]]:
    """What to call after each batch; draws a bar on standard error if asked to, or if that is a terminal."""
    if not (sys.stderr.isatty() if shown is None else shown):
        yield lambda: None
        return
    from mcdrop.surroundings.terminal import progress  # here, since most callers draw nothing

    with progress("batches", total, shown=True) as advance:
        yield advance


def _cut(inputs: Any, batch_size: int) -> list[Any]:
    if not isinstance(inputs, Mapping):
        array = as_array(inputs, "inputs")
        if array.ndim == 0:
            raise InputError("the inputs are one number; expected rows.")
        return [array[start : start + batch_size] for start in _starts(len(array), batch_size)]
    arrays = {name: as_array(value, name) for name, value in inputs.items()}
    rows = next((len(array) for array in arrays.values() if array.ndim), 0)
    return [
        {
            name: array[start : start + batch_size] if array.ndim and len(array) == rows else array
            for name, array in arrays.items()
        }
        for start in _starts(rows, batch_size)
    ]


def _starts(rows: int, batch_size: int) -> range:
    return range(0, max(rows, 1), batch_size)  # without rows, one batch without rows


async def _cut_each_later(batches: AsyncIterable[Any], batch_size: int) -> AsyncIterator[Any]:
    async for batch in batches:
        for piece in _cut(batch, batch_size):
            yield piece


async def _each(batches: Batches) -> AsyncIterator[Any]:
    if isinstance(batches, AsyncIterable):
        async for batch in batches:
            yield batch
    else:
        for batch in batches:
            yield batch
