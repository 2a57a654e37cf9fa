"""Streaming statistics of predicted numbers: raw outputs, regression, and regression that predicts its own noise."""

import math
from typing import Any

import torch
from torch import Tensor

from mcdrop.prediction import Prediction, RawPrediction, RegressionPrediction
from mcdrop.streaming.accumulator import Accumulator, Pick
from mcdrop.streaming.block_sums import BlockSums
from mcdrop.streaming.sums import CentralSums, CrossSums, Place

__all__ = ["HeteroscedasticAccumulator", "IntegratedAccumulator", "RawAccumulator", "RegressionAccumulator"]


class RawAccumulator(Accumulator):
    """raw: mean and variance of each number of the output."""

    _outputs: CentralSums

    def _start(self, outputs: tuple[Tensor, ...]) -> None:
        order = 4 if self._with_errors and self._block == 1 else 2
        self._outputs = CentralSums((math.prod(self._layout),), order=order, device=outputs[0].device)
        if self._block > 1:
            first = self._flatten(self._parts(outputs)[0][:1])[0]
            self._blocks = BlockSums(first, squares=self._with_errors)

    def _add(self, chunk: tuple[Tensor, ...], groups: Tensor | None, place: Place, before: int) -> None:
        self._outputs.add(chunk[0], place=place, before=before)
        if self._blocks is not None and groups is not None:
            self._blocks.add(chunk[0], groups, place)

    def _merge(self, other: Any) -> None:
        self._outputs.merge(other._outputs, self.passes, other.passes)

    def _values(self, samples: tuple[Tensor, ...]) -> tuple[Tensor, Tensor | None]:
        return samples[0].to(self._dtype), None

    @property
    def spread(self) -> Tensor:
        return self._with_error(self._outputs)[0].view(self._layout[0], math.prod(self._layout[1:]))

    def _select(self, twin: Any, pick: Pick) -> None:
        twin._outputs = self._outputs.select(pick)

    def _errors(self, variance: Tensor) -> dict[str, Tensor]:
        """Standard errors of the mean and, in the same order, of the variance over passes."""
        if self._blocks is None:
            of_mean, of_variance = variance / self.passes, self._outputs.variance_of_variance(self.passes)
        else:
            of_mean = self._error(self._blocks.deviations(self._group_counts))
            of_variance = self._error(self._blocks.square_deviations(self._group_counts))
        return {"mean": self._shaped(of_mean.sqrt()), "variance": self._shaped(of_variance.sqrt())}

    def _moments(self, shared: dict[str, Any]) -> Tensor:
        """The variance over passes; `shared` is told the squared error of the mean where it does not follow from it."""
        variance, error = self._with_error(self._outputs)
        if error is not None:
            shared["error_of_mean"] = self._shaped(error)
        return variance

    def _predict(self, shared: dict[str, Any]) -> Prediction:
        variance = self._moments(shared)
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
        epistemic = self._moments(shared)
        return self._with_noise(epistemic, self._errors(epistemic) if self._with_errors else {}, shared)

    def _with_noise(self, epistemic: Tensor, errors: dict[str, Tensor], shared: dict[str, Any]) -> Prediction:
        """The answer with the noise of the task, which is known and not estimated from passes."""
        epistemic, noise = epistemic.view(self._layout), self._noise()
        aleatoric = torch.zeros_like(epistemic) if noise is None else noise.clone()
        if errors:
            errors["epistemic_variance"] = errors["variance"]
            errors["aleatoric_variance"] = torch.zeros_like(errors["variance"])
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


