"""What is traced once is what would be traced twice."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mcdrop import MCDropout
from mcdrop.capturing import tracing


class Encoder(nn.Module):
    """Attention, normalisation, noise by hand and a mask from it."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True)
        self.act, self.out = nn.ReLU(inplace=inplace), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.layer(x) + 0.1)
        if self.training:
            x = x * (torch.rand(x.shape[0], 1, 1, device=x.device) + 0.5).floor() + 0.1 * torch.randn_like(x)
        out: Tensor = self.out(nn.functional.alpha_dropout(x.mean(1), 0.3, self.training))
        return out


NETWORKS = {
    "convolutions": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout2d(0.3), nn.Flatten(), nn.Linear(4 * 36, 3)
    ),
    "encoder": lambda: Encoder(False),
    "in place": lambda: Encoder(True),
    "recurrent": lambda: nn.LSTM(8, 6, 2, dropout=0.3, batch_first=True),
}


@pytest.mark.parametrize(("name", "traces"), [("convolutions", 1), ("encoder", 1), ("in place", 2), ("recurrent", 2)])
def test_one_trace_is_enough_for_what_writes_into_nothing(
    name: str, traces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network, x = (
            NETWORKS[name]().eval(),
            torch.randn(3, 3, 8, 8) if name == "convolutions" else torch.randn(3, 5, 8),
        )
    judged: list[bool] = []
    judge = tracing._is_functional
    monkeypatch.setattr(tracing, "_is_functional", lambda module: judged.append(judge(module)) or judged[-1])
    once = MCDropout(network, x, task="raw", engine="graph")
    monkeypatch.setattr(tracing, "_is_functional", lambda module: False)
    twice = MCDropout(network, x, task="raw", engine="graph")
    assert judged == [traces == 1]
    assert _without_source(once) == _without_source(twice)
    for masks in ("shared", "independent"):
        a, b = (mc.sample(x, num_samples=12, seed=3, masks=masks) for mc in (once, twice))
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def _without_source(mc: MCDropout) -> list[Any]:
    return [replace(site, source=None) for site in mc.sites]
