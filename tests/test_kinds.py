"""One contract for every kind of dropout in kinds.py: law of the mask, mean, rows, seeds, types, disk, gradients.

Each check is a function of a row, so that the last test can show that kinds broken on purpose fail it.

Rates of the statistical checks: right code fails each with a probability of at most FALSE_ALARM. With PASSES passes a
chance of dropping 0.3 is told from one below 0.2 or above 0.4 at every unit and at every pair of units (independent or
not), and pooled over the events of a kind with six of them from one below 0.275 or above 0.325.
"""

import functools
import itertools
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import binom, norm
from torch import Tensor, nn

from bounds import FALSE_ALARM, assert_binomial, assert_distribution
from kinds import KINDS, Kind, P, mask, ones
from mcdrop import MCDropout, layers
from mcdrop.errors import McdropError

PASSES = 2500


@functools.cache
def captured(kind: Kind, engine: str = "graph") -> MCDropout:
    return MCDropout(kind.network(P).eval(), kind.example(2), task="raw", engine=engine)


@functools.cache
def trained(kind: Kind) -> Tensor:
    """What two rows of ones give in training, (passes, 2, units)."""
    network, x = kind.network(P).train(), kind.example(2)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.stack([network(x) for _ in range(PASSES)]).flatten(2)


@functools.cache
def sampled(kind: Kind, masks: str) -> Tensor:
    """The same by Monte Carlo."""
    return captured(kind).sample(kind.example(2), num_samples=PASSES, masks=masks).flatten(2)


def evaluated(kind: Kind) -> Tensor:
    with torch.no_grad():
        return kind.network(P).eval()(kind.example(2)).flatten(1)


# ---- the contract


def check_identity(kind: Kind) -> None:
    """At p = 0 training changes nothing, bit for bit, and neither does evaluation at any rate."""
    x = kind.example(3)
    none = kind.network(0.0)
    with torch.no_grad():
        still = none.eval()(x)
        assert torch.equal(none.train()(x), still)
        assert torch.equal(kind.network(P).eval()(x), still)


def check_mean_in_training(kind: Kind) -> None:
    check_mean(kind, trained(kind))


def check_mean_of_shared_masks(kind: Kind) -> None:
    check_mean(kind, sampled(kind, "shared"))


def check_mean_of_independent_masks(kind: Kind) -> None:
    check_mean(kind, sampled(kind, "independent"))


def check_mean(kind: Kind, samples: Tensor) -> None:
    """The mean is what the kind says: of every unit over passes, or of every row in every pass."""
    still = evaluated(kind).double()
    samples = samples.double()
    assert samples.std() > 0
    (check_mean_of_rows if kind.mean is None else check_mean_of_units)(kind, samples, still)


def check_mean_of_rows(kind: Kind, samples: Tensor, still: Tensor) -> None:
    left = samples.abs().sum(-1) > 0  # nothing can be kept where nothing is left
    gap = (samples.mean(-1) - still.mean(-1)).abs()
    assert bool((gap[left] < 1e-5).all()), f"the mean of a row is off by up to {float(gap[left].max()):.3g}"


def check_mean_of_units(kind: Kind, samples: Tensor, still: Tensor) -> None:
    """By standard errors. Of plain dropout, a unit's mean off by 13 % is seen, that of six units together by 6 %."""
    wanted = kind.mean(P) * torch.cat([still, still.mean(1, keepdim=True)], 1)
    got = torch.cat([samples, samples.mean(2, keepdim=True)], 2)  # each unit, and all of a row together
    error = got.std(0) / len(got) ** 0.5
    z = norm.isf(FALSE_ALARM / 100 / (2 * got[0].numel()))  # a hundredth, since sums of skewed values are not normal
    worst = float(((got.mean(0) - wanted).abs() / error).max())
    assert worst <= z, f"a mean is {worst:.1f} standard errors off, at most {z:.1f} by chance"


