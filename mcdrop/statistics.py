"""Uncertainty statistics of Monte Carlo samples.

Every function is pure: it takes values of shape (samples, batch, ...) and returns numbers per batch element, in the
dtype and on the device of what came in. None of them knows about models, dropout or HTTP. Classes are the last axis of
`probs`; the axes between batch and classes (the pixels of a segmentation) keep their place. For probs p_i, i = 1..N,
with mean p and variance s_c^2 of class c over samples (ddof 1), in nats:

    predictive entropy   H(p)                total
    expected entropy     mean_i H(p_i)       aleatoric
    mutual information   the difference      epistemic; between 0 and log(min(N, classes))

H(p) of few samples is biased low, by (1/2N) sum_c Var(p_c) / p_c to first order, and the mutual information with it.
Whether an entropy splits into these two parts is disputed (Wimmer et al. 2023, arXiv:2209.03302): read the second as
the disagreement of the samples, which is what it measures. `FIELDS` names what a prediction reports.

References: Houlsby et al. (2011), arXiv:1112.5745; Gal (2016), thesis, 3.3.1; Depeweg et al. (2018), arXiv:1710.07283.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mcdrop.errors import SettingError
from mcdrop.outputs.fields import FIELDS

__all__ = [
    "FIELDS",
    "BrierUncertainty",
    "binary_entropy",
    "brier_uncertainty",
    "check_levels",
    "entropy",
    "entropy_bias",
    "expected_entropy",
    "gaussian_entropy",
    "jackknife_mutual_information",
    "mixture_quantiles",
    "mutual_information",
    "plugin_mutual_information",
    "predictive_entropy",
    "sample_quantiles",
    "variation_ratio",
    "vote_shares",
]

_FEW = 1024  # numbers for which fewer calls count for more than fast ones

# ---- entropies of a distribution


def entropy(probs: Float[Tensor, "*shape"], class_axis: int = -1) -> Float[Tensor, "*rest"]:
    """Entropy in nats of the distributions along `class_axis`; 0 log 0 = 0, also where rounding went below 0."""
    if probs.numel() <= _FEW:
        terms: Tensor = torch.special.entr(probs.clamp_min(0))
        return terms.sum(class_axis).clamp_min_(0)
    logs = probs.clamp_min(torch.finfo(probs.dtype).tiny).log_()  # several times faster than torch.special.entr on CPUs
    return logs.mul_(probs).sum(class_axis).neg_().clamp_min_(0)


def binary_entropy(probs: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Entropy in nats of yes or no, for each probability of yes; between 0 and log 2."""
    tiny = torch.finfo(probs.dtype).tiny
    no = 1 - probs
    yes_part = probs.clamp_min(tiny).log_().mul_(probs)
    return yes_part.addcmul_(no.clamp_min(tiny).log_(), no).neg_().clamp_min_(0)


