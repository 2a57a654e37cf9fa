"""Loading a model while others answer.

A folder is read and verified, and the model built from it, in a thread made for it. Only what shares the device with
requests, its first predictions, goes through the scheduler, a slice at a time.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from service.model import ServedModel
from service.scheduler import Scheduler

Result = TypeVar("Result")


async def load(model: ServedModel, scheduler: Scheduler) -> None:
    """Make the model ready to answer. Raises what its folder or its first prediction raises."""
    mc = await beside(model.read)
    await scheduler.run(model.warm_up(mc))


async def beside(function: Callable[[], Result]) -> Result:
    """What `function` returns, called in a thread of its own that does not keep the process from ending."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Result] = loop.create_future()

    def settle(how: Callable[[Any], None], outcome: Any) -> None:
        if not future.done():  # cancelled: nobody waits
            how(outcome)

    def call() -> None:
        try:
            how, outcome = future.set_result, function()
        except BaseException as error:
            how, outcome = future.set_exception, error  # type: ignore[assignment]  # the other half of `settle`
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(settle, how, outcome)

    threading.Thread(target=call, name="mcdrop-loader", daemon=True).start()
    return await future
