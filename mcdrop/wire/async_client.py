"""`mcdrop.client.AsyncClient`: a driver of conversations for asyncio."""

import contextlib
import time
from collections.abc import AsyncGenerator
from typing import Any, Self, TypeVar, Unpack

import httpx

from mcdrop.wire import api, exchange, many
from mcdrop.wire.answers import RemotePrediction, joined
from mcdrop.wire.api import Asked, Reply
from mcdrop.wire.api_errors import APIConnectionError, NotReady, connection_error
from mcdrop.wire.events import EventReader
from mcdrop.wire.exchange import Ask, Pause, Talk
from mcdrop.wire.options import DEFAULT_RETRIES, DEFAULT_TIMEOUT, LIMITS, Connection, Options, request

__all__ = ["AsyncClient"]

Result = TypeVar("Result")


class AsyncClient(Connection):
    """`Client` for asyncio: the same arguments, methods and errors; `await` each call, use `async with`."""

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        max_retries: int = DEFAULT_RETRIES,
        http_client: httpx.AsyncClient | None = None,
        binary: bool | None = None,
    ) -> None:
        super().__init__(base_url, api_key, timeout, max_retries, binary)
        self._http = httpx.AsyncClient(limits=LIMITS) if http_client is None else http_client
        self._is_own = http_client is None

    async def predict(self, inputs: Any, **options: Unpack[Options]) -> RemotePrediction:
        """See `Client.predict`. Cancelling the call makes the server give the prediction up."""
        deadline = self._deadline(options)
        return await self._run(exchange.predict(self._asked(inputs, options), self._server, deadline))

    def stream(self, inputs: Any, **options: Unpack[Options]) -> AsyncGenerator[RemotePrediction]:
        """See `Client.stream`; `contextlib.aclosing` ends the request at once where the loop is left early."""
        return self._events(self._asked(inputs, options), options)

    async def predict_many(
        self,
        inputs: Any,
        *,
        batch_size: int | None = None,
        concurrency: int = many.CONCURRENCY,
        progress: bool | None = None,
        **options: Unpack[Options],
    ) -> RemotePrediction:
        """See `Client.predict_many`; batches may come from an asynchronous iterator, too."""
        many.check(batch_size, concurrency)
        started = time.monotonic()
        batches, total = many.cut(inputs, batch_size)
        with many.bar(progress, total) as advance:
            parts = await many.in_tasks(lambda batch: self.predict(batch, **options), batches, concurrency, advance)
        return joined(parts, seconds=time.monotonic() - started)

    async def models(self) -> list[dict[str, Any]]:
        """See `Client.models`."""
        return await self._run(exchange.call(api.list_models(), self._server, self._deadline({})))

    async def default_model(self) -> str | None:
        """See `Client.default_model`."""
        return await self._run(exchange.call(api.default_model(), self._server, self._deadline({})))

    async def model(self, name: str, version: str | None = None) -> dict[str, Any]:
        """See `Client.model`."""
        return await self._run(exchange.call(api.show_model(name, version), self._server, self._deadline({})))

    async def ready(self) -> bool:
        """See `Client.ready`."""
        try:
            return await self._run(exchange.call(api.probe_ready(), self._server, self._deadline({})))
        except (APIConnectionError, NotReady):
            return False

    async def aclose(self) -> None:
        """Close the connections; a client object that was handed in stays open."""
        if self._is_own:
            await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _events(self, asked: Asked, options: Options) -> AsyncGenerator[RemotePrediction]:
        events = await self._run(exchange.stream(asked, self._server, self._deadline(options)))
        response: httpx.Response = events.reply.stream
        reader = EventReader()
        try:
            async for piece in response.aiter_bytes():
                for event in reader.feed(piece):
                    prediction = events.read(event)
                    if prediction is not None:
                        yield prediction
                    if event.name == "result":
                        return
                events.check_time()
        except httpx.HTTPError as error:
            raise connection_error(error, events.path) from error
        finally:
            await response.aclose()
        raise events.cut_off()

    async def _run(self, talk: Talk[Result]) -> Result:
        import asyncio  # here, since it is a third of the time that this module takes to load, and `Client` needs none

        with contextlib.closing(talk):
            try:
                step = next(talk)
                while True:
                    if isinstance(step, Pause):
                        await asyncio.sleep(step.seconds)
                        step = next(talk)
                        continue
                    try:
                        reply = await self._ask(step)
                    except httpx.HTTPError as error:
                        step = talk.throw(error)
                    else:
                        step = talk.send(reply)
            except StopIteration as done:
                result: Result = done.value
                return result

    async def _ask(self, step: Ask) -> Reply:
        import asyncio

        try:
            async with asyncio.timeout(step.seconds):
                response = await self._http.send(request(self._http, step), stream=True)
                if step.streamed and response.is_success:
                    return Reply(response.status_code, response.headers, stream=response)
                try:
                    content = await response.aread()
                finally:
                    await response.aclose()
                return Reply(response.status_code, response.headers, content)
        except TimeoutError as error:
            raise httpx.ReadTimeout("its answer came too slowly") from error
