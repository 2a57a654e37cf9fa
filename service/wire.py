"""JSON to a request and a prediction to JSON: the only place where one becomes the other.

Arrays are nested lists, row by row. A prediction's numbers are float32 (float64 where the model is), written with the
fewest digits that give the same number back. JSON has no NaN and no infinity: `null` stands for them, in particular
for the entropy of a regression whose variance is 0 (minus infinity).
"""

import reprlib
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from mcdrop.graph.inputs import InputSpec
from mcdrop.outputs.fields import FIELDS
from mcdrop.outputs.tasks import Task
from mcdrop.predictor import MCDropout
from service.errors import InvalidRequestError, MalformedBodyError
from service.outcome import Outcome

ALWAYS = ("mean", "variance", "entropy", "label")  # in every answer, as far as the task has them
ON_REQUEST = {  # outputs that cost memory or passes, so that a run has to know of them from its start
    "standard_errors": "Monte Carlo standard error of each number, by its name.",
    "quantiles": "Quantiles over passes, level by level as `quantile_levels` says: (levels, batch, ...).",
    "samples": "The model's own outputs: (samples, batch, ...); of a pair (mean, log variance) one after the other.",
}
BY_ROW = {  # in every answer whose rows stop by a rule
    "passes": "Passes of each row.",
    "converged": "Whether the row met the rule; where not, the most passes, or a deadline, came first.",
}
OF_PASSES = ("quantiles", "samples")  # which a model whose last layer is integrated does not have
QUANTILE_LEVELS = (0.05, 0.5, 0.95)
_SAID = 5  # names that an error lists; each of millions takes a thousand bytes until it is told


def _whole(value: object) -> object:
    """JSON knows one kind of number: 5.0 is 5. Beyond 64 bits orjson rounds, so what it gives there is not used."""
    return int(value) if isinstance(value, float) and -(2**63) < value < 2**64 and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]


class PredictRequest(BaseModel):
    """What to predict. Only `inputs` is needed."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    inputs: Any = Field(
        description="A batch as nested lists, rows first, when the model has one input; else an object name -> array."
    )
    num_samples: Whole | None = Field(None, description="Stochastic passes; left out, the model's default.")
    seed: Whole | None = Field(
        None, ge=-(2**63), lt=2**64, description="Same seed, same masks; left out, the model's default."
    )
    outputs: list[str] = Field(
        [], fail_fast=True, description="Further fields of the answer, by name; see GET /v1/models/{name}."
    )
    quantiles: list[float] | None = Field(
        None,
        min_length=1,
        fail_fast=True,
        description=f"Levels between 0 and 1 for the output `quantiles`, instead of {list(QUANTILE_LEVELS)}.",
    )
    deadline_ms: float | None = Field(
        None, gt=0, description="Milliseconds from arrival after which the answer is of no use: 504 instead."
    )
    allow_partial: bool = Field(
        False,
        description="At the deadline, answer from the passes computed so far (at least 2), with `partial` and "
        "`standard_errors`, instead of 504.",
    )
    tolerance: float | None = Field(
        None,
        gt=0,
        description="Each row stops, after at most `num_samples` passes, when the half-width of each number of `mean` "
        "is at most this, at 95 %. The answer has `passes` and `converged` of each row; its variance and mutual "
        "information are too low on average.",
    )
    certified: bool = Field(
        False, description="Keep `tolerance` by a confidence sequence instead of asymptotically; probabilities only."
    )
    until: Literal["label"] | None = Field(
        None, description="`label`: each row stops when its label is settled, at 95 %; instead of `tolerance`."
    )
    determinism: Literal["standard", "exact"] = Field(
        "standard",
        description="`exact`: the same bits whatever else is served and however rows are batched, at some cost; "
        "`standard`: the same numbers up to rounding.",
    )

    @property
    def quantile_levels(self) -> tuple[float, ...]:
        """The levels asked for; none when the output was not asked for."""
        if self.quantiles is not None:
            return tuple(self.quantiles)
        return QUANTILE_LEVELS if "quantiles" in self.outputs else ()

    @property
    def stops(self) -> bool:
        """Whether rows stop by a rule."""
        return self.tolerance is not None or self.until is not None


class PredictAnswer(BaseModel):
    """The prediction: one entry per row in each array. Documentation only: answers are written by `encode`."""

    model_config = ConfigDict(
        extra="allow", json_schema_extra={"additionalProperties": {"description": "See outputs."}}
    )

    model: str
    version: str
    num_samples: int = Field(description="Passes really used; where rows stop by a rule, of the row that took most.")
    seed: int = Field(description="Seed really used: sent again, it gives the same answer.")
    mean: list[Any] = Field(description="Mean over passes: probabilities, or the predicted value.")
    variance: list[Any] = Field(description="Variance over passes; for regression the total variance.")
    entropy: list[Any] = Field(
        [], description="Entropy of the prediction in nats; null for minus infinity. Not for raw."
    )
    label: list[Any] = Field([], description="Index of the most probable class. Classification only.")
    passes: list[int] = Field([], description=f"{BY_ROW['passes']} With `tolerance` or `until` only.")
    converged: list[bool] = Field([], description=f"{BY_ROW['converged']} With `tolerance` or `until` only.")
    class_names: list[str] = Field([], description="Names of the classes, in the order of `mean`, where known.")


class Problem(BaseModel):
    """Every failure has this shape (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str = Field(description="What was wrong, what was expected, what to do.")
    code: str = Field(description="Stable, for programs.")
    request_id: str = Field(description="The X-Request-Id of this answer, under which the server logs it.")


def decode(body: bytes) -> PredictRequest:
    """The request in a body. Raises MalformedBodyError or InvalidRequestError; tensors are checked by the model."""
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        hint = " The body is empty." if not body else ""
        raise MalformedBodyError(f'The body is not JSON: {error}.{hint} Send {{"inputs": [[...]]}}.') from error
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise InvalidRequestError(f'The body is a JSON {kind}; expected an object such as {{"inputs": [[...]]}}.')
    known = ", ".join(PredictRequest.model_fields)
    if strange := [name for name in content if name not in PredictRequest.model_fields]:
        raise InvalidRequestError(f"There is no field {_some(strange)}. A request has the fields {known}.")
    try:
        return PredictRequest.model_validate(content)
    except ValidationError as error:
        sentences = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}." for item in error.errors()]
        raise InvalidRequestError(f"{' '.join(sentences)} A request has the fields {known}.") from error


