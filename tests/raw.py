"""Connections to a live server below HTTP: bytes sent as they are, and what comes back."""

import contextlib
import socket
from collections.abc import Iterator

import httpx


@contextlib.contextmanager
def connected(http: httpx.Client) -> Iterator[socket.socket]:
    """A plain connection to the server that `http` is a client of."""
    with socket.create_connection((http.base_url.host, http.base_url.port or 80), timeout=30) as connection:
        yield connection


def everything(connection: socket.socket) -> bytes:
    """All that the server sends until it closes the connection."""
    parts = []
    with contextlib.suppress(ConnectionResetError):  # it closed with bytes of ours unread
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def head(path: str, *headers: str, method: str = "POST") -> bytes:
    """The head of a request."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: server", *headers, "", ""]).encode()
