"""Bodies that are compressed on the wire: read with a cap on their real size, written where the client asks.

    Content-Encoding of a request      identity, gzip, deflate (the zlib format); anything else is 415
    Accept-Encoding of a request       decides about the answer, see `Settings.compress`

Compressed bytes are handled in a thread of their own: a few of them can stand for very many.
"""

import asyncio
import re
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from starlette.requests import Request
from starlette.responses import Response

from service.errors import BodyTooLargeError, ContentEncodingError, MalformedBodyError
from service.settings import Settings, raise_limit

CODINGS = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}  # zlib's wbits
SMALL = 16 * 1024  # bytes of an answer that are not worth the effort
_BESIDE = ThreadPoolExecutor(1, "mcdrop-decompress")  # one at a time: bombs take a core and some memory, and no more
_PIECE = 2**12  # bytes that are read at a time: those behind the end of a member are copied
_LARGE = 2**16  # bytes that are compressed in a thread of their own, beside the event loop
_LEVEL = 1  # numbers as text shrink nearly as much as with the slower levels
_QUALITY = re.compile(r"q=([01](?:\.[0-9]{0,3})?)", re.IGNORECASE)


async def read_body(request: Request, settings: Settings) -> bytes:
    """The whole body, decompressed.

    Raises ContentEncodingError for a coding that is not known, before anything is read; BodyTooLargeError where it
    grows beyond `max_body_bytes`, and MalformedBodyError where it is not what its Content-Encoding says.
    """
    coding = request.headers.get("content-encoding", "").strip().lower() or "identity"
    if coding == "identity":
        return await request.body()
    if coding not in CODINGS:
        raise ContentEncodingError(
            f"The body's Content-Encoding is {coding}. Send it as it is, or with gzip or deflate (zlib)."
        )
    body = await request.body()
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_BESIDE, decompress, body, coding, settings.max_body_bytes)


def decompress(body: bytes, coding: str, limit: int) -> bytes:
    """What `body` stands for, at most `limit` bytes; no more than that is ever made."""
    parts: list[bytes] = []
    left, at, unpack = limit, 0, zlib.decompressobj(CODINGS[coding])
    while True:
        piece = body[at : at + _PIECE]
        try:
            part = unpack.decompress(piece, left + 1)
        except zlib.error as error:
            raise MalformedBodyError(f"The body is not {coding}, as its Content-Encoding says: {error}.") from error
        if len(part) > left:
            raise BodyTooLargeError(
                f"The body has more than {limit} bytes once decompressed, and this server reads at most {limit}. "
                f"Send fewer rows at a time, or raise {raise_limit('max_body_bytes')}."
            )
        if not (piece or unpack.eof):
            raise MalformedBodyError(f"The body ends in the middle of its {coding} data.")
        parts.append(part)
        left, at = left - len(part), at + len(piece) - len(unpack.unused_data)
        if not unpack.eof:
            continue
        if at == len(body):
            return b"".join(parts)
        if coding == "deflate":
            raise MalformedBodyError(f"{len(body) - at} bytes follow the body's deflate data.")
        unpack = zlib.decompressobj(CODINGS[coding])  # gzip allows several members one after the other


async def respond_with(
    request: Request, content: bytes, *, media_type: str, settings: Settings, headers: Mapping[str, str] | None = None
) -> Response:
    """The answer, compressed where the client accepts it and it is worth it."""
    response = Response(content, headers=dict(headers or {}), media_type=media_type)
    kinds = {"json": ("application/json",), "all": ("application/json", "application/octet-stream"), "none": ()}
    if len(content) < SMALL or media_type not in kinds[settings.compress]:
        return response
    response.headers["Vary"] = "Accept-Encoding"
    coding = accepted(request.headers.get("accept-encoding", ""))
    if coding is None:
        return response
    packed = await asyncio.to_thread(compress, content, coding) if len(content) > _LARGE else compress(content, coding)
    response.body = packed
    response.headers["Content-Encoding"] = coding
    response.headers["Content-Length"] = str(len(packed))
    return response


def compress(content: bytes, coding: str) -> bytes:
    """The same bytes in a coding."""
    packer = zlib.compressobj(_LEVEL, wbits=CODINGS[coding])
    return packer.compress(content) + packer.flush()


def accepted(header: str) -> str | None:
    """The coding that an Accept-Encoding header likes best of gzip and deflate; None where it names neither."""
    best, coding = 0.0, None
    for item in header.lower().split(","):
        name, _, rest = item.partition(";")
        name = name.strip()
        quality = _QUALITY.fullmatch(rest.strip())
        weight = (float(quality[1]) if quality else 0.0) if rest.strip() else 1.0
        if name in ("gzip", "deflate") and weight > best:
            best, coding = weight, name
    return coding
