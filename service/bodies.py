"""Bodies of requests while they arrive: how large, how slowly, and how much of them at a time.

A body is counted as it comes, not by what its headers claim, and what it holds is given back when its request ends.
"""

import asyncio

from starlette.datastructures import Headers
from starlette.types import Message, Receive

from service.errors import BodyTooLargeError, OverloadedError, SlowRequestError
from service.settings import raise_limit


class Bodies:
    """The limits, and the bytes held by all requests in progress together."""

    def __init__(self, *, max_body_bytes: int, max_inflight_body_bytes: int, body_timeout: float) -> None:
        self.max_body_bytes = max_body_bytes
        self.max_inflight_body_bytes = max_inflight_body_bytes
        self.body_timeout = body_timeout
        self.held = 0


class Body:
    """One request's. Its `receive` takes the place of the server's own; `release` when the request has ended."""

    def __init__(self, bodies: Bodies, headers: Headers, receive: Receive) -> None:
        self._bodies = bodies
        self._receive = receive
        length = headers.get("content-length", "")
        self._declared = int(length) if length.isdigit() else 0
        self._waits = headers.get("expect", "").lower() == "100-continue"
        self._arrived = 0
        self._held = 0
        self._complete = False
        self._deadline: float | None = None

    async def receive(self) -> Message:
        """The next message. Raises BodyTooLargeError, OverloadedError, or SlowRequestError.

        Before it says that a body is too large it reads on, and forgets, as many bytes again: a client that is cut off
        while it sends sees a broken connection in place of the answer. One that asked by `Expect: 100-continue` has not
        sent anything yet.
        """
        limit = self._bodies.max_body_bytes
        if self._complete:
            return await self._receive()  # nothing but http.disconnect can come
        if self._declared > limit and (self._waits or self._declared > 2 * limit):
            raise self._too_large(f"{self._declared}")
        message = await self._next()
        if max(self._arrived, self._declared) <= limit:
            self._hold(len(message.get("body", b"")))
            return message
        while not self._complete and self._arrived <= 2 * limit:
            await self._next()
        raise self._too_large(f"{self._declared}" if self._declared > limit else f"more than {limit}")

    def release(self) -> None:
        """Give back what the body holds."""
        self._bodies.held -= self._held
        self._held = 0

    async def _next(self) -> Message:
        loop = asyncio.get_running_loop()
        if self._deadline is None:
            self._deadline = loop.time() + self._bodies.body_timeout
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError as error:
            raise SlowRequestError(
                f"Of the body {self._arrived} bytes arrived in {self._bodies.body_timeout:g} seconds and it is not "
                "complete. Send it faster or in smaller parts, as requests with fewer rows each, "
                f"or raise {raise_limit('body_timeout')}."
            ) from error
        self._arrived += len(message.get("body", b""))
        self._complete = not message.get("more_body", False)
        return message

    def _hold(self, size: int) -> None:
        self._held += size
        self._bodies.held += size
        if self._bodies.held > self._bodies.max_inflight_body_bytes:
            raise OverloadedError(
                f"The bodies of all requests in progress hold more than {self._bodies.max_inflight_body_bytes} bytes "
                f"together. Try again in a moment, or raise {raise_limit('max_inflight_body_bytes')}."
            )

    def _too_large(self, size: str) -> BodyTooLargeError:
        return BodyTooLargeError(
            f"The body has {size} bytes and this server reads at most {self._bodies.max_body_bytes}. "
            f"Send fewer rows at a time, or raise {raise_limit('max_body_bytes')}."
        )
