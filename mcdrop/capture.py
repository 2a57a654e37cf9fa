"""nn.Module + example inputs -> a proved program.

Capture takes a private copy, finds which training flags switch dropout on (`flags`), traces the copy (`tracing`), and
then proves what it has, by checks that each cost a few passes on the example:

    neutral   with every draw at its mean the program does what the network does in evaluation mode
    replay    with the same draws the program does what the flagged copy does: no mask lost, none out of order
    engine    many passes at a time give what one pass at a time gives; a row gives the same alone, among others and
              in another place

What fails is an error that says what differs. Nothing here touches the user's network or any global state that it does
not put back.
"""

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from mcdrop.choosing import Choice, cannot_leave_out, cannot_set, native_sites
from mcdrop.eager import EagerEngine, drawing, global_generators, neutral
from mcdrop.engine import Engine, GraphEngine
from mcdrop.errors import CaptureError, NoDropoutError, RowsInteractError, SettingError
from mcdrop.examples import proof_rows
from mcdrop.flags import Flags, buffers_of, find_flags, put_back, same
from mcdrop.inputs import InputSpec
from mcdrop.kept_passes import gathered_bound
from mcdrop.masks import Masks
from mcdrop.program import Program
from mcdrop.proofs import (
    PROOF_SEED,
    gap,
    neutral_outputs,
    noise_mixes_rows,
    proved_engine,
    rounding,
    rows_interact,
    with_layout,
)
from mcdrop.sites import Site, own_path, told_by_modules
from mcdrop.snapshot import Adapter
from mcdrop.supplies import Chosen, Drawn, Given, Places, Traced
from mcdrop.switching import numbers_left, renumbered, set_rates, switch_off
from mcdrop.tracing import EXPORT_LOCK, trace

__all__ = ["Captured", "capture"]

_BY_HAND = ("bernoulli", "uniform", "normal")  # kinds of draws in a network's own code, as the eager engine names them
_CANNOT = (
    "every row and pass takes a forward pass of its own, calls wait for one another, nothing is proved, "
    "and the model cannot be saved or served from disk"
)

_MIXED = (
    "under one mask for all rows a row alone gives another output than among 3 rows: by its noise the rows of a batch "
    "influence one another, as where noise is scaled by statistics of the batch. Scale it by values of its row, or "
    "pass allow_row_interaction=True and read answers as answers about whole batches."
)


@dataclass(frozen=True)
class Captured:
    """What capture found: an engine and the sites under the choice, and for the graph engine the whole program."""

    engine: Engine
    sites: tuple[Site, ...]
    program: Program | None
    output_shapes: tuple[tuple[int, ...], ...]  # of one row, without the batch axis
    output_example: tuple[Tensor, ...]
    choice: Choice = field(default_factory=Choice)
    always: tuple[Drawn, ...] = ()  # what the network draws in evaluation mode too
    reason: str | None = None  # why there is no program, where one was wanted


