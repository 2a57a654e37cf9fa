"""Streaming statistics of predicted numbers: raw outputs, regression, and regression that predicts its own noise."""

import math
from typing import Any

import torch
from torch import Tensor

from mcdrop.accumulator import Accumulator
from mcdrop.prediction import Prediction, RawPrediction, RegressionPrediction
from mcdrop.sums import Place, PowerSums

__all__ = ["HeteroscedasticAccumulator", "RawAccumulator", "RegressionAccumulator"]


class RawAccumulator(Accumulator):
    """raw: mean and variance of each number of the output."""

    _outputs: PowerSums

    def _start(self, outputs: tuple[Tensor, ...]) -> None:
        elements = math.prod(self._layout)
        self._outputs = PowerSums((elements,), order=4 if self._with_errors else 2, device=outputs[0].device)

    def _add(self, chunk: tuple[Tensor, ...], groups: Tensor | None, place: Place, first: bool) -> None:
        self._outputs.add(chunk[0].double(), place, first=first)  # bool and whole numbers too

    def _merge(self, other: Any) -> None:
        self._outputs.merge(other._outputs, other.passes)

    def _values(self, samples: tuple[Tensor, ...]) -> tuple[Tensor, Tensor | None]:
        return samples[0].to(self._dtype), None

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
        return RawPrediction(
            mean=self._shaped(self._outputs.mean(self.passes)), variance=self._shaped(variance), **shared
        )


class RegressionAccumulator(RawAccumulator):
    """regression: the raw moments plus the variance of the noise."""

    def _noise(self) -> Tensor | None:
        """The variance of the noise in the layout of the output, where it is not 0."""
        given = self.task.noise_variance
        if given is None or (isinstance(given, float) and given == 0):
            return None
        return torch.as_tensor(given, dtype=torch.float64, device=self._outputs.sums.device).expand(self._layout)

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
            mean=self._shaped(self._outputs.mean(self.passes)),
            variance=self._shaped(total),
            epistemic_variance=self._shaped(epistemic),
            aleatoric_variance=self._shaped(aleatoric),
            **shared,
        )


class HeteroscedasticAccumulator(RegressionAccumulator):
    """heteroscedastic: the predicted means, the predicted variances, and for standard errors how they go together."""

    _noises: PowerSums
    _cross: Tensor  # sums of d v and d^2 v, d and v the deviations of mean and variance from their references

    def _parts(self, outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return outputs if len(outputs) == 2 else outputs[0].unbind(dim=-1)

    def _start(self, outputs: tuple[Tensor, ...]) -> None:
        super()._start(outputs)
        elements, device = self._outputs.sums.shape[1], outputs[0].device
        self._noises = PowerSums((elements,), order=2 if self._with_errors else 1, device=device)
        self._cross = torch.zeros(2, elements if self._with_errors else 0, dtype=torch.float64, device=device)

    def _add(self, chunk: tuple[Tensor, ...], groups: Tensor | None, place: Place, first: bool) -> None:
        means = self._outputs.add(chunk[0], place, first=first)
        noises = self._noises.add(chunk[1].to(self._dtype).exp(), place, first=first)
        if self._with_errors:
            product = means * noises
            self._cross[0][place].add_(product.sum(dim=0))
            self._cross[1][place].add_((product * means).sum(dim=0))

    def _merge(self, other: Any) -> None:
        if self._with_errors:
            d = other._outputs.reference - self._outputs.reference
            v = other._noises.reference - self._noises.reference
            first, second, noise = other._outputs.sums[0], other._outputs.sums[1], other._noises.sums[0]
            count, (cross, square_cross) = other.passes, other._cross
            self._cross[0] += cross + v * first + d * noise + count * d * v
            self._cross[1] += square_cross + v * second + 2 * d * (cross + v * first) + d.square() * (noise + count * v)
        self._noises.merge(other._noises, other.passes)
        super()._merge(other)

    def _values(self, samples: tuple[Tensor, ...]) -> tuple[Tensor, Tensor | None]:
        means, log_variances = self._parts(samples)
        return means.to(self._dtype), log_variances.to(self._dtype).exp()

    def _predict(self, shared: dict[str, Any]) -> Prediction:
        epistemic = self._outputs.variance(self.passes).view(self._layout)
        aleatoric = self._noises.mean(self.passes).view(self._layout)
        return self._answer(epistemic, aleatoric, self._split_errors(epistemic) if self._with_errors else {}, shared)

    def _split_errors(self, epistemic: Tensor) -> dict[str, Tensor]:
        """Those of the total take into account that a pass far from the mean may also predict much noise."""
        count = self.passes
        first, second = self._outputs.sums[:2] / count
        noise = self._noises.sums[0] / count
        cross, square_cross = self._cross / count
        together = square_cross - 2 * first * cross + first.square() * noise - noise * (second - first.square())
        of_epistemic = self._outputs.variance_of_variance(count)
        of_aleatoric = self._noises.variance(count) / count
        total = (of_epistemic + of_aleatoric + 2 * together / count).clamp_min(0)
        return {
            "mean": self._shaped((epistemic.view(-1) / count).sqrt()),
            "variance": self._shaped(total.sqrt()),
            "epistemic_variance": self._shaped(of_epistemic.sqrt()),
            "aleatoric_variance": self._shaped(of_aleatoric.sqrt()),
        }
