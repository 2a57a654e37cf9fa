"""The networks that are measured: random weights, evaluation mode, sizes as users have them.

Each takes its sizes, so that the same network can be built small where its law counts and not its speed.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from mcdrop.layers import DropPath, linear_depth_rates

__all__ = ["depth", "lenet", "lstm", "mlp", "resnet", "tabular", "unet"]


def lenet(channels: tuple[int, int] = (20, 50), hidden: int = 500) -> nn.Module:
    """LeNet with dropout before the last layer, as in Gal & Ghahramani 2016, arXiv 1506.02142, section 5."""
    first, second = channels
    return nn.Sequential(
        nn.Conv2d(1, first, 5), nn.MaxPool2d(2), nn.Conv2d(first, second, 5), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(16 * second, hidden), nn.ReLU(), nn.Dropout(0.5), nn.Linear(hidden, 10),
    )  # fmt: skip


def mlp(p: float = 0.5, entering: int = 784, hidden: int = 1024) -> nn.Module:
    """784-1024-1024-10 with dropout behind both hidden layers."""
    return nn.Sequential(*_hidden(p, [entering, hidden, hidden]), nn.Linear(hidden, 10))


def tabular(p: float = 0.2, hidden: int = 256) -> nn.Module:
    """Three hidden layers for 20 columns and 2 classes, as for tables (Gorishniy et al. 2021, arXiv 2106.11959)."""
    return nn.Sequential(*_hidden(p, [20, hidden, hidden, hidden]), nn.Linear(hidden, 2))


def _hidden(p: float, sizes: Sequence[int]) -> list[nn.Module]:
    return [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU(), nn.Dropout(p))]


class _Recurrent(nn.Module):
    def __init__(self, p: float, width: int) -> None:
        super().__init__()
        self.layers = nn.LSTM(32, width, num_layers=2, dropout=p, batch_first=True)
        self.drop, self.head = nn.Dropout(p), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.drop(self.layers(x)[0][:, -1]))
        return out


def lstm(p: float = 0.3, width: int = 128) -> nn.Module:
    """Two layers of LSTM over 32 features, dropout between them and before the classifier."""
    return _Recurrent(p, width)


def _convolved(entering: int, leaving: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(entering, leaving, 3, stride, 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(leaving), nn.ReLU())


class _Residual(nn.Module):
    """x + branch(x); with p > 0 a row leaves the branch out with that probability."""

    def __init__(self, entering: int, leaving: int, stride: int = 1, p: float = 0.0) -> None:
        super().__init__()
        self.body = nn.Sequential(_convolved(entering, leaving, stride), _convolved(leaving, leaving)[:2])
        self.skip = nn.Conv2d(entering, leaving, 1, stride) if stride > 1 else nn.Identity()
        self.drop = DropPath(p) if p else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = (self.skip(x) + self.drop(self.body(x))).relu()
        return out


def _classified(width: int, p: float = 0.0) -> list[nn.Module]:
    dropout = [nn.Dropout(p)] if p else []
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), *dropout, nn.Linear(width, 10)]


def resnet(width: int = 16) -> nn.Module:
    """The layout of ResNet-18 at a quarter of its width, for images of 32 x 32, dropout before the classifier."""
    widths = [width, width, 2 * width, 4 * width, 8 * width]
    blocks = []
    for entering, leaving in pairwise(widths):
        blocks += [_Residual(entering, leaving, leaving // entering), _Residual(leaving, leaving)]
    return nn.Sequential(_convolved(3, width), *blocks, *_classified(8 * width, 0.3))


def depth(width: int = 32, blocks: int = 8) -> nn.Module:
    """Residual blocks with stochastic depth, p rising to 0.5 (Huang et al. 2016, arXiv 1603.09382)."""
    branches = [_Residual(width, width, p=p) for p in linear_depth_rates(0.5, blocks)]
    return nn.Sequential(_convolved(3, width), *branches, *_classified(width))


class _UNet(nn.Module):
    def __init__(self, width: int, levels: int, classes: int, p: float) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(levels)]
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


def unet(p: float, width: int = 16, levels: int = 5, classes: int = 21) -> nn.Module:
    """A U-Net of 1.9 million parameters for 21 classes, Dropout2d at the bottom and behind each block on the way up."""
    return _UNet(width, levels, classes, p)
