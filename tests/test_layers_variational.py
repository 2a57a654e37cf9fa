"""Variational LSTM and GRU: nn.LSTM and nn.GRU where nothing is dropped, the paper's equations where something is."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

from mcdrop import MCDropout
from mcdrop.engines.eager import neutral
from mcdrop.errors import InputError, SettingError
from mcdrop.layers import VariationalGRU, VariationalLSTM, add_drop_connect
from oracles import Draws

PAIRS = {nn.LSTM: VariationalLSTM, nn.GRU: VariationalGRU}
CONFIGURATIONS = [
    (kind, {"num_layers": layers, "bias": bias, "batch_first": first, "bidirectional": two, **proj})
    for kind in PAIRS
    for layers, bias, first, two in itertools.product((1, 2), (True, False), (True, False), (True, False))
    for proj in ([{}, {"proj_size": 2}] if kind is nn.LSTM else [{}])
]
DTYPES = [torch.float32, torch.float64, torch.bfloat16]
kinds = pytest.mark.parametrize("kind", PAIRS, ids=lambda kind: kind.__name__)


def flat(result: Any) -> list[Tensor]:
    output, states = result
    return [output, *(states if isinstance(states, tuple) else [states])]


def a_state(rnn: nn.RNNBase, rows: int) -> Any:
    many = rnn.num_layers * (2 if rnn.bidirectional else 1)
    dtype = rnn.weight_hh_l0.dtype
    h = torch.randn(many, rows, rnn.proj_size or rnn.hidden_size, dtype=dtype)
    return (h, torch.randn(many, rows, rnn.hidden_size, dtype=dtype)) if isinstance(rnn, nn.LSTM) else h


@pytest.mark.parametrize("given", [True, False], ids=["state", "no state"])
@pytest.mark.parametrize(("kind", "keywords"), CONFIGURATIONS)
def test_is_the_plain_layer_where_nothing_is_dropped(kind: Any, keywords: dict[str, Any], given: bool) -> None:
    """Weights go both ways by name; so do outputs and states, in evaluation and in the loop over steps."""
    torch.manual_seed(0)
    plain = kind(3, 4, dtype=torch.float64, **keywords)
    ours = PAIRS[kind](3, 4, dropout=0.4, dtype=torch.float64, **keywords)
    ours.load_state_dict(plain.state_dict())
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    hx = a_state(plain, 2 if keywords["batch_first"] else 5) if given else None
    truth = flat(plain(x, hx))
    assert all(map(torch.equal, flat(ours.eval()(x, hx)), truth))
    with neutral() as supply:  # every mask at its mean
        found = flat(ours.train()(x, hx))
    assert supply.count == keywords["num_layers"] * (2 + keywords["bidirectional"])
    torch.testing.assert_close(found, truth)
    none = PAIRS[kind](3, 4, dropout=0.0, dtype=torch.float64, **keywords).train()
    none.load_state_dict(plain.state_dict())
    assert all(map(torch.equal, flat(none(x, hx)), truth))


def one_layer(kind: Any, x: Tensor, states: list[Tensor], mask: Tensor, weights: list[Tensor]) -> list[Tensor]:
    """One row, one direction, step by step after the equations of PyTorch's documentation; (time, ...) states."""
    w_ih, w_hh, b_ih, b_hh = weights
    h, c = states[0], states[-1]
    outputs = []
    for step in x:
        ours, theirs = w_ih @ step + b_ih, w_hh @ (h * mask) + b_hh
        if kind is nn.LSTM:
            i, f, g, o = (ours + theirs).split(len(h))
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        else:
            (x_r, x_z, x_n), (h_r, h_z, h_n) = ours.split(len(h)), theirs.split(len(h))
            z = (x_z + h_z).sigmoid()
            h = (1 - z) * (x_n + (x_r + h_r).sigmoid() * h_n).tanh() + z * h
        outputs.append(h)
    return outputs


@kinds
@pytest.mark.parametrize("batch_first", [True, False])
def test_follows_the_equations_under_given_masks(kind: Any, batch_first: bool) -> None:
    """Two layers in two directions, row by row: a mask on each layer's input, one on each direction's state."""
    rows, time, width, rates = 3, 4, 2, (0.2, 0.3, 0.4)  # of the input, between layers, of the state
    torch.manual_seed(0)
    rnn = PAIRS[kind](
        5, width, 2, batch_first=batch_first, dropout=0.3, bidirectional=True, dtype=torch.float64,
        input_dropout=0.2, recurrent_dropout=0.4,
    )  # fmt: skip
    x, hx = torch.randn(rows, time, 5, dtype=torch.float64), a_state(rnn, rows)
    shapes = [(1, rows, 5), (rows, width), (rows, width), (1, rows, 2 * width), (rows, width), (rows, width)]
    masks = [torch.randint(2, shape).double() for shape in shapes]
    with Draws(masks) as draws:
        output, last = rnn.train()(x if batch_first else x.transpose(0, 1), hx)
    assert [tuple(shape) for shape in draws.shapes] == shapes
    assert [1 - float(keep.flatten()[0]) for keep in draws.keep] == pytest.approx([0.2, 0.4, 0.4, 0.3, 0.4, 0.4])
    output = output if batch_first else output.transpose(0, 1)
    for row in range(rows):
        h = x[row]
        for layer in range(2):
            of_input, *of_states = masks[3 * layer : 3 * layer + 3]
            h = h * of_input[0, row] / (1 - rates[min(layer, 1)])
            both = []
            for direction in range(2):
                number = 2 * layer + direction
                states = [state[number, row] for state in (hx if kind is nn.LSTM else [hx])]
                mask = of_states[direction][row] / (1 - rates[2])
                steps = h.flip(0) if direction else h
                made = one_layer(kind, steps, states, mask, rnn.all_weights[number])
                torch.testing.assert_close((last[0] if kind is nn.LSTM else last)[number, row], made[-1])
                both.append(torch.stack(made[::-1] if direction else made))
            h = torch.cat(both, -1)
        torch.testing.assert_close(output[row], h)


