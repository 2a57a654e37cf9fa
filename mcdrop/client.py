"""Ask a served model from Python: NumPy arrays in, the same field names out.

    with Client("http://localhost:8000") as client:
        prediction = client.predict(x, num_samples=100, seed=7)
        prediction.mean, prediction.variance, prediction.entropy, prediction.request_id

        for estimate in client.stream(x): ...                # sharpens while the server computes
        everything = client.predict_many(rows, concurrency=8)    # as many requests as it takes, side by side

`AsyncClient` is the same with `await` and `async for`. Neither needs PyTorch. Tensors travel as bytes where the server
offers it, else as JSON. Requests that met a busy server or a broken connection are sent again (`mcdrop.wire.retries`),
all within one time limit, of which the server is told. `mcdrop.wire.api_errors` draws the errors.
"""

import contextlib
import time
from collections.abc import AsyncIterable, Callable, Generator, Sequence
from typing import Any, Literal, Self, TypeVar, Unpack

import httpx

from mcdrop.errors import SettingError
from mcdrop.wire import api, exchange, many
from mcdrop.wire.answers import RemotePrediction, Timings, joined
from mcdrop.wire.api import Asked, Reply
from mcdrop.wire.api_errors import (
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
from mcdrop.wire.async_client import AsyncClient
from mcdrop.wire.events import EventReader
from mcdrop.wire.exchange import Ask, Pause, Talk
from mcdrop.wire.options import DEFAULT_RETRIES, DEFAULT_TIMEOUT, LIMITS, Connection, Options, request

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
    "Timings",
    "UnprocessableRequest",
]

Result = TypeVar("Result")


