"""What can go wrong between a client and a server.

McdropError
`-- APIError
    |-- APIConnectionError         no answer: refused, cut off, not understood
    |   `-- APITimeoutError        no answer in time
    `-- APIStatusError             an answer that says no: .status, .code, .request_id, .retry_after
        |-- BadRequest             400  shape, dtype, values, limits, where the answer is binary
        |   `-- UnprocessableRequest   422  the same, where it is JSON
        |-- Authentication         401
        |-- PermissionDenied       403
        |-- NotFound               404  no such model
        |-- PayloadTooLarge        413
        |-- Overloaded             429
        |-- NotReady               503
        |-- DeadlineExceeded       504
        `-- InternalServer         500 and above otherwise
"""

from collections.abc import Mapping
from typing import Any

import httpx

from mcdrop.errors import McdropError
from mcdrop.wire.retries import retry_after


class APIError(McdropError):
    """A request to a server failed."""

    code = "api-error"


class APIConnectionError(APIError, ConnectionError):
    """The server gave no answer that could be understood; the request may or may not have reached it."""

    code = "api-connection"


class APITimeoutError(APIConnectionError, TimeoutError):
    """The server gave no answer in time."""

    code = "api-timeout"


class APIStatusError(APIError):
    """The server answered, and said no. The message is the server's own sentence.

    Attributes:
        status: the HTTP status.
        code: the server's stable word for the failure, such as "unknown-model".
        request_id: under which the server logs the request.
        retry_after: seconds after which the server suggests to try again, or None.
    """

    def __init__(
        self,
        detail: str,
        *,
        status: int = 0,
        code: str = "api-error",
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(detail)  # the rest lies in __dict__, which pickle restores
        self.status = status
        self.code = code
        self.request_id = request_id
        self.retry_after = retry_after


class BadRequest(APIStatusError, ValueError):
    """400: the body was not understood, or asks for what cannot be; the message says which."""


class Authentication(APIStatusError, PermissionError):
    """401: no key, or a wrong one."""


class PermissionDenied(APIStatusError, PermissionError):
    """403: the key does not allow this."""


class NotFound(APIStatusError, LookupError):
    """404: no such model, or no such address."""


class PayloadTooLarge(APIStatusError, ValueError):
    """413: the request has more bytes than the server reads."""


class UnprocessableRequest(BadRequest):
    """422: shape, dtype, values or limits; the message says which."""


class Overloaded(APIStatusError):
    """429: too many requests wait at the server."""


class NotReady(APIStatusError):
    """503: models are being loaded, or the server is about to stop."""


class DeadlineExceeded(APIStatusError, TimeoutError):
    """504: the time for the request was over before its answer was ready."""


class InternalServer(APIStatusError):
    """500 and above: the server's own failure."""


STATUS_ERRORS: dict[int, type[APIStatusError]] = {
    400: BadRequest,
    401: Authentication,
    403: PermissionDenied,
    404: NotFound,
    413: PayloadTooLarge,
    422: UnprocessableRequest,
    429: Overloaded,
    503: NotReady,
    504: DeadlineExceeded,
}


def connection_error(error: httpx.HTTPError, url: str) -> APIConnectionError:
    """The typed form of an answer that did not come."""
    if isinstance(error, httpx.TimeoutException):
        return timeout_error(url, type(error).__name__)
    reason = str(error) or type(error).__name__
    return APIConnectionError(f"No answer from {url}: {reason}. Is the server running there?")


def timeout_error(url: str, reason: str) -> APITimeoutError:
    return APITimeoutError(f"No answer from {url} in time ({reason}). Give a longer timeout=.")


def status_error(status: int, headers: Mapping[str, str], answer: Any, url: str) -> APIStatusError:
    """The typed form of an answer that says no: `answer` is its JSON, a problem or `{"error"}`, or anything else."""
    cls = STATUS_ERRORS.get(status, InternalServer if status >= 500 else APIStatusError)
    said: Mapping[str, Any] = answer if isinstance(answer, Mapping) else {}
    return cls(
        str(said.get("detail") or said.get("error") or f"HTTP {status} from {url}"),
        status=status,
        code=str(said.get("code", cls.code)),
        request_id=headers.get("x-request-id") or said.get("request_id"),
        retry_after=retry_after(headers),
    )
