"""Every failure that leaves over HTTP, in one shape and through one table.

    {"type", "title", "status", "detail", "code", "request_id"}      as application/problem+json (RFC 9457)
    {"error": detail}                                                as application/json, under /v2

The Open Inference Protocol knows no 422: there it is 400. `detail` is the sentence that a user of the library reads,
`code` is stable. Errors travel here by themselves: routes raise, never answer. What the table does not know is a bug:
the answer says nothing of it, the log says all.
"""

import logging
from dataclasses import dataclass
from http import HTTPStatus

import orjson
import torch
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Scope

from mcdrop.errors import InputError, McdropError, PassMemoryError, SettingError

log = logging.getLogger("service.errors")


class MalformedBodyError(McdropError, ValueError):
    """The body is not JSON."""

    code = "malformed-json"


class InvalidRequestError(McdropError, ValueError):
    """The body is JSON, but not a request."""

    code = "invalid-request"


class LimitError(McdropError, ValueError):
    """A well-formed request asks for more than the server allows; the message names the limit and its setting."""

    code = "limit-exceeded"


class BodyTooLargeError(McdropError, ValueError):
    """The body has more bytes than the server reads."""

    code = "body-too-large"


class MediaTypeError(McdropError, ValueError):
    """The body comes in a form that this server does not read."""

    code = "unsupported-media-type"


class MalformedRequestError(McdropError, ValueError):
    """What arrives is not HTTP."""

    code = "malformed-http"


class SlowRequestError(McdropError, TimeoutError):
    """The headers or the body did not arrive in time."""

    code = "request-timeout"


class HeadersTooLargeError(McdropError, ValueError):
    """The address and the headers have more bytes than the server reads."""

    code = "headers-too-large"


class UnauthorizedError(McdropError, PermissionError):
    """A key is needed, and none or a wrong one was given."""

    code = "unauthorized"


class ForbiddenError(McdropError, PermissionError):
    """The key does not allow this, or nothing does."""

    code = "forbidden"


class ContentEncodingError(MediaTypeError):
    """The body is compressed in a way that this server does not read."""

    code = "unsupported-encoding"


class UnknownModelError(McdropError, LookupError):
    """No model of this name and version is served, or none was named and none is the default."""

    code = "unknown-model"


class NotReadyError(McdropError, RuntimeError):
    """Models are still being loaded, or the server is about to stop."""

    code = "not-ready"


class LoadError(McdropError, ValueError):
    """What lies in the repository cannot be served; what was served before is served still."""

    code = "load-failed"


class NotOfferedError(McdropError, NotImplementedError):
    """The server could do this, but it was not started to."""

    code = "not-offered"


class NonFiniteError(McdropError, ArithmeticError):
    """An answer holds NaN or infinity, and the setting `nonfinite` refuses that."""

    code = "nonfinite-answer"


class OverloadedError(McdropError, RuntimeError):
    """As much work waits as the server holds; `retry_after` is how many seconds it takes."""

    code = "overloaded"

    def __init__(self, message: str, *, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineError(McdropError, TimeoutError):
    """The request's deadline came before its answer."""

    code = "deadline-exceeded"


class ClientGoneError(McdropError, ConnectionError):
    """The client closed the connection before its answer was ready. For the log: nobody reads the answer."""

    code = "client-gone"


@dataclass(frozen=True)
class Row:
    """One line of the table: the status of an error, and headers that say when to come back."""

    status: int
    code: str | None = None  # None: the error's own
    headers: tuple[tuple[str, str], ...] = ()


AGAIN = (("Retry-After", "1"),)
CLOSE = (("Connection", "close"),)  # what else comes on this connection cannot be understood, or is not worth the wait
NOT_AGAIN = (("x-should-retry", "false"),)
CODINGS = (("Accept-Encoding", "gzip, deflate"),)

TABLE: dict[type[BaseException], Row] = {
    MalformedBodyError: Row(400),
    MalformedRequestError: Row(400, headers=CLOSE),
    UnauthorizedError: Row(401, headers=(("WWW-Authenticate", "Bearer"),)),
    ForbiddenError: Row(403),
    UnknownModelError: Row(404),
    SlowRequestError: Row(408, headers=CLOSE),
    BodyTooLargeError: Row(413),
    MediaTypeError: Row(415),
    ContentEncodingError: Row(415, headers=CODINGS),
    InvalidRequestError: Row(422),
    LimitError: Row(422),
    InputError: Row(422),
    SettingError: Row(422),
    LoadError: Row(422),
    OverloadedError: Row(429),
    HeadersTooLargeError: Row(431, headers=CLOSE),
    ClientGoneError: Row(499),
    ClientDisconnect: Row(499, "client-gone"),  # starlette's, while the body is being read
    NonFiniteError: Row(500, headers=NOT_AGAIN),
    NotOfferedError: Row(501),
    NotReadyError: Row(503, headers=AGAIN),
    DeadlineError: Row(504),
    PassMemoryError: Row(503, headers=NOT_AGAIN),
    torch.OutOfMemoryError: Row(503, "out-of-memory", headers=NOT_AGAIN),
    MemoryError: Row(503, "out-of-memory", headers=NOT_AGAIN),
}
HTTP_CODES = {404: "not-found", 405: "method-not-allowed"}  # routes and verbs that do not exist
TITLES = {499: "Client Closed Request"}  # nginx's number, which HTTPStatus does not have


def problem(error: BaseException, scope: Scope) -> Response:
    """The answer to a request that ended in `error`."""
    if isinstance(error, HTTPException):
        code = HTTP_CODES.get(error.status_code, "http-error")
        return _render(scope, error.status_code, code, _say(error, scope), dict(error.headers or {}))
    row = next((TABLE[cls] for cls in type(error).__mro__ if cls in TABLE), None)
    if row is None:
        log.error("a request failed in an unforeseen way [%s]", request_id(scope), exc_info=error)
        sentence = f"The server failed in a way it did not foresee. Its log has the details under {request_id(scope)}."
        return _render(scope, 500, "internal-error", sentence, {})
    code = row.code or str(getattr(error, "code", "internal-error"))
    status, headers = row.status, dict(row.headers)
    if isinstance(error, OverloadedError):
        status = scope.get("state", {}).get("overload_status", row.status)
        headers |= {"Retry-After": str(error.retry_after), "retry-after-ms": str(error.retry_after * 1000)}
    return _render(scope, status, code, str(error), headers)


def request_id(scope: Scope) -> str:
    """The id under which this request is answered and logged."""
    return str(scope.get("state", {}).get("request_id", "-"))


def _say(error: HTTPException, scope: Scope) -> str:
    if error.status_code == 404:
        return f"There is nothing at {scope['path']}. GET / lists what this server answers."
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another verb")
        return f"{scope['path']} does not answer {scope['method']}, it answers {allowed}."
    return str(error.detail)


def _render(scope: Scope, status: int, code: str, detail: str, headers: dict[str, str]) -> Response:
    scope.setdefault("state", {})["problem"] = (status, code)  # what `service.traffic` counts
    detail = detail.encode("utf-8", "backslashreplace").decode()  # half a surrogate pair, from an escape in JSON
    if scope.get("path", "") == "/v2" or scope.get("path", "").startswith("/v2/"):
        status = 400 if status == 422 else status
        return Response(orjson.dumps({"error": detail}), status, headers, media_type="application/json")
    title = TITLES.get(status) or HTTPStatus(status).phrase
    content = {
        "type": f"urn:mcdrop:problem:{code}",
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
        "request_id": request_id(scope),
    }
    return Response(orjson.dumps(content), status, headers, media_type="application/problem+json")
