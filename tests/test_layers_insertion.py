"""insert_dropout: a copy that is the model but for dropout where it was asked for."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mcdrop import MCDropout
from mcdrop.errors import InputError, NoDropoutError, SettingError
from mcdrop.layers import LockedDropout, insert_dropout
from oracles import Draws

X = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0))


class Network(nn.Module):
    """(batch, time, 6) to three logits; one activation serves two places."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(6, 5, batch_first=True)
        self.activation = nn.ReLU()
        self.body = nn.Sequential(nn.Linear(5, 7), nn.Tanh())
        self.head = nn.Linear(7, 3)
        self.normal = nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.activation(self.rnn(x)[0])
        h = self.activation(self.body(h.mean(1)))
        return self.normal(self.head(h))


def build() -> nn.Module:
    torch.manual_seed(0)
    return Network().eval()


def draws(model: nn.Module) -> list[tuple[int, ...]]:
    """The shapes that a pass in training draws."""
    with Draws() as seen, torch.random.fork_rng(devices=[]), torch.no_grad():
        model.train()(X)
    return [tuple(shape) for shape in seen.shapes]


@pytest.mark.parametrize(
    ("after", "shapes"),
    [
        ("head", [(3, 3)]),
        (nn.Linear, [(3, 7), (3, 3)]),
        ("body.*", [(3, 7), (3, 7)]),
        ("body", [(3, 7)]),  # an nn.Sequential
        ("rnn", [(3, 4, 5)]),  # which returns a tuple
        ("activation", [(3, 4, 5), (3, 7)]),  # called twice
        (["head", nn.Tanh, "he*"], [(3, 7), (3, 3)]),  # one place chosen twice
        (nn.RNNBase, [(3, 4, 5)]),  # a base class
    ],
)
def test_drops_after_what_was_chosen(after: Any, shapes: list[tuple[int, ...]]) -> None:
    model = build()
    twin = insert_dropout(model, after, 0.3)
    assert twin.state_dict().keys() == model.state_dict().keys()
    assert torch.equal(twin(X), model(X))
    assert not twin.training
    assert not any(module.training for module in twin.modules())
    assert draws(twin) == shapes


def test_the_model_is_left_as_it_is() -> None:
    model = build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    twin = insert_dropout(model, [nn.Linear, "body"], 0.3)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert draws(model) == []
    assert not any(module._forward_hooks for module in model.modules())


def test_keeps_classes_and_attributes() -> None:
    twin = insert_dropout(build(), [nn.Linear, nn.LSTM, "body"], 0.3)
    assert isinstance(twin, Network)
    assert type(twin.head) is nn.Linear
    assert (twin.head.in_features, twin.rnn.hidden_size, type(twin.body[0])) == (7, 5, nn.Linear)
    assert twin.head.weight is dict(twin.named_parameters())["head.weight"]


def test_gradients_pass_and_the_dropped_have_none() -> None:
    model = nn.Sequential(nn.Linear(2, 50), nn.ReLU(), nn.Linear(50, 1))
    twin = insert_dropout(model, "0", 0.5).train()
    torch.manual_seed(0)
    twin(torch.ones(1, 2)).sum().backward()
    gradient = twin[0].weight.grad
    assert 0 < (gradient != 0).sum() < gradient.numel()


def test_another_kind_of_layer() -> None:
    assert draws(insert_dropout(build(), "rnn", 0.3, layer=LockedDropout)) == [(3, 1, 5)]


def test_captured_saved_and_loaded(tmp_path: Path) -> None:
    twin = insert_dropout(build(), ["rnn", "body"], 0.3)
    mc = MCDropout(twin, X, task="classification", engine="graph")
    assert [(site.path, site.p) for site in mc.sites] == [("rnn.inserted_dropout", 0.3), ("body.inserted_dropout", 0.3)]
    mc.save(tmp_path / "model")
    loaded = MCDropout.load(tmp_path / "model")
    for masks in ("shared", "independent"):
        samples = mc.sample(X, num_samples=9, seed=3, masks=masks)
        assert samples.std(0).max() > 0
        torch.testing.assert_close(loaded.sample(X, num_samples=9, seed=3, masks=masks), samples)
    with pytest.raises(NoDropoutError):
        MCDropout(build(), X, task="classification", engine="graph")


def test_says_what_there_is_where_nothing_fits() -> None:
    with pytest.raises(SettingError, match=r"no module whose path fits 'conv\*'.*rnn \(LSTM\), activation \(ReLU\)"):
        insert_dropout(build(), ["head", "conv*"], 0.3)
    with pytest.raises(SettingError, match=r"no module whose class is Conv2d"):
        insert_dropout(build(), nn.Conv2d, 0.3)
    with pytest.raises(SettingError, match=r" and 8 more\. Give a path"):
        insert_dropout(nn.Sequential(*(nn.ReLU() for _ in range(20))), "x", 0.3)
    with pytest.raises(SettingError, match="Its modules are: none"):
        insert_dropout(nn.Linear(2, 2), nn.Linear, 0.3)  # the model as a whole is never chosen


@pytest.mark.parametrize("after", [[], (), None, 3, [None], [nn.ReLU()]])
def test_refuses_places_that_name_nothing(after: Any) -> None:
    """An empty list would give back a network without dropout."""
    with pytest.raises(SettingError, match="give a path, a pattern"):
        insert_dropout(Network(), after, 0.1)


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_refuses_a_rate_that_is_none(p: float) -> None:
    with pytest.raises(SettingError, match="probability of dropping"):
        insert_dropout(Network(), "head", p)


def test_refuses_what_it_cannot_do() -> None:
    twin = insert_dropout(build(), "head", 0.3)
    with pytest.raises(SettingError, match="head already has inserted dropout"):
        insert_dropout(twin, "head", 0.3)
    listed = nn.Sequential(nn.ModuleDict({"a": nn.Linear(2, 2)}))
    with pytest.raises(SettingError, match="0 is a ModuleDict.*inside or around"):
        insert_dropout(listed, "0", 0.3)

    class Named(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": x}

    with pytest.raises(InputError, match="returned a dict"):
        insert_dropout(nn.Sequential(Named()), "0", 0.3)(X)
