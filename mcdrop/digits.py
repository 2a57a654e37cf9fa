"""Handwritten digits, a small network that reads them, and images that are no digits: the material of the demo.

The 1,797 images (8 x 8, ink 0 to 16) are the test part of "Optical Recognition of Handwritten Digits" (E. Alpaydin and
C. Kaynak, UCI Machine Learning Repository, doi 10.24432/C50P49, CC BY 4.0; see `data/LICENSE-digits.md`). Neighbours in
the file are mostly by the same hand, so the last images are kept for testing and not a random choice. That is harder
and more honest: without the distortions of `train` 96 % are read right, of a random choice 99 %.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcdrop.surroundings.threads import limited_threads
from mcdrop.training import fit

__all__ = [
    "CLASS_NAMES",
    "DigitNetwork",
    "Digits",
    "accuracy",
    "digit_mlp",
    "few_digits",
    "load_digits",
    "not_digits",
    "train",
]

CLASS_NAMES = tuple("0123456789")
TEST_IMAGES = 360  # the last fifth of the file
FEW_IMAGES = 400
INK = 16  # the darkest pixel


@dataclass(frozen=True)
class Digits:
    """`images` uint8 (count, 8, 8), ink 0 to 16; `labels` uint8 (count,), 0 to 9."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


def load_digits() -> tuple[Digits, Digits]:
    """1,437 images to learn from and 360 held out; always the same ones."""
    with (resources.files("mcdrop") / "data" / "digits.npz").open("rb") as file, np.load(file) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    return Digits(images[:-TEST_IMAGES], labels[:-TEST_IMAGES]), Digits(images[-TEST_IMAGES:], labels[-TEST_IMAGES:])


class DigitNetwork(nn.Module):
    """Two convolutions, two linear layers, dropout before each of the latter; its normalisation is its own.

    Takes float images (batch, 8, 8) with ink 0 to 16 and returns logits (batch, 10).
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        self.head = nn.Sequential(
            nn.Dropout(0.25), nn.Linear(1024, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, len(CLASS_NAMES))
        )

    def forward(self, image: Tensor) -> Tensor:
        normalised = image.unsqueeze(1) / INK  # (batch, 1, 8, 8), 0 to 1
        logits: Tensor = self.head(self.features(normalised))
        return logits


def digit_mlp(p: float) -> nn.Module:
    """An untrained MLP of three layers with dropout at rate `p` behind both hidden ones, for a sweep over rates.

    Takes float images (batch, 8, 8) with ink 0 to 16 and returns logits (batch, 10).
    """
    return nn.Sequential(
        _Pixels(), nn.Linear(64, 512), nn.ReLU(), nn.Dropout(p),
        nn.Linear(512, 512), nn.ReLU(), nn.Dropout(p), nn.Linear(512, len(CLASS_NAMES)),
    )  # fmt: skip


class _Pixels(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image.flatten(1) / INK


def few_digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """400 images to learn from, few enough to learn by heart, and 1,037 others to validate on, mostly by other hands.

    The test images of `load_digits` are in neither: a rate chosen here can be tested on them.
    """
    images, labels = _tensors(load_digits()[0])
    return (images[:FEW_IMAGES], labels[:FEW_IMAGES]), (images[FEW_IMAGES:], labels[FEW_IMAGES:])


def train(
    digits: Digits, *, epochs: int = 30, seed: int = 0, on_epoch: Callable[[], object] | None = None
) -> DigitNetwork:
    """A trained network on the CPU, in eval mode. The global random state is the same before and after."""
    with torch.random.fork_rng(devices=[]), limited_threads(1):  # sums keep their order
        torch.default_generator.manual_seed(seed)
        network = DigitNetwork().eval()
        fit(
            network,
            _tensors(digits),
            epochs=epochs,
            learning_rate=4e-3,
            weight_decay=1e-3,
            schedule="one-cycle",
            augment=_distorted,
            seed=seed,
            progress=None if on_epoch is None else lambda _: on_epoch(),
        )
    return network


def accuracy(network: nn.Module, digits: Digits) -> float:
    """The share of images that one deterministic pass reads right."""
    images, labels = _tensors(digits)
    with torch.inference_mode():
        return float((network(images).argmax(dim=-1) == labels).double().mean())


def not_digits(digits: Digits) -> dict[str, np.ndarray]:
    """Images (8, 8) on which an honest reader of digits should hesitate, by name; some are made from `digits`."""
    four = digits.images[int(np.flatnonzero(digits.labels == 4)[0])]
    nine = digits.images[int(np.flatnonzero(digits.labels == 9)[0])]
    return {
        "random ink": np.random.default_rng(0).integers(0, INK, size=(8, 8), dtype=np.uint8, endpoint=True),
        "the letter A": _drawn(LETTER_A),
        "a 4 in negative": INK - four,
        "a 4 upside down": four[::-1, ::-1].copy(),
        "a 4 and a 9 at once": np.maximum(four, nine),
        "an empty page": np.zeros((8, 8), dtype=np.uint8),
    }


LETTER_A = """
...aG...
...GGa..
..aGaG..
..Ga.Ga.
..GGGGG.
.aG...Ga
.Ga...aG
.G.....G
"""


def _drawn(picture: str) -> np.ndarray:
    """`.` is paper, `a` half ink, `G` full ink."""
    ink = {".": 0, "a": INK // 2, "G": INK}
    return np.array([[ink[mark] for mark in line] for line in picture.split()], dtype=np.uint8)


def _tensors(digits: Digits) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(digits.images).float(), torch.from_numpy(digits.labels).long()


def _distorted(images: Tensor) -> Tensor:
    """Each image turned, slanted, scaled and moved a little, as another hand would write it."""
    count = len(images)
    turn, slant, zoom = (torch.empty(3, count).uniform_(-1, 1) * torch.tensor([[0.2], [0.25], [0.12]])).unbind()
    move = torch.empty(count, 2).uniform_(-0.22, 0.22)  # of half the width
    first = torch.stack([(1 + zoom) * turn.cos(), slant - turn.sin(), move[:, 0]], dim=1)
    second = torch.stack([turn.sin(), (1 + zoom) * turn.cos(), move[:, 1]], dim=1)
    grid = F.affine_grid(torch.stack([first, second], dim=1), [count, 1, 8, 8], align_corners=False)
    return F.grid_sample(images.unsqueeze(1), grid, align_corners=False).squeeze(1)