@kinds
def test_rates(kind: Any) -> None:
    rnn = PAIRS[kind](3, 4, dropout=0.2)
    assert (rnn.dropout, rnn.input_dropout, rnn.recurrent_dropout) == (0.2, 0.2, 0.2)
    rnn = PAIRS[kind](3, 4, input_dropout=0.0, recurrent_dropout=1)
    assert (rnn.dropout, rnn.input_dropout, rnn.recurrent_dropout) == (0.5, 0.0, 1.0)
    assert "dropout=0.5, input_dropout=0.0, recurrent_dropout=1.0" in repr(rnn)
    for name in ("dropout", "input_dropout", "recurrent_dropout"):
        with pytest.raises(SettingError, match="probability of dropping"):
            PAIRS[kind](3, 4, **{name: 1.5})


@kinds
def test_the_whole_input_dropped_leaves_the_state_alone_to_act(kind: Any) -> None:
    rnn = PAIRS[kind](3, 4, batch_first=True, input_dropout=1.0, recurrent_dropout=0.0).train()
    x = torch.randn(2, 5, 3)
    torch.testing.assert_close(rnn(x)[0], rnn.eval()(torch.zeros_like(x))[0])


@kinds
def test_gradients_under_masks(kind: Any) -> None:
    torch.manual_seed(0)
    rnn = PAIRS[kind](2, 2, 2, bidirectional=True, dtype=torch.float64).train()

    def fixed(x: Tensor) -> tuple[Tensor, ...]:
        torch.manual_seed(1)
        return tuple(flat(rnn(x)))

    assert torch.autograd.gradcheck(fixed, (torch.randn(2, 2, 2, dtype=torch.float64, requires_grad=True),))
    sum(part.sum() for part in fixed(torch.randn(4, 3, 2, dtype=torch.float64))).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in rnn.parameters())


@kinds
@pytest.mark.parametrize("dtype", DTYPES)
def test_keeps_the_dtype(kind: Any, dtype: torch.dtype) -> None:
    rnn = PAIRS[kind](3, 4, 2, dropout=0.3, dtype=dtype)
    assert {
        part.dtype for flag in (True, False) for part in flat(rnn.train(flag)(torch.ones(2, 5, 3, dtype=dtype)))
    } == {dtype}


@kinds
def test_learns(kind: Any) -> None:
    """To sum the first feature over time, from 64 rows."""
    torch.manual_seed(0)
    rnn, head = PAIRS[kind](2, 8, batch_first=True, dropout=0.1), nn.Linear(8, 1)
    x = torch.randn(64, 5, 2)
    y = x[:, :, :1].sum(1)
    optimiser = torch.optim.Adam([*rnn.parameters(), *head.parameters()], 0.02)
    for _ in range(80):
        optimiser.zero_grad()
        F.mse_loss(head(rnn(x)[0][:, -1]), y).backward()
        optimiser.step()
    rnn.eval()
    assert F.mse_loss(head(rnn(x)[0][:, -1]), y) < 0.3 * y.var()


@kinds
def test_refuses_packed_and_single_sequences(kind: Any) -> None:
    for rnn in (PAIRS[kind](3, 4), PAIRS[kind](3, 4).eval()):
        with pytest.raises(InputError, match="packed sequence: pad"):
            rnn(pack_sequence([torch.zeros(2, 3), torch.zeros(1, 3)]))
        with pytest.raises(InputError, match=r"takes \(time, batch, features\); .*a batch axis"):
            rnn(torch.zeros(5, 3))
    with pytest.raises(RuntimeError, match="Expected hidden"):
        PAIRS[kind](3, 4)(torch.zeros(5, 2, 3), a_state(kind(3, 4), 3))


class Classifier(nn.Module):
    """(batch, 3, 4) to three logits."""

    def __init__(self, rnn: nn.RNNBase) -> None:
        super().__init__()
        self.rnn, self.head = rnn, nn.Linear(3 * (2 if rnn.bidirectional else 1), 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0].mean(1))


def networks(kind: Any) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    connected = PAIRS[kind](4, 3, batch_first=True, input_dropout=0.2, recurrent_dropout=0.0)
    return {
        "two layers, two directions": Classifier(
            PAIRS[kind](4, 3, 2, batch_first=True, dropout=0.3, bidirectional=True)
        ),
        "DropConnect on the state's weight": Classifier(add_drop_connect(connected, "weight_hh_l0", 0.4)),
    }


@kinds
@pytest.mark.parametrize(
    ("name", "sites"), [("two layers, two directions", 6), ("DropConnect on the state's weight", 2)]
)
def test_captured_saved_and_loaded(kind: Any, name: str, sites: int, tmp_path: Path) -> None:
    """Capture proves by itself that the program is the network; here, what it found and what users see."""
    x = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(1))
    mc = MCDropout(networks(kind)[name].eval(), x, task="classification", engine="graph")
    assert len([site for site in mc.sites if site.active]) == sites
    mc.save(tmp_path / "model")
    loaded = MCDropout.load(tmp_path / "model")
    for masks in ("shared", "independent"):
        samples = mc.sample(x, num_samples=6, seed=3, masks=masks)
        assert samples.std(0).min() > 0
        torch.testing.assert_close(mc.sample(x[:1], num_samples=6, seed=3, masks=masks), samples[:, :1])
        torch.testing.assert_close(loaded.sample(x, num_samples=6, seed=3, masks=masks), samples)
