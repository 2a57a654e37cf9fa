"""What capture gives: an engine with its sites, or the error that says why there is nothing to sample."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from mcdrop.capturing.flags import Flags
from mcdrop.capturing.proofs import fuse
from mcdrop.engines.engine import Engine, GraphEngine
from mcdrop.engines.masks import Masks
from mcdrop.engines.supplies import Drawn
from mcdrop.errors import NoDropoutError, SettingError
from mcdrop.graph.choosing import Choice
from mcdrop.graph.program import Program
from mcdrop.graph.sites import Site

__all__ = ["Captured", "moved", "no_dropout"]


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


def no_dropout(model: nn.Module, sites: Sequence[Site], flags: Flags) -> NoDropoutError:
    """The error for a network of which no site is active: what was looked at, and why each site is off."""
    name, count = type(model).__name__, sum(1 for _ in model.modules())
    if sites:
        telling = sorted(sites, key=lambda site: site.reason == "p is 0")  # what may surprise comes first
        listed = "; ".join(f"{site.path or name}: {site.reason}" for site in telling[:6])
        return NoDropoutError(
            f"{name} has {len(sites)} stochastic site{'s' * (len(sites) != 1)} and none is active, so "
            f"every sample would be the same ({listed}). Train the network with a rate above 0.",
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
        "read their training flag) for dropout, feature, alpha and attention dropout, dropout between recurrent "
        "layers, and bernoulli, uniform and normal draws. Train the network with dropout."
    )


def moved(captured: Captured, device: torch.device, max_memory: int | None) -> Captured:
    """The same on another device; nothing is proved anew.

    Raises:
        SettingError: there is no program.
    """
    program, engine = captured.program, captured.engine
    if program is None or not isinstance(engine, GraphEngine):
        raise SettingError("a network on the eager engine stays where it was captured: capture it on that device.")
    there = program.to(device)
    twin = GraphEngine(captured.choice.apply(there), engine.mode, Masks.within(max_memory))
    twin.merges, twin.joins, twin.apart = engine.merges, engine.joins, engine.apart
    if device == program.device:
        twin.thinned = engine.thinned  # whose weights are there
    if engine.fused:
        fuse(twin)
    return replace(captured, engine=twin, program=there, output_example=())
