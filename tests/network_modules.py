"""Modules for the table in networks.py: element by element, on weights, stochastic depth and convolutions.

Each writes dropout in one way found in real code. All are tiny. Unless a docstring says otherwise the input has shape
(batch, 6) and the output (batch, 3), and the dropout is one that `.train()` switches on and `.eval()` switches off.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

P = 0.3  # probability of dropping a unit, wherever a row does not need another one


class Head(nn.Module):
    """Linear - ReLU - `middle` - Linear, where `middle(hidden, training)` writes the dropout; hidden is (batch, 8)."""

    def __init__(self, middle: Callable[[Tensor, bool], Tensor]) -> None:
        super().__init__()
        self.inner, self.outer, self.middle = nn.Linear(6, 8), nn.Linear(8, 3), middle

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.middle(F.relu(self.inner(x)), self.training))


def dropout(x: Tensor, training: bool) -> Tensor:
    return F.dropout(x, P, training)


def dropout_in_place(x: Tensor, training: bool) -> Tensor:
    F.dropout(x, P, training, inplace=True)  # the result is dropped: only the change of x itself counts
    return x


def dropout_in_place_on_a_view(x: Tensor, training: bool) -> Tensor:
    F.dropout(x[:, :5], P, training, inplace=True)
    return x


def dropout_always_on(x: Tensor, training: bool) -> Tensor:
    return F.dropout(x, P)


def alpha_dropout_in_place(x: Tensor, training: bool) -> Tensor:
    F.alpha_dropout(x, P, training, inplace=True)
    return x


def bernoulli_in_place(x: Tensor, training: bool) -> Tensor:
    return x * torch.empty_like(x).bernoulli_(1 - P) / (1 - P) if training else x


def bernoulli_of_full(x: Tensor, training: bool) -> Tensor:
    return x * torch.bernoulli(torch.full_like(x, 1 - P)) / (1 - P) if training else x


def bernoulli_one_row(x: Tensor, training: bool) -> Tensor:
    return x * torch.bernoulli(torch.full((1, x.shape[1]), 1 - P)) / (1 - P) if training else x


def rand_threshold(x: Tensor, training: bool) -> Tensor:
    return x * (torch.rand(x.shape) >= P) / (1 - P) if training else x


def rand_like_threshold(x: Tensor, training: bool) -> Tensor:
    return torch.where(torch.rand_like(x) < P, 0.0, x / (1 - P)) if training else x


def uniform_in_place(x: Tensor, training: bool) -> Tensor:
    return x.masked_fill(x.new_empty(x.shape).uniform_() < P, 0.0) / (1 - P) if training else x


def uniform_noise(x: Tensor, training: bool) -> Tensor:
    return x + torch.empty_like(x).uniform_(-0.5, 0.5) if training else x


def gaussian_dropout(x: Tensor, training: bool) -> Tensor:
    return x * (1 + (P / (1 - P)) ** 0.5 * torch.randn_like(x)) if training else x


def gaussian_noise(x: Tensor, training: bool) -> Tensor:
    return x + 0.3 * torch.randn(x.shape, device=x.device) if training else x


def normal_in_place(x: Tensor, training: bool) -> Tensor:
    return x + torch.zeros_like(x).normal_(0.0, 0.3) if training else x


def exponential_noise(x: Tensor, training: bool) -> Tensor:
    return x * torch.empty_like(x).exponential_(1.5) if training else x


def normal_of_tensors(x: Tensor, training: bool) -> Tensor:
    return torch.normal(x, torch.linspace(0.1, 0.5, x.shape[1], dtype=torch.float64)) if training else x


def normal_of_numbers(x: Tensor, training: bool) -> Tensor:
    return x * torch.normal(1.0, 0.3, x.shape) * torch.normal(1.0, x.new_full((1, 8), 0.2)) if training else x


def normal_about_a_tensor(x: Tensor, training: bool) -> Tensor:
    return torch.normal(x, 0.3, out=torch.empty_like(x)) if training else x


def reparametrised(x: Tensor, training: bool) -> Tensor:
    law = torch.distributions.Normal(x, F.softplus(x))
    return law.rsample() * law.sample() if training else law.mean**2


def drawn_into(x: Tensor, training: bool) -> Tensor:
    noise = torch.empty_like(x)
    torch.rand(x.shape, out=noise)  # only what it wrote counts
    return x + noise - 0.5 if training else x


def empty_slices(x: Tensor, training: bool) -> Tensor:
    """Dropout of no elements draws nothing, and attention to no keys gives zeros."""
    none = F.dropout(x[:, 8:], P, training)
    F.alpha_dropout(x[:0], P, training, inplace=True)
    F.dropout1d(x[:, 8:, None], P, training)
    query = x[:, None]  # (batch, 1, 8)
    seen = F.scaled_dot_product_attention(query, query[:, :0], query[:, :0], dropout_p=P if training else 0.0)
    return F.dropout(torch.cat([x, none], 1) + seen[:, 0], P, training)


class BernoulliRates(nn.Module):
    """Every unit has a rate of its own, kept in a parameter (as concrete dropout learns them)."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(6, 8), nn.Linear(8, 3)
        self.keep = nn.Parameter(torch.linspace(-0.5, 2.0, 8))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.inner(x))
        if self.training:
            keep = torch.sigmoid(self.keep)
            h = h * torch.bernoulli(keep.expand_as(h)) / keep
        return self.outer(h)