def check_law_in_training(kind: Kind) -> None:
    check_law(kind, trained(kind), kind.by_row)


def check_law_of_shared_masks(kind: Kind) -> None:
    check_law(kind, sampled(kind, "shared"), False)


def check_law_of_independent_masks(kind: Kind) -> None:
    check_law(kind, sampled(kind, "independent"), kind.by_row)


def check_law(kind: Kind, samples: Tensor, by_row: bool) -> None:
    """How often any two units of two rows are kept together, and that units with the same events never differ.

    A unit is kept if none of its events occurs, so two are kept with probability (1 - chance)**events of either.
    """
    network, x = kind.network(P).eval(), kind.example(1)
    with torch.no_grad():
        one = kind.events(network(x).shape[1:])  # (units, events)
    events = torch.block_diag(one, one).bool() if by_row else torch.cat([one, one])
    either = (events[:, None] | events[None]).sum(-1)  # (2 units, 2 units)
    kept = (~kind.dropped(samples)).flatten(1).double()
    together = (kept.T @ kept).long()
    chances = (1 - kind.chance(P)) ** either.numpy()
    rate = FALSE_ALARM / 2 / chances.size
    low, high = binom.ppf(rate / 2, len(kept), chances), binom.isf(rate / 2, len(kept), chances)
    wrong = np.argwhere((together.numpy() < low) | (together.numpy() > high))
    assert not len(wrong), (
        f"units {wrong[0].tolist()} are kept together {together[*wrong[0]]} times of {len(kept)}, expected "
        f"{low[*wrong[0]]:.0f} to {high[*wrong[0]]:.0f}; {len(wrong)} such pairs"
    )
    same = (events[:, None] == events[None]).all(-1)
    alike = together.diagonal()[:, None].expand_as(together)
    assert torch.equal(together[same], alike[same]), "units that should share a mask differ"
    alone = independent(events)
    pooled = int(together.diagonal()[alone].sum())
    assert_binomial(pooled, n=len(alone) * len(kept), p=1 - kind.chance(P), false_alarm=FALSE_ALARM / 2)


def independent(events: Tensor) -> Tensor:
    """Units that hang on one event each, all on different ones."""
    single = events.sum(1) == 1
    return torch.stack([(single & column).int().argmax() for column in events.T if bool((single & column).any())])


def check_distribution_in_training(kind: Kind) -> None:
    check_distribution(kind, trained(kind))


def check_distribution_of_independent_masks(kind: Kind) -> None:
    check_distribution(kind, sampled(kind, "independent"))


def check_distribution(kind: Kind, samples: Tensor) -> None:
    """Continuous noise has the distribution function that its law says: wrong by 0.05 at a value is seen."""
    one = kind.events(kind.example(1).shape[1:])
    values = kind.values(samples)[:, :, independent(one)]
    assert_distribution(values.double().numpy(), kind.cdf(P))


def check_reproducible(kind: Kind) -> None:
    """Same seed, same bits: again, and whatever the number of passes; other seeds differ."""
    mc, x = captured(kind), kind.example(3)
    for masks in ("shared", "independent"):
        samples = mc.sample(x, num_samples=40, seed=5, masks=masks)
        assert torch.equal(mc.sample(x, num_samples=40, seed=5, masks=masks), samples)
        assert torch.equal(mc.sample(x, num_samples=23, seed=5, masks=masks), samples[:23])
        assert not torch.equal(mc.sample(x, num_samples=40, seed=6, masks=masks), samples)


