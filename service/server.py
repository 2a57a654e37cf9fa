"""Running the application: a socket, signals, a clean end.

SIGTERM and SIGINT end the server in order: /health/ready turns 503, after `shutdown_delay` no connection is taken any
more, requests in progress finish within `shutdown_timeout` or are told that the server stops, and `serve` returns. A
second SIGINT does not wait.
"""

import asyncio
import contextlib
import errno
import functools
import gc
import signal
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from mcdrop.errors import PortError
from service.app import create_app
from service.connection import Connection
from service.logs import logging_config
from service.settings import Settings

KEEP_ALIVE_SECONDS = 75  # longer than a balancer's, so that it never sends into a connection just closed
BACKLOG = 2048  # connections that wait to be taken, uvicorn's own number
LAST_WORDS = 2  # seconds more for the answers to what `shutdown_timeout` ended; then connections are cut off
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def serve(settings: Settings, *, on_ready: Callable[[str], None] | None = None) -> None:
    """Serve until a signal ends it, then return.

    `on_ready` is called with the server's URL once every model is loaded and warm. Raises PortError when the address
    cannot be had, SettingError or BundleError when there is nothing to serve or a model cannot be loaded.
    """
    app = create_app(settings)
    with listen(settings.host, settings.port) as sock:

        def ready() -> None:
            gc.collect()
            gc.freeze()  # what is loaded by now stays; to look through it holds every thread up for a tenth of a second
            if on_ready is not None:
                on_ready(address(settings.host, sock))

        Server(app, settings, on_ready=ready).run(sockets=[sock])
    failure = app.state.registry.failure
    if failure is not None:
        raise failure


@contextlib.contextmanager
def serving(settings: Settings) -> Iterator[str]:
    """Serve from a thread of this process, ready when the block begins; yields the URL. For notebooks and tests."""
    app = create_app(settings)
    settled = threading.Event()
    with listen(settings.host, settings.port) as sock, ThreadPoolExecutor(1, "mcdrop-server") as pool:
        server = Server(app, settings, on_ready=settled.set)
        running = pool.submit(server.run, [sock])
        running.add_done_callback(lambda _: settled.set())
        try:
            settled.wait()
            if app.state.registry.failure is not None:
                raise app.state.registry.failure
            if not running.done():
                yield address(settings.host, sock)
        finally:
            server.should_exit = True
            running.result()


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises PortError."""
    try:
        places = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise PortError(f"{host!r} is no address of this machine ({error.strerror}). Try --host 127.0.0.1.") from error
    failure = OSError()
    for family, kind, protocol, _, target in places:  # a name may stand for an IPv6 address that is not configured
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(target)
            sock.listen(BACKLOG)
            return sock
        except OSError as error:
            sock.close()
            failure = error
    if failure.errno == errno.EADDRINUSE:
        raise PortError(
            f"Port {port} on {host} is in use by another program. Stop it, or choose a port: --port 0 takes a free one."
        ) from failure
    raise PortError(
        f"Cannot listen on {host}, port {port}: {failure.strerror}. Choose another --host or --port."
    ) from failure


def address(host: str, sock: socket.socket) -> str:
    """The URL under which a client on this machine reaches the socket."""
    local = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)
    port = sock.getsockname()[1]
    return f"http://[{local}]:{port}" if ":" in local else f"http://{local}:{port}"


class Server(uvicorn.Server):
    """uvicorn, which ends by itself after a signal where uvicorn would send itself the signal again."""

    def __init__(self, app: FastAPI, settings: Settings, *, on_ready: Callable[[], Any]) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=functools.partial(Connection, settings=settings),  # type: ignore[arg-type]  # uvicorn only calls it
                lifespan="on",
                access_log=False,  # service.middleware writes it, with request ids
                log_config=logging_config(settings.log_level, settings.log_format),
                log_level=settings.log_level,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=settings.shutdown_timeout + LAST_WORDS,
            )
        )
        self._app = app
        self._shutdown_delay = settings.shutdown_delay
        self._shutdown_timeout = settings.shutdown_timeout
        self._on_ready = on_ready
        self._exit_at: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._app.state.loading.add_done_callback(self._loaded)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """The scheduler answers what takes too long: uvicorn would cancel it, which no error table sees."""
        stop = functools.partial(self._app.state.registry.scheduler.stop, timeout=0)
        stopping = asyncio.get_running_loop().call_later(self._shutdown_timeout, stop)
        try:
            await super().shutdown(sockets)
        finally:
            stopping.cancel()

    async def on_tick(self, counter: int) -> bool:
        if self._exit_at is not None and time.monotonic() >= self._exit_at:
            self.should_exit = True
        return await super().on_tick(counter)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        if threading.current_thread() is not threading.main_thread():  # only the main thread gets signals
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._exit_at is not None and sig == signal.SIGINT:
            self.should_exit = self.force_exit = True
            return
        self._app.state.registry.draining = True
        delay = self._shutdown_delay if sig == signal.SIGTERM else 0
        self._exit_at = self._exit_at or time.monotonic() + delay

    def _loaded(self, loading: Any) -> None:
        if loading.cancelled():
            return
        if loading.exception() is not None:
            self.should_exit = True
        else:
            self._on_ready()
