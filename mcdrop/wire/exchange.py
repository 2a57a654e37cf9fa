"""Conversations with a server as generators: what to send next, when to wait, what the answer means.

    talk = predict(asked, server, deadline)       yields Ask and Pause, is sent a Reply, returns the result

A driver does what is yielded and nothing else; `mcdrop.client` has one for threads and one for asyncio. So retries,
the one deadline, and the choice between binary and JSON stand here once, without any input or output.
"""

import uuid
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import httpx
import orjson

from mcdrop.errors import InputError
from mcdrop.wire import api, infer
from mcdrop.wire.answers import RemotePrediction, Timings
from mcdrop.wire.api import Asked, Call, Reply
from mcdrop.wire.api_errors import (
    APIConnectionError,
    APIError,
    BadRequest,
    NotFound,
    connection_error,
    status_error,
    timeout_error,
)
from mcdrop.wire.events import Event
from mcdrop.wire.retries import Deadline, backoff, wait_after

Result = TypeVar("Result")

HOPELESS = (httpx.UnsupportedProtocol, httpx.LocalProtocolError)  # would fail the same again
ABSENT = (404, 405)  # of GET /v2: the server speaks its own protocol only


@dataclass(frozen=True)
class Ask:
    """Send this, and send the Reply back into the conversation, or throw the httpx.HTTPError that came instead.

    The whole exchange may take `seconds`; with `streamed` only up to the headers of an answer that says yes.
    """

    method: str
    url: str
    headers: Mapping[str, str]
    content: bytes | None
    seconds: float
    streamed: bool = False


@dataclass(frozen=True)
class Pause:
    """Wait, then go on."""

    seconds: float


Talk = Generator[Ask | Pause, Reply | None, Result]


@dataclass
class Server:
    """Where a client sends its requests, and what it has learned there. Threads may share it."""

    base_url: str
    headers: Mapping[str, str] = field(default_factory=dict)  # of every request
    max_retries: int = 2
    binary: bool | None = None  # None: not known yet
    default: str | None = None
    models: dict[tuple[str, str | None], infer.Description] = field(default_factory=dict)


@dataclass(frozen=True)
class Events:
    """An open stream: its first Reply, and how its events are read."""

    reply: Reply
    path: str
    deadline: Deadline
    retries: int

    def read(self, event: Event) -> RemotePrediction | None:
        """The prediction of an event, None for another kind; raises what an `error` event says, and for nonsense."""
        timings = Timings.read("", seconds=self.deadline.passed(), retries=self.retries)
        try:
            return api.read_event(event.name, event.data, self.reply, timings, self.path)
        except APIError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise APIConnectionError(
                f"An event from {self.path} is not an mcdrop server's ({type(error).__name__}: {error})."
            ) from error

    def check_time(self) -> None:
        """A stream may not go on for ever, although each of its events comes in time."""
        if self.deadline.left() <= 0:
            raise timeout_error(self.path, "the stream went on for too long")

    def cut_off(self) -> APIConnectionError:
        """The stream has ended without its last event."""
        return APIConnectionError(f"The stream from {self.path} ended before its result. Ask again.")


def call(asked: Call[Result], server: Server, deadline: Deadline) -> Talk[Result]:
    """One call with its retries."""
    reply, retries = yield from _send(asked, server, deadline)
    return _result(asked, reply, deadline, retries)


def predict(asked: Asked, server: Server, deadline: Deadline) -> Talk[RemotePrediction]:
    """A prediction: by binary tensors where server and model allow it, else by JSON."""
    if (yield from _is_binary(server, deadline)):
        model, described, is_fresh = yield from _described(asked, server, deadline)
        while model is not None and described is not None and described.is_sendable:
            try:
                return (yield from _infer(asked, model, described, server, deadline))
            except (InputError, BadRequest, NotFound):
                if is_fresh:
                    raise
                used = described  # it may be of a model that has been replaced
                server.models.pop((model, asked.version), None)
                server.default = None
                before = model
                model, described, is_fresh = yield from _described(asked, server, deadline)
                if (model, described) == (before, replace(used, version=described.version if described else None)):
                    raise
    return (yield from call(api.predict(asked), server, deadline))


