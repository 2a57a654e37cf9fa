"""HTTP by hand, cheap enough to press a server from one core, and able to stop in the middle of a request."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

SECONDS = 60.0  # after which an answer counts as lost


@dataclass(frozen=True)
class Answer:
    """What came back; names of headers in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass
class Connection:
    """To the server; `ask` any number of times, one after the other."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def ask(self, request: bytes) -> Answer | None:
        """The answer, or None where the server closed the connection without one. Raises TimeoutError, OSError."""
        async with asyncio.timeout(SECONDS):
            await self.send(request)
            return await self.read()

    async def send(self, part: bytes) -> bool:
        """Whether the server took it; it may have answered, and closed, before it read all."""
        if self.writer.transport.is_closing():
            return False
        try:
            self.writer.write(part)
            await self.writer.drain()
        except (ConnectionError, RuntimeError):  # the latter from uvloop
            return False
        return True

    async def read(self) -> Answer | None:
        """The next answer. Raises IncompleteReadError where it breaks off."""
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            if getattr(error, "partial", b""):
                raise
            return None
        first, *rest = head[:-4].decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
        if headers.get("transfer-encoding") == "chunked":
            body = b"".join([chunk async for chunk in self._chunks()])
        else:
            body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        return Answer(int(first.split(" ")[1]), headers, body)

    async def some(self) -> bytes:
        """What comes next, nothing where the server closes the connection."""
        try:
            async with asyncio.timeout(SECONDS):
                return await self.reader.read(65536)
        except ConnectionError:
            return b""

    async def _chunks(self) -> AsyncIterator[bytes]:
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            yield (await self.reader.readexactly(size + 2))[:-2]
        await self.reader.readexactly(2)

    def abort(self) -> None:
        """Leave at once, whatever is under way."""
        self.writer.transport.abort()


@contextlib.asynccontextmanager
async def connected(host: str, port: int) -> AsyncIterator[Connection]:
    """A connection that is closed in the end."""
    connection = Connection(*await asyncio.open_connection(host, port))
    try:
        yield connection
    finally:
        connection.writer.close()
        with contextlib.suppress(OSError):
            await connection.writer.wait_closed()


def post(path: str, body: bytes, request_id: str, headers: Mapping[str, str] | None = None) -> bytes:
    """A request as bytes."""
    fields = {"Host": "server", "X-Request-Id": request_id, "Content-Type": "application/json", **(headers or {})}
    fields.setdefault("Content-Length", str(len(body)))
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    return "\r\n".join(lines).encode() + body
