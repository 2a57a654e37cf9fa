"""The networks with attention that are measured. Their dropout stands in attention weights too, where no module is."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["bert", "encoder", "vit"]


class _Encoder(nn.Module):
    def __init__(self, width: int, heads: int, layers: int, length: int, p: float) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(1000, width), nn.Parameter(torch.randn(length, width) * 0.1)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=p, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.head(self.encoder(self.words(tokens) + self.places).mean(1))
        return out


def encoder(width: int = 256, heads: int = 8, layers: int = 4, length: int = 64, p: float = 0.1) -> nn.Module:
    """PyTorch's own transformer encoder over tokens, and a classifier of their mean."""
    return _Encoder(width, heads, layers, length, p)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, p: float) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.heads, self.p = heads, p

    def forward(self, x: Tensor) -> Tensor:
        parts = [
            linear(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for linear in (self.query, self.key, self.value)
        ]
        mixed = F.scaled_dot_product_attention(*parts, dropout_p=self.p if self.training else 0.0)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


class _Layer(nn.Module):
    """Attention and two linear layers with GELU, each a branch; norms behind them, or before with `norm_first`."""

    def __init__(self, width: int, heads: int, p: float, norm_first: bool) -> None:
        super().__init__()
        self.attention = _Attention(width, heads, p)
        self.dense = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.drop, self.norm_first = nn.Dropout(p), norm_first

    def forward(self, x: Tensor) -> Tensor:
        for branch, norm in zip((self.attention, self.dense), self.norms, strict=True):
            x = x + self.drop(branch(norm(x))) if self.norm_first else norm(x + self.drop(branch(x)))
        return x


class _BERT(nn.Module):
    def __init__(self, width: int, heads: int, layers: int, length: int, p: float) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(1000, width), nn.Parameter(torch.randn(length, width) * 0.1)
        self.start = nn.Sequential(nn.LayerNorm(width), nn.Dropout(p))
        self.layers = nn.Sequential(*(_Layer(width, heads, p, norm_first=False) for _ in range(layers)))
        self.head = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Dropout(p), nn.Linear(width, 2))

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.head(self.layers(self.start(self.words(tokens) + self.places))[:, 0])
        return out


def bert(width: int = 768, heads: int = 12, layers: int = 12, length: int = 128, p: float = 0.1) -> nn.Module:
    """The encoder of BERT-base with a classifier (Devlin et al. 2019, arXiv 1810.04805), but for its vocabulary."""
    return _BERT(width, heads, layers, length, p)


class _ViT(nn.Module):
    def __init__(self, width: int, heads: int, layers: int, size: int, patch: int, p: float) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.first = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(torch.randn((size // patch) ** 2 + 1, width) * 0.1)
        self.layers = nn.Sequential(
            nn.Dropout(p), *(_Layer(width, heads, p, norm_first=True) for _ in range(layers)), nn.LayerNorm(width)
        )
        self.head = nn.Linear(width, 100)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.first.expand(len(images), -1, -1), patches], 1) + self.places
        out: Tensor = self.head(self.layers(tokens)[:, 0])
        return out


def vit(
    width: int = 384, heads: int = 6, layers: int = 12, size: int = 224, patch: int = 16, p: float = 0.1
) -> nn.Module:
    """ViT-S/16 (Dosovitskiy et al. 2021, arXiv 2010.11929; sizes of Touvron et al. 2021, arXiv 2012.12877)."""
    return _ViT(width, heads, layers, size, patch, p)
