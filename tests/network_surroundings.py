"""Modules for the table in networks.py: what stands beside dropout, other inputs and outputs, refused and eager ones.

Unless a docstring says otherwise the input has shape (batch, 6) and the output (batch, 3).
"""

import dataclasses
import random

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from network_modules import Call, Head, P

# What training mode switches on beside dropout


class RReLUBeside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(6, 8), nn.Linear(8, 3)
        self.activation, self.dropout = nn.RReLU(), nn.Dropout(P)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.dropout(self.activation(self.inner(x))))


class Auxiliary(nn.Module):
    """Inception-like: in training `forward` returns a second head's logits too."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.head, self.aux = (
            nn.Linear(6, 8),
            nn.Linear(8, 3),
            nn.Sequential(nn.Dropout(0.7), nn.Linear(8, 3)),
        )
        self.dropout = nn.Dropout(P)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        h = F.relu(self.trunk(x))
        aux = self.aux(h) if self.training else None
        logits = self.head(self.dropout(h))
        return logits if aux is None else (logits, aux)


class SharedFlag(nn.Module):
    """One flag serves a functional dropout and something else, so that it cannot be on; the module's site can.

    `form` "auxiliary": in training there is a second output. "softmax": in evaluation logits become probabilities.
    """

    def __init__(self, form: str) -> None:
        super().__init__()
        self.trunk, self.middle, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.dropout, self.form = nn.Dropout(P), form

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        h = F.dropout(F.relu(self.trunk(x)), 0.5, self.training)
        logits = self.head(self.dropout(F.relu(self.middle(h))))
        if self.form == "softmax":
            return logits if self.training else logits.softmax(-1)
        return (logits, h) if self.training else logits


class HandWrittenNorm(nn.Module):
    """Batch statistics in training, running ones in evaluation, written without nn.BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running", torch.linspace(-1, 1, 8))
        self.inner, self.outer, self.dropout = nn.Linear(6, 8), nn.Linear(8, 3), nn.Dropout(P)
        self.norm = Call(self.normalise)

    def normalise(self, x: Tensor, training: bool) -> Tensor:
        if training:
            self.running.mul_(0.9).add_(0.1 * x.detach().mean(0))
            return x - x.mean(0)
        return x - self.running

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.dropout(F.relu(self.norm(self.inner(x)))))


class CountsCalls(nn.Module):
    """Observes its activations in training only, as quantisation observers do."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("largest", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.largest.copy_(torch.maximum(self.largest, x.detach().abs().max()))
        return x


# Inputs and outputs in other shapes


class ManyOutputs(nn.Module):
    """`form` "tuple" (features, logits), "dict", "dataclass" or "pair" (mean, log variance)."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.inner, self.outer, self.dropout, self.form = nn.Linear(6, 8), nn.Linear(8, 3), nn.Dropout(P), form

    def forward(self, x: Tensor) -> object:
        features = self.dropout(F.relu(self.inner(x)))
        logits = self.outer(features)
        if self.form == "tuple":
            return features, logits
        if self.form == "dict":
            return {"features": features, "logits": logits, "loss": None}
        if self.form == "pair":
            return logits[:, :1], logits[:, 1:2]
        return Output(features=features, logits=logits)


@dataclasses.dataclass
class Output:
    features: Tensor
    logits: Tensor
    loss: Tensor | None = None


class ManyInputs(nn.Module):
    """Inputs by keyword: age (batch,) int64, vector (batch, 6), flags (batch, 2) bool."""

    def __init__(self) -> None:
        super().__init__()
        self.ages, self.inner, self.outer, self.dropout = (
            nn.Embedding(7, 4),
            nn.Linear(12, 8),
            nn.Linear(8, 3),
            nn.Dropout(P),
        )

    def forward(self, age: Tensor, vector: Tensor, flags: Tensor) -> Tensor:
        return self.outer(self.dropout(F.relu(self.inner(torch.cat([self.ages(age), vector, flags.to(vector)], 1)))))


