"""What the servers without mcdrop compute: probabilities of 100 passes, then what mcdrop's answer has too."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.baselines import train_mode

__all__ = ["METHODS", "answer", "loop", "replicated", "split"]

Method = Callable[[Tensor], Tensor]  # rows -> logits (passes, rows, classes)


def loop(model: nn.Sequential, num_samples: int) -> Method:
    """Pass after pass."""
    training = train_mode(model)
    return lambda rows: torch.stack([training(rows) for _ in range(num_samples)])


def replicated(model: nn.Sequential, num_samples: int) -> Method:
    """Every row `num_samples` times in one batch."""
    training = train_mode(model)
    return lambda rows: training(rows.repeat(num_samples, 1)).unflatten(0, (num_samples, -1))


def split(model: nn.Sequential, num_samples: int) -> Method:
    """What stands before the first dropout once per row, the rest for all passes of all rows at once."""
    first = next(place for place, layer in enumerate(model) if isinstance(layer, nn.Dropout))
    prefix, suffix = model[:first], train_mode(model[first:])
    return lambda rows: suffix(prefix(rows).expand(num_samples, -1, -1))


METHODS = {"loop": loop, "replicated": replicated, "split": split}


@torch.no_grad()
def answer(method: Method, rows: Tensor) -> dict[str, Any]:
    """Mean, variance, entropy and label of each row, as arrays."""
    probs = method(rows).softmax(-1)
    mean = probs.mean(0)
    return {
        "mean": mean.numpy(),
        "variance": probs.var(0).numpy(),
        "entropy": torch.special.entr(mean).sum(-1).numpy(),
        "label": mean.argmax(-1).numpy(),
    }
