"""Training with dropout: one loop, behind the demo, the sweep over rates and the examples.

There is nothing special about it. A network that is to be sampled by MC dropout is trained like any other, with its
dropout on; whoever has a training loop keeps it. `fit` takes data that fit into memory, trains in the network's own
precision, and leaves behind a trained network, its flags as they were, and the global random state as it was.

References: AdamW, Loshchilov & Hutter 2019, arXiv 1711.05101; one cycle, Smith & Topin 2018, arXiv 1708.07120; mixup
and CutMix, see `mcdrop.training.mixing`.
"""

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from mcdrop.errors import InputError, SettingError, TrainingError
from mcdrop.surroundings.threads import fitting_threads, limited_threads
from mcdrop.training.losses import LOSSES, Loss, accuracy
from mcdrop.training.mixing import mix

__all__ = ["Data", "Epoch", "History", "fit"]

Data = tuple[Tensor, Tensor]  # inputs and targets, rows first


@dataclass(frozen=True)
class Epoch:
    """What was seen of one epoch.

    Attributes:
        number: from 1.
        training_loss: mean over the rows as they were trained on: dropout on, mixed and augmented.
        validation_loss: mean over the validation data with dropout off; None without such data.
        validation_accuracy: share of right answers there, 0 to 1; None for regressions and for a loss of your own.
    """

    number: int
    training_loss: float
    validation_loss: float | None = None
    validation_accuracy: float | None = None


@dataclass(frozen=True, repr=False)
class History:
    """What `fit` did. Prints as one line.

    Attributes:
        epochs: all that were trained.
        kept: number of the epoch whose weights the network now has.
        stopped_early: whether `patience` ended the training.
    """

    epochs: tuple[Epoch, ...]
    kept: int
    stopped_early: bool

    def __repr__(self) -> str:
        best = self.epochs[self.kept - 1]
        names = ("training_loss", "validation_loss", "validation_accuracy")
        seen = [(name.replace("_", " "), getattr(best, name)) for name in names]
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in seen if value is not None)
        early, plural = ", stopped early" if self.stopped_early else "", "s" if len(self.epochs) > 1 else ""
        return f"History: {len(self.epochs)} epoch{plural}{early}; weights of epoch {self.kept}: {numbers}"


