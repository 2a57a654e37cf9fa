"""How good predictions are: proper scores against known targets, and how far two predictions are apart.

Every function takes what a prediction reports as `mean`, batch first, in the network's own layout. Probabilities of 0
count as the smallest positive float, so that the negative log likelihood of a certain mistake is large and finite.

References: Gneiting & Raftery (2007), JASA 102; Brier (1950).
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from mcdrop.errors import InputError, SettingError
from mcdrop.outputs.tasks import Task

__all__ = ["Gap", "gap", "passes_for", "read_targets", "scores"]

STANDARD_ERROR = 0.01  # for which `passes_for` is asked unless it is told otherwise

Gap = Mapping[str, float]

_PROBABILITIES = ("classification", "binary", "multilabel")


def read_targets(task: Task, targets: Any, mean: Float[Tensor, "batch *rest"]) -> Shaped[Tensor, "batch ..."]:
    """Targets that fit a `mean` of shape (batch, ...): class numbers without the class axis, 0 and 1, or values.

    Raises:
        SettingError: the task says nothing about targets.
        InputError: they do not fit the predictions.
    """
    if task.name == "raw":
        raise SettingError('targets mean nothing for task="raw"; say what the output means, as in task="regression".')
    try:
        found = torch.as_tensor(targets).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"targets cannot be read as numbers: {error}.") from error
    found = found.long() if found.dtype == torch.bool else found
    wanted = list(mean.shape)
    if task.name == "classification":
        wanted.pop(task.axis(mean.ndim))
    if found.numel() != math.prod(wanted) or found.shape[:1] != mean.shape[:1]:
        raise InputError(
            f"targets have the shape {list(found.shape)}; expected {wanted}: "
            + ("the number of its class" if task.name == "classification" else "one number")
            + " for each output of each row."
        )
    found = found.reshape(wanted)
    if not bool(torch.isfinite(found).all()):
        raise InputError("targets hold NaN or infinite values; every target has to be finite. Leave those rows out.")
    if task.name not in _PROBABILITIES:
        return found.double()
    classes = mean.shape[task.axis(mean.ndim)] if task.name == "classification" else 2
    if found.numel() and (
        bool((found != found.round()).any()) or not 0 <= int(found.min()) <= int(found.max()) < classes
    ):
        raise InputError(f"targets hold {found.min():g} to {found.max():g}; expected whole numbers 0 to {classes - 1}.")
    return found.long()


def scores(task: Task, mean: Float[Tensor, "batch *rest"], targets: Shaped[Tensor, "batch ..."]) -> dict[str, float]:
    """The scores of predictions, averaged over rows and outputs.

    `nll` (nats), `brier` (0 to 2 over several classes, 0 to 1 for yes or no) and `accuracy` (0 to 1) where the mean is
    a probability, else `rmse` in the unit of the target.
    """
    values = mean.detach().cpu().double()
    if task.name not in _PROBABILITIES:
        return {"rmse": math.sqrt(float((values - targets).square().mean()))}
    if task.name == "classification":
        probs = values.movedim(task.axis(values.ndim), -1)
        truth = torch.nn.functional.one_hot(targets, probs.shape[-1]).double()
        right, brier = probs.argmax(-1) == targets, (probs - truth).square().sum(-1)
        of_truth = (probs * truth).sum(-1)
    else:
        truth = targets.double()
        right, brier = (values >= 0.5) == (targets == 1), (values - truth).square()
        of_truth = values * truth + (1 - values) * (1 - truth)
    nll = -of_truth.clamp_min(torch.finfo(torch.float32).tiny).log()
    return {"nll": float(nll.mean()), "brier": float(brier.mean()), "accuracy": float(right.double().mean())}


def gap(task: Task, deterministic: Float[Tensor, "batch *rest"], mean: Float[Tensor, "batch *rest"]) -> Gap:
    """How far the deterministic prediction and the mean over passes are apart, over rows and outputs.

    `mean` and `largest` absolute difference; where the task has labels, `labels` is the share that differ.
    """
    first, second = deterministic.detach().cpu().double(), mean.detach().cpu().double()
    difference = (first - second).abs()
    found = {"mean": float(difference.mean()), "largest": float(difference.max())}
    if task.name == "classification":
        axis = task.axis(first.ndim)
        found["labels"] = float((first.argmax(axis) != second.argmax(axis)).double().mean())
    elif task.name in _PROBABILITIES:
        found["labels"] = float(((first >= 0.5) != (second >= 0.5)).double().mean())
    return found


def passes_for(
    task: Task, variance: Float[Tensor, "batch *rest"], standard_error: float = STANDARD_ERROR
) -> dict[str, int | None]:
    """How many passes bring the standard error of the mean down: for the `typical` (median) output and the `largest`.

    The n at which sqrt((s^2 + 1/n) / n) reaches it for a probability, whose s can be 0 by luck, and s / sqrt(n) for a
    value, in its unit. None where the variance is not finite: no number of passes is enough.
    """
    spread = variance.detach().cpu().double().flatten()

    def needed(s2: float) -> int | None:
        if not math.isfinite(s2):
            return None
        e2 = standard_error**2
        if task.name in _PROBABILITIES:
            return math.ceil((s2 + math.sqrt(s2**2 + 4 * e2)) / (2 * e2) - 1e-9)
        return max(1, math.ceil(s2 / e2 - 1e-9))

    return {"typical": needed(float(spread.median())), "largest": needed(float(spread.max()))}
