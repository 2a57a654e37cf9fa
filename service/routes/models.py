"""What is served."""

from typing import Any

from fastapi import APIRouter

from service.dependencies import ERRORS, Models

router = APIRouter(prefix="/v1/models", tags=["models"], responses=ERRORS)


@router.get("", summary="The models and the default among them")
async def list_models(models: Models) -> dict[str, Any]:
    """Names, versions and tasks; GET /v1/models/{name} says the rest."""
    return {"default": models.default, "models": [model.summary() for model in models.models.values()]}


@router.get("/{name}", summary="One model: inputs, classes, outputs, defaults, limits, sites")
async def show_model(name: str, models: Models) -> dict[str, Any]:
    """Everything needed to write a request."""
    return models.get(name).describe()