def check_rows(kind: Kind) -> None:
    """A row gives alone what it gives among others: any row under shared masks, the n-th as n-th under independent."""
    mc = captured(kind)
    x = kind.example(4)
    values = x.dtype.is_floating_point
    x = x * torch.tensor([1.0, -2.0, 0.5, 3.0]).view(-1, *[1] * (x.ndim - 1)) if values else x.roll(1, 0)
    together = mc.sample(x, num_samples=60, seed=3)
    for row in range(4):
        alone = mc.sample(x[row : row + 1], num_samples=60, seed=3)
        torch.testing.assert_close(together[:, row : row + 1], alone, rtol=1e-5, atol=1e-6)
    together = mc.sample(x, num_samples=60, seed=3, masks="independent")
    for rows in (1, 2, 3):
        fewer = mc.sample(x[:rows], num_samples=60, seed=3, masks="independent")
        torch.testing.assert_close(together[:, :rows], fewer, rtol=1e-5, atol=1e-6)


def check_types(kind: Kind) -> None:
    """Every precision comes out as it goes in, in training and sampled, under the same masks."""
    x = kind.example(2)
    truth = captured(kind).sample(x, num_samples=50, seed=1)
    assert truth.dtype == kind.network(P).train()(x).dtype == torch.float32
    for dtype, engine, tolerance in ((torch.float64, "eager", 1e-5), (torch.bfloat16, "graph", 3e-2)):
        given = x.to(dtype) if x.dtype.is_floating_point else x
        network = kind.network(P).to(dtype)
        shown = network.train()(given)
        assert shown.dtype == dtype
        assert bool(shown.isfinite().all())
        mc = MCDropout(network.eval(), given, task="raw", dtype=dtype, engine=engine)
        samples = mc.sample(given, num_samples=50, seed=1)
        assert samples.dtype == dtype
        torch.testing.assert_close(samples.double(), truth.double(), rtol=0, atol=tolerance * float(truth.abs().max()))


def check_capture(kind: Kind) -> None:
    """Both engines list one active site under the kind's name with its rate, and draw the same."""
    graph, eager = captured(kind), captured(kind, "eager")
    assert (graph.engine, eager.engine) == ("graph", "eager")
    for mc in (graph, eager):
        (site,) = (site for site in mc.sites if site.active)
        assert site.kind == kind.kind
        stated = kind.stated(P)
        assert site.p == (None if stated is None else pytest.approx(stated, rel=1e-6))
    x = kind.example(2)
    for masks in ("shared", "independent"):
        one, other = (mc.sample(x, num_samples=12, seed=8, masks=masks) for mc in (graph, eager))
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def check_disk(kind: Kind) -> None:
    """A saved model answers the same bits and lists the same sites; the layer's own state fits a new layer."""
    mc, x = captured(kind), kind.example(3)
    with tempfile.TemporaryDirectory() as folder:
        mc.save(str(Path(folder) / "model"))
        loaded = MCDropout.load(str(Path(folder) / "model"))
    assert [replace(site, source=None) for site in loaded.sites] == [replace(site, source=None) for site in mc.sites]
    for masks in ("shared", "independent"):
        one, other = (each.sample(x, num_samples=20, masks=masks) for each in (mc, loaded))
        assert torch.equal(one, other)
    one, other = kind.network(P), kind.network(P)
    assert one.state_dict().keys() == other.state_dict().keys()
    one.load_state_dict(other.state_dict())


def check_gradient(kind: Kind) -> None:
    """Training follows the draw that was made: the derivative along a direction is the difference quotient there.

    Of inputs, or of parameters where inputs are ids. A kind that shakes has a backward pass that draws anew.
    """
    network, x = kind.network(P).double().train(), kind.example(2)
    generator = torch.Generator().manual_seed(1)
    variable = x.double().requires_grad_() if x.dtype.is_floating_point else next(network.parameters())
    direction = torch.randn(variable.shape, generator=generator, dtype=torch.float64)
    weight = torch.randn(network(x.double() if variable.shape == x.shape else x).shape, generator=generator).double()

    def loss(shift: float) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            if variable.shape == x.shape:
                return (network(variable + shift * direction) * weight).sum()
            with torch.no_grad():
                variable.add_(shift * direction)
            result = (network(x) * weight).sum()
            with torch.no_grad():
                variable.sub_(shift * direction)
            return result

    (gradient,) = torch.autograd.grad(loss(0.0), variable)
    quotient = float((loss(1e-6) - loss(-1e-6)).detach() / 2e-6)
    slope = float((gradient * direction).sum())
    assert slope != 0, "no gradient"
    assert (slope == pytest.approx(quotient, rel=1e-4)) is not kind.shakes, f"slope {slope}, quotient {quotient}"


