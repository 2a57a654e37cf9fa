"""What routes are given."""

from typing import Annotated, Any

from fastapi import Depends, Request

from service.registry import Registry
from service.security import Keys
from service.wire import Problem


async def _registry(request: Request) -> Registry:
    """Async, since FastAPI sends a plain function to a thread and back."""
    registry: Registry = request.app.state.registry
    return registry


Models = Annotated[Registry, Depends(_registry)]


async def _administer(request: Request) -> None:
    keys: Keys = request.app.state.keys
    keys.check_admin(request.headers)


ADMIN = [Depends(_administer)]  # `dependencies=` of routes that change what is served

ERRORS: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "Any failure.",
        "content": {"application/problem+json": {"schema": Problem.model_json_schema()}},
    }
}
