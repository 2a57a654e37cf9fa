"""What people do without mcdrop: the network in training mode, BatchNorm left in evaluation mode."""

import copy

import torch
from torch import Tensor, nn

__all__ = ["replicated", "train_mode", "train_mode_loop"]

_NORMALISATION = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)


def train_mode(model: nn.Module) -> nn.Module:
    """A copy that drops out as in training and whose running averages stay as they are."""
    model = copy.deepcopy(model).train()
    for module in model.modules():
        if isinstance(module, _NORMALISATION):
            module.eval()
    return model


@torch.no_grad()
def train_mode_loop(model: nn.Module, inputs: Tensor, num_samples: int) -> tuple[Tensor, Tensor]:
    """Pass after pass, then mean and variance of the probabilities."""
    return _moments(torch.stack([model(inputs) for _ in range(num_samples)]))


@torch.no_grad()
def replicated(model: nn.Module, inputs: Tensor, num_samples: int) -> tuple[Tensor, Tensor]:
    """One pass over every row `num_samples` times, then mean and variance of the probabilities."""
    many = inputs.repeat(num_samples, *[1] * (inputs.ndim - 1))
    return _moments(model(many).unflatten(0, (num_samples, -1)))


def _moments(logits: Tensor) -> tuple[Tensor, Tensor]:
    probs = logits.softmax(-1)
    return probs.mean(0), probs.var(0)
