"""Networks for the table of findings: sick ones and their near misses, as small re-statements of how torchvision, timm
and transformers lay out networks, and healthy ones.

Unless a docstring says otherwise the input has shape (batch, 6) and the output (batch, 3).
"""

import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

P = 0.3


def head(*layers: nn.Module) -> nn.Module:
    """Linear, ReLU, then `layers`, on 8 features."""
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), *layers)


def classifier(p: float) -> nn.Module:
    """The head of AlexNet and VGG: two hidden layers, dropout behind each activation."""
    hidden = [nn.Linear(8, 8), nn.ReLU(), nn.Dropout(p), nn.Linear(8, 8), nn.ReLU(), nn.Dropout(p)]
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), *hidden, nn.Linear(8, 3))


def on_maps(*layers: nn.Module) -> nn.Module:
    """Layers on 4 maps of images (batch, 2, 6, 6), then the head of MobileNetV2."""
    pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(4, 3)]
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), *layers, nn.Conv2d(4, 4, 3), nn.ReLU(), *pooled)


class WideResNetBlock(nn.Module):
    """Zagoruyko & Komodakis 2016: norm, ReLU, convolution, dropout, norm, ReLU, convolution. `drop` takes its place."""

    def __init__(self, drop: nn.Module, behind: bool) -> None:
        super().__init__()
        self.stem, self.conv1, self.conv2 = (nn.Conv2d(n, 4, 3, padding=1) for n in (2, 4, 4))
        self.bn1, self.bn2, self.head = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.Linear(4, 3)
        self.drop, self.behind = drop, behind

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        h = self.conv1(F.relu(self.bn1(x)))
        h = F.relu(self.bn2(h)) if self.behind else F.relu(self.bn2(self.drop(h)))
        h = x + self.conv2(self.drop(h) if self.behind else h)
        return self.head(h.mean((2, 3)))


class DenseLayers(nn.Module):
    """torchvision's DenseNet with `drop_rate`: new channels are dropped, then joined to the old ones and normalised."""

    def __init__(self, joined_before_norm: bool) -> None:
        super().__init__()
        self.stem, self.conv1 = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm1, self.norm2, self.head = nn.BatchNorm2d(4), nn.BatchNorm2d(8), nn.Linear(8, 3)
        self.joined_before_norm = joined_before_norm

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        new = self.conv1(F.relu(self.norm1(x)))
        if self.joined_before_norm:
            new = F.dropout2d(new, P, self.training)
        joined = F.relu(self.norm2(torch.cat([x, new], 1)))
        if not self.joined_before_norm:
            joined = F.dropout2d(joined, P, self.training)
        return self.head(joined.mean((2, 3)))


class Functional(nn.Module):
    """`F.dropout` as in Inception v3; without the flag, as it is often forgotten."""

    def __init__(self, with_flag: bool) -> None:
        super().__init__()
        self.inner, self.outer, self.with_flag = nn.Linear(6, 8), nn.Linear(8, 3), with_flag

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.inner(x))
        h = F.dropout(h, P, training=self.training) if self.with_flag else F.dropout(h, P)
        return self.outer(h)


class Auxiliary(nn.Module):
    """GoogLeNet and Inception: a second head in training. With `own_module` dropout has a flag of its own."""

    def __init__(self, own_module: bool) -> None:
        super().__init__()
        self.inner, self.outer, self.aux = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 3)
        self.drop = nn.Dropout(P) if own_module else None
        self.second, self.act = nn.Dropout(P), nn.RReLU()

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        h = self.act(self.inner(x))
        logits = self.outer(self.second(self.drop(h) if self.drop is not None else F.dropout(h, P, self.training)))
        return (logits, self.aux(h)) if self.training else logits


class Residual(nn.Module):
    """ConvNeXt and CaiT: a branch under a layer scale. `gamma` 0 is one that was never trained."""

    def __init__(self, gamma: float) -> None:
        super().__init__()
        self.inner, self.branch, self.outer = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.drop, self.head_drop = nn.Dropout(P), nn.Dropout(P)
        self.gamma = nn.Parameter(gamma * torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        x = x + self.gamma * self.branch(self.drop(x))
        return self.outer(self.head_drop(F.relu(x)))


class ThrownAway(nn.Module):
    """`F.dropout(x, ...)` without an assignment; with one it is right."""

    def __init__(self, kept: bool) -> None:
        super().__init__()
        self.inner, self.outer, self.kept = nn.Linear(6, 8), nn.Linear(8, 3), kept
        self.lost, self.drop = nn.Dropout(P), nn.Dropout(P)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.inner(x))
        lost = self.lost(h)
        return self.outer(self.drop(lost if self.kept else h))


