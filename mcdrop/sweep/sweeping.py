"""Finding the dropout rate: train the same network with several rates and seeds, and compare on held-out data.

    NLL, classes     -log p[y], p the softmax of the logits, or its mean over the passes
    NLL, yes or no   -log p of what was observed, the mean over labels
    NLL, regression  1/2 log(2 pi v) + (y - mean)^2 / 2v, v = noise variance plus the variance over passes

in nats, the mean over targets. The noise variance of a regression is one number, fitted to the same validation data.
Networks are scored with the weights of their last epoch: stopping each at its best epoch would choose by the same
validation data on which the rates are compared.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcdrop.errors import NoDropoutError, SettingError
from mcdrop.outputs.tasks import TaskName
from mcdrop.predictor import MCDropout
from mcdrop.surroundings.threads import fitting_threads, limited_threads
from mcdrop.sweep.trials import Score, Sweep, Trial
from mcdrop.training import Data, fit

__all__ = ["LEAST_SEEDS", "TASKS", "Factory", "Plan", "sweep"]

Factory = Callable[[float], nn.Module]  # from a dropout rate to an untrained network
TASKS = ("classification", "binary", "multilabel", "regression")
LEAST_SEEDS = 2  # for a standard error


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
    threads: int | None = None,
    progress: Callable[[], object] | None = None,
) -> Sweep:
    """Train `factory(rate)` for each rate and for the seeds 0 to `seeds` - 1, and score each on the validation data.

    Args:
        factory: makes an untrained network with that dropout rate. It is called with PyTorch's global generator at the
            seed (put back afterwards), so that networks of one seed start from the same weights.
        train, validation: inputs and targets, as `mcdrop.training.fit` takes them.
        rates: at least two, each at least 0 and below 1. At 0 a network may be without dropout: it has no MC scores.
        num_samples: passes of an MC prediction.
        threads: of PyTorch on the CPU meanwhile; None takes 1 for small networks (see `mcdrop.surroundings.threads`).
        progress: called after every epoch of every training.

    Raises:
        SettingError: rates, seeds or a task that mean nothing; a factory that makes the same dropout for every rate.
        NoDropoutError: a network of a rate above 0 has no active dropout.
        InputError, TrainingError, CaptureError: as `fit` and `MCDropout` raise them.
    """
    plan = Plan(
        factory, train, validation, tuple(rates), task, seeds, epochs, learning_rate, weight_decay, batch_size,
        num_samples, device, threads,
    )  # fmt: skip
    return plan.gather(plan.trials(progress))


@dataclass(frozen=True)
class Plan:
    """A sweep to be made, with the arguments of `sweep`: its trials one by one, and what some of them say together."""

    factory: Factory
    train: Data
    validation: Data
    rates: tuple[float, ...]
    task: str
    seeds: int
    epochs: int
    learning_rate: float
    weight_decay: float
    batch_size: int
    num_samples: int
    device: str = "cpu"
    threads: int | None = None

    @property
    def measure(self) -> str:
        """The second number of each score, beside the NLL."""
        return "rmse" if self.task == "regression" else "accuracy"

    def trials(self, progress: Callable[[], object] | None = None) -> Iterator[Trial]:
        """All trials, those of one seed at all rates before the next seed: whoever stops has seeds to compare."""
        _check(self.rates, self.task, self.seeds)
        first = (_build(self.factory, rate, 0, self.device) for rate in self.rates)
        _check_rates_used(  # before anything is trained
            [_capture(network, self.validation[0], self.task, p) for network, p in zip(first, self.rates, strict=True)]
        )
        for seed in range(self.seeds):
            for rate in self.rates:
                yield self._trial(rate, seed, progress)

    def gather(self, trials: Iterable[Trial]) -> Sweep:
        """The sweep of trials that have the same seeds at every rate, at least two."""
        ordered = sorted(trials, key=lambda trial: (self.rates.index(trial.rate), trial.seed))
        ignorant = ignorant_loss(self.task, self.train[1])
        return Sweep(self.task, self.measure, self.num_samples, ignorant, self.rates, tuple(ordered))

    def _trial(self, rate: float, seed: int, progress: Callable[[], object] | None) -> Trial:
        network = _build(self.factory, rate, seed, self.device)
        with limited_threads(fitting_threads(network, self.train[0]) if self.threads is None else self.threads):
            history = fit(
                network,
                self.train,
                self.validation,
                task=self.task,
                epochs=self.epochs,
                learning_rate=self.learning_rate,
                weight_decay=self.weight_decay,
                batch_size=self.batch_size,
                seed=seed,
                threads=self.threads,
                progress=None if progress is None else lambda _: progress(),
            )
            mc = _capture(network, self.validation[0], self.task, rate)
            return Trial(
                rate,
                seed,
                history,
                deterministic=_deterministic(network, self.validation, self.task, self.batch_size),
                mc=None if mc is None else self._monte_carlo(mc, seed),
            )

    def _monte_carlo(self, mc: MCDropout, seed: int) -> Score:
        """Of the mean of `num_samples` passes with dropout on."""
        inputs, targets = self.validation
        if self.task == "regression":
            mc.fit_noise_variance(inputs, targets, num_samples=self.num_samples)
        prediction = mc(inputs, num_samples=self.num_samples, seed=seed)
        mean, variance = (torch.as_tensor(each).cpu().double() for each in (prediction.mean, prediction.variance))
        return score(self.task, mean, targets, variance=variance)


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
    if seeds < LEAST_SEEDS:
        raise SettingError(f"seeds={seeds}; expected at least {LEAST_SEEDS}, since the standard error is over seeds.")
