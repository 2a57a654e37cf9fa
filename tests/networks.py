"""The table of ways to write dropout that every engine is held to, and of networks to refuse or to run eagerly.

A row builds a tiny network in evaluation mode with weights fixed by its name, makes inputs of any number of rows
(row i is the same whatever the batch), and says what is true of it: how many sites are active, and which modules a
person must leave in evaluation mode to sample it the ordinary way. The modules stand in network_*.py.
"""

import dataclasses
import warnings
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import network_modules as m
import network_sequences as seq
import network_surroundings as around
import network_vision as vision
from network_modules import P

Inputs = Tensor | tuple[Tensor, ...] | dict[str, Tensor]


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """One way to write dropout.

    `make` is called under a seed drawn from `name`; `example` takes a number of rows. `sites` counts the active sites,
    `inactive` those that are listed with a reason. `keywords` go to `MCDropout`. `frozen` names modules whose own flag
    stays off when a person samples the network with `.train()`: they do more than dropout. `always` says that
    `.eval()` does not switch the noise off; `alone` that in training the rows of a batch share the normalisation of
    their masks, so that a row's law is that of a batch of one. `tolerance` bounds the difference of two correct ways
    to compute one pass, relative to the largest output.
    """

    name: str
    make: Callable[[], nn.Module]
    example: Callable[[int], Inputs]
    sites: int = 1
    inactive: int = 0
    task: str = "classification"
    keywords: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    frozen: tuple[str, ...] = ()
    always: bool = False
    alone: bool = False
    tolerance: float = 1e-5
    error: str | None = None  # name of the class in mcdrop.errors, for networks to refuse
    message: str | None = None  # what the error or the warning must say (regular expression)

    def build(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(zlib.crc32(self.name.encode()))
            return self.make().eval()


def per_row(draw: Callable[[torch.Generator], Tensor]) -> Callable[[int], Tensor]:
    """Inputs of any batch size, row i from a generator of its own."""

    def example(batch: int) -> Tensor:
        rows = [draw(torch.Generator().manual_seed(1000 + row)) for row in range(max(batch, 1))]
        return torch.stack(rows)[:batch]

    return example


def floats(*shape: int) -> Callable[[int], Tensor]:
    return per_row(lambda generator: torch.randn(shape, generator=generator))


def integers(low: int, high: int, *shape: int, dtype: torch.dtype = torch.int64) -> Callable[[int], Tensor]:
    return per_row(lambda generator: torch.randint(low, high, shape, generator=generator, dtype=dtype))


def padding(length: int, fewest: int = 1) -> Callable[[int], Tensor]:
    """Masks (batch, length), True where padded: row i keeps its first `fewest` + i positions, going round."""

    def example(batch: int) -> Tensor:
        kept = fewest + torch.arange(batch) % (length - fewest + 1)
        return torch.arange(length) >= kept[:, None]

    return example


def together(*examples: Callable[[int], Tensor]) -> Callable[[int], tuple[Tensor, ...]]:
    return lambda batch: tuple(example(batch) for example in examples)


def by_name(**examples: Callable[[int], Tensor]) -> Callable[[int], dict[str, Tensor]]:
    return lambda batch: {name: example(batch) for name, example in examples.items()}


def mlp(*middle: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), *middle, nn.Linear(8, 3))


