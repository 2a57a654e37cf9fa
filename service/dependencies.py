"""What routes are given."""

from typing import Annotated, Any

from fastapi import Depends, Request, params

from service.registry import Registry
from service.wire import Problem


async def _registry(request: Request) -> Registry:
    """Async, since FastAPI sends a plain function to a thread and back."""
    registry: Registry = request.app.state.registry
    return registry


Models = Annotated[Registry, Depends(_registry)]

ADMIN: list[params.Depends] = []  # what a request must pass to change what is served

ERRORS: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "Any failure.",
        "content": {"application/problem+json": {"schema": Problem.model_json_schema()}},
    }
}
