"""What happens to every request before and after its route: an id, a byte counter, one line in the log.

Pure ASGI, so that a route sees its client leave and bodies are counted as they arrive, not after.
"""

import logging
import re
import time
import urllib.parse
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import BodyTooLargeError, problem
from service.settings import raise_limit

access = logging.getLogger("service.access")

REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")  # what cannot break a log line or a header


class Door:
    """Outermost of the application; also the place where an error that nobody foresaw becomes an answer."""

    def __init__(self, app: ASGIApp, *, max_body_bytes: int) -> None:
        self.app = app
        self.max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        started = time.monotonic()
        scope.setdefault("state", {}).update(request_id=request_id, arrived=started)
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        try:
            await self.app(scope, self._counted(headers, receive), send_with_id)
        except Exception as error:
            response = problem(error, scope)  # logs what the table does not know
            if status == 0:
                await response(scope, receive, send_with_id)
        finally:
            level = logging.DEBUG if scope["path"].startswith("/health/") else logging.INFO
            milliseconds = (time.monotonic() - started) * 1000
            path = urllib.parse.quote(scope["path"])  # no line breaks in the log
            access.log(level, "%s %s %d %.1f ms [%s]", scope["method"], path, status, milliseconds, request_id)

    def _counted(self, headers: Headers, receive: Receive) -> Receive:
        """`receive`, which raises BodyTooLargeError once more bytes have arrived than are allowed.

        Before it raises it reads on, and forgets, as many bytes again: a client that is cut off while it sends sees a
        broken connection in place of the answer. One that asked by `Expect: 100-continue` has not sent anything yet.
        """
        limit = self.max_body_bytes
        declared = int(headers["content-length"]) if headers.get("content-length", "").isdigit() else 0
        waits = headers.get("expect", "").lower() == "100-continue"
        arrived = 0

        async def counted() -> Message:
            nonlocal arrived
            if declared > limit and (waits or declared > 2 * limit):
                raise self._too_large(f"{declared}")
            message = await receive()
            arrived += len(message.get("body", b""))
            if max(arrived, declared) <= limit:
                return message
            while message.get("more_body", False) and arrived <= 2 * limit:
                message = await receive()
                arrived += len(message.get("body", b""))
            raise self._too_large(f"{declared}" if declared > limit else f"more than {limit}")

        return counted

    def _too_large(self, size: str) -> BodyTooLargeError:
        return BodyTooLargeError(
            f"The body has {size} bytes and this server reads at most {self.max_body_bytes}. "
            f"Send fewer rows at a time, or raise {raise_limit('max_body_bytes')}."
        )
