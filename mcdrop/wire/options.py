"""What both clients are set up with, what a call may ask for, and how long it may take."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

import httpx

from mcdrop.errors import SettingError
from mcdrop.wire import api
from mcdrop.wire.api import Asked
from mcdrop.wire.exchange import Ask, Server
from mcdrop.wire.retries import Deadline

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_TIMEOUT = 60.0  # seconds for a call
DEFAULT_RETRIES = 2
CONNECT_TIMEOUT = 5.0  # seconds for a connection
KEEP_ALIVE = 60.0  # seconds that an idle connection is kept; the server closes it after 75, and must not come first
LIMITS = httpx.Limits(max_connections=1000, max_keepalive_connections=100, keepalive_expiry=KEEP_ALIVE)
IN_TIME_FOR_PARTIAL = 0.9  # of the timeout: when a partial answer is due, so that it still arrives


class Options(TypedDict, total=False):
    """What `predict`, `stream` and `predict_many` take besides the inputs; `Client.predict` explains each."""

    num_samples: int | None
    seed: int | None
    outputs: Sequence[str]
    quantiles: Sequence[float] | None
    model: str | None
    version: str | None
    deadline: float | None
    allow_partial: bool
    determinism: Literal["standard", "exact"] | None
    tolerance: float | None
    certified: bool
    until: Literal["label"] | None
    timeout: float | None


class Connection:
    """What both clients know: where the server is, how long a call may take, and what a call asks for."""

    def __init__(
        self, base_url: str | None, api_key: str | None, timeout: float, max_retries: int, binary: bool | None
    ) -> None:
        if isinstance(max_retries, bool) or not isinstance(max_retries, int) or max_retries < 0:
            raise SettingError(f"max_retries is {max_retries!r}; expected a whole number of at least 0.")
        self.base_url = _base_url(base_url)
        self.timeout = _seconds("timeout", timeout)
        self._server = Server(self.base_url, _authorization(api_key), max_retries, binary)

    def _deadline(self, options: Options) -> Deadline:
        """Begins now."""
        given, useful = options.get("timeout"), options.get("deadline")
        timeout = self.timeout if given is None else _seconds("timeout", given)
        if useful is None:
            return Deadline(timeout, timeout * IN_TIME_FOR_PARTIAL if options.get("allow_partial") else math.inf)
        return Deadline(timeout, _seconds("deadline", useful))

    def _asked(self, inputs: Any, options: Options) -> Asked:
        """Raises InputError."""
        rest: dict[str, Any] = {name: value for name, value in options.items() if name not in ("timeout", "deadline")}
        return api.asked(inputs, **rest)


def _base_url(given: str | None) -> str:
    url = given or os.environ.get("MCDROP_BASE_URL") or DEFAULT_URL
    if not url.startswith(("http://", "https://")):
        raise SettingError(f"base_url is {url!r}; expected a URL such as {DEFAULT_URL}.")
    return url.rstrip("/")


def _authorization(given: str | None) -> Mapping[str, str]:
    key = os.environ.get("MCDROP_API_KEY", "") if given is None else given
    if not (key.isascii() and key.isprintable()):
        raise SettingError("api_key holds characters that no HTTP header can carry; expected printable ASCII.")
    return {"Authorization": f"Bearer {key}"} if key else {}


def _seconds(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise SettingError(f"{name} is {value!r}; expected seconds, above 0.")
    return float(value)


def request(http: httpx.Client | httpx.AsyncClient, step: Ask) -> httpx.Request:
    """What a conversation asks, as a request of httpx with its time limits."""
    limit = httpx.Timeout(step.seconds, connect=min(step.seconds, CONNECT_TIMEOUT))
    return http.build_request(step.method, step.url, content=step.content, headers=step.headers, timeout=limit)
