"""What people do without mcdrop. Each way takes a network and gives a function that samples it.

Those of this module let the network draw as in training, its normalisation left in evaluation mode; `wrappers` has
those of other libraries.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks import wrappers

__all__ = ["Sample", "Way", "baselines", "moments", "replicated", "train_mode", "train_mode_loop", "vmapped"]

Sample = Callable[[Tensor, int], Tensor]  # inputs (batch, ...) and a number of passes -> outputs (samples, batch, ...)
Way = Callable[[nn.Module], Sample]

_NORMALISATION = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)


def train_mode(model: nn.Module) -> nn.Module:
    """A copy that drops out as in training and whose running averages stay as they are."""
    model = copy.deepcopy(model).train()
    for module in model.modules():
        if isinstance(module, _NORMALISATION):
            module.eval()
    return model


def train_mode_loop(model: nn.Module) -> Sample:
    """Pass after pass."""
    training = train_mode(model)
    return lambda inputs, num_samples: torch.stack([training(inputs) for _ in range(num_samples)])


def replicated(model: nn.Module) -> Sample:
    """One pass over every row `num_samples` times."""
    training = train_mode(model)

    def sample(inputs: Tensor, num_samples: int) -> Tensor:
        many = inputs.repeat(num_samples, *[1] * (inputs.ndim - 1))
        outputs: Tensor = training(many)
        return outputs.unflatten(0, (num_samples, -1))

    return sample


def vmapped(model: nn.Module) -> Sample:
    """`torch.func.vmap` over passes: what does not depend on them is computed once.

    Some operations draw only where their input depends on the pass; for a network with such, inputs are given once for
    each pass, and everything is computed as often.
    """
    training = train_mode(model)
    shares = True

    def sample(inputs: Tensor, num_samples: int) -> Tensor:
        nonlocal shares
        if shares:
            try:
                return over(lambda _: training(inputs), torch.empty(num_samples))
            except RuntimeError:
                shares = False
        return over(training, inputs.expand(num_samples, *inputs.shape))

    def over(function: Callable[[Tensor], Tensor], mapped: Tensor) -> Tensor:
        outputs: Tensor = torch.func.vmap(function, randomness="different")(mapped)
        return outputs

    return sample


def baselines() -> dict[str, Way]:
    """Every way by its name; those of other libraries where they are installed."""
    own: dict[str, Way] = {"loop": train_mode_loop, "replicated": replicated, "vmap": vmapped}
    return own | wrappers.installed()


def moments(outputs: Tensor, class_axis: int) -> tuple[Tensor, Tensor]:
    """Mean and variance over passes of probabilities, from logits (samples, batch, ...); `class_axis` is a batch's."""
    probs = outputs.softmax(class_axis if class_axis < 0 else class_axis + 1)
    return probs.mean(0), probs.var(0)