class AlwaysOnDropout(nn.Dropout):
    """The "MC dropout layer" of many tutorials: a subclass whose forward ignores the flag."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, training=True)


class UnscaledDropout(nn.Dropout):
    """A subclass with its own forward: drops without rescaling while training, rescales in evaluation."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return x * torch.empty_like(x).bernoulli_(1 - self.p)
        return x


class TwicePlaces(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.dropout = nn.Dropout(P)

    def forward(self, x: Tensor) -> Tensor:
        h = self.dropout(F.relu(self.one(x)))
        return self.three(self.dropout(torch.tanh(self.two(h))))


class Regions(nn.Module):
    """One site inside an autocast region, one inside a no_grad region, one plain."""

    def __init__(self, autocast: bool, no_grad: bool) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.dropout, self.autocast, self.no_grad = nn.Dropout(P), autocast, no_grad

    def forward(self, x: Tensor) -> Tensor:
        if self.no_grad:
            with torch.no_grad():
                h = self.dropout(F.relu(self.one(x)))
        else:
            h = F.relu(self.one(x))
        if self.autocast:
            with torch.autocast(x.device.type, dtype=torch.bfloat16):
                h = self.dropout(F.relu(self.two(h)))
            h = h.float()
        else:
            h = F.relu(self.two(h))
        return self.three(self.dropout(h))


# Weights as sites: no batch axis at all.


class DropConnect(nn.Linear):
    def __init__(self, inputs: int, outputs: int, p: float = P) -> None:
        super().__init__(inputs, outputs)
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, F.dropout(self.weight, self.p, self.training), self.bias)


class EmbeddingDropout(nn.Module):
    """Drops whole words of the vocabulary (AWD-LSTM). Input ids (batch, length); output (batch, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(11, 4), nn.Linear(4, 3)

    def forward(self, ids: Tensor) -> Tensor:
        weight = self.embedding.weight
        if self.training:
            weight = weight * weight.new_empty((weight.size(0), 1)).bernoulli_(1 - P).expand_as(weight) / (1 - P)
        return self.head(F.embedding(ids, weight).mean(1))


# Stochastic depth


class DropPath(nn.Module):
    """timm's: a Bernoulli number per row, drawn in place."""

    def __init__(self, p: float = P) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if self.p == 0.0 or not self.training:
            return x
        keep = 1 - self.p
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
        if keep > 0.0:
            mask.div_(keep)
        return x * mask


class OldDropPath(DropPath):
    """timm's and Swin's first form: floor(keep + U)."""

    def forward(self, x: Tensor) -> Tensor:
        if self.p == 0.0 or not self.training:
            return x
        keep = 1 - self.p
        mask = keep + torch.rand((x.shape[0],) + (1,) * (x.ndim - 1), dtype=x.dtype, device=x.device)
        mask.floor_()
        return x.div(keep) * mask


class StochasticDepth(nn.Module):
    """torchvision's: mode "row" or "batch" (one number for the whole batch)."""

    def __init__(self, p: float, mode: str) -> None:
        super().__init__()
        self.p, self.mode = p, mode

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        survival = 1.0 - self.p
        size = [x.shape[0] if self.mode == "row" else 1] + [1] * (x.ndim - 1)
        noise = torch.empty(size, dtype=x.dtype, device=x.device)
        noise = noise.bernoulli_(survival)
        if survival > 0.0:
            noise.div_(survival)
        return x * noise


class Residual(nn.Module):
    """Two residual blocks, the branch of each dropped as a whole."""

    def __init__(self, drop: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(2))
        self.drops = nn.ModuleList(drop() for _ in range(2))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block, drop in zip(self.blocks, self.drops, strict=True):
            x = x + drop(block(x))
        return self.head(x)


# Convolutions


def conv_classifier(middle: nn.Module, dims: int = 2) -> nn.Module:
    """Input (batch, 2, 6, ...); conv - ReLU - `middle` - conv - average - Linear."""
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    pool = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[dims - 1]
    return nn.Sequential(
        conv(2, 4, 3), nn.ReLU(), middle, conv(4, 4, 2), nn.ReLU(), pool(1), nn.Flatten(), nn.Linear(4, 3)
    )


class Call(nn.Module):
    """A function of (x, training) as a module."""

    def __init__(self, function: Callable[[Tensor, bool], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.training)


def feature_dropout_in_place(x: Tensor, training: bool) -> Tensor:
    F.dropout2d(x, P, training, inplace=True)
    return x


def with_statistics(model: nn.Module) -> nn.Module:
    """Gives every BatchNorm running statistics that training would have left."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.5)
            module.running_var.uniform_(0.5, 2.0)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.3)
    return model


class UNet(nn.Module):
    """Input (batch, 2, 8, 8); output logits (batch, 3, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.middle = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, stride=2), nn.ReLU(), nn.Dropout2d(P))
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.dropout = nn.Dropout(0.2)
        self.out = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x)
        return self.out(self.dropout(torch.cat([skip, F.relu(self.up(self.middle(skip)))], 1)))


class Uint8Image(nn.Module):
    """Input uint8 (batch, 2, 6, 6): the normalisation belongs to the network."""

    def __init__(self) -> None:
        super().__init__()
        self.net = conv_classifier(nn.Dropout(P))
        self.register_buffer("mean", torch.tensor([0.4, 0.6])[:, None, None])

    def forward(self, image: Tensor) -> Tensor:
        return self.net((image.float() / 255 - self.mean) / 0.25)
