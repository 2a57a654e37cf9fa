"""Routes whose endpoints FastAPI documents and does not have to prepare anything for."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute


class DirectRoute(APIRoute):
    """For endpoints that take the parameters of the path as text, `request` and `models`, and return a Response.

    Resolving that anew for each request takes FastAPI longer than reading it.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's hook."""

        async def handle(request: Request) -> Response:
            response: Response = await self.endpoint(
                **request.path_params, request=request, models=request.app.state.registry
            )
            return response

        return handle
