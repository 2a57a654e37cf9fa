"""The application: settings in, ASGI out."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.responses import Response

import mcdrop
from mcdrop.errors import McdropError
from service.documentation import document
from service.errors import problem
from service.memory import trim_as_it_grows
from service.metrics import Metrics
from service.middleware import Door
from service.registry import Registry
from service.routes import health, metrics, models, predict, stream, v2
from service.security import Gate, Keys
from service.settings import Settings, load_settings

log = logging.getLogger("service.app")

DESCRIPTION = "Predictions with their uncertainty, by Monte Carlo dropout."


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application. Models are found here, and loaded once it has started.

    Raises SettingError or BundleError when there is nothing to serve. Under another server than `service.server`
    give it as a factory: `uvicorn --factory service.app:create_app`.
    """
    settings = settings or load_settings()
    app: FastAPI = FastAPIOffline(
        title="mcdrop",
        version=mcdrop.__version__,
        description=DESCRIPTION,
        redoc_url=None,
        static_url="/docs/static",
        redirect_slashes=False,
        lifespan=_lifespan,
        swagger_ui_parameters={"validatorUrl": None},  # else the page asks a server on the internet about itself
    )
    app.state.metrics = Metrics()
    app.state.registry = Registry(settings, app.state.metrics)
    app.state.keys = keys = Keys.of(settings)
    app.include_router(predict.router)  # routes are tried in this order
    app.include_router(v2.predictions)
    app.include_router(stream.router)
    app.include_router(models.router)
    app.include_router(models.admin)
    app.include_router(health.router)
    app.include_router(metrics.router)
    app.include_router(v2.router)
    app.add_exception_handler(HTTPException, _answer)  # the rest goes up to the door by itself
    app.add_middleware(Gate, keys=keys, open_health=settings.open_health, open_metrics=settings.open_metrics)
    app.add_middleware(Door, settings=settings, metrics=app.state.metrics)  # the last one is the outermost
    app.openapi = lambda: document(app)  # type: ignore[method-assign]  # FastAPI's documented way to extend it
    return app


async def _answer(request: Request, error: Exception) -> Response:
    return problem(error, request.scope)


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Load in the background, so that probes are answered from the first moment."""
    registry: Registry = app.state.registry
    registry.scheduler.start()
    app.state.loading = loading = asyncio.create_task(registry.load())
    loading.add_done_callback(_log_failure)
    trimming = asyncio.create_task(trim_as_it_grows())
    try:
        yield
    finally:
        loading.cancel()
        trimming.cancel()
        await asyncio.to_thread(registry.scheduler.stop)


def _log_failure(loading: "asyncio.Task[None]") -> None:
    if not loading.cancelled() and (error := loading.exception()) is not None:
        log.error("a model could not be loaded: %s", error, exc_info=None if isinstance(error, McdropError) else error)