def fit(
    model: nn.Module,
    train: Data,
    validation: Data | None = None,
    *,
    task: str = "classification",
    loss: Loss | None = None,
    epochs: int = 30,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-2,
    batch_size: int = 64,
    optimizer: Literal["adamw", "sgd"] = "adamw",
    schedule: Literal["constant", "one-cycle"] = "constant",
    patience: int | None = None,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    augment: Callable[[Tensor], Tensor] | None = None,
    seed: int = 0,
    threads: int | None = None,
    progress: Callable[[Epoch], object] | None = None,
) -> History:
    """Train `model` in place, on the device of its parameters.

    Args:
        train, validation: inputs and targets, two tensors with the same number of rows on axis 0. Classes are on the
            last axis of the output and their targets are integers; other targets have the output's shape.
        task: which loss to take, by its name in `mcdrop.training.losses.LOSSES`.
        loss: a loss of your own instead, from (output, targets) to their mean.
        weight_decay: 0 for none; with AdamW decoupled from the gradient.
        batch_size: rows of a step at most; the batches of an epoch are as equal as they can be.
        optimizer: AdamW, or SGD with momentum 0.9.
        schedule: of the learning rate; "one-cycle" rises to `learning_rate` and falls to 0 over all epochs.
        patience: stop after so many epochs without a lower validation loss, and in any case go back to the weights of
            the best epoch. None trains all epochs and keeps the last weights.
        mixup, cutmix: alpha of their Beta distributions, 0 for off; with both, each batch takes one at random.
        augment: changes the inputs of a batch, before they are mixed.
        seed: of the order of rows, of mixing, augmentation and dropout. Order and mixing depend on nothing else: two
            networks trained with one seed see the same batches.
        threads: of PyTorch on the CPU meanwhile; None takes 1 for a small network, which more only slow down on a busy
            machine, and else as many as are set (see `mcdrop.surroundings.threads`).
        progress: called after every epoch.

    Raises:
        SettingError: an argument that means nothing.
        InputError: inputs and targets that do not fit together.
        TrainingError: a loss that is not finite, with its epoch and step.
    """
    _check_choices(task=(task if loss is None else "classification", LOSSES), optimizer=(optimizer, _OPTIMIZERS))
    _check_choices(schedule=(schedule, _SCHEDULES))
    _check_whole(epochs=(epochs, 1), batch_size=(batch_size, 1), patience=(patience, 1), seed=(seed, 0))
    _check_numbers(learning_rate=learning_rate, weight_decay=weight_decay, mixup=mixup, cutmix=cutmix)
    _check_data(train, validation, patience, mixup, cutmix)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise SettingError(f"{type(model).__name__} has no parameter that takes a gradient, so nothing can be trained.")
    criterion, device, rows = loss or LOSSES[task], parameters[0].device, len(train[0])
    steps = math.ceil(rows / batch_size)
    descent = _OPTIMIZERS[optimizer](parameters, learning_rate, weight_decay)
    rates = _SCHEDULES[schedule](descent, learning_rate, epochs * steps)
    random = np.random.default_rng(seed)
    history: list[Epoch] = []
    kept, lowest, weights = 0, math.inf, dict[str, Any]()

    with (
        limited_threads(fitting_threads(model, train[0]) if threads is None else threads),
        _own_randomness(device, seed),
        _same_flags(model),
        torch.enable_grad(),
    ):
        for number in range(1, epochs + 1):
            model.train()
            total = 0.0
            for step, batch in enumerate(torch.from_numpy(random.permutation(rows)).tensor_split(steps), 1):
                inputs, targets = (part[batch].to(device) for part in train)
                if augment is not None:
                    inputs = augment(inputs)
                value = _loss(model, criterion, inputs, targets, random, mixup, cutmix)
                _check_finite(value.item(), f"the loss of epoch {number}, step {step} of {steps}", learning_rate, train)
                descent.zero_grad()
                value.backward()
                descent.step()
                rates.step()
                total += value.item() * len(batch)
            loss_now, right = _evaluate(model, validation, criterion, None if loss else task, batch_size)
            _check_finite(loss_now, f"the validation loss of epoch {number}", learning_rate, validation or train)
            history.append(Epoch(number, total / rows, loss_now, right))
            if progress is not None:
                progress(history[-1])
            if patience is None or loss_now is None:
                kept = number
            elif loss_now < lowest:
                kept, lowest, weights = number, loss_now, copy.deepcopy(model.state_dict())
            elif number - kept >= patience:
                break
        if patience is not None:
            model.load_state_dict(weights)
    descent.zero_grad()
    return History(tuple(history), kept, stopped_early=len(history) < epochs)


# ---- one step


def _loss(
    model: nn.Module,
    criterion: Loss,
    inputs: Tensor,
    targets: Tensor,
    random: np.random.Generator,
    mixup: float,
    cutmix: float,
) -> Tensor:
    """The loss of a batch, of which each row is mixed with a partner where that is asked for."""
    if not (mixup or cutmix):
        return criterion(model(inputs), targets)
    inputs, partners, share = mix(inputs, random, mixup_alpha=mixup, cutmix_alpha=cutmix)
    output = model(inputs)
    return share * criterion(output, targets) + (1 - share) * criterion(output, targets[partners])


_OPTIMIZERS: dict[str, Callable[[list[nn.Parameter], float, float], torch.optim.Optimizer]] = {
    "adamw": lambda parameters, rate, decay: torch.optim.AdamW(parameters, lr=rate, weight_decay=decay),
    "sgd": lambda parameters, rate, decay: torch.optim.SGD(parameters, lr=rate, momentum=0.9, weight_decay=decay),
}

