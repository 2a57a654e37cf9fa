"""What is served, and the verbs that change it."""

from typing import Any

from fastapi import APIRouter

from service.dependencies import ADMIN, ERRORS, Models

router = APIRouter(prefix="/v1/models", tags=["models"], responses=ERRORS)
admin = APIRouter(prefix="/v1/models", tags=["admin"], responses=ERRORS, dependencies=ADMIN)


@router.get("", summary="The models and the default among them")
async def list_models(models: Models) -> dict[str, Any]:
    """Names, versions and tasks; GET /v1/models/{name} says the rest."""
    return {"default": models.default, "models": [model.summary() for model in models.models.values()]}


@router.get("/{name}", summary="One model: versions, inputs, classes, outputs, defaults, limits, sites")
async def show_model(name: str, models: Models) -> dict[str, Any]:
    """Everything needed to write a request to the newest version, and what has become of every version."""
    return {**models.get(name).describe(), "versions": models.versions(name)}


@router.get("/{name}/versions/{version}", summary="The same of one version")
async def show_version(name: str, version: str, models: Models) -> dict[str, Any]:
    """Everything needed to write a request to this version."""
    return {**models.get(name, version).describe(), "versions": models.versions(name)}


@admin.post("/{name}/load", summary="Load a model from the repository, or load it again")
async def load_model(name: str, models: Models) -> dict[str, Any]:
    """Answers when the new version is served. A failure changes nothing: what was served is served still."""
    await models.load_model(name)
    return {"name": name, "versions": models.versions(name)}


@admin.post("/{name}/unload", summary="Stop serving a model")
async def unload_model(name: str, models: Models) -> dict[str, Any]:
    """Requests in progress are answered; later ones get 404 until the model is loaded again."""
    await models.unload_model(name)
    return {"name": name, "versions": models.versions(name)}
