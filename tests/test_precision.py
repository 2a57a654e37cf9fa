"""Half precision: inputs and statistics stay exact, draws keep their law, and what makes no sense is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mcdrop import MCDropout
from mcdrop.errors import SettingError
from serving import live

HALVES = [torch.bfloat16, torch.float16]
X = torch.rand(4, 6, generator=torch.Generator().manual_seed(0)) * 2


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3)).eval()


class Words(nn.Module):
    """Takes numbers and whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.drop, self.out = nn.Embedding(300, 6), nn.Dropout(0.3), nn.Linear(6, 3)

    def forward(self, ids: Tensor, weights: Tensor) -> Tensor:
        out: Tensor = self.out(self.drop(self.words(ids) * weights[..., None]).sum(1))
        return out


class Spectrum(nn.Module):
    """There is no transform of Fourier in half precision on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(torch.fft.rfft(x).abs(), 0.3, self.training)


@pytest.mark.parametrize("dtype", HALVES)
def test_kept_units_are_scaled_in_float32(dtype: torch.dtype) -> None:
    """Rounded once, by 1 / 0.7 and not by its nearest half, under the masks of float32."""
    drop = nn.Dropout(0.3).eval()
    truth = MCDropout(drop, X, task="raw").sample(X, num_samples=50)
    found = MCDropout(drop, X, task="raw", dtype=dtype).sample(X, num_samples=50)
    assert found.dtype == dtype
    assert torch.equal(found == 0, truth == 0)
    scale = torch.tensor(1 / 0.7)
    assert scale.to(dtype).float() != scale
    expected = (X.to(dtype).float() * scale).to(dtype).expand_as(found)
    assert torch.equal(found, torch.where(truth == 0, 0, expected))


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float64", "float32"])
def test_types_have_names(name: str) -> None:
    one, other = (MCDropout(network(), X, task="raw", dtype=dtype) for dtype in (name, getattr(torch, name)))
    assert torch.equal(one.sample(X), other.sample(X))


@pytest.mark.parametrize("value", ["int8", "half", torch.int8, torch.complex64, None, 16])
def test_other_types_are_refused(value: Any) -> None:
    with pytest.raises(SettingError, match=r"dtype is .*; choose float32, bfloat16, float16, float64"):
        MCDropout(network(), X, task="raw", dtype=value)


def test_inputs_stay_as_they_are() -> None:
    ids, weights = torch.randint(300, (4, 5), generator=torch.Generator().manual_seed(1)), torch.rand(4, 5)
    mc = MCDropout(Words().eval(), (ids, weights), task="raw", dtype="bfloat16")
    assert [str(spec) for spec in mc.signature.inputs] == ["ids: int64[batch, 5]", "weights: float32[batch, 5]"]
    mc = MCDropout(network(), X.double(), task="raw", dtype="float64")
    assert mc.signature.inputs[0].dtype == torch.float64


def test_whole_numbers_that_no_half_can_hold_arrive_whole() -> None:
    """257 is no bfloat16: rounded, it would select another word."""
    ids = torch.tensor([[257, 299], [1, 2]])
    words = Words().eval()
    given = (ids, torch.ones(2, 2))
    one, half = (MCDropout(words, given, task="raw", dtype=dtype) for dtype in ("float32", "bfloat16"))
    torch.testing.assert_close(half.sample(given).float(), one.sample(given), rtol=0.05, atol=0.05)


def test_the_network_stays_as_it_is() -> None:
    model = network()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    MCDropout(model, X, task="raw", dtype="bfloat16")(X)
    for name, weight in model.state_dict().items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, before[name])


def test_statistics_are_sums_of_what_the_passes_gave() -> None:
    """Summed in bfloat16, a mean of 1000 passes would be wrong from the third digit."""
    mc = MCDropout(network(), X, task="classification", dtype="bfloat16")
    prediction = mc(X, num_samples=1000)
    probs = mc.sample(X, num_samples=1000).double().softmax(-1)
    assert prediction.mean.dtype == torch.float32
    torch.testing.assert_close(prediction.mean.double(), probs.mean(0), rtol=1e-5, atol=0)
    torch.testing.assert_close(prediction.variance.double(), probs.var(0), rtol=1e-4, atol=0)


def test_near_float32() -> None:
    """8 bits of a product of 16 terms: each logit within a few 2^-8 of its size."""
    one, half = (MCDropout(network(), X, task="classification", dtype=dtype) for dtype in ("float32", "bfloat16"))
    a, b = one(X, num_samples=200), half(X, num_samples=200)
    assert 0 < float((a.mean - b.mean).abs().max()) < 0.01
    assert float((a.entropy - b.entropy).abs().max()) < 0.01


def test_saved_and_served(tmp_path: Path) -> None:
    """The folder keeps the type; clients send and get float32."""
    mc = MCDropout(network(), X, task="classification", dtype="bfloat16", name="half")
    mc.save(tmp_path / "half")
    loaded = MCDropout.load(tmp_path / "half")
    assert torch.equal(loaded.sample(X), mc.sample(X))
    assert loaded.dtype == mc.dtype == torch.bfloat16
    assert repr(mc).endswith("on cpu, bfloat16)")
    report = mc.inspect()
    assert report.to_dict()["dtype"] == "bfloat16"
    assert "computes in  bfloat16" in str(report)
    truth = mc(X, num_samples=20, seed=3, samples=True)
    with live(models=tmp_path / "half") as http:
        (declared,) = http.get("/v2/models/half").json()["inputs"]
        assert declared["datatype"] == "FP32"
        assert http.get("/v1/models/half").json()["dtype"] == "bfloat16"
        body = {"inputs": X.tolist(), "num_samples": 20, "seed": 3, "outputs": ["samples"]}
        answer = http.post("/v1/predict", json=body).json()
    np.testing.assert_allclose(answer["mean"], truth.mean, rtol=1e-2)
    np.testing.assert_allclose(answer["samples"], truth.samples.float(), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    ("model", "example", "message"),
    [
        (network().double(), X, r"'0.weight' is float64, most of whose digits it would lose.*model.float\(\)"),
        (nn.Linear(6, 3, dtype=torch.complex64), X, "'weight' is torch.complex64: there are no complex numbers"),
        (nn.Dropout(0.5), torch.complex(X, X), "input 0 is torch.complex64: there are no complex numbers"),
        (Spectrum(), X, "the network cannot compute in .*float16 here: .*Capture it in float32"),
    ],
)
def test_refused(model: nn.Module, example: Tensor, message: str, dtype: torch.dtype) -> None:
    with pytest.raises(SettingError, match=message):
        MCDropout(model, example, task="raw", dtype=dtype)