_SCHEDULES: dict[str, Callable[[torch.optim.Optimizer, float, int], torch.optim.lr_scheduler.LRScheduler]] = {
    "constant": lambda optimizer, rate, steps: torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0),
    "one-cycle": lambda optimizer, rate, steps: torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=rate, total_steps=steps
    ),
}


@torch.no_grad()
def _evaluate(
    model: nn.Module, validation: Data | None, criterion: Loss, task: str | None, batch_size: int
) -> tuple[float | None, float | None]:
    """Mean loss and accuracy with dropout off, where there are data and where the task has an accuracy."""
    if validation is None:
        return None, None
    model.eval()
    device = next(model.parameters()).device
    losses, rights = 0.0, 0.0
    right = None
    for inputs, targets in zip(*(part.split(batch_size) for part in validation), strict=True):
        output, wanted = model(inputs.to(device)), targets.to(device)
        losses += criterion(output, wanted).item() * len(inputs)
        right = None if task is None else accuracy(task, output, wanted)
        rights += (right or 0.0) * len(inputs)
    rows = len(validation[0])
    return losses / rows, None if right is None else rights / rows


# ---- what is left as it was


@contextmanager
def _own_randomness(device: torch.device, seed: int) -> Iterator[None]:
    """PyTorch's generators, from which dropout draws, begin at `seed` and go back to where they were."""
    gpus = [torch.cuda.current_device() if device.index is None else device.index] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        torch.default_generator.manual_seed(seed)
        for gpu in gpus:
            torch.cuda.default_generators[gpu].manual_seed(seed)
        yield


@contextmanager
def _same_flags(model: nn.Module) -> Iterator[None]:
    flags = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, flag in flags.items():
            module.training = flag


# ---- checks


def _check_choices(**choices: tuple[str, Iterable[str]]) -> None:
    for name, (value, known) in choices.items():
        if value not in known:
            raise SettingError(f"{name}={value!r} is unknown; choose one of {', '.join(known)}.")


def _check_whole(**numbers: tuple[int | None, int]) -> None:
    for name, (value, least) in numbers.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise SettingError(f"{name}={value!r}; expected a whole number of at least {least}.")


def _check_numbers(**numbers: float) -> None:
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise SettingError(f"{name}={value!r}; expected a finite number of at least 0.")


def _check_data(train: Data, validation: Data | None, patience: int | None, mixup: float, cutmix: float) -> None:
    for name, data in (("train", train), ("validation", validation)):
        if data is None:
            continue
        if not (isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, Tensor) for part in data)):
            raise InputError(f"{name} is no pair of tensors; expected (inputs, targets).")
        if min(data[0].ndim, data[1].ndim) == 0 or len(data[0]) != len(data[1]) or len(data[0]) == 0:
            raise InputError(
                f"{name}: inputs of shape {list(data[0].shape)} and targets of shape {list(data[1].shape)}; "
                "expected the same number of rows on axis 0, at least one."
            )
    if patience is not None and validation is None:
        raise SettingError("patience waits for a lower validation loss; give validation data, or leave patience out.")
    if (mixup or cutmix) and not train[0].is_floating_point():
        raise SettingError(f"mixup and cutmix mix floating point inputs; these are {train[0].dtype}. Leave them out.")
    if cutmix and train[0].ndim < 3:
        raise SettingError(
            f"cutmix pastes boxes into images (batch, ..., height, width); these inputs have shape "
            f"{list(train[0].shape)}. Use mixup."
        )


def _check_finite(value: float | None, what: str, learning_rate: float, data: Data) -> None:
    if value is None or math.isfinite(value):
        return
    for name, part in zip(("inputs", "targets"), data, strict=True):
        if not part.isfinite().all():
            raise TrainingError(f"{what} is {value}: there are NaN or infinite {name}. Remove or replace those rows.")
    raise TrainingError(
        f"{what} is {value}; expected a finite number. Try a lower learning_rate (it was {learning_rate:g}), inputs "
        "scaled to about -1 to 1, and look for a division by 0 or the logarithm of 0 in the network or its loss."
    )