def available_outputs(mc: MCDropout) -> dict[str, str]:
    """Every field that an answer of this model can hold, with what it means."""
    fields = {**FIELDS[mc.task.name], **ON_REQUEST}
    return {name: text for name, text in fields.items() if mc.last_layer == "sampled" or name not in OF_PASSES}


def check_outputs(request: PredictRequest, mc: MCDropout) -> None:
    """Raise InvalidRequestError where `outputs` names a field that a prediction of this model does not have."""
    available = available_outputs(mc)
    unknown = [name for name in request.outputs if name not in available]
    if unknown:
        raise InvalidRequestError(
            f"outputs: a {mc.task.name} prediction of this model has no {_some(unknown)}. "
            f"It has {', '.join(available)}."
        )


def _some(names: Sequence[str]) -> str:
    """What an error says of names that a client made up, however many and long."""
    rest = f" and {len(names) - _SAID} more" if len(names) > _SAID else ""
    return ", ".join(map(reprlib.repr, names[:_SAID])) + rest


def field_names(request: PredictRequest, task: Task) -> list[str]:
    """The fields of the answer, in its order."""
    names = [name for name in ALWAYS if name in FIELDS[task.name]]
    names += [*(BY_ROW if request.stops else ()), *request.outputs]
    return list(dict.fromkeys([*names, "quantiles"] if request.quantile_levels else names))


def encode(outcome: Outcome) -> bytes:
    """The answer's bytes."""
    answer: dict[str, Any] = {
        "model": outcome.model,
        "version": outcome.version,
        "num_samples": outcome.num_samples,
        "seed": outcome.seed,
        **outcome.fields,
    }
    if outcome.quantile_levels:
        answer["quantile_levels"] = outcome.quantile_levels
    if outcome.class_names:
        answer["class_names"] = outcome.class_names
    if outcome.partial:
        answer["partial"] = True
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)


def describe_input(spec: InputSpec) -> dict[str, Any]:
    """An input as GET /v1/models/{name} shows it; -1 stands for a size that may vary."""
    return {
        "name": spec.name,
        "dtype": spec.dtype_name,
        "shape": [size if isinstance(size, int) else -1 for size in spec.shape],
        "spec": str(spec),
    }


def example_input(spec: InputSpec) -> Any:
    """Valid values for one row: a ramp between 0 and 1, or ones for whole numbers and bool."""
    shape = [size if isinstance(size, int) else max(spec.bounds.get(size, (1, None))[0], 1) for size in spec.shape]
    if spec.dtype.is_floating_point:
        return np.resize(np.arange(11) / 10, shape).tolist()
    return np.ones(shape, dtype=bool if spec.dtype_name == "bool" else int).tolist()