class Siamese(nn.Module):
    """Two inputs (batch, 6) through one network as one batch, taken apart again as `form` says."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.inner, self.outer, self.dropout = nn.Linear(6, 8), nn.Linear(8, 3), nn.Dropout(P)
        self.form = form

    def forward(self, one: Tensor, two: Tensor) -> Tensor:
        both = self.dropout(F.relu(self.inner(torch.cat([one, two]))))
        if self.form == "chunk":
            one, two = both.chunk(2)
        elif self.form == "torch.split":
            one, two = torch.split(both, one.shape[0])
        else:
            one, two = both.unflatten(0, (2, -1))
        return self.outer((one - two).abs())


class OldWeightNorm(nn.Module):
    """`copy.deepcopy` fails on it once it has run: its weight is then no leaf."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer, self.dropout = nn.Linear(6, 8), nn.Linear(8, 3), nn.Dropout(P)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.dropout(F.relu(self.inner(x))))


class Compiled(nn.Module):
    """Compiled by `torch.compile` and run once. `form` says what: the "whole" in place, a "part", its "forward"."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(6, 8), nn.Linear(8, 3)
        self.middle: nn.Module = nn.Sequential(nn.ReLU(), nn.Dropout(P))
        if form == "whole":
            self.compile(backend="eager")
        elif form == "part":
            self.middle = torch.compile(self.middle, backend="eager")
        else:
            self.forward = torch.compile(self.forward, backend="eager")
        with torch.no_grad():
            self(torch.zeros(2, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(F.dropout(self.middle(self.inner(x)), P, self.training))


# To be refused


class BatchProduct(Head):
    """Every row looks at every other: x @ x.T over the batch."""

    def forward(self, x: Tensor) -> Tensor:
        h = F.dropout(F.relu(self.inner(x)), P, self.training)
        return self.outer(torch.softmax(h @ h.T, -1) @ h)


def subtract_batch_mean(x: Tensor, training: bool) -> Tensor:
    return F.dropout(x - x.mean(0), P, training)


def noise_of_the_batch(x: Tensor, training: bool) -> Tensor:
    """Its rows interact by noise alone: where that is 0 they do not."""
    return x + torch.randn_like(x) * x.abs().mean(0) if training else x


def multinomial(x: Tensor, training: bool) -> Tensor:
    if not training:
        return x
    kept = torch.multinomial(torch.ones_like(x), 6)
    return torch.zeros_like(x).scatter(1, kept, x.gather(1, kept)) * 8 / 6


def randperm(x: Tensor, training: bool) -> Tensor:
    return F.dropout(x[:, torch.randperm(8)], P, training) if training else x


def randint(x: Tensor, training: bool) -> Tensor:
    return F.dropout(x, P, training) * torch.randint(0, 2, x.shape) * 2 if training else x


def geometric(x: Tensor, training: bool) -> Tensor:
    return F.dropout(x, P, training) * torch.empty_like(x).geometric_(0.5) if training else x


class NeverCalled(nn.Module):
    """Its dropout layer is there, and no path of `forward` reaches it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.dropout = nn.Linear(6, 3), nn.Dropout(P)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


# To be run by the eager engine


class Packed(nn.Module):
    """Inputs x (batch, 4, 5) and lengths (batch,): a packed sequence inside."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.dropout, self.head = nn.GRU(5, 4, batch_first=True), nn.Dropout(P), nn.Linear(4, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        _, last = self.rnn(packed)
        return self.head(self.dropout(last[0]))


class Branching(Head):
    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.inner(x))
        if h.abs().sum() > 0:
            h = F.dropout(h, P, self.training)
        return self.outer(h)


class LayerDrop(nn.Module):
    """Skips whole layers, one draw for all rows; `source` "random" (the module) or "item" (torch.rand(()).item())."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Dropout(P)) for _ in range(2))
        self.head, self.source = nn.Linear(6, 3), source

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            draw = random.random() if self.source == "random" else torch.rand(()).item()
            if self.training and draw < P:
                continue
            x = x + layer(x)
        return self.head(x)


def numpy_noise(x: Tensor, training: bool) -> Tensor:
    if not training:
        return x
    return F.dropout(x, P) * torch.from_numpy(np.random.binomial(1, 1 - P, size=(1, 8)).astype(np.float32)) / (1 - P)
