"""What a request counts as: its route, its model, and how it ended, in words of the server's own."""

from starlette.types import Scope

from service.errors import NotReadyError, UnknownModelError

PREDICTING = ("/predict", "/stream", "/infer")  # how the templates of routes end that answer with predictions
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def route(scope: Scope) -> str:
    """The template of the route that took the request, such as /v1/models/{name}/predict; empty where none did."""
    return str(getattr(scope.get("route"), "path", ""))


def method(scope: Scope) -> str:
    """The verb, or "other" for one that nothing here answers."""
    return scope["method"] if scope["method"] in METHODS else "other"


def predicts(template: str) -> bool:
    """Whether a route answers with predictions."""
    return template.rstrip("/").endswith(PREDICTING)


def served(scope: Scope) -> tuple[str, str]:
    """Name and version of the model that a request is for; empty where no such model is served."""
    if (answering := scope.get("state", {}).get("served")) is not None:  # whatever is served by now
        name, version = answering
        return str(name), str(version)
    registry, given = scope["app"].state.registry, scope.get("path_params", {})
    try:
        model = registry.get(given.get("name"), given.get("version"))
    except UnknownModelError:
        return "", ""
    except NotReadyError:  # one that is served, and still being loaded
        return str(given.get("name", registry.default)), ""
    return model.name, model.version


def outcome(scope: Scope, status: int) -> str:
    """One of the words in `service.metrics.OUTCOMES`, from the failure that was told, or else the status.

    A stream that fails midway was begun with 200; what was told then counts.
    """
    status, code = scope.get("state", {}).get("problem", (status, ""))
    if code == "out-of-memory":
        return "oom"
    if status < 400:
        return "ok"
    known = {429: "rejected", 499: "cancelled", 503: "rejected", 504: "timeout"}
    return known.get(status, "invalid" if status < 500 else "error")
