"""What a tracer is told: lengths, even parts, recurrent layers of any length; and nobody else's tracing is touched."""

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._decomp import decomposition_table
from torch._subclasses import FakeTensorMode

from mcdrop import MCDropout
from mcdrop.capturing.tracer_rules import recurrence_kept_whole
from mcdrop.splitting.recurrent import LAYERS
from network_sequences import Recurrent


@pytest.mark.parametrize(
    "model",
    [
        lambda: Recurrent(nn.LSTM, bidirectional=True, state=True),
        lambda: Recurrent(nn.GRU, num_layers=3),
        lambda: Recurrent(nn.RNN, batch_first=False, nonlinearity="relu"),
    ],
    ids=["LSTM", "GRU", "RNN"],
)
def test_sequences_of_any_length(model: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    network, example = model().eval(), torch.randn(2, 6, 5)
    graph, eager = (
        MCDropout(network, example, task="raw", dynamic={1: "time<=20"}, engine=engine) for engine in ("graph", "eager")
    )
    for length in (1, 2, 20):
        x = torch.randn(3, length, 5)
        for masks in ("shared", "independent"):
            ours, truth = (mc.sample(x, num_samples=4, seed=1, masks=masks) for mc in (graph, eager))
            torch.testing.assert_close(ours, truth, rtol=1e-5, atol=1e-5)


def test_a_length_keeps_the_number_of_rows_open() -> None:
    class FirstToken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Parameter(torch.ones(1, 1, 4))

        def forward(self, x: Tensor) -> Tensor:
            tokens = torch.cat([self.first.expand(len(x), -1, -1), x.view(len(x), -1, 4)], 1)
            return nn.functional.dropout(tokens, 0.5, self.training).sum(1) / len(self.first.shape)

    before = len
    graph, eager = (
        MCDropout(FirstToken(), torch.randn(3, 8), task="raw", engine=engine) for engine in ("graph", "eager")
    )
    assert len is before
    for rows in (1, 3, 5):
        x = torch.randn(rows, 8)
        ours, truth = (mc.sample(x, num_samples=4, seed=1) for mc in (graph, eager))
        torch.testing.assert_close(ours, truth)


def test_parts_of_an_open_length_are_even_or_left_to_the_tracer() -> None:
    class Parts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = nn.functional.dropout(x, 0.5, self.training)
            doubled = torch.cat([x, x * 2], 1)
            first, second = torch.chunk(doubled, 2, dim=1)
            third, fourth = doubled.split(x.shape[1], 1)
            left, right = x.split([1, 3], -1)
            halves = x.chunk(2, -1)
            return first - second + third * fourth + torch.cat([right, left], -1) * torch.cat(halves[::-1], -1)

    x = torch.randn(3, 6, 4)
    graph, eager = (
        MCDropout(Parts(), x, task="raw", dynamic={1: "time<=20"}, engine=engine) for engine in ("graph", "eager")
    )
    for length in (2, 7):
        x = torch.randn(2, length, 4)
        ours, truth = (mc.sample(x, num_samples=4, seed=1) for mc in (graph, eager))
        torch.testing.assert_close(ours, truth)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("batch_first", [True, False])
def test_shapes_and_strides_are_the_real_ones(kind: type[nn.RNNBase], batch_first: bool) -> None:
    layer, x = kind(5, 4, num_layers=2, bidirectional=True, batch_first=batch_first), torch.randn(3, 6, 5)
    states = torch.zeros(4, 6 if not batch_first else 3, 4)
    operation = LAYERS[layer.mode.lower()]
    rest = (True, 2, 0.0, False, True, batch_first)
    with torch.no_grad():
        real = operation(x, [states, states] if kind is nn.LSTM else states, layer._flat_weights, *rest)
    with recurrence_kept_whole(), FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        rule = decomposition_table[operation]
        made = rule(x, [states, states] if kind is nn.LSTM else states, layer._flat_weights, *rest)
    assert [(part.shape, part.dtype) for part in made] == [(part.shape, part.dtype) for part in real]
    assert made[0].stride() == real[0].stride()


def test_other_threads_and_later_tracers_keep_the_rules() -> None:
    operation = LAYERS["gru"]
    before = dict(operation.py_kernels), decomposition_table[operation]
    x, state, layer = torch.randn(3, 2, 5), torch.zeros(1, 2, 4), nn.GRU(5, 4)
    arguments = (x, state, layer._flat_weights, True, 1, 0.0, False, False, False)
    elsewhere: list[torch.Tensor] = []
    with torch.no_grad(), recurrence_kept_whole():
        thread = threading.Thread(target=lambda: elsewhere.append(decomposition_table[operation](*arguments)[0]))
        thread.start()
        thread.join()
    torch.testing.assert_close(elsewhere[0], operation(*arguments)[0])
    assert (dict(operation.py_kernels), decomposition_table[operation]) == before


def test_what_others_register_meanwhile_stays() -> None:
    with recurrence_kept_whole():
        decomposition_table["somebody's"] = len
    assert decomposition_table.pop("somebody's") is len


@pytest.mark.parametrize("batch_first", [True, False])
def test_dropout_behind_layers_with_dropout_is_captured(batch_first: bool) -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.recurrent = nn.LSTM(4, 6, num_layers=2, dropout=0.3, batch_first=batch_first)
            self.dropout, self.head = nn.Dropout(0.2), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            y, (h, c) = self.recurrent(x if batch_first else x.transpose(0, 1))
            last = y[:, -1] if batch_first else y[-1]
            whole = self.dropout(y)
            return self.head(last + (whole[:, 0] if batch_first else whole[0]) + h[-1] + c[0])

    mc = MCDropout(Tagger().eval(), torch.randn(3, 5, 4), task="raw", engine="graph")
    assert [site.kind for site in mc.sites] == ["recurrent_dropout", "dropout"]


def test_a_single_drawn_number_is_a_site() -> None:
    class Shifted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.normal(torch.tensor(0.5), torch.tensor(1.0)) if self.training else x + 0.5

    samples = MCDropout(Shifted().eval(), torch.zeros(3, 2), task="raw").sample(torch.zeros(2, 2), num_samples=9)
    assert samples[:, 0, 0].unique().numel() == 9
