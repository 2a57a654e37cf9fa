"""Probes, and what there is to see."""

from typing import Any

from fastapi import APIRouter

import mcdrop
from service.dependencies import ERRORS, Models
from service.errors import NotReadyError

router = APIRouter(responses=ERRORS)


@router.get("/", tags=["about"], summary="What this server answers")
async def index(models: Models) -> dict[str, Any]:
    """A pointer to everything else."""
    predict = "/v1/predict" if models.default is not None else "/v1/models/{name}/predict"
    return {
        "name": "mcdrop",
        "version": mcdrop.__version__,
        "models": "/v1/models",
        "predict": predict,
        "docs": "/docs",
        "openapi": "/openapi.json",
        "health": ["/health/live", "/health/ready"],
    }


@router.head("/health/live", include_in_schema=False)
@router.get("/health/live", tags=["health"], summary="Whether the process is of use; restart it if not")
async def live(models: Models) -> dict[str, str]:
    """200 while the inference thread gets on with its work."""
    if (trouble := models.scheduler.trouble) is not None:
        raise NotReadyError(f"{trouble} Restart this server.")
    return {"status": "live"}


@router.head("/health/ready", include_in_schema=False)
@router.get("/health/ready", tags=["health"], summary="Whether to send requests here")
async def ready(models: Models) -> dict[str, Any]:
    """200 once every model is loaded and warm, and until the server begins to stop; 503 otherwise."""
    models.check_ready()
    return {"status": "ready", "models": list(models.models)}