def capture(
    network: Adapter,
    example: Sequence[Tensor],
    specs: tuple[InputSpec, ...],
    *,
    engine: Literal["auto", "graph", "eager"],
    allow_row_interaction: bool,
    max_memory: int | None = None,
    thinned: bool = True,
    fast: bool = True,
    choice: Choice | None = None,
) -> Captured:
    """Turn a private copy into an engine; what is proved is the network whole, then `choice` is applied.

    Raises:
        NoDropoutError: nothing is stochastic.
        RowsInteractError: rows influence one another and `allow_row_interaction` is False.
        CaptureError: the program is not faithful, or `engine="graph"` and the network cannot be traced.
        SettingError: the choice fits no site, or cannot be applied.
    """
    choice = choice or Choice()
    rows = proof_rows(example, specs)
    with EXPORT_LOCK, EagerEngine.lock, global_generators():
        flags = find_flags(network, rows)
        buffers = buffers_of(network)
        if engine == "eager":
            return _eager(network, specs, rows, flags, allow_row_interaction, choice)
        try:
            if flags.foreign:
                raise CaptureError("the network draws random numbers outside of PyTorch (Python or NumPy)")
            program = _traced(network, rows, specs, buffers)
        except CaptureError as error:
            if engine == "graph" or type(error) is not CaptureError:
                raise
            captured = _eager(network, specs, rows, flags, allow_row_interaction, choice)
            warnings.warn(
                f"{type(network.network).__name__} cannot be captured as a graph, so it runs eagerly: {_CANNOT}. "
                f"Reason: {error}",
                stacklevel=3,
            )
            return replace(captured, reason=str(error))
        if sites := (*program.sites, *_flag_sites(flags)):  # where there is none, that is what has to be said
            choice.check(sites)
        set_in_network = [site for site in program.sites if choice.needs_network(site, native_sites(program))]
        if set_in_network:
            set_rates(network, set_in_network, choice)
            flags = find_flags(network, rows)
            program = _traced(network, rows, specs, buffers)
        program = replace(program, sites=(*program.sites, *_flag_sites(flags)), neutral=flags.exact)
        if not program.active_sites:
            raise _no_dropout(network.network, program.sites, flags)
        choice.marked(program.sites)
        less, off, numbers = _without(network, program, choice, lambda: _traced(network, rows, specs, buffers))
        less, outputs, merges, apart = _proved(network, less, rows, flags, allow_row_interaction)
        if off:
            less = renumbered(less, numbers)
            rest = [site for site in program.sites if not site.active]
            less = replace(less, sites=(*less.active_sites, *choice.left_out(off), *rest))
            choice = choice.forget(off)
        chosen = proved_engine(
            choice.apply(less),
            rows,
            masks=Masks.within(max_memory),
            merges=merges,
            apart=apart,
            gathered=gathered_bound(max_memory, thinned),
            fast=fast,
        )
        shapes = tuple(tuple(o.shape[1:]) for o in outputs)
        return Captured(chosen, chosen.program.sites, less, shapes, outputs, choice, flags.always)


def _traced(
    network: Adapter, rows: Sequence[Tensor], specs: tuple[InputSpec, ...], buffers: dict[str, Tensor]
) -> Program:
    """The program of the flagged copy, whose buffers are put back."""
    before = torch.random.get_rng_state()
    program = trace(network, [row.clone() for row in rows], specs)
    put_back(network, buffers)
    if not torch.equal(torch.random.get_rng_state(), before):
        raise CaptureError("the network drew a number while it was traced, which the graph would keep for ever")
    return replace(program, sites=told_by_modules(program.sites, network.network))


def _without(
    network: Adapter, program: Program, choice: Choice, again: Callable[[], Program]
) -> tuple[Program, list[Site], tuple[int, ...]]:
    """The program without the draws of the network's own code that are not chosen, those, and the numbers of the rest.

    Where a training flag cannot take them out they stay, to be left out by their mean.
    """
    native = native_sites(program)
    off = [site for site in program.active_sites if site.index not in native and choice.reason(site) is not None]
    if off:
        restore = switch_off(network, off)
        less = again()
        numbers = numbers_left(program.sites, less.sites, off)
        if numbers is not None:
            return replace(less, neutral=program.neutral), off, numbers
        restore()
    return program, [], ()


# ---- sites


def _flag_sites(flags: Flags) -> tuple[Site, ...]:
    """The sites that stay off because their flag does more than switch dropout on."""
    return tuple(
        Site(
            index=-1,
            path=own_path(path),
            kind="training flag",
            p=None,
            law="bernoulli",
            scale=1.0,
            shape=(),
            row_axis=None,
            row_major=True,
            active=False,
            reason=reason,
            source=None,
        )
        for path, reason in flags.off.items()
    )


def _no_dropout(model: nn.Module, sites: Sequence[Site], flags: Flags) -> NoDropoutError:
    name, count = type(model).__name__, sum(1 for _ in model.modules())
    if sites:
        telling = sorted(sites, key=lambda site: site.reason == "p is 0")  # what may surprise comes first
        listed = "; ".join(f"{site.path or name}: {site.reason}" for site in telling[:6])
        return NoDropoutError(
            f"{name} has {len(sites)} stochastic site{'s' * (len(sites) != 1)} and none is active, so "
            "every sample would "
            f"be the same ({listed}). Train the network with a rate above 0.",
            sites,
        )
    idle = [path for path, module in model.named_modules() if getattr(module, "p", None) == 0]
    if idle:
        return NoDropoutError(
            f"{name} has dropout with p = 0 alone ({', '.join(idle[:6])}), so every sample would be the same: p is 0. "
            "Train the network with a rate above 0."
        )
    return NoDropoutError(
        f"{name} has no dropout, so every sample would be the same. Looked at {count} modules ({flags.readers} of them "
        "read their training flag) for dropout, feature, alpha and attention dropout, dropout "
        "between recurrent layers, "
        "and bernoulli, uniform and normal draws. Train the network with dropout."
    )