CHECKS: tuple[Callable[[Kind], None], ...] = (
    check_identity,
    check_mean_in_training,
    check_mean_of_shared_masks,
    check_mean_of_independent_masks,
    check_law_in_training,
    check_law_of_shared_masks,
    check_law_of_independent_masks,
    check_reproducible,
    check_rows,
    check_types,
    check_capture,
    check_disk,
    check_gradient,
)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_contract(check: Callable[[Kind], None], kind: Kind) -> None:
    check(kind)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.cdf], ids=lambda kind: kind.name)
@pytest.mark.parametrize("check", [check_distribution_in_training, check_distribution_of_independent_masks])
def test_distribution(check: Callable[[Kind], None], kind: Kind) -> None:
    check(kind)


def test_every_layer_is_in_the_table() -> None:
    modules = {name for name in layers.__all__ if isinstance(getattr(layers, name), type)}
    kinds = {name for name in modules if issubclass(getattr(layers, name), nn.Module)}
    assert kinds <= {kind.name for kind in KINDS}
    assert all(isinstance(getattr(layers, name).dropout_kind, str) for name in kinds)
    assert {kind.kind for kind in KINDS} >= {getattr(layers, name).dropout_kind for name in kinds}


# ---- the contract notices what is broken


class Broken(nn.Module):
    """A kind written wrongly: `function(x, p, training)`."""

    dropout_kind: ClassVar[str] = "dropout"

    def __init__(self, function: Callable[[Tensor, float, bool], Tensor], p: float) -> None:
        super().__init__()
        self.function, self.p = function, p

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.p, self.training)


def plain(function: Callable[[Tensor, float, bool], Tensor], **changes: object) -> Kind:
    """What `function(x, p, training)` would have to do to be plain dropout."""
    row = Kind("broken", lambda p: Broken(function, p), ones(6), "dropout", mask(6))
    return replace(row, **changes)


def unscaled(x: Tensor, p: float, training: bool) -> Tensor:
    return x * (F.dropout(torch.ones_like(x), p, training) != 0)


def scaled_in_evaluation(x: Tensor, p: float, training: bool) -> Tensor:
    return unscaled(x, p, True) if training else x * (1 - p)


def one_mask_for_all_rows(x: Tensor, p: float, training: bool) -> Tensor:
    return x * F.dropout(x.new_ones((1, *x.shape[1:])), p, training)


def one_mask_for_all_units(x: Tensor, p: float, training: bool) -> Tensor:
    return x * F.dropout(x.new_ones((x.shape[0], *[1] * (x.ndim - 1))), p, training)


def seven_percent_more(x: Tensor, p: float, training: bool) -> Tensor:
    return F.dropout(x, 1.07 * p, training)


def always_on(x: Tensor, p: float, training: bool) -> Tensor:
    return F.dropout(x, p)


def shifted_in_training(x: Tensor, p: float, training: bool) -> Tensor:
    return F.dropout(x, p, training) + (1e-6 if training else 0.0)


def less_the_mean_of_the_batch(x: Tensor, p: float, training: bool) -> Tensor:
    return F.dropout(x, p, training) - x.mean(0)


def float32_whatever_comes_in(x: Tensor, p: float, training: bool) -> Tensor:
    return F.dropout(x.float(), p, training)


def detached(x: Tensor, p: float, training: bool) -> Tensor:
    return F.dropout(x, p, training).detach() + 0 * x


def noise_of_numpy(x: Tensor, p: float, training: bool) -> Tensor:
    return x * torch.as_tensor(np.random.rand(*x.shape) > p).to(x.dtype) / (1 - p) if training else x


