"""The networks that are measured: random weights, evaluation mode, sizes as users have them."""

import torch
from torch import Tensor, nn

from mcdrop.layers import DropPath, linear_depth_rates

__all__ = ["depth", "encoder", "lenet", "mlp", "resnet", "unet", "unet_half"]


def lenet() -> nn.Module:
    """LeNet with dropout before the last layer, as in Gal & Ghahramani 2016, arXiv 1506.02142, section 5."""
    return nn.Sequential(
        nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(800, 500), nn.ReLU(), nn.Dropout(0.5), nn.Linear(500, 10),
    )  # fmt: skip


def mlp() -> nn.Module:
    """784-1024-1024-10 with p = 0.5 behind both hidden layers."""
    return nn.Sequential(
        nn.Linear(784, 1024), nn.ReLU(), nn.Dropout(0.5),
        nn.Linear(1024, 1024), nn.ReLU(), nn.Dropout(0.5), nn.Linear(1024, 10),
    )  # fmt: skip


def _convolved(entering: int, leaving: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(entering, leaving, 3, stride, 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(leaving), nn.ReLU())


class _Residual(nn.Module):
    def __init__(self, entering: int, leaving: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_convolved(entering, leaving, stride), _convolved(leaving, leaving)[:2])
        self.skip = nn.Conv2d(entering, leaving, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = (self.body(x) + self.skip(x)).relu()
        return out


def resnet() -> nn.Module:
    """A ResNet of 14 layers for images of 32 x 32, dropout before the classifier."""
    stages = [(16, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1)]
    body = [_Residual(*stage) for stage in stages]
    return nn.Sequential(
        _convolved(3, 16), *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(64, 10)
    )


class _Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(1000, 256), nn.Parameter(torch.randn(64, 256) * 0.1)
        layer = nn.TransformerEncoderLayer(256, 8, 1024, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(256, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.head(self.encoder(self.words(tokens) + self.places).mean(1))
        return out


def encoder() -> nn.Module:
    """A transformer encoder of width 256 with 4 layers, p = 0.1, over 64 tokens, and a classifier."""
    return _Encoder()


class _UNet(nn.Module):
    def __init__(self, width: int, classes: int, p: float) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(5)]
        self.down = nn.ModuleList(
            nn.Sequential(_convolved(a, b), _convolved(b, b)) for a, b in zip([3, *widths], widths, strict=False)
        )
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * b, b, 2, 2) for b in widths[-2::-1])
        self.merge = nn.ModuleList(nn.Sequential(_convolved(2 * b, b), _convolved(b, b)) for b in widths[-2::-1])
        self.drop = nn.ModuleList(nn.Dropout2d(p) for _ in widths)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else nn.functional.max_pool2d(x, 2))
            kept.append(x)
        x = self.drop[0](kept.pop())
        for up, merge, drop in zip(self.up, self.merge, self.drop[1:], strict=True):
            x = drop(merge(torch.cat([up(x), kept.pop()], 1)))
        out: Tensor = self.head(x)
        return out


class _Branched(nn.Module):
    def __init__(self, width: int, p: float) -> None:
        super().__init__()
        self.body = nn.Sequential(_convolved(width, width), _convolved(width, width)[:2], DropPath(p))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = (x + self.body(x)).relu()
        return out


def depth() -> nn.Module:
    """A ConvNet of 8 residual blocks with stochastic depth, p rising to 0.5 (Huang et al. 2016, arXiv 1603.09382)."""
    blocks = [_Branched(32, p) for p in linear_depth_rates(0.5, 8)]
    return nn.Sequential(_convolved(3, 32), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def unet(p: float = 0.2) -> nn.Module:
    """A U-Net of 1.9 million parameters for 21 classes, Dropout2d at the bottom and behind each block on the way up."""
    return _UNet(16, 21, p)


def unet_half() -> nn.Module:
    """The same with p = 0.5."""
    return unet(0.5)