# ---- the proofs


def _proved(
    network: nn.Module, program: Program, rows: list[Tensor], flags: Flags, allow_row_interaction: bool
) -> tuple[Program, tuple[Tensor, ...], bool, bool]:
    """The proved program, its outputs without noise, whether rows are alone, and whether their own masks would mix."""
    program = program.channels_last()
    engine = GraphEngine(program, "loop")
    outputs = _prove_neutral(network, engine, rows, flags)
    interact = rows_interact(engine, rows, outputs)
    if interact and not allow_row_interaction:
        raise RowsInteractError(interact)
    if not any(engine.parts.stochastic_outputs):
        raise NoDropoutError("the network draws, but no draw reaches the output, so every sample would be the same.")
    _prove_replay(network, engine, rows)
    if not interact:
        program, engine = with_layout(program, engine, rows)
    shared, own = (not interact and noise_mixes_rows(engine, rows, n) for n in (None, torch.arange(3)))
    if shared and not allow_row_interaction:
        raise RowsInteractError(_MIXED)
    mixed = shared or own
    merges = not interact and not (mixed and allow_row_interaction)
    return program, outputs, merges, mixed and not allow_row_interaction


def _once(network: nn.Module, rows: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """One forward pass of the copy, whose buffers are put back."""
    buffers = buffers_of(network)
    outputs = tuple(output.clone() for output in network(*(row.clone() for row in rows)))
    put_back(network, buffers)
    return outputs


def _prove_neutral(network: nn.Module, engine: GraphEngine, rows: list[Tensor], flags: Flags) -> tuple[Tensor, ...]:
    found = neutral_outputs(engine, rows)
    if flags.exact:
        truth, against = flags.neutral_outputs, "the network in evaluation mode"
    else:
        with neutral():
            truth, against = _once(network, rows), "the network under its mean noise"
    for a, b in zip(found, truth, strict=True):
        if not same(a, b, rounding(engine.program)):
            raise CaptureError(
                f"the captured program without noise differs from {against}: by {gap(a, b)} where outputs reach "
                f"{float(b.abs().max()):.3g}. The network does something in training mode that is no dropout."
            )
    return found


def _prove_replay(network: nn.Module, engine: GraphEngine, rows: list[Tensor]) -> None:
    numbers = torch.arange(3)
    count = 0
    for t in range(2):
        draws = engine.draws(rows, passes=range(t, t + 1), seed=PROOF_SEED, rows=numbers)
        by_index = {site.index: draw[0] for (site, _), draw in zip(engine.parts.draws, draws, strict=True)}
        values = [by_index.get(index) for index in range(max(by_index) + 1)]
        supply = Given(values)
        with drawing(supply):
            truth = _once(network, rows)
        wanted = [tuple(by_index[i].shape) if i in by_index else None for i in range(len(values))]
        for number, shape in enumerate(wanted):
            if shape is not None and (number >= supply.count or supply.shapes[number] != shape):
                raise CaptureError(
                    f"the network and its captured program draw differently: draw {number} has shape "
                    f"{supply.shapes[number] if number < supply.count else None} in the network and "
                    f"{shape} in the program."
                )
        found = engine.apply(rows, engine.prepare(rows), draws, "loop")
        for a, b in zip(found, truth, strict=True):
            if not same(a[0], b, rounding(engine.program)):
                raise CaptureError(
                    f"with the same draws the captured program differs from the network, by {gap(a[0], b)} where "
                    f"outputs reach {float(b.abs().max()):.3g}: a site was lost or changed."
                )
        count += supply.count


# ---- the network itself as engine


def _eager(
    network: Adapter,
    specs: Sequence[InputSpec],
    rows: list[Tensor],
    flags: Flags,
    allow_row_interaction: bool,
    choice: Choice,
) -> Captured:
    if choice.integrates:
        raise SettingError(
            'last_layer="exact" takes a network that is captured as a graph, and this one runs eagerly. Capture it '
            'with engine="graph" to see what is in the way, or use last_layer="sampled".'
        )
    sites, numbers = _traced_sites(network, rows, specs), None
    if choice:
        choice.check(sites)
        sites, numbers = _chosen(network, sites, flags, choice, lambda use: _traced_sites(network, rows, specs, use))
    traced, part, outputs = _traced_draws(network, rows, specs)
    batched = [spec.batched for spec in specs]
    engine = EagerEngine(
        copy.copy(network), batched, traced, together=allow_row_interaction, choice=choice, numbers=numbers
    )
    one, again = (engine.passes(rows, [], passes=range(8), seed=seed, rows=None) for seed in (1, 2))
    stochastic = any(not torch.equal(a, b) for a, b in zip(one, again, strict=True))
    if not stochastic and sites:  # a small rate may drop nothing in so few passes
        with neutral(kept=0.0):
            dropped = _once(network, part)
        stochastic = any(not torch.equal(a, b) for a, b in zip(outputs, dropped, strict=True))
    if not stochastic:
        raise _no_dropout(network.network, (), flags)
    shapes = tuple(tuple(o.shape[1:]) for o in outputs)
    return Captured(engine, sites, None, shapes, tuple(o.clone() for o in outputs), choice, flags.always)


def _chosen(
    network: Adapter,
    sites: tuple[Site, ...],
    flags: Flags,
    choice: Choice,
    again: Callable[[Choice], tuple[Site, ...]],
) -> tuple[tuple[Site, ...], tuple[int, ...] | None]:
    """The sites under a choice, set in the network where it has to be, and the numbers of the draws that are left."""

    def unmet() -> list[Site]:
        return [site for site in again(choice) if choice.reason(site) is None and not choice.is_met(site)]

    if unmet():
        set_rates(network, unmet(), choice)
        for site in unmet():
            raise cannot_set(site, choice.rate(site))
        sites = again(Choice())
    marked = choice.marked(sites)
    off = [
        site for site in sites if site.kind in ("bernoulli", "uniform", "normal") and choice.reason(site) is not None
    ]
    if not off:
        return marked, None
    restore = switch_off(network, off)
    numbers = numbers_left(sites, again(Choice()), off)
    if numbers is None:
        restore()
        if not flags.exact:
            raise cannot_leave_out(off[0], choice.reason(off[0]))
    return marked, numbers


def _traced_draws(
    network: Adapter, rows: list[Tensor], specs: Sequence[InputSpec]
) -> tuple[list[tuple[tuple[int, ...], bool]] | None, list[Tensor], tuple[Tensor, ...]]:
    """Of each draw its shape for one row and whether it grows with the rows (None if unclear); two rows, and their
    outputs without noise."""
    traces = []
    for count in (1, 2):
        part = [row[:count] if spec.batched else row for row, spec in zip(rows, specs, strict=True)]
        with neutral() as supply:
            outputs = _once(network, part)
        traces.append(supply.shapes)
    traced = [(a, a != b) for a, b in zip(*traces, strict=True)] if len(traces[0]) == len(traces[1]) else None
    return traced, part, outputs


def _traced_sites(
    network: Adapter, rows: list[Tensor], specs: Sequence[InputSpec], choice: Choice | None = None
) -> tuple[Site, ...]:
    """What one forward pass of the network drew, at the rates of the choice."""
    traced = _traced_draws(network, rows, specs)[0]
    places = Places(network)
    supply = Traced(places, Chosen(choice, places) if choice else None)
    try:
        with drawing(supply):
            _once(network, rows)
    finally:
        places.close()
    sites = []
    for index, (drawn, shape) in enumerate(zip(supply.found, supply.shapes, strict=True)):
        rowwise = traced is None or index >= len(traced) or traced[index][1]
        axis = next((axis for axis, size in enumerate(shape) if rowwise and size == len(rows[0])), None)
        sites.append(
            Site(
                index=index,
                path=drawn.path,
                kind=drawn.kind,
                p=drawn.p,
                law=drawn.law,
                scale=1.0,
                shape=tuple("batch" if number == axis else size for number, size in enumerate(shape)),
                row_axis=axis,
                row_major=True,
                active=True,
                reason=None,
                source=drawn.source,
            )
        )
    return told_by_modules(sites, network.network)
