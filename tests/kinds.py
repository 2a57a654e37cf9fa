"""The table of dropout kinds that one contract suite (test_kinds.py) holds to their laws: PyTorch's and mcdrop.layers'.

A row's network shows its draws: fed with ones it gives, unit by unit, the factor that the layer put on each. What a
kind claims about its masks is written in one language for all: independent *events*, each with one probability, and for
every unit the events that drop it. Plain dropout has one event for each unit, spatial dropout one for each channel,
DropBlock one for each place of a block, so a unit inside is dropped by any of several. Continuous noise counts as
dropped below its median, or where its paper says.

A new kind is a new row. Its layer stands in mcdrop/layers, its own promises in test_layers.py.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from scipy.integrate import quad
from scipy.stats import norm
from torch import Tensor, nn

from mcdrop import layers

P = 0.3  # the rate at which every kind is tried


@dataclasses.dataclass(frozen=True, eq=False)
class Kind:
    """One kind of dropout and what it claims.

    `network(p)` shows its draws on `example(rows)`, float32. `kind` is what `Site.kind` has to say, `stated` what
    `Site.p` has to say at rate p. `events` takes the shape of one row's output and gives, (units, events), which events
    drop which unit; each has the probability `chance(p)`. `dropped` reads the output. With `by_row` every row has
    events of its own in training and under independent masks; without, as on a weight, one pass has one draw.
    `mean(p)` is the mean of the output relative to that of evaluation, 1 where the paper keeps it; None if the mean of
    a unit has no closed form and only that of a whole row is kept, in every draw. `values` of an output and p are
    continuous noise with the distribution function `cdf(p)`. `shakes` says that the backward pass draws anew.
    """

    name: str
    network: Callable[[float], nn.Module]
    example: Callable[[int], Tensor]
    kind: str
    events: Callable[[Sequence[int]], Tensor]
    chance: Callable[[float], float] = lambda p: p
    dropped: Callable[[Tensor], Tensor] = lambda output: output == 0
    by_row: bool = True
    mean: Callable[[float], float] | None = lambda p: 1.0
    stated: Callable[[float], float | None] = lambda p: p
    cdf: Callable[[float], Callable] | None = None
    values: Callable[[Tensor], Tensor] = lambda output: output
    shakes: bool = False


# ---- which events drop which unit


def mask(*shape: int) -> Callable[[Sequence[int]], Tensor]:
    """One event for each element of a mask of `shape`, broadcast to the shape of a row."""

    def events(row: Sequence[int]) -> Tensor:
        number = torch.arange(math.prod(shape)).reshape(shape).expand(*row).reshape(-1)
        return F.one_hot(number, math.prod(shape)).bool()

    return events


def blocks(side: int) -> Callable[[Sequence[int]], Tensor]:
    """One event for each channel and place where a block of `side` fits, which drops all units of the block."""

    def events(row: Sequence[int]) -> Tensor:
        channels, *size = row
        covers = []
        for channel, *corner in itertools.product(range(channels), *(range(n - side + 1) for n in size)):
            cover = torch.zeros(*row, dtype=torch.bool)
            cover[(channel, *(slice(start, start + side) for start in corner))] = True
            covers.append(cover.reshape(-1))
        return torch.stack(covers, 1)

    return events


def gamma(side: int, *size: int) -> Callable[[float], float]:
    """Eq. 1 of the DropBlock paper."""
    places = math.prod(n - side + 1 for n in size)
    return lambda p: p / side ** len(size) * math.prod(size) / places


# ---- networks that show their draws


def ones(*shape: int) -> Callable[[int], Tensor]:
    return lambda rows: torch.ones(rows, *shape)


def one_hot_words(length: int) -> Callable[[int], Tensor]:
    """Words of which the n-th is the n-th unit vector."""
    return lambda rows: torch.eye(length).repeat(rows, 1, 1)


class MultiheadAttention(nn.Module):
    """Looks everywhere alike and gives the words as they are: of one-hot words its output is the attention weights."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(3, 1, dropout=p, bias=False, batch_first=True)
        with torch.no_grad():
            self.attention.in_proj_weight.copy_(torch.cat([torch.zeros(6, 3), torch.eye(3)]))
            self.attention.out_proj.weight.copy_(torch.eye(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class ScaledDotProduct(nn.Module):
    """The same by the function."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(1)
        return F.scaled_dot_product_attention(0 * x, 0 * x, x, dropout_p=self.p if self.training else 0.0).squeeze(1)


class Recurrent(nn.Module):
    """Two layers that pass on, unit by unit, a function of their input alone: nothing is carried over time.

    `gates` says of each gate, in PyTorch's order, whether it takes the input ("input") or is shut ("shut").
    """

    def __init__(self, kind: type[nn.RNNBase], p: float, gates: Sequence[str], **keywords: object) -> None:
        super().__init__()
        self.layers = kind(2, 2, num_layers=2, dropout=p, batch_first=True, **keywords)
        with torch.no_grad():
            for name, parameter in self.layers.named_parameters():
                parameter.zero_()
                for part, gate in zip(parameter.chunk(len(gates)), gates, strict=True):
                    if gate == "input" and name.startswith("weight_ih"):
                        part.copy_(torch.eye(2))
                    elif gate == "shut" and name.startswith("bias_ih"):
                        part.fill_(-1e4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)[0]


def after(layer: Callable[[float], float]) -> Callable[[float], float]:
    """The mean of what a second recurrent layer gives, relative to evaluation: it is no linear function of its mask."""
    return lambda p: (1 - p) * layer(layer(1) / (1 - p)) / layer(layer(1))


class Words(nn.Module):
    """Word dropout before an embedding that gives 0 for the unknown word and 1 for every other."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.dropout = layers.WordDropout(p, unknown_id=0)
        self.embedding = nn.Embedding.from_pretrained(torch.arange(5).clamp(max=1)[:, None].float(), freeze=False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.embedding(self.dropout(ids)).squeeze(-1)


class Branches(nn.Module):
    """Shake-shake of 2 x and 0, so that its output is 2 alpha x; at p = 0 of two equal branches."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.shake = layers.ShakeShake()
        self.apart = float(p > 0)

    def forward(self, x: Tensor) -> Tensor:
        return self.shake(x * (1 + self.apart), x * (1 - self.apart))


class Connected(nn.Module):
    """One weight for each output, so that the output shows the mask of the weights."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4, bias=False)
        with torch.no_grad():
            self.linear.weight.copy_(torch.eye(4))
        layers.add_drop_connect(self.linear, p=p)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


# ---- laws of continuous noise


def logit(p: float | Tensor) -> Tensor:
    return torch.logit(torch.as_tensor(p, dtype=torch.float64))


TEMPERATURE = 0.5  # higher than usual, so that float32 tells nearly all values of z apart


def concrete_cdf(p: float) -> Callable:
    """Of (1 - z) / (1 - p): P(z >= t) is the chance of a uniform number above the point where z is t."""
    return lambda y: torch.sigmoid(
        logit(p) - TEMPERATURE * logit((1 - (1 - p) * torch.as_tensor(y)).clip(0, 1))
    ).numpy()


def concrete_mean(p: float) -> float:
    """E(1 - z) / (1 - p), by integration over the logistic law of log u - log(1 - u)."""

    def kept(v: float) -> float:
        shifted = float(torch.sigmoid(-(logit(p) + v) / TEMPERATURE))
        return shifted * math.exp(-v) / (1 + math.exp(-v)) ** 2

    return quad(kept, -40, 40, points=[-float(logit(p))], limit=500)[0] / (1 - p)


def alpha_mean(p: float) -> float:
    """At an input of 1, a (1 - p): alpha dropout keeps mean and variance of standard normal inputs, not of ones."""
    return ((1.7580993408473766**2 * p + 1) * (1 - p)) ** -0.5 * (1 - p)


# ---- the table

TORCH = (
    Kind("nn.Dropout", nn.Dropout, ones(6), "dropout", mask(6)),
    Kind("nn.Dropout1d", nn.Dropout1d, ones(4, 3), "feature_dropout", mask(4, 1)),
    Kind("nn.Dropout2d", nn.Dropout2d, ones(4, 2, 2), "feature_dropout", mask(4, 1, 1)),
    Kind("nn.Dropout3d", nn.Dropout3d, ones(3, 2, 2, 2), "feature_dropout", mask(3, 1, 1, 1)),
    Kind(
        "nn.AlphaDropout",
        nn.AlphaDropout,
        ones(6),
        "alpha_dropout",
        mask(6),
        dropped=lambda output: output < 0,
        mean=alpha_mean,
    ),
    Kind(
        "nn.FeatureAlphaDropout",
        nn.FeatureAlphaDropout,
        ones(4, 2, 2),
        "feature_alpha_dropout",
        mask(4, 1, 1),
        dropped=lambda output: output < 0,
        mean=alpha_mean,
    ),
    Kind("nn.MultiheadAttention", MultiheadAttention, one_hot_words(3), "attention_dropout", mask(3, 3)),
    Kind("F.scaled_dot_product_attention", ScaledDotProduct, one_hot_words(3), "attention_dropout", mask(3, 3)),
    Kind(
        "nn.LSTM",
        lambda p: Recurrent(nn.LSTM, p, ("open", "shut", "input", "open")),
        ones(3, 2),
        "recurrent_dropout",
        mask(3, 2),
        mean=after(lambda x: math.tanh(math.tanh(x) / 2) / 2),
    ),
    Kind(
        "nn.GRU",
        lambda p: Recurrent(nn.GRU, p, ("open", "shut", "input")),
        ones(3, 2),
        "recurrent_dropout",
        mask(3, 2),
        mean=after(math.tanh),
    ),
    Kind(
        "nn.RNN",
        lambda p: Recurrent(nn.RNN, p, ("input",), nonlinearity="relu"),
        ones(3, 2),
        "recurrent_dropout",
        mask(3, 2),
    ),
)

OURS = (
    Kind("DropPath", layers.DropPath, ones(2, 3), "drop_path", mask(1, 1)),
    Kind("LockedDropout", layers.LockedDropout, ones(4, 3), "locked", mask(1, 3)),
    Kind(
        "VariationalLSTM",
        lambda p: Recurrent(
            layers.VariationalLSTM, p, ("open", "shut", "input", "open"), input_dropout=0.0, recurrent_dropout=0.0
        ),
        ones(3, 2),
        "variational",
        mask(1, 2),
        mean=after(lambda x: math.tanh(math.tanh(x) / 2) / 2),
    ),
    Kind(
        "VariationalGRU",
        lambda p: Recurrent(
            layers.VariationalGRU, p, ("open", "shut", "input"), input_dropout=0.0, recurrent_dropout=0.0
        ),
        ones(3, 2),
        "variational",
        mask(1, 2),
        mean=after(math.tanh),
    ),
    Kind("DropConnect", Connected, ones(4), "drop_connect", mask(4), by_row=False),
    Kind("TokenDropout", layers.TokenDropout, ones(4, 3), "token", mask(4, 1)),
    Kind(
        "WordDropout",
        Words,
        lambda rows: 1 + torch.arange(4).repeat(rows, 1),
        "word",
        mask(4),
        mean=lambda p: 1 - p,
    ),
    Kind(
        "DropBlock1d",
        lambda p: layers.DropBlock1d(p, 3),
        ones(2, 7),
        "drop_block",
        blocks(3),
        chance=gamma(3, 7),
        mean=None,
        stated=gamma(3, 7),
    ),
    Kind(
        "DropBlock2d",
        lambda p: layers.DropBlock2d(p, 2),
        ones(2, 3, 4),
        "drop_block",
        blocks(2),
        chance=gamma(2, 3, 4),
        mean=None,
        stated=gamma(2, 3, 4),
    ),
    Kind(
        "DropBlock3d",
        lambda p: layers.DropBlock3d(p, 2),
        ones(1, 3, 3, 3),
        "drop_block",
        blocks(2),
        chance=gamma(2, 3, 3, 3),
        mean=None,
        stated=gamma(2, 3, 3, 3),
    ),
    Kind(
        "ShakeShake",
        Branches,
        ones(2, 3),
        "shake_shake",
        mask(1, 1),
        chance=lambda p: 0.5,
        dropped=lambda output: output < 1,
        stated=lambda p: None,
        cdf=lambda p: lambda y: y.clip(0, 1),
        values=lambda output: output / 2,
        shakes=True,
    ),
    Kind(
        "ConcreteDropout",
        lambda p: layers.ConcreteDropout(max(p, 1e-12), TEMPERATURE),  # a rate that is learned is never 0
        ones(6),
        "concrete",
        mask(6),
        dropped=lambda output: output < 0.5 / (1 - P),  # where z is above 1/2
        mean=concrete_mean,
        cdf=concrete_cdf,
    ),
    Kind(
        "GaussianDropout",
        layers.GaussianDropout,
        ones(6),
        "gaussian",
        mask(6),
        chance=lambda p: 0.5,
        dropped=lambda output: output < 1,
        cdf=lambda p: norm(1, math.sqrt(p / (1 - p))).cdf,
    ),
)

KINDS: tuple[Kind, ...] = (*TORCH, *OURS)
