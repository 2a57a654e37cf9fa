"""Choosing among draws that a network's own code makes: what is done to its private copy before it is traced again.

Such a draw is left out by the training flag of the module that owns it, so that it is never made; its rate is set where
the module keeps it as a plain number. Whether that worked is seen in what the copy draws afterwards.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from torch import fx, nn

from mcdrop.capturing.snapshot import Adapter
from mcdrop.graph.choosing import Choice, cannot_set
from mcdrop.graph.draws import noise
from mcdrop.graph.program import Program
from mcdrop.graph.sites import Site

__all__ = ["numbers_left", "renumbered", "set_rates", "switch_off"]

RATE_NAMES = ("p", "drop_prob", "drop_rate", "dropout")


def owner(network: Adapter, site: Site) -> nn.Module:
    """The module in which a site stands."""
    return network.network.get_submodule(site.path)


def set_rates(network: Adapter, sites: Iterable[Site], choice: Choice) -> None:
    """Set the chosen rates of these sites in the modules that own them.

    Raises:
        SettingError: a module has no number of a known name that equals the site's rate.
    """
    found = []
    for site in sites:
        module, rate = owner(network, site), choice.rate(site)
        names = [name for name in RATE_NAMES if _is_rate_of(module.__dict__.get(name), site)]
        if not names:
            raise cannot_set(site, rate)
        found += [(module, name, rate) for name in names]
    for module, name, rate in found:  # after all have been compared: sites may share a module
        setattr(module, name, rate)


def _is_rate_of(value: Any, site: Site) -> bool:
    return type(value) in (float, int) and site.p is not None and math.isclose(value, site.p, abs_tol=1e-12)


def switch_off(network: Adapter, sites: Iterable[Site]) -> Callable[[], None]:
    """Take the training flag from the modules that own these sites; returns how to undo it."""
    modules = [module for module in {owner(network, site): None for site in sites} if module.training]

    def flag(training: bool) -> None:
        for module in modules:
            module.training = training

    flag(False)
    return lambda: flag(True)


def numbers_left(before: Sequence[Site], after: Sequence[Site], off: Sequence[Site]) -> tuple[int, ...] | None:
    """The numbers that the active sites of `after` had before; None if more or less than the sites `off` are gone."""
    left = [site for site in before if site.active and site not in off]
    now = [site for site in after if site.active]
    if [replace(site, index=0) for site in left] != [replace(site, index=0) for site in now]:
        return None
    return tuple(site.index for site in left)


def renumbered(program: Program, numbers: Sequence[int]) -> Program:
    """The program with other numbers for its active sites, in their order."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(program.graph, {}))
    given = {site.index: number for site, number in zip(program.active_sites, numbers, strict=True)}
    for node in graph.nodes:
        if node.target is noise:
            node.args = (given[node.args[0]], node.args[1])
    sites = tuple(replace(site, index=given.get(site.index, -1)) for site in program.sites)
    return replace(program, graph=graph, sites=sites)