def stream(asked: Asked, server: Server, deadline: Deadline) -> Talk[Events]:
    """Opens a stream of predictions; until its first byte all is tried again as in any call."""
    opening = api.stream(asked)
    reply, retries = yield from _send(opening, server, deadline, streamed=True)
    return Events(reply, opening.path, deadline, retries)


def _infer(
    asked: Asked, model: str, described: infer.Description, server: Server, deadline: Deadline
) -> Talk[RemotePrediction]:
    request = infer.predict(asked, model, described)
    reply, retries = yield from _send(request, server, deadline)
    prediction = _result(request, reply, deadline, retries)
    key = (model, asked.version)
    if described.version is None:
        server.models[key] = replace(described, version=prediction.version)
    elif described.version != prediction.version:  # replaced meanwhile, perhaps with other classes
        fresh = yield from call(infer.describe(model, asked.version), server, deadline)
        server.models[key] = replace(fresh, version=prediction.version)
        return replace(prediction, class_names=fresh.class_names)
    return prediction


def _is_binary(server: Server, deadline: Deadline) -> Talk[bool]:
    if server.binary is None:
        asked = infer.server_extensions()
        try:
            reply, _ = yield from _send(asked, server, deadline)
            server.binary = infer.EXTENSION in asked.read(reply, Timings())
        except APIError as error:
            if getattr(error, "status", None) not in ABSENT:
                raise
            server.binary = False
        except (AttributeError, TypeError, ValueError):  # something answers there that is no server of models
            server.binary = False
    return server.binary


def _described(
    asked: Asked, server: Server, deadline: Deadline
) -> Talk[tuple[str | None, infer.Description | None, bool]]:
    """The model, what is known of it, and whether all of that was asked for just now. No model: there is no default."""
    model, is_fresh = asked.model or server.default, True
    if model is None:
        model = server.default = yield from call(api.default_model(), server, deadline)
        if model is None:
            return None, None, True
    elif asked.model is None:
        is_fresh = False
    key = (model, asked.version)
    described = server.models.get(key)
    if described is None:
        described = server.models[key] = yield from call(infer.describe(*key), server, deadline)
    else:
        is_fresh = False
    return model, described, is_fresh


def _send(asked: Call[Any], server: Server, deadline: Deadline, *, streamed: bool = False) -> Talk[tuple[Reply, int]]:
    """The first answer that says yes, and how many retries it took; raises what the last attempt met."""
    url = server.base_url + asked.path
    fixed = {**server.headers, "X-Request-Id": uuid.uuid4().hex, "Accept": asked.accept}
    most = server.max_retries if asked.retry else 0
    attempt = 0
    while True:
        seconds = deadline.left()
        if seconds <= 0:
            raise timeout_error(url, "the time was over")
        content, own = (None, {}) if asked.body is None else asked.body(deadline.useful_ms())
        headers = {**fixed, **own, "x-retry-count": str(attempt)}
        cause: httpx.HTTPError | None = None
        failure: APIError
        try:
            reply = yield Ask(asked.method, url, headers, content, seconds, streamed)
        except httpx.HTTPError as error:
            is_hopeless = isinstance(error, HOPELESS) or not isinstance(error, httpx.TransportError)
            failure, cause = connection_error(error, url), error
            wait = None if is_hopeless else backoff(attempt)
        else:
            if reply is None:
                raise TypeError("a driver sent nothing for an Ask; expected a Reply")
            if reply.status < 300:
                return reply, attempt
            failure = status_error(reply.status, reply.headers, _json(reply.content), url)
            wait = wait_after(reply.status, reply.headers, attempt)
        if wait is None or attempt >= most or not deadline.allows(wait):
            raise failure from cause
        yield Pause(wait)
        attempt += 1


def _result(asked: Call[Result], reply: Reply, deadline: Deadline, retries: int) -> Result:
    timings = Timings.read(reply.headers.get("server-timing", ""), seconds=deadline.passed(), retries=retries)
    return asked.result(reply, timings)


def _json(content: bytes) -> Any:
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        return None  # from something in between