def quiet(make: Callable[[], nn.Module]) -> nn.Module:
    """Builds with what torch has deprecated, as older networks do."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make()


def old_spectral_norm() -> nn.Module:
    model = mlp(nn.Dropout(P))
    quiet(lambda: nn.utils.spectral_norm(model[0]))
    return model


def new_spectral_norm() -> nn.Module:
    model = mlp(nn.Dropout(P))
    nn.utils.parametrizations.spectral_norm(model[0])
    return model


def old_weight_norm() -> nn.Module:
    model = around.OldWeightNorm()
    quiet(lambda: nn.utils.weight_norm(model.inner))
    model(torch.zeros(1, 6))
    return model


def recurrent_weight_norm() -> nn.Module:
    model = seq.Recurrent(nn.RNN)
    nn.utils.parametrizations.weight_norm(model.rnn, "weight_hh_l0")
    return model


def head(function: Callable[[Tensor, bool], Tensor]) -> Callable[[], nn.Module]:
    return lambda: m.Head(function)


def drop_block(kind: Callable[..., nn.Module], *arguments: Any, **keywords: Any) -> Callable[[], nn.Module]:
    return lambda: m.conv_classifier(kind(*arguments, **keywords))


VECTOR, SIGNAL, IMAGE, VOLUME = floats(6), floats(2, 6), floats(2, 6, 6), floats(2, 6, 6, 6)
TWO_VECTORS = together(VECTOR, per_row(lambda generator: torch.rand(6, generator=generator)))
WORDS, STEPS, IDS = floats(5, 8), floats(4, 5), integers(1, 11, 5)
MASKED = together(WORDS, padding(5))

PLAIN = (
    Network("nn.Dropout", lambda: mlp(nn.Dropout(P)), VECTOR),
    Network("nn.Dropout on the input", lambda: nn.Sequential(nn.Dropout(P), mlp()), VECTOR, task="raw"),
    Network("nn.Dropout in place", lambda: mlp(nn.Dropout(P, inplace=True)), VECTOR),
    Network("F.dropout", head(m.dropout), VECTOR),
    Network("F.dropout in place, result unused", head(m.dropout_in_place), VECTOR),
    Network("F.dropout in place on a view", head(m.dropout_in_place_on_a_view), VECTOR),
    Network("F.dropout of empty slices", head(m.empty_slices), VECTOR, inactive=4),
    Network("F.dropout always on", head(m.dropout_always_on), VECTOR, always=True),
    Network(
        "three nested, one with p = 0",
        lambda: mlp(nn.Dropout(0.1), nn.Sequential(nn.Dropout(0.0), nn.Dropout(0.6))),
        VECTOR,
        sites=2,
        inactive=1,
    ),
    Network("one module at two places", m.TwicePlaces, VECTOR, sites=2),
    Network("subclass that ignores the flag", lambda: mlp(m.AlwaysOnDropout(P)), VECTOR, always=True),
    Network("subclass with its own forward", lambda: mlp(m.UnscaledDropout(P)), VECTOR),
    Network(
        "regression",
        lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(P), nn.Linear(8, 1)),
        VECTOR,
        task="regression",
    ),
    Network("no_grad region", lambda: m.Regions(autocast=False, no_grad=True), VECTOR, sites=2),
    Network("autocast region", lambda: m.Regions(autocast=True, no_grad=False), VECTOR, sites=2, tolerance=2e-2),
    Network(
        "autocast and no_grad regions", lambda: m.Regions(autocast=True, no_grad=True), VECTOR, sites=3, tolerance=2e-2
    ),
)

FEATURE = (
    Network("nn.Dropout1d", lambda: m.conv_classifier(nn.Dropout1d(P), 1), SIGNAL),
    Network("nn.Dropout2d", lambda: m.conv_classifier(nn.Dropout2d(P)), IMAGE),
    Network("nn.Dropout3d", lambda: m.conv_classifier(nn.Dropout3d(P), 3), VOLUME),
    Network(
        "early nn.Dropout2d", lambda: nn.Sequential(nn.Dropout2d(0.2), m.conv_classifier(nn.Dropout(P))), IMAGE, sites=2
    ),
    Network("F.dropout2d in place", lambda: m.conv_classifier(m.Call(m.feature_dropout_in_place)), IMAGE),
    Network(
        "F.dropout1d", lambda: m.conv_classifier(m.Call(lambda x, training: F.dropout1d(x, P, training)), 1), SIGNAL
    ),
    Network(
        "F.dropout3d", lambda: m.conv_classifier(m.Call(lambda x, training: F.dropout3d(x, P, training)), 3), VOLUME
    ),
    Network(
        "torch.feature_dropout", lambda: m.conv_classifier(m.Call(lambda x, on: torch.feature_dropout(x, P, on))), IMAGE
    ),
    Network("nn.AlphaDropout", lambda: mlp(nn.AlphaDropout(P)), VECTOR),
    Network("F.alpha_dropout", head(lambda x, training: F.alpha_dropout(x, P, training)), VECTOR),
    Network("F.alpha_dropout in place", head(m.alpha_dropout_in_place), VECTOR),
    Network("nn.FeatureAlphaDropout", lambda: m.conv_classifier(nn.FeatureAlphaDropout(P)), IMAGE),
    Network(
        "F.feature_alpha_dropout in place",
        lambda: m.conv_classifier(m.Call(lambda x, training: F.feature_alpha_dropout(x, P, training, inplace=True))),
        IMAGE,
    ),
    Network(
        "BatchNorm and dropout",
        lambda: m.with_statistics(
            nn.Sequential(
                nn.Conv2d(2, 4, 3),
                nn.BatchNorm2d(4),
                nn.ReLU(),
                nn.Dropout2d(P),
                nn.Flatten(),
                nn.Linear(64, 8),
                nn.BatchNorm1d(8),
                nn.ReLU(),
                nn.Dropout(0.5),
                nn.Linear(8, 3),
            )
        ),
        IMAGE,
        sites=2,
    ),
    Network("U-Net", lambda: m.with_statistics(m.UNet()), floats(2, 8, 8), sites=2, keywords={"class_axis": 1}),
    Network("uint8 image", m.Uint8Image, integers(0, 256, 2, 6, 6, dtype=torch.uint8)),
)

BY_HAND = (
    Network("bernoulli_", head(m.bernoulli_in_place), VECTOR),
    Network("bernoulli", head(m.bernoulli_of_full), VECTOR),
    Network("bernoulli, one mask for all rows", head(m.bernoulli_one_row), VECTOR),
    Network("bernoulli with a rate for each unit", m.BernoulliRates, VECTOR),
    Network("rand", head(m.rand_threshold), VECTOR),
    Network("rand_like", head(m.rand_like_threshold), VECTOR),
    Network("uniform_", head(m.uniform_in_place), VECTOR),
    Network("uniform_ between bounds", head(m.uniform_noise), VECTOR),
    Network("randn_like", head(m.gaussian_dropout), VECTOR),
    Network("randn", head(m.gaussian_noise), VECTOR),
    Network("normal_", head(m.normal_in_place), VECTOR),
    Network("normal, tensors broadcast", head(m.normal_of_tensors), VECTOR),
    Network("normal, numbers", head(m.normal_of_numbers), VECTOR, sites=2),
    Network("normal about a tensor, into another", head(m.normal_about_a_tensor), VECTOR),
    Network("torch.distributions.Normal", head(m.reparametrised), VECTOR, sites=2),
    Network("rand into another tensor", head(m.drawn_into), VECTOR),
    Network("exponential_", head(m.exponential_noise), VECTOR),
    Network("DropPath", lambda: m.Residual(m.DropPath), VECTOR, sites=2),
    Network("DropPath, floor of rand", lambda: m.Residual(m.OldDropPath), VECTOR, sites=2),
    Network("stochastic depth by row", lambda: m.Residual(lambda: m.StochasticDepth(P, "row")), VECTOR, sites=2),
    Network("stochastic depth by batch", lambda: m.Residual(lambda: m.StochasticDepth(P, "batch")), VECTOR, sites=2),
    Network("DropConnect", lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), m.DropConnect(8, 3)), VECTOR),
    Network("dropout on an embedding's weight", m.EmbeddingDropout, IDS),
    Network(
        "dropout on an embedding",
        lambda: nn.Sequential(nn.Embedding(11, 6), nn.Dropout(P), nn.Flatten(), nn.Linear(30, 3)),
        IDS,
    ),
)

BESIDE = (
    Network("RReLU beside", around.RReLUBeside, VECTOR, frozen=("activation",)),
    Network("auxiliary head", around.Auxiliary, VECTOR, frozen=("",)),
    Network(
        "one flag for dropout and an auxiliary head",
        lambda: around.SharedFlag("auxiliary"),
        VECTOR,
        inactive=1,
        frozen=("",),
    ),
    Network(
        "one flag for dropout and the softmax",
        lambda: around.SharedFlag("softmax"),
        VECTOR,
        inactive=1,
        keywords={"output_kind": "probs"},
        frozen=("",),
    ),
    Network("normalisation by hand", around.HandWrittenNorm, VECTOR, frozen=("norm",)),
    Network("observer", lambda: mlp(around.CountsCalls(), nn.Dropout(P)), VECTOR, frozen=("2",)),
    Network("old spectral norm", old_spectral_norm, VECTOR, frozen=("0",)),
    Network("spectral norm", new_spectral_norm, VECTOR, frozen=("0.parametrizations.weight.0",)),
    Network("old weight norm, not copyable", old_weight_norm, VECTOR),
    *(
        Network(f"torch.compile of {what}", lambda form=form: around.Compiled(form), VECTOR, sites=2)
        for form, what in (("whole", "the whole, in place"), ("part", "a part"), ("forward", "forward"))
    ),
)

ATTENTION = (
    *(
        Network(f"SDPA, {form}", lambda form=form: seq.Attention(form), WORDS)
        for form in ("no mask", "bool mask", "float mask", "is_causal", "scale", "enable_gqa")
    ),
    Network("SDPA, rows of padding only", lambda: seq.Attention("padding"), together(WORDS, padding(5, fewest=0))),
    Network("heads merged, batch first", lambda: seq.MergedHeads(True), WORDS),
    Network("heads merged, heads first", lambda: seq.MergedHeads(False), WORDS),
    Network("positions merged with the batch", seq.MergedPositions, WORDS),
    *(
        Network(f"nn.MultiheadAttention, {form}", lambda form=form: seq.MultiheadAttention(form), WORDS)
        for form in ("batch first", "length first", "attn_mask", "need_weights")
    ),
    Network("nn.MultiheadAttention, key_padding_mask", lambda: seq.MultiheadAttention("key_padding_mask"), MASKED),
    Network("nn.TransformerEncoder", lambda: seq.Encoder(batch_first=True, layers=2), WORDS, sites=8),
    Network(
        "nn.TransformerEncoder, norm first", lambda: seq.Encoder(batch_first=True, norm_first=True), WORDS, sites=4
    ),
    Network("nn.TransformerEncoder, length first", lambda: seq.Encoder(batch_first=False), WORDS, sites=4),
    Network("nn.TransformerEncoder, causal", lambda: seq.Encoder(batch_first=True, mask="causal"), WORDS, sites=4),
    Network(
        "nn.TransformerEncoder, length first, causal",
        lambda: seq.Encoder(batch_first=False, mask="causal"),
        WORDS,
        sites=4,
    ),
    Network("nn.TransformerEncoder, padding", lambda: seq.Encoder(batch_first=True, mask="padding"), MASKED, sites=4),
    Network("nn.TransformerDecoder", seq.Decoder, together(floats(4, 8), WORDS), sites=6),
    Network("token ids and padding", seq.TextClassifier, by_name(ids=IDS, padding=padding(5)), sites=5),
    Network("logits of the last token", seq.LastToken, lambda batch: IDS(batch).masked_fill(padding(5)(batch), 0)),
)

RECURRENT = (
    Network("nn.LSTM", lambda: seq.Recurrent(nn.LSTM), STEPS),
    Network("nn.GRU", lambda: seq.Recurrent(nn.GRU), STEPS),
    Network("nn.RNN, relu", lambda: seq.Recurrent(nn.RNN, nonlinearity="relu"), STEPS),
    Network(
        "nn.RNN, length first, three layers",
        lambda: seq.Recurrent(nn.RNN, batch_first=False, num_layers=3),
        STEPS,
        sites=2,
    ),
    Network("nn.LSTM, bidirectional", lambda: seq.Recurrent(nn.LSTM, bidirectional=True, num_layers=3), STEPS, sites=2),
    Network("nn.LSTM, proj_size", lambda: seq.Recurrent(nn.LSTM, proj_size=2), STEPS),
    Network(
        "nn.LSTM, all at once",
        lambda: seq.Recurrent(nn.LSTM, proj_size=2, bidirectional=True, batch_first=False, bias=False, state=True),
        STEPS,
    ),
    Network("nn.GRU, initial state", lambda: seq.Recurrent(nn.GRU, state=True, bidirectional=True), STEPS),
    Network("nn.LSTM, dropped recurrent weight", lambda: seq.weight_dropped(nn.LSTM, "weight_hh_l0"), STEPS, sites=2),
    Network(
        "nn.GRU, three dropped weights",
        lambda: seq.weight_dropped(nn.GRU, "weight_hh_l0", "weight_ih_l1", "weight_hh_l1_reverse", bidirectional=True),
        STEPS,
        sites=4,
    ),
    Network("nn.RNN, weight norm", recurrent_weight_norm, STEPS),
    Network("weight dropped by hand", seq.WeightDrop, STEPS),
    Network("locked dropout, batch first", lambda: seq.Variational(True), STEPS),
    Network("locked dropout, length first", lambda: seq.Variational(False), STEPS),
)

FORMS = (
    Network("tuple output", lambda: around.ManyOutputs("tuple"), VECTOR, keywords={"output": 1}),
    Network("dict output", lambda: around.ManyOutputs("dict"), VECTOR),
    Network("dataclass output", lambda: around.ManyOutputs("dataclass"), VECTOR),
    Network("mean and log variance", lambda: around.ManyOutputs("pair"), VECTOR, task="heteroscedastic"),
    *(
        Network(f"Siamese, {form}", lambda form=form: around.Siamese(form), TWO_VECTORS)
        for form in ("chunk", "torch.split", "unflatten")
    ),
    Network(
        "inputs by keyword",
        around.ManyInputs,
        by_name(
            age=per_row(lambda g: torch.randint(0, 7, (), generator=g)),
            vector=VECTOR,
            flags=integers(0, 2, 2, dtype=torch.bool),
        ),
    ),
)

VISION = (
    Network("DropBlock, torchvision", drop_block(vision.TorchvisionDropBlock), IMAGE, alone=True),
    Network(
        "DropBlock, torchvision in place", drop_block(vision.TorchvisionDropBlock, inplace=True), IMAGE, alone=True
    ),
    Network(
        "DropBlock, torchvision 3d",
        lambda: m.conv_classifier(vision.TorchvisionDropBlock(dims=3), 3),
        VOLUME,
        alone=True,
    ),
    Network("DropBlock, timm", drop_block(vision.TimmDropBlock), IMAGE, alone=True),
    Network("DropBlock, timm, even, by channel", drop_block(vision.TimmDropBlock, "unscaled", 2, couple=False), IMAGE),
    Network("DropBlock, timm with noise", drop_block(vision.TimmDropBlock, "noise", inplace=True), IMAGE, sites=2),
    Network("DropBlock, old timm", drop_block(vision.OldTimmDropBlock), IMAGE, alone=True),
    Network("DropBlock, old timm by batch", drop_block(vision.OldTimmDropBlock, batchwise=True), IMAGE),
    Network("DropBlock, old timm, fast", drop_block(vision.OldTimmDropBlock, fast=True), IMAGE, alone=True),
    Network(
        "DropBlock, old timm, fast, noise by batch",
        drop_block(vision.OldTimmDropBlock, fast=True, batchwise=True, noise=True),
        IMAGE,
        sites=2,
    ),
    *(
        Network(f"PatchDropout, {form}", lambda form=form: vision.token_classifier(vision.PatchDropout(form)), WORDS)
        for form in ("ranks", "ordered", "masking", "top")
    ),
    *(
        Network(
            f"timm's attention, {form}",
            lambda form=form: vision.token_classifier(vision.VisionAttention(form == "fused")),
            WORDS,
            sites=2,
        )
        for form in ("fused", "not fused")
    ),
    Network("MobileNet's head", lambda: m.with_statistics(vision.mobile_head()), IMAGE),
)

NETWORKS: tuple[Network, ...] = (
    *PLAIN,
    *FEATURE,
    *BY_HAND,
    *BESIDE,
    *ATTENTION,
    *RECURRENT,
    *FORMS,
    *VISION,
)

REFUSED: tuple[Network, ...] = (
    Network(
        "BatchNorm without running averages",
        lambda: nn.Sequential(
            nn.Linear(6, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.ReLU(), nn.Dropout(P), nn.Linear(8, 3)
        ),
        VECTOR,
        error="RowsInteractError",
        message="row",
    ),
    Network(
        "product over the batch",
        lambda: around.BatchProduct(m.dropout),
        VECTOR,
        error="RowsInteractError",
        message="row",
    ),
    Network(
        "batch mean subtracted", head(around.subtract_batch_mean), VECTOR, error="RowsInteractError", message="row"
    ),
    Network(
        "noise scaled by statistics of the batch",
        head(around.noise_of_the_batch),
        VECTOR,
        error="RowsInteractError",
        message="by its noise",
    ),
    Network("no dropout", lambda: mlp(), VECTOR, sites=0, error="NoDropoutError", message="[Dd]ropout"),
    Network("dropout never called", around.NeverCalled, VECTOR, sites=0, error="NoDropoutError", message="dropout"),
    Network(
        "all p = 0",
        lambda: mlp(nn.Dropout(0.0), nn.AlphaDropout(0.0)),
        VECTOR,
        sites=0,
        error="NoDropoutError",
        message="p is 0",
    ),
    Network("multinomial", head(around.multinomial), VECTOR, error="UnsupportedRandomnessError", message="multinomial"),
    Network("randperm", head(around.randperm), VECTOR, error="UnsupportedRandomnessError", message="randperm"),
    Network("randint", head(around.randint), VECTOR, error="UnsupportedRandomnessError", message="randint"),
    Network(
        "geometric_",
        head(around.geometric),
        VECTOR,
        error="UnsupportedRandomnessError",
        message="geometric",
    ),
)

FALLBACKS: tuple[Network, ...] = (
    Network("packed sequence", around.Packed, together(STEPS, lambda batch: 1 + torch.arange(batch) % 4)),
    Network("branch on the data", lambda: around.Branching(m.dropout), VECTOR),
    Network("LayerDrop by random.random", lambda: around.LayerDrop("random"), VECTOR, sites=2),
    Network("LayerDrop by .item()", lambda: around.LayerDrop("item"), VECTOR, sites=2, always=False),
    Network("NumPy randomness", head(around.numpy_noise), VECTOR),
)
