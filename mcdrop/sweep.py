"""Finding the dropout rate: train the same network with several rates and seeds, and compare on held-out data.

    NLL, classes     -log p[y], p the softmax of the logits, or its mean over the passes
    NLL, yes or no   -log p of what was observed, the mean over labels
    NLL, regression  1/2 log(2 pi v) + (y - mean)^2 / 2v, v = noise variance plus the variance over passes

in nats, the mean over targets. The noise variance of a regression is one number, fitted to the same validation data.
Networks are scored with the weights of their last epoch: stopping each at its best epoch would choose by the same
validation data on which the rates are compared.
"""

import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcdrop.errors import NoDropoutError, SettingError
from mcdrop.predictor import MCDropout
from mcdrop.tasks import TaskName
from mcdrop.training import Data, fit
from mcdrop.trials import Score, Sweep, Trial

__all__ = ["TASKS", "Factory", "sweep"]

Factory = Callable[[float], nn.Module]  # from a dropout rate to an untrained network
TASKS = ("classification", "binary", "multilabel", "regression")


def sweep(
    factory: Factory,
    train: Data,
    validation: Data,
    *,
    rates: Sequence[float],
    task: str = "classification",
    seeds: int = 10,
    epochs: int = 30,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-2,
    batch_size: int = 32,
    num_samples: int = 100,
    device: str = "cpu",
    progress: Callable[[], object] | None = None,
) -> Sweep:
    """Train `factory(rate)` for each rate and for the seeds 0 to `seeds` - 1, and score each on the validation data.

    Args:
        factory: makes an untrained network with that dropout rate. It is called with PyTorch's global generator at the
            seed (put back afterwards), so that networks of one seed start from the same weights.
        train, validation: inputs and targets, as `mcdrop.training.fit` takes them.
        rates: at least two, each at least 0 and below 1. At 0 a network may be without dropout: it has no MC scores.
        num_samples: passes of an MC prediction.
        progress: called after every epoch of every training.

    Raises:
        SettingError: rates, seeds or a task that mean nothing; a factory that makes the same dropout for every rate.
        NoDropoutError: a network of a rate above 0 has no active dropout.
        InputError, TrainingError, CaptureError: as `fit` and `MCDropout` raise them.
    """
    _check(rates, task, seeds)
    # before anything is trained
    _check_rates_used([_capture(_build(factory, rate, 0, device), validation[0], task, rate) for rate in rates])
    trials = []
    for rate in rates:
        for seed in range(seeds):
            network = _build(factory, rate, seed, device)
            history = fit(
                network,
                train,
                validation,
                task=task,
                epochs=epochs,
                learning_rate=learning_rate,
                weight_decay=weight_decay,
                batch_size=batch_size,
                seed=seed,
                progress=None if progress is None else lambda _: progress(),
            )
            mc = _capture(network, validation[0], task, rate)
            trials.append(
                Trial(
                    rate,
                    seed,
                    history,
                    deterministic=_deterministic(network, validation, task, batch_size),
                    mc=None if mc is None else _monte_carlo(mc, validation, task, num_samples=num_samples, seed=seed),
                )
            )
    measure = "rmse" if task == "regression" else "accuracy"
    return Sweep(task, measure, num_samples, ignorant_loss(task, train[1]), tuple(rates), tuple(trials))


def ignorant_loss(task: str, targets: Tensor) -> float:
    """The training loss of the best answer that ignores the input: the frequencies of the targets, or their mean."""
    if task == "classification":
        shares = targets.unique(return_counts=True)[1].double() / targets.numel()
        return float(-(shares * shares.log()).sum())
    if task == "regression":
        return float((targets.double() - targets.double().mean(dim=0)).square().mean())
    shares = targets.double().mean(dim=0)
    return float(F.binary_cross_entropy(shares.expand(targets.shape), targets.double()))


# ---- networks


