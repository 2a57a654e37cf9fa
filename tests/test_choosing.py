"""Choosing sites and rates: a chosen network is the network that was built that way, and keeps its masks."""

import dataclasses
import functools
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import network_modules as m
from mcdrop.engines.engine import GraphEngine
from mcdrop.errors import BundleError, NoDropoutError, SettingError
from mcdrop.graph.choosing import Choice, choose
from mcdrop.graph.program import Program
from mcdrop.graph.sites import Site
from mcdrop.predictor import MCDropout
from networks import NETWORKS

P, Q = 0.3, 0.6  # a rate, and another one


class SDPA(nn.Module):
    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        heads = x.unflatten(1, (4, 2))
        return F.scaled_dot_product_attention(heads, heads, heads, dropout_p=self.p if self.training else 0.0).flatten(
            1
        )


class MHA(nn.Module):
    def __init__(self, p: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(2, 2, dropout=p, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        words = x.unflatten(1, (4, 2))
        return self.attention(words, words, words, need_weights=False)[0].flatten(1)


class LSTM(nn.Module):
    def __init__(self, p: float) -> None:
        super().__init__()
        self.layers = nn.LSTM(2, 2, num_layers=2, dropout=p, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.unflatten(1, (4, 2)))[0].flatten(1)


class Features(nn.Module):
    def __init__(self, kind: Callable[[float], nn.Module], p: float) -> None:
        super().__init__()
        self.drop = kind(p)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(x.unflatten(1, (4, 2, 1))).flatten(1)


class Gaussian(nn.Module):
    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return x + self.p * torch.randn_like(x) if self.training and self.p else x


class Sigma(nn.Module):
    """Noise whose size no attribute states as a rate."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.sigma = p

    def forward(self, x: Tensor) -> Tensor:
        return x + self.sigma * torch.randn_like(x) if self.training and self.sigma else x


class Net(nn.Module):
    """Two sites: `first`, and the one in `middle`, which takes and gives (batch, 8)."""

    def __init__(self, middle: nn.Module, first: float) -> None:
        super().__init__()
        self.inner, self.first = nn.Linear(6, 8), nn.Dropout(first)
        self.middle, self.outer = middle, nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.middle(self.first(torch.tanh(self.inner(x)))))


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of dropout. `exact` says that at p = 0 PyTorch computes by the same operations, `rated` that capture knows
    its rate."""

    id: str
    name: str
    make: Callable[[float], nn.Module]
    exact: bool = True
    rated: bool = True


KINDS = (
    Kind("dropout", "dropout", nn.Dropout),
    Kind("feature", "feature", lambda p: Features(nn.Dropout2d, p)),
    Kind("alpha", "alpha", nn.AlphaDropout),
    Kind("feature alpha", "feature_alpha", lambda p: Features(nn.FeatureAlphaDropout, p)),
    Kind("SDPA", "attention", SDPA, exact=False),
    Kind("MHA", "attention_dropout", MHA, exact=False),
    Kind("LSTM", "recurrent", LSTM, exact=False),
    Kind("weights", "dropout", lambda p: m.DropConnect(8, 8, p)),
    Kind("by hand", "bernoulli", m.DropPath),
    Kind("uniform", "uniform", m.OldDropPath),
    Kind("normal", "normal", Gaussian),
    Kind("normal of no rate", "normal", Sigma, rated=False),
)
RATED, UNRATED = [k for k in KINDS if k.rated], [k for k in KINDS if not k.rated]
PLAIN, BY_HAND, OLD = (next(kind for kind in KINDS if kind.id == name) for name in ("dropout", "by hand", "uniform"))
X = torch.randn(3, 6, generator=torch.Generator().manual_seed(5))
MODES = ("shared", "independent")
every_engine = pytest.mark.parametrize("engine", ["graph", "eager"])


def each(kinds: Sequence[Kind]) -> Any:
    return pytest.mark.parametrize("kind", kinds, ids=lambda kind: kind.id)


def net(kind: Kind, p: float, first: float = 0.5) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return Net(kind.make(p), first).eval()


def captured(model: nn.Module, **keywords: Any) -> MCDropout:
    return MCDropout(model, X, task="raw", num_samples=6, seed=11, **keywords)


@functools.cache
def whole(kind: Kind, p: float = P, first: float = 0.5, engine: Any = "graph") -> MCDropout:
    """The network with everything as it was built."""
    return captured(net(kind, p, first), engine=engine)


@functools.cache
def without(kind: Kind, engine: Any) -> MCDropout:
    return captured(net(kind, P), exclude="middle*", engine=engine)


def draws(mc: MCDropout, index: int) -> Tensor:
    """The draws of one site over passes, as the engine makes them."""
    engine = mc._engine
    assert isinstance(engine, GraphEngine)
    numbers = [site.index for site, _ in engine.parts.draws]
    return engine.draws([X], passes=range(6), seed=11, rows=None)[numbers.index(index)]


def inactive(mc: MCDropout) -> dict[str, str | None]:
    return {site.path: site.reason for site in mc.sites if not site.active}


# ---- every kind, on both engines


@every_engine
@each(KINDS)
def test_left_out_is_p_zero(kind: Kind, engine: Any) -> None:
    mc, zero = without(kind, engine), whole(kind, 0.0, engine=engine)
    assert [(site.path, site.index) for site in mc.sites if site.active] == [("first", 0)]
    ((path, reason),) = inactive(mc).items()
    assert path.startswith("middle")
    assert reason == "excluded by exclude='middle*'"
    tolerance = 0.0 if kind.exact else 1e-6
    for masks in MODES:
        found, wanted = (model.sample(X, masks=masks) for model in (mc, zero))
        torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


@every_engine
@each([PLAIN, BY_HAND, OLD])
def test_a_rate_of_zero_leaves_out(kind: Kind, engine: Any) -> None:
    mc = captured(net(kind, P), rates={"middle*": 0}, engine=engine)
    assert list(inactive(mc).values()) == ["left out by rates={'middle*': 0}"]
    assert torch.equal(mc.sample(X), without(kind, engine).sample(X))


@each(KINDS)
def test_the_others_keep_their_masks(kind: Kind) -> None:
    """Without the first site the second one draws what it drew: its number does not move up."""
    alone = captured(net(kind, P), exclude="first")
    eager = captured(net(kind, P), exclude="first", engine="eager")
    assert [site.index for site in alone.sites if site.active] == [1]
    assert torch.equal(draws(alone, 1), draws(whole(kind), 1))
    torch.testing.assert_close(alone.sample(X), eager.sample(X), rtol=1e-5, atol=1e-5)


@every_engine
@each(RATED)
def test_a_rate_is_that_of_a_network_built_with_it(kind: Kind, engine: Any) -> None:
    mc, built = captured(net(kind, P), rates={"middle*": Q}, engine=engine), whole(kind, Q, engine=engine)
    for site, other in zip(mc.sites, built.sites, strict=True):
        assert site == dataclasses.replace(other, p=site.p)
        assert site.p == pytest.approx(other.p, rel=1e-12)
        assert engine == "eager" or torch.equal(draws(mc, site.index), draws(built, site.index))
    for masks in MODES:
        found, wanted = (model.sample(X, masks=masks) for model in (mc, built))
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


@every_engine
@each(UNRATED)
def test_noise_whose_rate_is_not_known_keeps_it(kind: Kind, engine: Any) -> None:
    with pytest.raises(SettingError, match=r"#1 middle .* so its rate cannot be set to 0.6. At capture a rate is set"):
        captured(net(kind, P), rates={"middle": Q}, engine=engine)


@each([kind for kind in KINDS if kind.id in ("dropout", "alpha", "SDPA", "by hand", "uniform")])
def test_saved_and_loaded_as_chosen(kind: Kind, tmp_path: Path) -> None:
    """The folder keeps the whole program, so that what was chosen can be undone and chosen anew."""
    mc = captured(net(kind, P), include=kind.name, exclude="path:first", rates={"kind:dropout": P})
    mc.save(tmp_path / "m")
    again = MCDropout.load(tmp_path / "m")
    assert [replace(s, source=None) for s in again.sites] == [replace(s, source=None) for s in mc.sites]
    assert torch.equal(again.sample(X), mc.sample(X))
    assert torch.equal(mc.to("cpu").sample(X), mc.sample(X))
    undone = MCDropout.load(tmp_path / "m", include="*", exclude=(), rates={})
    torch.testing.assert_close(undone.sample(X), whole(kind).sample(X), rtol=1e-6, atol=1e-6)


@each([kind for kind in KINDS if kind.id in ("feature alpha", "LSTM", "by hand", "normal")])
def test_chosen_when_loaded(kind: Kind, tmp_path: Path) -> None:
    whole(kind).save(tmp_path / "m")
    mc = MCDropout.load(tmp_path / "m", exclude="middle*")
    torch.testing.assert_close(mc.sample(X), without(kind, "graph").sample(X), rtol=1e-6, atol=1e-6)


# ---- what patterns name


@functools.cache
def program_of_three() -> Program:
    program = three()._captured.program
    assert program is not None
    return program


def three(**keywords: Any) -> MCDropout:
    """Sites 0 encoder.0.dropout, 1 encoder.1.dropout (alpha), 2 head.drop; a kind is also the name of a module."""

    def block(drop: nn.Module) -> nn.Module:
        return nn.ModuleDict({"linear": nn.Linear(6, 6), "dropout": drop})

    class Three(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.ModuleList([block(nn.Dropout(0.1)), block(nn.AlphaDropout(0.2))])
            self.head = nn.ModuleDict({"drop": nn.Dropout(0.4)})

        def forward(self, x: Tensor) -> Tensor:
            for part in self.encoder:
                x = part["dropout"](torch.tanh(part["linear"](x)))
            return self.head["drop"](x)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MCDropout(Three(), X, task="raw", **keywords)


@pytest.mark.parametrize(
    ("choice", "active"),
    [
        ({"include": "encoder.*.dropout"}, [0, 1]),
        ({"include": ["encoder.0*", "head*"]}, [0, 2]),
        ({"include": "dropout"}, [0, 2]),
        ({"include": "alpha"}, [1]),
        ({"include": "alpha_dropout"}, [1]),
        ({"include": "kind:alpha"}, [1]),
        ({"include": "path:*dropout"}, [0, 1]),
        ({"include": 1}, [1]),
        ({"include": [0, "#2"]}, [0, 2]),
        ({"exclude": "encoder.[01].*"}, [2]),
        ({"exclude": ["#0", "head.drop"]}, [1]),
        ({"include": "encoder*", "exclude": "alpha"}, [0]),
        ({"include": "*", "exclude": ()}, [0, 1, 2]),
        ({"rates": {"*": 0, "head*": 0.4}}, [2]),
    ],
)
def test_patterns(choice: dict[str, Any], active: list[int]) -> None:
    program = choose(program_of_three(), **choice)
    assert [site.index for site in program.active_sites] == active
    assert len(program.sites) == 3


def test_the_last_rate_counts_and_shows() -> None:
    program = choose(program_of_three(), rates={"*": 0.5, "alpha": 0.25, "#2": 0.125})
    assert [site.p for site in program.sites] == [0.5, 0.25, 0.125]


def test_reasons_show_in_the_table() -> None:
    mc = three(include=["encoder*", "head*"], exclude="head*", rates={"#1": 0})
    assert "no: excluded by exclude='head*'" in repr(mc.sites)
    assert "no: left out by rates={'#1': 0}" in repr(mc.sites)
    assert "no: not included by include='head*'" in repr(three(include="head*").sites)


def test_a_module_used_twice_is_told_apart_by_number() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = m.TwicePlaces()
    mc = captured(model, exclude="#0", rates={1: Q})
    assert [(site.index, site.path, site.p) for site in mc.sites] == [(1, "dropout", Q), (-1, "dropout", m.P)]


def test_a_word_with_two_meanings_is_refused() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential()
        model.add_module("dropout", nn.Dropout(0.1))
        model.add_module("other", nn.Dropout(0.1))
    with pytest.raises(SettingError, match="Write 'kind:dropout' or 'path:dropout'"):
        captured(model, exclude="dropout")
    assert inactive(captured(model, exclude="path:dropout")) == {"dropout": "excluded by exclude='path:dropout'"}
    with pytest.raises(NoDropoutError):
        captured(model, exclude="kind:dropout")


# ---- errors


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"exclude": "heads*"}, r"exclude='heads\*' matches no site.*#0 encoder.0.dropout \(dropout\); #1 .*#2 head"),
        ({"include": ["head*", "#3"]}, "include='#3' matches no site"),
        ({"rates": {"feature": 0.1}}, "rates='feature' matches no site"),
        ({"rates": {"*": 1}}, r"rates\['\*'\] is 1; expected the probability .* at least 0 and below 1"),
        ({"rates": {"*": -0.1}}, r"rates\['\*'\] is -0.1"),
        ({"rates": {"*": float("nan")}}, r"rates\['\*'\] is nan"),
        ({"rates": {"*": "0.1"}}, r"rates\['\*'\] is '0.1'"),
        ({"rates": {"*": True}}, r"rates\['\*'\] is True"),
        ({"rates": 0.1}, "rates is a float; give a mapping"),
        ({"include": 0.5}, "include is 0.5; give a pattern"),
        ({"exclude": [None]}, "exclude has the pattern None"),
        ({"exclude": {"head": 1}}, "exclude is {'head': 1}"),
        ({"exclude": [-1]}, "exclude has the pattern -1"),
    ],
)
def test_choices_that_mean_nothing(choice: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        choose(program_of_three(), **choice)


@pytest.mark.parametrize("choice", [{"exclude": "*"}, {"include": []}, {"rates": {"*": 0.0}}])
def test_nothing_left(choice: dict[str, Any]) -> None:
    with pytest.raises(NoDropoutError, match="no site is left to draw.*head.drop"):
        choose(program_of_three(), **choice)


@every_engine
def test_errors_at_capture(engine: Any) -> None:
    with pytest.raises(SettingError, match=r"exclude='heads\*' matches no site.*#2 head"):
        three(engine=engine, exclude="heads*")
    with pytest.raises(NoDropoutError, match="no site is left to draw.*head.drop"):
        three(engine=engine, exclude="*")


# ---- noise in the network's own code


class Mixed(nn.Module):
    """A draw by hand and a dropout under one flag, so that the flag cannot take out the one alone."""

    def __init__(self, threshold: bool) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.threshold:
            x = x * (torch.rand_like(x) >= P) / (1 - P)
        elif self.training:
            x = x * (torch.empty_like(x).bernoulli_(1 - P) / (1 - P))
        return F.dropout(x, 0.5, self.training)


@every_engine
def test_a_draw_that_no_flag_takes_out_stays_at_its_mean(engine: Any) -> None:
    mc = captured(Mixed(threshold=False), exclude="bernoulli", engine=engine)
    assert [site.index for site in mc.sites if site.active] == [1]
    assert set((mc.sample(X) / X).flatten().tolist()) == {0.0, 2.0}


@every_engine
def test_a_draw_without_a_neutral_value_cannot_be_left_out(engine: Any) -> None:
    with pytest.raises(SettingError, match="#0 .*uniform.* is noise that the network's own.*exclude='uni"):
        captured(Mixed(threshold=True), exclude="uniform", engine=engine)


def test_numbers_stay_when_a_draw_by_hand_in_between_is_gone() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = m.Residual(m.OldDropPath)
        model.head = nn.Sequential(nn.Dropout(0.5), model.head)
    all_of_it, mc = captured(model), captured(model, exclude="drops.0")
    eager = captured(model, exclude="drops.0", engine="eager")
    assert [site.index for site in mc.sites] == [1, 2, -1] == [site.index for site in eager.sites]
    assert all(torch.equal(draws(mc, number), draws(all_of_it, number)) for number in (1, 2))
    torch.testing.assert_close(eager.sample(X), mc.sample(X), rtol=1e-6, atol=1e-6)


def test_a_draw_by_hand_is_left_out_by_its_number(tmp_path: Path) -> None:
    by_number = captured(net(OLD, P), exclude=[1], rates={"#1": 0.5})
    assert inactive(by_number) == {"middle": "excluded by exclude='#1'"}
    assert torch.equal(by_number.sample(X), without(OLD, "graph").sample(X))
    by_number.save(tmp_path / "m")
    again = MCDropout.load(tmp_path / "m")
    assert repr(again.sites) == repr(by_number.sites)
    assert torch.equal(again.sample(X), by_number.sample(X))


def test_a_rate_set_in_the_network_is_saved(tmp_path: Path) -> None:
    mc = captured(net(BY_HAND, P), rates={"middle": Q})
    mc.save(tmp_path / "m")
    assert torch.equal(MCDropout.load(tmp_path / "m").sample(X), mc.sample(X))


def test_a_rate_of_zero_in_the_network_can_be_raised_at_capture() -> None:
    model = net(PLAIN, 0.0)
    mc = captured(model, rates={"middle": Q})
    assert torch.equal(mc.sample(X), whole(PLAIN, Q).sample(X))
    assert model.middle.p == 0.0  # the user's own network is as it was


def test_a_loaded_model_has_no_network_to_change(tmp_path: Path) -> None:
    whole(BY_HAND).save(tmp_path / "path")
    with pytest.raises(SettingError, match="draws and scales, so its rate cannot be set"):
        MCDropout.load(tmp_path / "path", rates={"middle": Q})
    whole(OLD).save(tmp_path / "old")
    with pytest.raises(SettingError, match="cannot be left out"):
        MCDropout.load(tmp_path / "old", exclude="middle")
    whole(PLAIN, 0.0).save(tmp_path / "zero")
    with pytest.raises(SettingError, match="draws nothing at p = 0"):
        MCDropout.load(tmp_path / "zero", rates={"middle": Q})


# ---- any network, site by site


MANY = (
    "autocast and no_grad regions", "BatchNorm and dropout", "DropPath", "nn.TransformerEncoder, padding",
    "nn.LSTM, bidirectional", "token ids and padding",
)  # fmt: skip


@pytest.mark.parametrize("network", [n for n in NETWORKS if n.name in MANY], ids=lambda n: n.name)
def test_each_site_alone(network: Any) -> None:
    """A program with one site of a network draws what that site drew; nothing is captured again."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mc = MCDropout(network.build(), network.example(2), task=network.task, **network.keywords)
    program = mc._captured.program
    assert program is not None
    inputs = mc.signature.bind(network.example(3), device=mc.device)[0]
    rows = torch.arange(3)
    full = GraphEngine(program, "loop")
    sites = {site.index: site for site in program.active_sites}
    drawn = dict(zip(sites, full.draws(inputs, passes=range(2), seed=1, rows=rows), strict=True))
    for index in sites:
        engine = GraphEngine(choose(program, include=[index]), "loop")
        (only,) = engine.draws(inputs, passes=range(2), seed=1, rows=rows)
        assert torch.equal(only, drawn[index])
        others = [drawn[i] if i == index else torch.full_like(drawn[i], mean(sites[i])) for i in sites]
        (wanted,) = full.apply(inputs, full.prepare(inputs), others, "loop")
        (found,) = engine.apply(inputs, engine.prepare(inputs), [only], "loop")
        torch.testing.assert_close(
            found, wanted, rtol=network.tolerance, atol=network.tolerance * float(wanted.abs().max())
        )


def mean(site: Site) -> float:
    """The value of a draw, scaled, at its mean."""
    return {"uniform": 0.5, "normal": 0.0}.get(site.law, (1 - (site.p or 0.0)) * site.scale)


def test_the_whole_program_is_left_as_it_was() -> None:
    program = program_of_three()
    before = str(program.graph)
    choose(program, include="#1", rates={"#1": 0.9})
    assert str(program.graph) == before
    assert choose(program) is program


class HeadsFirst(nn.Module):
    """Attention with heads merged before rows. Passes fold into the batch while all of it is stochastic; weights that
    are computed once would meet values that are folded in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.looks, self.values = nn.Dropout(0.5), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        looks, values = (
            drop(x).unflatten(1, (3, 2)).unflatten(2, (2, 1)).permute(2, 0, 1, 3).flatten(0, 1)
            for drop in (self.looks, self.values)
        )
        return ((looks @ looks.transpose(1, 2)).softmax(-1) @ values).unflatten(0, (2, -1)).transpose(0, 1).flatten(1)


def test_passes_are_joined_only_in_ways_proved_for_the_choice(tmp_path: Path) -> None:
    mc, wanted = captured(HeadsFirst()), captured(HeadsFirst(), exclude="looks")
    mc.save(tmp_path / "m")
    found = MCDropout.load(tmp_path / "m", exclude="looks")
    assert [each._engine.mode for each in (mc, wanted, found)] == ["folded", "mapped", "mapped"]
    assert torch.equal(found.sample(X), wanted.sample(X))
    assert not found._engine.joins  # the rows of the weights stand apart, for each head
    same = MCDropout.load(tmp_path / "m", rates={"looks": Q})
    assert (same._engine.mode, same._engine.joins) == ("folded", True)


# ---- model.json by hand, and the command line


def rewritten(folder: Path, **keys: Any) -> Path:
    path = folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))
    return folder


