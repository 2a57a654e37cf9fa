"""Streaming statistics of predicted numbers: raw outputs, regression, and regression that predicts its own noise."""

import math
from typing import Any

import torch
from torch import Tensor

from mcdrop.accumulator import Accumulator, Pick
from mcdrop.prediction import Prediction, RawPrediction, RegressionPrediction
from mcdrop.sums import CentralSums, CrossSums, Place

__all__ = ["HeteroscedasticAccumulator", "RawAccumulator", "RegressionAccumulator"]


class RawAccumulator(Accumulator):
    """raw: mean and variance of each number of the output."""

    _outputs: CentralSums

    def _start(self, outputs: tuple[Tensor, ...]) -> None:
        elements = math.prod(self._layout)
        self._outputs = CentralSums((elements,), order=4 if self._with_errors else 2, device=outputs[0].device)

    def _add(self, chunk: tuple[Tensor, ...], groups: Tensor | None, place: Place, before: int) -> None:
        self._outputs.add(chunk[0], place=place, before=before)

    def _merge(self, other: Any) -> None:
        self._outputs.merge(other._outputs, self.passes, other.passes)

    def _values(self, samples: tuple[Tensor, ...]) -> tuple[Tensor, Tensor | None]:
        return samples[0].to(self._dtype), None

    @property
    def spread(self) -> Tensor:
        return self._outputs.variance(self.passes).view(self._layout[0], math.prod(self._layout[1:]))

    def _select(self, twin: Any, pick: Pick) -> None:
        twin._outputs = self._outputs.select(pick)

    def _errors(self, variance: Tensor) -> dict[str, Tensor]:
        """Standard errors of the mean and, in the same order, of the variance over passes."""
        return {
            "mean": self._shaped((variance / self.passes).sqrt()),
            "variance": self._shaped(self._outputs.variance_of_variance(self.passes).sqrt()),
        }

    def _predict(self, shared: dict[str, Any]) -> Prediction:
        variance = self._outputs.variance(self.passes)
        if self._with_errors:
            shared["standard_errors"] = self._errors(variance)
        return RawPrediction(mean=self._shaped(self._outputs.mean), variance=self._shaped(variance), **shared)


class RegressionAccumulator(RawAccumulator):
    """regression: the raw moments plus the variance of the noise."""

    def _noise(self) -> Tensor | None:
        """The variance of the noise in the layout of the output, where it is not 0."""
        given = self.task.noise_variance
        if given is None or (isinstance(given, float) and given == 0):
            return None
        return torch.as_tensor(given, dtype=torch.float64, device=self._outputs.mean.device).expand(self._layout)

    def _values(self, samples: tuple[Tensor, ...]) -> tuple[Tensor, Tensor | None]:
        noise = self._noise()
        return samples[0].to(self._dtype), None if noise is None else noise.unsqueeze(0)

    def _predict(self, shared: dict[str, Any]) -> Prediction:
        noise = self._noise()
        epistemic = self._outputs.variance(self.passes).view(self._layout)
        aleatoric = torch.zeros_like(epistemic) if noise is None else noise.clone()
        errors = self._errors(epistemic.view(-1)) if self._with_errors else {}
        if errors:
            errors["epistemic_variance"] = errors["variance"]
            errors["aleatoric_variance"] = torch.zeros_like(errors["variance"])  # known, not estimated from passes
        return self._answer(epistemic, aleatoric, errors, shared)

    def _answer(
        self, epistemic: Tensor, aleatoric: Tensor, errors: dict[str, Tensor], shared: dict[str, Any]
    ) -> Prediction:
        total = epistemic + aleatoric
        if errors:
            entropy_error = (errors["variance"] / (2 * total)).where(total > 0, 0)
            shared["standard_errors"] = {**errors, "entropy": entropy_error.to(self._dtype)}
        return RegressionPrediction(
            mean=self._shaped(self._outputs.mean),
            variance=self._shaped(total),
            epistemic_variance=self._shaped(epistemic),
            aleatoric_variance=self._shaped(aleatoric),
            **shared,
        )


class HeteroscedasticAccumulator(RegressionAccumulator):
    """heteroscedastic: the predicted means, the predicted variances, and for standard errors how they go together."""

    _noises: CentralSums
    _cross: CrossSums

    def _parts(self, outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return outputs if len(outputs) == 2 else outputs[0].unbind(dim=-1)

    def _start(self, outputs: tuple[Tensor, ...]) -> None:
        super()._start(outputs)
        elements, device = math.prod(self._layout), outputs[0].device
        self._noises = CentralSums((elements,), order=2, device=device)
        self._cross = CrossSums((elements,), device=device)

    def _add(self, chunk: tuple[Tensor, ...], groups: Tensor | None, place: Place, before: int) -> None:
        means, noises = chunk[0], chunk[1].double().exp()  # beyond float32 above a log variance of 88
        self._outputs.add(means, place=place, before=before)
        self._noises.add(noises, place=place, before=before)
        if self._with_errors:
            self._cross.add(means, noises, place=place, before=before)

    def _merge(self, other: Any) -> None:
        super()._merge(other)
        self._noises.merge(other._noises, self.passes, other.passes)
        if self._with_errors:
            self._cross.merge(other._cross, self.passes, other.passes)

    def _select(self, twin: Any, pick: Pick) -> None:
        super()._select(twin, pick)
        twin._noises = self._noises.select(pick)
        if self._with_errors:
            twin._cross = self._cross.select(pick)

    def _values(self, samples: tuple[Tensor, ...]) -> tuple[Tensor, Tensor | None]:
        means, log_variances = self._parts(samples)
        return means.to(self._dtype), log_variances.to(self._dtype).exp()

    def _predict(self, shared: dict[str, Any]) -> Prediction:
        epistemic = self._outputs.variance(self.passes).view(self._layout)
        aleatoric = self._noises.mean.view(self._layout)
        return self._answer(epistemic, aleatoric, self._split_errors(epistemic) if self._with_errors else {}, shared)

    def _split_errors(self, epistemic: Tensor) -> dict[str, Tensor]:
        """Those of the total take into account that a pass far from the mean may also predict much noise."""
        count = self.passes
        of_epistemic = self._outputs.variance_of_variance(count)
        of_aleatoric = self._noises.variance(count) / count
        total = (of_epistemic + of_aleatoric + 2 * self._cross.covariance(count) / count).clamp_min(0)
        return {
            "mean": self._shaped((epistemic.view(-1) / count).sqrt()),
            "variance": self._shaped(total.sqrt()),
            "epistemic_variance": self._shaped(of_epistemic.sqrt()),
            "aleatoric_variance": self._shaped(of_aleatoric.sqrt()),
        }