class PairAccumulator(RegressionAccumulator):
    """Passes that give a mean and a variance: those of both, and for standard errors how they go together."""

    _variances: CentralSums
    _variance_blocks: BlockSums
    _cross: CrossSums

    def _predicted(self, second: Tensor) -> Tensor:
        """The variances in what is beside the means, float64."""
        return second.double()

    def _start(self, outputs: tuple[Tensor, ...]) -> None:
        super()._start(outputs)
        elements, device = math.prod(self._layout), outputs[0].device
        self._variances = CentralSums((elements,), order=2, device=device)
        self._cross = CrossSums((elements,), device=device)
        if self._block > 1:
            first = self._predicted(self._flatten(self._parts(outputs)[1][:1])[0])
            self._variance_blocks = BlockSums(first, squares=False)

    def _add(self, chunk: tuple[Tensor, ...], groups: Tensor | None, place: Place, before: int) -> None:
        super()._add(chunk, groups, place, before)
        variances = self._predicted(chunk[1])
        self._variances.add(variances, place=place, before=before)
        if self._blocks is not None and groups is not None:
            self._variance_blocks.add(variances, groups, place)
        elif self._with_errors:
            self._cross.add(chunk[0], variances, place=place, before=before)

    def _merge(self, other: Any) -> None:
        super()._merge(other)
        self._variances.merge(other._variances, self.passes, other.passes)
        if self._blocks is not None:
            self._variance_blocks.merge(other._variance_blocks, other._group_counts)
        elif self._with_errors:
            self._cross.merge(other._cross, self.passes, other.passes)

    def _select(self, twin: Any, pick: Pick) -> None:
        super()._select(twin, pick)
        twin._variances = self._variances.select(pick)
        if self._blocks is not None:
            twin._variance_blocks = self._variance_blocks.select(pick)
        elif self._with_errors:
            twin._cross = self._cross.select(pick)

    def _pair_errors(self, spread: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Standard errors of the mean and of the total, and those of its parts: of `spread`, and of the mean variance.

        Those of the total take into account that a pass far from the mean may also predict much variance.
        """
        if self._blocks is None:
            count = self.passes
            of_mean = spread / count
            of_spread = self._outputs.variance_of_variance(count)
            of_variances = self._variances.variance(count) / count
            of_total = (of_spread + of_variances + 2 * self._cross.covariance(count) / count).clamp_min(0)
        else:
            squares = self._blocks.square_deviations(self._group_counts)
            variances = self._variance_blocks.deviations(self._group_counts)
            of_mean = self._error(self._blocks.deviations(self._group_counts))
            of_spread, of_variances, of_total = map(self._error, (squares, variances, squares + variances))
        errors = {"mean": self._shaped(of_mean.sqrt()), "variance": self._shaped(of_total.sqrt())}
        return errors, of_spread.sqrt(), of_variances.sqrt()


class HeteroscedasticAccumulator(PairAccumulator):
    """heteroscedastic: the predicted means, and the predicted variances of the noise."""

    def _predicted(self, second: Tensor) -> Tensor:
        return second.double().exp()  # beyond float32 above a log variance of 88

    def _parts(self, outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return outputs if len(outputs) == 2 else outputs[0].unbind(dim=-1)

    def _values(self, samples: tuple[Tensor, ...]) -> tuple[Tensor, Tensor | None]:
        means, log_variances = self._parts(samples)
        return means.to(self._dtype), log_variances.to(self._dtype).exp()

    def _predict(self, shared: dict[str, Any]) -> Prediction:
        epistemic = self._moments(shared)
        errors: dict[str, Tensor] = {}
        if self._with_errors:
            errors, of_epistemic, of_aleatoric = self._pair_errors(epistemic)
            errors["epistemic_variance"] = self._shaped(of_epistemic)
            errors["aleatoric_variance"] = self._shaped(of_aleatoric)
        aleatoric = self._variances.mean.view(self._layout)
        return self._answer(epistemic.view(self._layout), aleatoric, errors, shared)


class IntegratedAccumulator(PairAccumulator):
    """regression whose last dropout is integrated: each pass gives mean and variance of the output over that one.

    By the law of total variance the epistemic variance is that of the means over passes plus the mean of the variances.
    """

    def _check(self, outputs: tuple[Tensor, ...]) -> None:
        self.task.check_outputs([outputs[0][0]])

    def _predict(self, shared: dict[str, Any]) -> Prediction:
        of_means, error = self._with_error(self._outputs)
        shared["error_of_mean"] = self._shaped(of_means / self.passes if error is None else error)
        errors = self._pair_errors(of_means)[0] if self._with_errors else {}
        return self._with_noise(of_means + self._variances.mean, errors, shared)