class Client(Connection):
    """Connections to one server. Close it, or use it in a `with` block; safe to share between threads.

    Args:
        base_url: the server; left out, MCDROP_BASE_URL or http://127.0.0.1:8000.
        api_key: sent as a bearer token; left out, MCDROP_API_KEY, or none.
        timeout: seconds for a call with all its retries, unless the call says otherwise; 5 of them for a connection.
        max_retries: further attempts of a request that met a busy server or a broken connection.
        http_client: your own `httpx.Client`; it is not closed.
        binary: whether to send tensors as bytes; left out, if the server offers it.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        max_retries: int = DEFAULT_RETRIES,
        http_client: httpx.Client | None = None,
        binary: bool | None = None,
    ) -> None:
        super().__init__(base_url, api_key, timeout, max_retries, binary)
        self._http = httpx.Client(limits=LIMITS) if http_client is None else http_client
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
        version: str | None = None,
        deadline: float | None = None,
        allow_partial: bool = False,
        determinism: Literal["standard", "exact"] | None = None,
        tolerance: float | None = None,
        certified: bool = False,
        until: Literal["label"] | None = None,
        timeout: float | None = None,
    ) -> RemotePrediction:
        """The prediction for a batch: an array when the model has one input, else a dict of arrays by name.

        Args:
            inputs: rows first; arrays, tensors or nested lists, all values finite.
            num_samples: stochastic passes; left out, the model's default.
            seed: same seed, same masks; left out, the model's default, which is fixed: a retry gives the same answer.
            outputs: further fields, such as "std", "mutual_information", "standard_errors", "quantiles", "samples".
            quantiles: levels between 0 and 1 for the output "quantiles".
            model: which model; left out, the server's default.
            version: which version of that model; left out, the newest.
            deadline: seconds from the call after which the answer is of no use to you, at most `timeout`: the server
                gives up then, and DeadlineExceeded is raised. Left out, the timeout.
            allow_partial: answer at the deadline from the passes that are done (`prediction.partial`, `num_samples`).
                Without a deadline it is at nine tenths of the timeout.
            determinism: "exact" for the same bits whatever else is served, at some cost.
            tolerance: each row stops, after at most `num_samples` passes, when the half-width of every number of `mean`
                is at most this, at 95 %; `prediction.passes` and `prediction.converged` say more of each row.
            certified: keep the tolerance by a confidence sequence instead of asymptotically; probabilities only.
            until: "label" stops each row when its label is settled, at 95 %.
            timeout: seconds for this call with all its retries.

        Raises InputError and SettingError before anything is sent, and APIError.
        """
        return self._predict(
            inputs,
            {
                "num_samples": num_samples,
                "seed": seed,
                "outputs": outputs,
                "quantiles": quantiles,
                "model": model,
                "version": version,
                "deadline": deadline,
                "allow_partial": allow_partial,
                "determinism": determinism,
                "tolerance": tolerance,
                "certified": certified,
                "until": until,
                "timeout": timeout,
            },
        )

    def stream(self, inputs: Any, **options: Unpack[Options]) -> Generator[RemotePrediction]:
        """Predictions that sharpen while the server computes; the last one is what `predict` gives.

        Each has `standard_errors`, and as `num_samples` the passes so far. Takes what `predict` takes. Leaving the
        loop, or `close()`, ends the request at the server. Raises as `predict` does, also midway.
        """
        return self._events(self._asked(inputs, options), options)

    def predict_many(
        self,
        inputs: Any,
        *,
        batch_size: int | None = None,
        concurrency: int = many.CONCURRENCY,
        progress: bool | None = None,
        **options: Unpack[Options],
    ) -> RemotePrediction:
        """One prediction for any number of rows, by several requests side by side, in the order of the rows.

        Args:
            inputs: as for `predict`, cut into requests; or an iterable of batches (a generator, a data loader), of
                which only as many are taken as are being sent.
            batch_size: rows of a request; 256 for arrays, and whatever the batches of an iterable have.
            concurrency: requests under way at a time.
            progress: whether to draw a progress bar on standard error; left out, if that is a terminal.
            options: as for `predict`; `timeout` and `deadline` are those of each request.

        The first error is raised, and nothing further is sent. Under `masks="independent"` a row's masks depend on its
        place in its request, so they depend on `batch_size` too.
        """
        many.check(batch_size, concurrency)
        started = time.monotonic()
        batches, total = many.cut(inputs, batch_size)
        if isinstance(batches, AsyncIterable):
            raise SettingError("these batches come from an asynchronous iterator; use AsyncClient.")
        with many.bar(progress, total) as advance:
            parts = many.in_threads(
                lambda batch, pause: self._predict(batch, options, pause), batches, concurrency, advance
            )
        return joined(parts, seconds=time.monotonic() - started)

    def models(self) -> list[dict[str, Any]]:
        """What is served: name, version, task of each model."""
        return self._run(exchange.call(api.list_models(), self._server, self._deadline({})))

    def default_model(self) -> str | None:
        """The model that answers where none is named, if there is one."""
        return self._run(exchange.call(api.default_model(), self._server, self._deadline({})))

    def model(self, name: str, version: str | None = None) -> dict[str, Any]:
        """Everything about one model (its newest version): inputs, classes, outputs, defaults, limits, sites."""
        return self._run(exchange.call(api.show_model(name, version), self._server, self._deadline({})))

    def ready(self) -> bool:
        """Whether the server can be reached and has loaded its models. Asks once."""
        try:
            return self._run(exchange.call(api.probe_ready(), self._server, self._deadline({})))
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

    def _predict(self, inputs: Any, options: Options, pause: Callable[[float], None] | None = None) -> RemotePrediction:
        deadline = self._deadline(options)
        return self._run(exchange.predict(self._asked(inputs, options), self._server, deadline), pause)

    def _events(self, asked: Asked, options: Options) -> Generator[RemotePrediction]:
        events = self._run(exchange.stream(asked, self._server, self._deadline(options)))
        response: httpx.Response = events.reply.stream
        reader = EventReader()
        try:
            for piece in response.iter_bytes():
                for event in reader.feed(piece):
                    prediction = events.read(event)
                    if prediction is not None:
                        yield prediction
                    if event.name == "result":
                        return
                events.check_time()
        except httpx.HTTPError as error:
            raise connection_error(error, events.path) from error
        finally:
            response.close()
        raise events.cut_off()

    def _run(self, talk: Talk[Result], pause: Callable[[float], None] | None = None) -> Result:
        """Do what the conversation says; `pause` is how to wait."""
        with contextlib.closing(talk):
            try:
                step = next(talk)
                while True:
                    if isinstance(step, Pause):
                        (pause or time.sleep)(step.seconds)
                        step = next(talk)
                        continue
                    try:
                        reply = self._ask(step)
                    except httpx.HTTPError as error:
                        step = talk.throw(error)
                    else:
                        step = talk.send(reply)
            except StopIteration as done:
                result: Result = done.value
                return result

    def _ask(self, step: Ask) -> Reply:
        until = time.monotonic() + step.seconds
        response = self._http.send(request(self._http, step), stream=True)
        if step.streamed and response.is_success:
            return Reply(response.status_code, response.headers, stream=response)
        pieces = []
        try:
            for piece in response.iter_bytes():
                pieces.append(piece)
                if time.monotonic() > until:
                    raise httpx.ReadTimeout("its answer came too slowly")
        finally:
            response.close()
        return Reply(response.status_code, response.headers, b"".join(pieces))
