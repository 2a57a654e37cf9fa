"""What Prometheus scrapes."""

import asyncio
import contextlib

from fastapi import APIRouter, Request, Response

from service.dependencies import ERRORS, Models
from service.errors import NotReadyError

_PATIENCE = 0.25  # seconds that a scrape waits for the inference thread

router = APIRouter(responses=ERRORS)


@router.get(
    "/metrics",
    tags=["about"],
    summary="Counts, durations and uncertainty, for Prometheus",
    responses={200: {"content": {"text/plain": {}}}},
    response_class=Response,
)
async def scrape(request: Request, models: Models) -> Response:
    """In Prometheus' text format, or OpenMetrics where that is asked for."""
    metrics, scheduler = models.metrics, models.scheduler
    if models.watch.is_behind:
        with contextlib.suppress(TimeoutError, NotReadyError):  # the thread is busy: the rest comes with a later scrape
            async with asyncio.timeout(_PATIENCE):
                await scheduler.run(models.watch.look())
    metrics.pending(scheduler.pending, scheduler.cost, scheduler.in_hand)
    content, content_type = metrics.text(request.headers.get("accept", ""))
    return Response(content, headers={"Content-Type": content_type})