def test_model_json_by_hand(tmp_path: Path) -> None:
    three().save(tmp_path / "m")
    mc = MCDropout.load(rewritten(tmp_path / "m", exclude="head*", rates={"#0": 0.25}))
    assert [(site.index, site.p) for site in mc.sites] == [(0, 0.25), (1, 0.2), (-1, 0.4)]
    assert torch.equal(mc.sample(X), three(exclude="head*", rates={"#0": 0.25}).sample(X))
    assert [site.index for site in MCDropout.load(tmp_path / "m", exclude=()).sites] == [0, 1, 2]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"exclude": "nothing*"}, r"model.json chooses what cannot be: exclude='nothing\*' matches no site"),
        ({"rates": {"#0": 2}}, r"chooses what cannot be: rates\['#0'\] is 2"),
        ({"rates": [0.1]}, "'rates' should be an object of rates by pattern"),
        ({"include": 0.5}, "'include' should be null, a pattern or a list"),
        ({"exclude": [[]]}, "'exclude' should be a pattern or a list"),
    ],
)
def test_model_json_that_chooses_nonsense(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    three().save(tmp_path / "m")
    with pytest.raises(BundleError, match=message):
        MCDropout.load(rewritten(tmp_path / "m", **keys))


def test_a_folder_written_before_there_were_choices(tmp_path: Path) -> None:
    three().save(tmp_path / "m")
    path = tmp_path / "m" / "model.json"
    document = json.loads(path.read_text())
    for key in ("include", "exclude", "rates", "proved_sites", "neutral"):
        del document[key]
    path.write_text(json.dumps(document))
    assert torch.equal(MCDropout.load(tmp_path / "m").sample(X), three().sample(X))


def test_an_empty_choice_is_false() -> None:
    assert not Choice.read(None, (), None)
    assert Choice.read("*", (), None)