def wrong_variance(x: Tensor, p: float, training: bool) -> Tensor:
    return x * (1 + p * torch.randn_like(x)) if training else x


def block_scaled_by_the_batch(x: Tensor, p: float, training: bool) -> Tensor:
    """DropBlock1d with blocks of 3 as the paper writes it."""
    length = x.shape[-1]
    corners = F.dropout(x.new_ones((*x.shape[:2], length - 2)), p * length / 3 / (length - 2), training) == 0
    kept = 1 - F.max_pool1d(F.pad(corners.to(x.dtype), (2, 2)), 3, stride=1)
    return x * kept * (kept.numel() / kept.sum().clamp_min(1))


NUMBERS = itertools.count()


def with_a_name_of_its_own(p: float) -> nn.Module:
    """A layer whose state has another name in every object."""
    layer = nn.Dropout(p)
    layer.register_buffer(f"state_{next(NUMBERS)}", torch.zeros(()))
    return layer


ROW = {kind.name: kind for kind in KINDS}
BROKEN: tuple[tuple[Callable[[Kind], None], Kind], ...] = (
    (check_identity, plain(shifted_in_training)),
    (check_identity, plain(scaled_in_evaluation)),
    (check_identity, plain(always_on)),
    (check_mean_in_training, plain(unscaled)),
    (check_mean_of_shared_masks, plain(unscaled)),
    (check_mean_of_independent_masks, plain(unscaled)),
    (check_law_in_training, plain(one_mask_for_all_rows)),
    (check_law_of_independent_masks, plain(one_mask_for_all_rows)),
    (check_law_in_training, plain(one_mask_for_all_units)),
    (check_law_of_shared_masks, plain(one_mask_for_all_units)),
    (check_law_in_training, plain(F.dropout, example=ones(4, 3), events=mask(4, 1))),
    (check_law_of_shared_masks, plain(F.dropout, example=ones(4, 3), events=mask(4, 1))),
    (check_law_in_training, plain(seven_percent_more)),
    (check_law_of_independent_masks, plain(seven_percent_more)),
    (check_distribution_in_training, replace(ROW["GaussianDropout"], network=lambda p: Broken(wrong_variance, p))),
    (
        check_distribution_of_independent_masks,
        replace(ROW["GaussianDropout"], network=lambda p: Broken(wrong_variance, p)),
    ),
    (check_law_in_training, replace(ROW["DropBlock1d"], network=lambda p: layers.DropBlock1d(p, 2))),
    (check_law_of_shared_masks, replace(ROW["DropBlock1d"], chance=lambda p: p / 3)),
    (check_reproducible, plain(lambda x, p, training: x)),
    (check_reproducible, plain(noise_of_numpy)),
    (check_rows, plain(less_the_mean_of_the_batch)),
    (check_mean_in_training, replace(ROW["DropBlock1d"], network=lambda p: Broken(block_scaled_by_the_batch, p))),
    (check_types, plain(float32_whatever_comes_in)),
    (check_capture, plain(F.dropout, kind="drop_path")),
    (check_capture, plain(noise_of_numpy)),
    (check_disk, replace(plain(F.dropout), network=with_a_name_of_its_own)),
    (check_gradient, plain(detached)),
)


@pytest.mark.parametrize(
    ("check", "kind"),
    BROKEN,
    ids=[f"{check.__name__.removeprefix('check_')}-{number}" for number, (check, _) in enumerate(BROKEN)],
)
def test_a_broken_kind_fails(check: Callable[[Kind], None], kind: Kind) -> None:
    """By the check, or by a refusal of the library."""
    with pytest.raises((AssertionError, McdropError)):
        check(kind)


FRAME = plain(F.dropout)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_the_frame_of_the_broken_kinds_is_not_broken(check: Callable[[Kind], None]) -> None:
    check(FRAME)
