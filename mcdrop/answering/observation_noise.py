"""The noise of a regression's targets, fitted on held-out data."""

from typing import Any

import torch

from mcdrop.errors import SettingError
from mcdrop.prediction import Prediction

__all__ = ["residual_variance"]


def residual_variance(prediction: Prediction, targets: Any) -> float:
    """What is left of the squared error after the spread over passes and its share in the error of the mean:

        mean((y - mean)^2) - mean(squared standard error of the mean), at least 0

    in squared units of the target. The prediction is that of a regression; `targets` has one number for each of its
    means.

    Raises:
        SettingError: the targets have another shape, or there are none.
    """
    mean = torch.as_tensor(prediction.mean, device="cpu").double()
    target = torch.as_tensor(targets).detach().cpu().double()
    if target.shape != mean.shape and target.numel() == mean.numel() and target.numel() == len(mean):
        target = target.reshape(mean.shape)
    if target.shape != mean.shape or not target.numel():
        raise SettingError(
            f"targets have the shape {tuple(target.shape)}; the model's mean has {tuple(mean.shape)}: give one target "
            "for each output, at least one row."
        )
    error = prediction.error_of_mean
    if error is None:
        error = prediction.epistemic_variance / prediction.num_samples  # type: ignore[attr-defined]
    share = torch.as_tensor(error, device="cpu").double()
    return float(((target - mean).square() - share).mean().clamp_min(0))
