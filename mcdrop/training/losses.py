"""The loss and the accuracy that belong to a task, on a network's raw output.

Classes are the last axis of the output, as everywhere in mcdrop, and targets are their numbers; the targets of other
tasks have the output's shape. Each loss is a mean over all targets.
"""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from mcdrop.errors import InputError

__all__ = ["LOSSES", "Loss", "accuracy"]

Loss = Callable[[Any, Tensor], Tensor]  # from a network's output and the targets to their mean loss


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    if labels.is_floating_point() or logits.shape[:-1] != labels.shape:
        raise InputError(
            f"the targets are {_described(labels)} and the output has shape {list(logits.shape)}; a classification "
            f"takes class numbers (integers) of shape {list(logits.shape[:-1])}. "
            "For other targets choose another task, or give a loss of your own."
        )
    return F.cross_entropy(logits.movedim(-1, 1), labels.long())


def _yes_or_no(logits: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, _like(logits, targets))


def _squared_error(values: Tensor, targets: Tensor) -> Tensor:
    return F.mse_loss(values, _like(values, targets))


def _gaussian(output: Any, targets: Tensor) -> Tensor:
    """Kendall & Gal 2017, arXiv 1703.04977, equation 8: the constant 1/2 log 2 pi is left out."""
    mean, log_variance = output.unbind(-1) if isinstance(output, Tensor) else output
    return 0.5 * (log_variance + (_like(mean, targets) - mean).square() * (-log_variance).exp()).mean()


def _like(output: Tensor, targets: Tensor) -> Tensor:
    """The targets in the output's type; never broadcast, which would train on pairs that do not belong together."""
    if output.shape != targets.shape:
        raise InputError(
            f"the targets have shape {list(targets.shape)} and the output {list(output.shape)}. "
            "Give targets of the output's shape."
        )
    return targets.to(output.dtype)


def _described(targets: Tensor) -> str:
    return f"{str(targets.dtype).removeprefix('torch.')}{list(targets.shape)}"


LOSSES: dict[str, Loss] = {
    "classification": _cross_entropy,
    "binary": _yes_or_no,
    "multilabel": _yes_or_no,
    "regression": _squared_error,
    "heteroscedastic": _gaussian,
}


def accuracy(task: str, output: Tensor, targets: Tensor) -> float | None:
    """The share of targets that the output names, 0 to 1; None where a task has no right and wrong."""
    if task == "classification":
        right = output.argmax(dim=-1) == targets
    elif task in ("binary", "multilabel"):
        right = (output >= 0) == (targets > 0.5)
    else:
        return None
    return float(right.double().mean())
