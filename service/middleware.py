"""What happens to every request before and after its route: an id, limits, one line in the log, one count.

Pure ASGI, so that a route sees its client leave and bodies are counted as they arrive, not after.
"""

import logging
import random
import re
import time
import urllib.parse
from collections.abc import Mapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import traffic
from service.bodies import Bodies, Body
from service.connection import headers_too_large
from service.errors import problem
from service.metrics import Metrics
from service.settings import Settings

access = logging.getLogger("service.access")

REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")  # what cannot break a log line or a header

_IDS = random.Random()  # asking the system for each request takes longer than routing it


class Door:
    """Outermost of the application; also the place where an error that nobody foresaw becomes an answer.

    A route may leave in `request.state.timings` milliseconds by name (queue, compute); the answer tells them as
    `Server-Timing`.
    """

    def __init__(self, app: ASGIApp, *, settings: Settings, metrics: Metrics) -> None:
        self.app = app
        self._max_header_bytes = settings.max_header_bytes
        self._overload_status = settings.overload_status
        self._metrics = metrics
        self._bodies = Bodies(
            max_body_bytes=settings.max_body_bytes,
            max_inflight_body_bytes=settings.max_inflight_body_bytes,
            body_timeout=settings.body_timeout,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if REQUEST_ID.fullmatch(given) else f"{_IDS.getrandbits(128):032x}"
        started = time.monotonic()
        state = scope.setdefault("state", {})
        state.update(request_id=request_id, arrived=started, overload_status=self._overload_status)
        body = Body(self._bodies, headers, receive)
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                added = MutableHeaders(scope=message)
                added["X-Request-Id"] = request_id
                added["Server-Timing"] = _server_timing(state.get("timings", {}), time.monotonic() - started)
            await send(message)

        try:
            self._check_head(scope)
            await self.app(scope, body.receive, send_with_id)
        except Exception as error:
            response = problem(error, scope)  # logs what the table does not know
            if status == 0:
                await response(scope, receive, send_with_id)
        finally:
            body.release()
            self._finish(scope, status or 500, time.monotonic() - started)  # 0: the server cancelled it

    def _check_head(self, scope: Scope) -> None:
        size = len(scope["path"]) + len(scope.get("query_string", b""))
        size += sum(len(name) + len(value) for name, value in scope["headers"])
        if size > self._max_header_bytes:
            raise headers_too_large(self._max_header_bytes)

    def _finish(self, scope: Scope, status: int, seconds: float) -> None:
        """Count and log a request that has ended, however it did."""
        route, method, model = traffic.route(scope), traffic.method(scope), ""
        self._metrics.http(method, route, status)
        if traffic.predicts(route):
            model, version = traffic.served(scope)
            self._metrics.answered(model, version, traffic.outcome(scope, status), seconds)
        level = logging.DEBUG if _watches(scope["path"]) else logging.INFO
        if access.isEnabledFor(level):
            self._log(level, scope, route, status, seconds * 1000, model)

    @staticmethod
    def _log(level: int, scope: Scope, route: str, status: int, milliseconds: float, model: str) -> None:
        path = urllib.parse.quote(scope["path"])  # no line breaks in the log
        request_id = scope["state"]["request_id"]
        facts = {
            "request_id": request_id,
            "method": scope["method"],
            "path": path,
            "route": route,
            "status": status,
            "ms": round(milliseconds, 3),
            "model": model,
        }
        line = "%s %s %d %.1f ms [%s]"
        access.log(level, line, scope["method"], path, status, milliseconds, request_id, extra={"facts": facts})


def _watches(path: str) -> bool:
    """Whether the request is one that comes every few seconds by itself."""
    return path.startswith(("/health/", "/v2/health/", "/metrics"))


def _server_timing(timings: Mapping[str, Any], seconds: float) -> str:
    entries = {**timings, "total": seconds * 1000}
    return ", ".join(f"{name};dur={milliseconds:.3f}" for name, milliseconds in entries.items())
