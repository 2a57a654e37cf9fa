"""A network that runs itself, as an engine: what it draws is seen by running it, and nothing is proved."""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mcdrop.capturing.captured import Captured, no_dropout
from mcdrop.capturing.flags import Flags, once
from mcdrop.capturing.snapshot import Adapter
from mcdrop.capturing.switching import numbers_left, set_rates, switch_off
from mcdrop.engines.eager import EagerEngine, drawing, neutral
from mcdrop.engines.supplies import Chosen, Places, Traced
from mcdrop.errors import SettingError
from mcdrop.graph.choosing import Choice, cannot_leave_out, cannot_set
from mcdrop.graph.inputs import InputSpec
from mcdrop.graph.sites import Site, told_by_modules

__all__ = ["capture_eagerly"]

_BY_HAND = ("bernoulli", "uniform", "normal")  # kinds of draws in a network's own code, as the eager engine names them


def capture_eagerly(
    network: Adapter,
    specs: Sequence[InputSpec],
    rows: list[Tensor],
    flags: Flags,
    allow_row_interaction: bool,
    choice: Choice,
) -> Captured:
    """The network itself as engine, under `choice`.

    Raises:
        NoDropoutError: nothing is stochastic.
        SettingError: the choice fits no site, or cannot be applied.
    """
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
            dropped = once(network, part)
        stochastic = any(not torch.equal(a, b) for a, b in zip(outputs, dropped, strict=True))
    if not stochastic:
        raise no_dropout(network.network, (), flags)
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
    off = [site for site in sites if site.kind in _BY_HAND and choice.reason(site) is not None]
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
            outputs = once(network, part)
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
            once(network, rows)
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