def gaussian_entropy(variance: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Differential entropy in nats of a Gaussian, 1/2 log(2 pi e variance); -inf at variance 0.

    With the variance of a mixture it is an upper bound of the mixture's entropy.
    """
    return 0.5 * (variance.log() + math.log(2 * math.pi * math.e))


def entropy_bias(
    mean: Float[Tensor, "*shape"], variance: Float[Tensor, "*shape"], num_samples: int, class_axis: int = -1
) -> Float[Tensor, "*rest"]:
    """How far the entropy of a mean of `num_samples` distributions is too low: (1/2N) sum_c s_c^2 / p_c, in nats."""
    return (variance / mean.clamp_min(torch.finfo(mean.dtype).tiny)).sum(class_axis) / (2 * num_samples)


# ---- classification, from samples


def predictive_entropy(probs: Float[Tensor, "samples batch ... classes"]) -> Float[Tensor, "batch ..."]:
    """Total uncertainty in nats: entropy of the mean distribution; 0 to log(classes). Biased low by O(1/samples)."""
    return entropy(probs.mean(dim=0))


def expected_entropy(probs: Float[Tensor, "samples batch ... classes"]) -> Float[Tensor, "batch ..."]:
    """Aleatoric uncertainty in nats: mean entropy of the samples; 0 to log(classes). Unbiased."""
    return entropy(probs).mean(dim=0)


def plugin_mutual_information(probs: Float[Tensor, "samples batch ... classes"]) -> Float[Tensor, "batch ..."]:
    """Epistemic uncertainty in nats: how much the samples disagree; 0 to log(min(samples, classes)).

    Zero when all samples agree. Biased low by O(1/samples), because the entropy of an average of few samples
    underestimates the entropy of the true mean; `mutual_information` corrects it.
    """
    reference = probs[:1]
    mean = reference[0] + (probs - reference).mean(dim=0)  # exact when all samples agree
    return (entropy(mean) - expected_entropy(probs)).clamp_min(0).where((probs != reference).any(0).any(-1), 0)


def mutual_information(probs: Float[Tensor, "samples batch ... classes"]) -> Float[Tensor, "batch ..."]:
    """Mutual information in nats without its bias of first order; 0 to log(classes).

    Adds (1/2N) sum_c s_c^2 / p_c to the plug-in (delta method), which takes streaming moments alone. Miller and Madow's
    correction would be wrong here: it is for counts, not for averages of probability vectors.

    Raises:
        SettingError: fewer than two samples.
    """
    _check_spread(probs)
    bias = entropy_bias(probs.mean(dim=0), _variance(probs), probs.shape[0])
    return (plugin_mutual_information(probs) + bias).clamp(0, math.log(probs.shape[-1]))


def jackknife_mutual_information(probs: Float[Tensor, "samples batch ... classes"]) -> Float[Tensor, "batch ..."]:
    """Mutual information in nats, bias removed by leaving out one sample at a time; 0 to log(classes).

    N MI - (N-1) mean_i MI without sample i (Quenouille 1956): less biased than `mutual_information` for very few
    samples, noisier, and it needs all samples.

    Raises:
        SettingError: fewer than two samples.
    """
    _check_spread(probs)
    count, total, own = probs.shape[0], probs.sum(dim=0), entropy(probs)
    without = torch.stack([entropy((total - one) / (count - 1)) for one in probs])  # (samples, batch, ...)
    left_out = (without - (own.sum(dim=0) - own) / (count - 1)).mean(dim=0)
    value = count * plugin_mutual_information(probs) - (count - 1) * left_out
    return value.clamp(0, math.log(probs.shape[-1])).where((probs != probs[:1]).any(0).any(-1), 0)


def vote_shares(probs: Float[Tensor, "samples batch ... classes"]) -> Float[Tensor, "batch ... classes"]:
    """Share of the samples in which the class is the most probable (the first of equals); sums to 1."""
    winners = probs.max(dim=-1).indices
    return torch.nn.functional.one_hot(winners, probs.shape[-1]).to(probs.dtype).mean(dim=0)


def variation_ratio(probs: Float[Tensor, "samples batch ... classes"]) -> Float[Tensor, "batch ..."]:
    """Share of the samples that vote for another class than most do; 0 to 1 - 1/classes (Freeman 1965).

    Biased low: the maximum of noisy shares is too high.
    """
    return 1 - vote_shares(probs).amax(dim=-1)


class BrierUncertainty(NamedTuple):
    """Parts of the expected Brier score of a prediction that is right about its own probabilities; each 0 to 1."""

    total: Tensor
    aleatoric: Tensor
    epistemic: Tensor


def brier_uncertainty(probs: Float[Tensor, "samples batch ... classes"]) -> BrierUncertainty:
    """The Gini split of uncertainty: total = mean_i (1 - sum_c p_ic^2) + sum_c s_c^2 (arXiv:2404.12215).

    Both parts are unbiased for independent samples, so that their sum is above the plug-in 1 - sum_c p_c^2, which is
    too low, by sum_c s_c^2 / N.

    Raises:
        SettingError: fewer than two samples.
    """
    _check_spread(probs)
    aleatoric = 1 - probs.square().sum(dim=-1).mean(dim=0)
    epistemic = _variance(probs).sum(dim=-1)
    return BrierUncertainty(aleatoric + epistemic, aleatoric, epistemic)


# ---- quantiles


def sample_quantiles(
    samples: Float[Tensor, "samples batch *rest"], levels: Sequence[float]
) -> Float[Tensor, "levels batch *rest"]:
    """Quantiles over samples, linear between neighbours (type 7 of Hyndman & Fan 1996)."""
    check_levels(levels)
    ordered = samples.sort(dim=0).values
    last, answers = samples.shape[0] - 1, []
    for level in levels:
        low = math.floor(level * last)
        answers.append(ordered[low].lerp(ordered[min(low + 1, last)], level * last - low))
    return torch.stack(answers) if answers else samples.new_empty(0, *samples.shape[1:])


def mixture_quantiles(
    means: Float[Tensor, "samples batch *rest"],
    variances: Float[Tensor, "samples batch *rest"],
    levels: Sequence[float],
) -> Float[Tensor, "levels batch *rest"]:
    """Quantiles of the equal mixture of Gaussians, one of each sample: the roots of its distribution function.

    Neither an average of quantiles nor a quantile of one Gaussian with the mixture's variance. Solved by bisection, to
    the last digits of float32, between the lowest and the highest quantile of the components, which enclose it. Where
    all variances are 0 the quantiles are those of the samples.
    """
    check_levels(levels)
    centers, scales = means.double(), variances.double().sqrt()
    flat = (scales == 0).all(dim=0)
    answers = []
    for level, of_samples in zip(levels, sample_quantiles(means, levels), strict=True):
        ends = centers + scales * torch.special.ndtri(centers.new_tensor(level))
        low, high = ends.amin(dim=0), ends.amax(dim=0)
        for _ in range(48):
            middle = (low + high) / 2
            standard = ((middle - centers) / scales).nan_to_num(nan=math.inf)  # a jump at its own center counts
            below = torch.special.ndtr(standard).mean(dim=0) < level
            low, high = middle.where(below, low), high.where(below, middle)
        answers.append(of_samples.where(flat, ((low + high) / 2).to(means.dtype)))
    return torch.stack(answers) if answers else means.new_empty(0, *means.shape[1:])


def _variance(samples: Tensor) -> Tensor:
    """Over samples, ddof 1; exactly 0 where all agree. (`Tensor.var` warns about empty batches.)"""
    deviations = samples - samples[:1]
    return (deviations - deviations.mean(dim=0)).square().sum(dim=0) / (samples.shape[0] - 1)


# ---- checks


def check_levels(levels: Sequence[Any]) -> None:
    """Raise SettingError where a level of a quantile is not between 0 and 1."""
    for level in levels:
        if isinstance(level, bool) or not isinstance(level, int | float) or not 0 < level < 1:
            raise SettingError(
                f"quantiles: {level!r} is no level; expected numbers between 0 and 1, as in (0.05, 0.95)."
            )


def _check_spread(samples: Tensor) -> None:
    if samples.shape[0] < 2:
        raise SettingError(f"{samples.shape[0]} samples have no spread; draw at least 2 (num_samples).")