class AttentionRate(nn.Module):
    """transformers and timm: a dropout module holds the rate of a fused attention. Input (batch, 4, 6)."""

    def __init__(self, used: bool) -> None:
        super().__init__()
        self.qkv, self.outer, self.used = nn.Linear(6, 18), nn.Linear(6, 3), used
        self.attn_drop, self.drop = nn.Dropout(0.1), nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x)[:, None].chunk(3, -1)
        rate = self.attn_drop.p if self.training and self.used else 0.0
        x = F.scaled_dot_product_attention(query, key, value, dropout_p=rate).squeeze(1)
        return self.outer(self.drop(x.mean(1)))


class Recurrent(nn.Module):
    """An LSTM over (batch, 4, 6), dropout before the head."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 8, layers, dropout=P, batch_first=True)
        self.drop, self.outer = nn.Dropout(P), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.drop(self.lstm(x)[0][:, -1]))


class StochasticDepth(nn.Module):
    """torchvision's stochastic depth by row, as in EfficientNet; `by_python` chooses in Python, as LayerDrop does."""

    def __init__(self, by_python: bool) -> None:
        super().__init__()
        self.inner, self.branch, self.outer = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.path, self.drop = Path(by_python), nn.Dropout(P)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        x = x + self.path(F.relu(self.branch(x)))
        return self.outer(self.drop(F.relu(x)))


class Path(nn.Module):
    def __init__(self, by_python: bool) -> None:
        super().__init__()
        self.by_python = by_python

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        if self.by_python:
            return x if random.random() > P else torch.zeros_like(x)
        kept = torch.empty(x.shape[0], *[1] * (x.ndim - 1)).bernoulli_(1 - P)
        return x * kept.div_(1 - P)


class Patches(nn.Module):
    """ViT: dropout acts on tokens, made of maps by a transposition."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(P)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, x.shape[2:])


class Blocks(nn.Module):
    """DropBlock (Ghiasi et al. 2018): corners are drawn, and grow to blocks by pooling."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        corners = F.dropout(torch.ones_like(x), 0.02) == 0
        return x * (1 - F.max_pool2d(corners.to(x.dtype), 3, 1, 1))


class Unrolled(nn.Module):
    """A recurrent network step by step on (batch, 4, 6), one mask for the states of all steps (Gal & Ghahramani 2016).

    The first state is 0, so that the first masked state is as constant as a weight. `late` masks what tanh reads.
    """

    def __init__(self, late: bool) -> None:
        super().__init__()
        self.into, self.over, self.outer, self.late = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3), late

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], 8)
        mask = F.dropout(torch.ones_like(h), P, self.training)
        for step in self.into(x).unbind(1):
            h = torch.tanh(mask * (step + self.over(h)) if self.late else step + self.over(mask * h))
        return self.outer(h)


class Sum(nn.Module):
    """A residual sum."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class Counting(nn.Module):
    """Its dropout is always on; with `counts` the answer depends on how often it was asked, which no graph knows."""

    def __init__(self, counts: bool) -> None:
        super().__init__()
        self.inner, self.outer, self.calls, self.counts = nn.Linear(6, 8), nn.Linear(8, 3), 0, counts

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.counts
        return self.outer(F.dropout(F.relu(self.inner(x)), P)) + self.calls


class Chosen(nn.Module):
    """A random feature for each row, by `multinomial` or by a mask."""

    def __init__(self, known: bool) -> None:
        super().__init__()
        self.inner, self.outer, self.known = nn.Linear(6, 8), nn.Linear(8, 3), known

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.inner(x))
        if self.training and self.known:
            x = x * torch.bernoulli(torch.full_like(x, 0.5)) * 2
        elif self.training:
            x = x.gather(1, torch.multinomial(torch.ones_like(x), 8))
        return self.outer(x)


class TransformerBlock(nn.Module):
    """One block on (batch, 4, 6): `post` as BERT has it (dropout, residual sum, LayerNorm), else as ViT has it, with
    DropPath."""

    def __init__(self, post: bool, p: float = 0.1) -> None:
        super().__init__()
        self.embed, self.attention = nn.Linear(6, 8), nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True)
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.up, self.down, self.pool, self.outer = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.drops = nn.ModuleList(nn.Dropout(p) for _ in range(5))
        self.paths = nn.ModuleList(nn.Identity() if post else Path(False) for _ in range(2))
        self.post = post

    def forward(self, x: Tensor) -> Tensor:
        x = self.drops[0](self.norm1(self.embed(x)) if self.post else self.embed(x))
        y = x if self.post else self.norm1(x)
        x = x + self.paths[0](self.drops[1](self.attention(y, y, y, need_weights=False)[0]))
        y = x = self.norm1(x) if self.post else x
        y = self.drops[2](F.gelu(self.up(y if self.post else self.norm2(y))))
        x = self.norm2(x + self.paths[1](self.drops[3](self.down(y))))
        return self.outer(self.drops[4](torch.tanh(self.pool(x[:, 0]))))
