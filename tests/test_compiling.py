"""Compiled parts give what the plain engine gives, and load of changing sizes compiles nothing again."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from mcdrop import MCDropout
from mcdrop.errors import CaptureError, SettingError
from serving import live

X = torch.rand(9, 6, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hidden = [nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 16), nn.ReLU(), nn.Dropout(0.5)]
        return nn.Sequential(nn.Linear(6, 6), nn.Tanh(), *hidden, nn.Linear(16, 3)).eval()


class DroppedWeight(nn.Module):
    """A draw without rows, which cannot be folded: the suffix is mapped."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        weight = nn.functional.dropout(self.outer.weight, 0.5, self.training)
        return nn.functional.linear(self.inner(x).tanh(), weight, self.outer.bias)


def graphs() -> int:
    """How many graphs were compiled in this process."""
    return int(counters["stats"]["unique_graphs"])


@pytest.fixture(scope="module")
def models() -> tuple[MCDropout, MCDropout]:
    return MCDropout(network(), X, task="classification"), MCDropout(network(), X, task="classification", compile=True)


def test_same_numbers_and_no_second_compilation(models: tuple[MCDropout, MCDropout]) -> None:
    """As a server asks: any number of rows and passes, chunks, several runs at once; all compiled by then."""
    one, other = models
    before = graphs()
    assert before >= 2  # prefix and suffix
    for rows, passes, seed in itertools.product((1, 2, 3, 4, 9), (1, 2, 3, 5, 9, 64), (0, 1)):
        a, b = (mc.sample(X[:rows], num_samples=passes, seed=seed) for mc in (one, other))
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-6)
    runs = [[mc.start(X[:n], num_samples=n + 20, seed=n % 2) for n in (1, 2, 4)] for mc in models]
    for mc, mine in zip(models, runs, strict=True):
        for budget in (1, 4, None):
            mc.advance(mine, budget, (1, 2, 4, 8))
    for a, b in zip(*runs, strict=True):
        torch.testing.assert_close(b.prediction().mean, a.prediction().mean, rtol=1e-5, atol=1e-6)
    assert graphs() == before


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's compiler uses what PyTorch gives up
def test_versions_are_few(models: tuple[MCDropout, MCDropout]) -> None:
    """Masks of each row are one version of the suffix more, made once; one row draws like all rows do."""
    one, other = models
    before = graphs()
    for rows, passes in itertools.product((2, 5, 9, 3), (3, 20, 6)):
        a, b = (mc.sample(X[:rows], num_samples=passes, masks="independent") for mc in (one, other))
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-6)
    assert graphs() - before <= 1


@pytest.mark.slow
def test_a_mapped_suffix_is_compiled_too() -> None:
    model = DroppedWeight().eval()
    one = MCDropout(model, X, task="raw")
    assert one.cost["mode"] == "mapped"
    other = MCDropout(model, X, task="raw", compile=True)
    before = graphs()
    for rows, passes in ((1, 3), (4, 1), (4, 7), (2, 12)):
        a, b = (mc.sample(X[:rows], num_samples=passes) for mc in (one, other))
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-6)
    assert graphs() == before


@pytest.mark.slow
def test_convolutions_of_any_number_of_images() -> None:
    """Those of less than 16 are versions of their own, in the prefix by rows and in the suffix by rows and passes."""
    first = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Dropout2d(0.5), nn.Conv2d(4, 4, 3), nn.Flatten()]
    model, images = nn.Sequential(*first, nn.Dropout(0.5), nn.Linear(64, 3)).eval(), torch.randn(64, 1, 8, 8)
    one, other = (MCDropout(model, images[:2], task="raw", compile=each) for each in (False, True))
    before = graphs()
    for rows, passes in itertools.product((1, 2, 3, 15, 16, 17, 64), (2, 3, 15, 16, 40)):
        a, b = (mc.sample(images[:rows], num_samples=passes) for mc in (one, other))
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-5)
    assert graphs() == before


@pytest.mark.slow
def test_served(tmp_path: Path, models: tuple[MCDropout, MCDropout]) -> None:
    """Everything is compiled when the server is ready."""
    models[0].save(tmp_path / "net")
    with live(models=tmp_path / "net", compile=True) as http:
        before = graphs()
        for rows, passes in ((1, 40), (3, 7), (9, 64), (2, 2)):
            body = {"inputs": X[:rows].tolist(), "num_samples": passes}
            truth = models[0](X[:rows], num_samples=passes)
            np.testing.assert_allclose(http.post("/v1/predict", json=body).json()["mean"], truth.mean, rtol=1e-4)
        assert graphs() == before


# ---- what is refused


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(SettingError, match=r"needs a C\+\+ compiler, and there is no no-such-compiler .*install g\+\+"):
        MCDropout(network(), X, task="raw", compile=True)


def test_an_eager_network() -> None:
    with pytest.raises(SettingError, match="eager engine cannot be compiled"):
        MCDropout(network(), X, task="raw", engine="eager", compile=True)


def instead(monkeypatch: pytest.MonkeyPatch, changed: Callable[[Any], Any]) -> None:
    """Let PyTorch's compiler give functions whose results are `changed`."""

    def compile(function: Callable[..., Any], **_: Any) -> Callable[..., Any]:
        return lambda *arguments: changed(function(*arguments))

    monkeypatch.setattr(torch, "compile", compile)


def test_other_numbers_than_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    instead(monkeypatch, lambda outputs: tuple(output * 1.01 for output in outputs))
    with pytest.raises(CaptureError, match=r"the compiled network gives other numbers than the network, by 0\.0"):
        MCDropout(network(), X, task="raw", compile=True)


def test_a_compiler_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(outputs: Any) -> Any:
        raise RuntimeError("Python.h: no such file")

    instead(monkeypatch, fail)
    with pytest.raises(SettingError, match=r"could not be compiled: Python.h: no such file\. Leave compile out"):
        MCDropout(network(), X, task="raw", compile=True)


def test_a_model_elsewhere_is_compiled_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    MCDropout(network(), X, task="raw").save(tmp_path / "net")
    instead(monkeypatch, lambda outputs: calls.append(1) or outputs)
    moved = MCDropout.load(tmp_path / "net", compile=True).to("cpu")
    calls.clear()
    moved(X)
    assert calls
