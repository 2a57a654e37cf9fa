"""A network that mixes many kinds of dropout: trained, captured, saved, served, asked over HTTP."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mcdrop import MCDropout
from mcdrop.client import Client
from mcdrop.digits import few_digits
from mcdrop.layers import (
    DropBlock2d,
    DropPath,
    GaussianDropout,
    LockedDropout,
    ShakeShake,
    TokenDropout,
    VariationalGRU,
    add_drop_connect,
)
from mcdrop.training import fit
from service.server import serving
from service.settings import load_settings

KINDS = {
    *("drop_block", "feature_dropout", "token", "locked", "variational", "attention_dropout", "drop_path"),
    *("shake_shake", "gaussian", "drop_connect", "alpha_dropout", "dropout"),
}


class ManyKinds(nn.Module):
    """Digits (batch, 8, 8) as maps, then as six rows of tokens, then as one vector."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 6, 3)
        self.block, self.channels = DropBlock2d(0.05, 2), nn.Dropout2d(0.05)
        self.token, self.locked = TokenDropout(0.05), LockedDropout(0.05)
        self.recurrent = VariationalGRU(36, 24, batch_first=True, dropout=0.05)
        self.attention = nn.MultiheadAttention(24, 2, dropout=0.05, batch_first=True)
        self.path = DropPath(0.05)
        self.left, self.right, self.shake = nn.Linear(24, 24), nn.Linear(24, 24), ShakeShake()
        self.gaussian = GaussianDropout(0.05)
        self.connected = add_drop_connect(nn.Linear(24, 32), p=0.05)
        self.alpha, self.dropout = nn.AlphaDropout(0.05), nn.Dropout(0.05)
        self.classifier = nn.Linear(32, 10)

    def forward(self, image: Tensor) -> Tensor:
        maps = self.channels(self.block(self.convolution(image.unsqueeze(1).float() / 16).relu()))
        tokens, _ = self.recurrent(self.locked(self.token(maps.permute(0, 2, 1, 3).flatten(2))))
        tokens = tokens + self.path(self.attention(tokens, tokens, tokens, need_weights=False)[0])
        mean = tokens.mean(1)
        vector = self.gaussian(self.shake(self.left(mean), self.right(mean)))
        return self.classifier(self.dropout(self.alpha(nn.functional.selu(self.connected(vector)))))


@pytest.fixture(scope="module")
def trained() -> tuple[ManyKinds, Tensor]:
    (images, labels), (others, _) = few_digits()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        network = ManyKinds()
        history = fit(network, (images, labels), epochs=12, learning_rate=5e-3)
    assert history.epochs[-1].training_loss < 0.7 * history.epochs[0].training_loss
    return network.eval(), others[:6]


def test_many_kinds_train_are_captured_saved_served_and_answer_alike(
    trained: tuple[ManyKinds, Tensor], tmp_path: Path
) -> None:
    network, images = trained
    mc = MCDropout(network, images[:2], task="classification", num_samples=30, seed=3, name="many")
    assert mc.engine == "graph"
    assert {site.kind for site in mc.sites if site.active} == KINDS
    mc.save(tmp_path / "many")
    settings = load_settings(models=tmp_path / "many", port=0, device="cpu", log_level="error")
    with serving(settings) as url, Client(url) as client:
        served = client.predict(images.numpy(), outputs=["expected_entropy", "mutual_information"])
    loaded = MCDropout.load(tmp_path / "many")(images)
    here = mc(images)
    assert float(here.variance.max()) > 1e-4
    for name in ("mean", "variance", "entropy", "expected_entropy", "mutual_information"):
        torch.testing.assert_close(getattr(loaded, name), getattr(here, name), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(torch.as_tensor(getattr(served, name)), getattr(here, name), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_recurrent_weight_that_drops_connections_is_one_site(kind: type[nn.RNNBase], tmp_path: Path) -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.recurrent = add_drop_connect(kind(3, 4, batch_first=True), "weight_hh_l0", p=0.4)
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.recurrent(x)[0][:, -1])

    x = torch.linspace(-1, 1, 30).view(2, 5, 3)
    mc = MCDropout(Last().eval(), x, task="raw", num_samples=40)
    (site,) = mc.sites
    assert (mc.engine, site.kind, site.p, site.active) == ("graph", "drop_connect", 0.4, True)
    mc.save(tmp_path / "model")
    assert torch.equal(MCDropout.load(tmp_path / "model")(x).mean, mc(x).mean)
