"""Ask a served model from Python: NumPy arrays in, the same field names out.

    with Client("http://localhost:8000") as client:
        prediction = client.predict(x, num_samples=100, seed=7)
        prediction.mean, prediction.variance, prediction.entropy, prediction.request_id

`AsyncClient` is the same with `await`. Neither needs PyTorch. `mcdrop.api_errors` draws the errors they raise.
"""

import os
from collections.abc import Sequence
from typing import Any, Self

import httpx

from mcdrop.api import Call, RemotePrediction, Result, list_models, predict, probe_ready, show_model
from mcdrop.api_errors import (
    APIConnectionError,
    APIError,
    APIStatusError,
    APITimeoutError,
    Authentication,
    BadRequest,
    DeadlineExceeded,
    InternalServer,
    NotFound,
    NotReady,
    Overloaded,
    PayloadTooLarge,
    PermissionDenied,
    UnprocessableRequest,
    connection_error,
)
from mcdrop.errors import SettingError

__all__ = [
    "APIConnectionError",
    "APIError",
    "APIStatusError",
    "APITimeoutError",
    "AsyncClient",
    "Authentication",
    "BadRequest",
    "Client",
    "DeadlineExceeded",
    "InternalServer",
    "NotFound",
    "NotReady",
    "Overloaded",
    "PayloadTooLarge",
    "PermissionDenied",
    "RemotePrediction",
    "UnprocessableRequest",
]

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_TIMEOUT = 60.0  # seconds for an answer
CONNECT_TIMEOUT = 5.0  # seconds for a connection


class Client:
    """A connection to one server. Close it, or use it in a `with` block; safe to share between threads.

    Args:
        base_url: the server; left out, MCDROP_BASE_URL or http://127.0.0.1:8000.
        timeout: seconds for an answer, unless a call says otherwise.
        http_client: your own `httpx.Client`, or an object with its `request` method; it is not closed.
    """

    def __init__(
        self, base_url: str | None = None, *, timeout: float = DEFAULT_TIMEOUT, http_client: httpx.Client | None = None
    ) -> None:
        self.base_url = _base_url(base_url)
        self.timeout = timeout
        self._http = httpx.Client() if http_client is None else http_client
        self._is_own = http_client is None

    def predict(
        self,
        inputs: Any,
        *,
        num_samples: int | None = None,
        seed: int | None = None,
        outputs: Sequence[str] = (),
        quantiles: Sequence[float] | None = None,
        model: str | None = None,
        timeout: float | None = None,
    ) -> RemotePrediction:
        """The prediction for a batch: an array when the model has one input, else a dict of arrays by name.

        Args:
            inputs: rows first; arrays, tensors or nested lists, all values finite.
            num_samples: stochastic passes; left out, the model's default.
            seed: same seed, same masks; left out, the model's default.
            outputs: further fields, such as "std", "mutual_information", "standard_errors", "quantiles", "samples".
            quantiles: levels between 0 and 1 for the output "quantiles".
            model: which model; left out, the server's default.
            timeout: seconds for this call.

        Raises InputError before anything is sent, and APIError.
        """
        call = predict(inputs, num_samples, seed, outputs, quantiles, model)
        return self._send(call, timeout)

    def models(self) -> list[dict[str, Any]]:
        """What is served: name, version, task of each model."""
        return self._send(list_models())

    def model(self, name: str) -> dict[str, Any]:
        """Everything about one model: inputs, classes, outputs, defaults, limits, sites."""
        return self._send(show_model(name))

    def ready(self) -> bool:
        """Whether the server can be reached and has loaded its models."""
        try:
            return self._send(probe_ready())
        except (APIConnectionError, NotReady):
            return False

    def close(self) -> None:
        """Close the connections; a client object that was handed in stays open."""
        if self._is_own:
            self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, call: Call[Result], timeout: float | None = None) -> Result:
        """One request and its answer: the place for trying again."""
        url, limit = self.base_url + call.path, _timeout(self.timeout if timeout is None else timeout)
        try:
            response = self._http.request(call.method, url, content=call.content, headers=call.headers(), timeout=limit)
        except httpx.HTTPError as error:
            raise connection_error(error, url) from error
        return call.result(response)


class AsyncClient:
    """`Client` for asyncio: the same arguments, methods and errors; `await` each call, use `async with`."""

    def __init__(
        self,
        base_url: str | None = None,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        http_client: httpx.AsyncClient | None = None,
    ) -> None:
        self.base_url = _base_url(base_url)
        self.timeout = timeout
        self._http = httpx.AsyncClient() if http_client is None else http_client
        self._is_own = http_client is None

    async def predict(
        self,
        inputs: Any,
        *,
        num_samples: int | None = None,
        seed: int | None = None,
        outputs: Sequence[str] = (),
        quantiles: Sequence[float] | None = None,
        model: str | None = None,
        timeout: float | None = None,
    ) -> RemotePrediction:
        """See `Client.predict`. Cancelling the call makes the server give the prediction up."""
        call = predict(inputs, num_samples, seed, outputs, quantiles, model)
        return await self._send(call, timeout)

    async def models(self) -> list[dict[str, Any]]:
        """See `Client.models`."""
        return await self._send(list_models())

    async def model(self, name: str) -> dict[str, Any]:
        """See `Client.model`."""
        return await self._send(show_model(name))

    async def ready(self) -> bool:
        """See `Client.ready`."""
        try:
            return await self._send(probe_ready())
        except (APIConnectionError, NotReady):
            return False

    async def aclose(self) -> None:
        """Close the connections; a client object that was handed in stays open."""
        if self._is_own:
            await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _send(self, call: Call[Result], timeout: float | None = None) -> Result:
        url, limit = self.base_url + call.path, _timeout(self.timeout if timeout is None else timeout)
        try:
            response = await self._http.request(
                call.method, url, content=call.content, headers=call.headers(), timeout=limit
            )
        except httpx.HTTPError as error:
            raise connection_error(error, url) from error
        return call.result(response)


def _base_url(given: str | None) -> str:
    url = given or os.environ.get("MCDROP_BASE_URL") or DEFAULT_URL
    if not url.startswith(("http://", "https://")):
        raise SettingError(f"base_url is {url!r}; expected a URL such as {DEFAULT_URL}.")
    return url.rstrip("/")


def _timeout(seconds: float) -> httpx.Timeout:
    return httpx.Timeout(seconds, connect=min(seconds, CONNECT_TIMEOUT))
