"""One connection: uvicorn's protocol, which waits for a client as long as it likes, with time limits.

    headers        arrive within `header_timeout` and `max_header_bytes`, counted from the first byte, on a new
                   connection from its beginning; else 408 or 431
    body           is timed and counted by `service.bodies`; what still comes after the answer, for `header_timeout`
    answer         a client has to take some bytes of it in every `body_timeout`, else it is cut off

Between requests a connection rests for as long as uvicorn's keep-alive allows.
"""

import asyncio
import http
import re
import socket
import uuid
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mcdrop.errors import McdropError
from service.errors import HeadersTooLargeError, MalformedRequestError, SlowRequestError, problem
from service.settings import Settings, raise_limit

UNSENT = 2**17  # bytes that the system holds of an answer before it sends them
UPGRADE = re.compile(rb"\r\nupgrade:", re.IGNORECASE)


class Connection(HttpToolsProtocol):
    """At most one timer at a time watches what is read, and one what is written."""

    def __init__(self, *args: Any, settings: Settings, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self._settings = settings
        self.url = b""  # of the request whose head is read
        self._awaiting = "head"  # or "body", or "nothing" between requests
        self._head_bytes = 0  # of a head that is not complete
        self._heads = 1  # begun so far
        self._read_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):  # else the system takes megabytes at a time, and progress is not seen
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT)
        self._time_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_reading_timer()
        self._stop_writing_timer()
        super().connection_lost(exc)

    # ---- what is read

    def data_received(self, data: bytes) -> None:
        if self._awaiting == "nothing":
            self._begin_head()
        begins, heads = self._awaiting == "head", self._heads
        super().data_received(_without_upgrade(data) if begins else data)
        if self._awaiting == "head" and begins and self._heads == heads:  # else it has parts of other requests
            self._head_bytes += len(data)
            if self._head_bytes > self._settings.max_header_bytes:
                self._refuse(headers_too_large(self._settings.max_header_bytes))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._awaiting == "nothing":
            self._begin_head()

    def on_headers_complete(self) -> None:
        self._awaiting = "body"
        self._stop_reading_timer()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._awaiting = "nothing"
        self._stop_reading_timer()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._awaiting == "body":  # the answer did not wait for all of it
            self._time_reading()

    def send_400_response(self, msg: str) -> None:
        self._refuse(MalformedRequestError("What arrived is no HTTP request. Send HTTP/1.1, without TLS."))

    def _begin_head(self) -> None:
        self._awaiting, self._head_bytes = "head", 0
        self._heads += 1
        self._time_reading()

    def _time_reading(self) -> None:
        self._stop_reading_timer()
        self._read_timer = self.loop.call_later(self._settings.header_timeout, self._read_too_slowly)

    def _stop_reading_timer(self) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None

    def _read_too_slowly(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._time_reading()  # it began its next request early, and has an answer to come
        elif self._awaiting == "head" and self._head_bytes:
            self._refuse(
                SlowRequestError(
                    f"The headers did not arrive within {self._settings.header_timeout:g} seconds. Send them at once, "
                    f"or raise {raise_limit('header_timeout')}."
                )
            )
        else:
            self.transport.close()

    def _refuse(self, error: McdropError) -> None:
        """Answer what never became a request, and close."""
        if self.transport.is_closing():
            return
        request_id = uuid.uuid4().hex
        path = self.url.partition(b"?")[0].decode("latin-1")  # as far as it has arrived, for the shape of the answer
        response = problem(error, {"type": "http", "path": path, "state": {"request_id": request_id}})
        response.headers["X-Request-Id"] = request_id
        self.logger.info("refused a connection: %s [%s]", error, request_id)
        head = [f"HTTP/1.1 {response.status_code} {http.HTTPStatus(response.status_code).phrase}\r\n".encode()]
        head += [name + b": " + value + b"\r\n" for name, value in response.raw_headers]
        self.transport.write(b"".join([*head, b"\r\n", bytes(response.body)]))
        self.transport.close()

    # ---- what is written

    def pause_writing(self) -> None:
        super().pause_writing()
        self._time_writing()

    def resume_writing(self) -> None:
        self._stop_writing_timer()
        super().resume_writing()

    def _time_writing(self) -> None:
        waiting = self.transport.get_write_buffer_size()
        self._write_timer = self.loop.call_later(self._settings.body_timeout, self._check_writing, waiting)

    def _stop_writing_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _check_writing(self, waiting: int) -> None:
        if self.transport.get_write_buffer_size() >= waiting:
            self.logger.info("cut off a client that did not take its answer")
            self.transport.abort()
        else:
            self._time_writing()


def _without_upgrade(data: bytes) -> bytes:
    """The head of a request under which httptools reads its body.

    Some clients, Java's among them, offer HTTP/2 with each request (`Upgrade: h2c`). A server may ignore that, and this
    one does; httptools takes it for the end of HTTP and forgets the body, so the header gets another name.
    """
    end = data.find(b"\r\n\r\n")
    offer = UPGRADE.search(data, 0, end if end >= 0 else len(data))
    return data if offer is None else data[: offer.start()] + b"\r\nx-upgrade:" + data[offer.end() :]


def headers_too_large(limit: int) -> HeadersTooLargeError:
    """The same words, whether the end of the headers has been seen or not."""
    return HeadersTooLargeError(
        f"The request's address and headers have more than {limit} bytes. "
        f"Send fewer or shorter ones, or raise {raise_limit('max_header_bytes')}."
    )