def _build(factory: Factory, rate: float, seed: int, device: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return factory(rate).to(device).eval()


def _capture(network: nn.Module, inputs: Tensor, task: str, rate: float) -> MCDropout | None:
    """The network for MC prediction; None where rate 0 means that it has no dropout."""
    try:
        return MCDropout(network, inputs[:2].to(next(network.parameters()).device), task=cast(TaskName, task))
    except NoDropoutError as error:
        if rate == 0:
            return None
        raise NoDropoutError(f"the network that the factory makes for the rate {rate:g}: {error}") from error


def _check_rates_used(captured: Sequence[MCDropout | None]) -> None:
    """Raises SettingError where the networks have the same sites with the same rates; an unknown rate may differ."""
    if any(mc is None or mc.engine == "eager" for mc in captured):  # eager: what is drawn outside of PyTorch is no site
        return
    tables = [[(site.path, site.kind, site.p) for site in mc.sites] for mc in captured if mc is not None]
    first = tables[0]
    if all(table == first for table in tables) and all(p is not None for _, _, p in first):
        listed = ", ".join(f"{path or 'the network'}: p = {p:g}" for path, _, p in first[:6])
        raise SettingError(
            f"the factory makes the same dropout for every rate ({listed}), so there is nothing to compare. Pass the "
            "rate that it is called with on to the network's dropout."
        )


# ---- scores


@torch.no_grad()
def _deterministic(network: nn.Module, data: Data, task: str, batch_size: int) -> Score:
    """One pass with dropout off."""
    device = next(network.parameters()).device
    output = torch.cat([network(rows.to(device)).cpu() for rows in data[0].split(batch_size)]).double()
    if task == "regression":
        return score(task, output, data[1], variance=(output - data[1]).square().mean().expand(output.shape))
    return score(task, output.softmax(dim=-1) if task == "classification" else output.sigmoid(), data[1])


def _monte_carlo(mc: MCDropout, data: Data, task: str, *, num_samples: int, seed: int) -> Score:
    """The mean of `num_samples` passes with dropout on."""
    if task == "regression":
        mc.fit_noise_variance(*data, num_samples=num_samples)
    prediction = mc(data[0], num_samples=num_samples, seed=seed)
    mean, variance = (torch.as_tensor(each).cpu().double() for each in (prediction.mean, prediction.variance))
    return score(task, mean, data[1], variance=variance)


def score(task: str, mean: Tensor, targets: Tensor, *, variance: Tensor | None = None) -> Score:
    """NLL and accuracy of probabilities, or NLL and RMSE of values with a `variance`; a probability of 0 counts as the
    smallest of float64, so that the NLL stays finite."""
    tiny = torch.finfo(torch.float64).tiny
    if task == "regression" and variance is not None:
        squares, spread = (targets - mean).square(), variance.clamp_min(tiny)
        nll = 0.5 * (2 * math.pi * spread).log() + squares / (2 * spread)
        return Score(float(nll.mean()), float(squares.mean().sqrt()))
    if task == "classification":
        observed = mean.gather(-1, targets.long().unsqueeze(-1))
        right = mean.argmax(dim=-1) == targets
    else:
        observed = mean.where(targets > 0.5, 1 - mean)
        right = (mean >= 0.5) == (targets > 0.5)
    return Score(float(-observed.clamp_min(tiny).log().mean()), float(right.double().mean()))


def _check(rates: Sequence[float], task: str, seeds: int) -> None:
    if task not in TASKS:
        raise SettingError(f"task={task!r} cannot be swept; choose one of {', '.join(TASKS)}.")
    if len(rates) < 2 or len(set(rates)) < len(rates) or not all(0 <= rate < 1 for rate in rates):
        raise SettingError(
            f"rates {', '.join(f'{rate:g}' for rate in rates) or 'are empty'}: expected at least two different "
            "probabilities of dropping a unit, each at least 0 and below 1, as in 0,0.2,0.5."
        )
    if seeds < 2:
        raise SettingError(f"seeds={seeds}; expected at least 2, since the standard error is over seeds.")
