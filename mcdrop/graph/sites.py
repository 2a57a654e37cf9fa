"""Where noise enters a network: the sites, and what is known of each.

Laws: a *bernoulli* draw keeps a unit with probability 1 - p and gives kept units the value `scale`; a *uniform* draw
lies in [0, 1); a *normal* draw has mean 0 and variance 1.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from mcdrop import errors

__all__ = [
    "LIBRARIES",
    "ONE_LAYER",
    "UNREACHED",
    "Found",
    "Law",
    "Site",
    "kept_value",
    "own_path",
    "path_of",
    "source_of",
    "told_by_modules",
]

Node = Any  # fx.Node, whose arguments are typed too widely to be of use

Law = Literal["bernoulli", "uniform", "normal"]

# Why a site is inactive
ONE_LAYER = "one layer: there is no place between layers"
UNREACHED = "its draw never reaches the output"


@dataclass(frozen=True)
class Site:
    """One place where noise enters a network.

    Attributes:
        index: its number in the order of drawing, which keys its noise; -1 where nothing is drawn.
        path: the module in which it stands, as in `named_modules`; empty for the network itself.
        kind: the operation as its paper names it, e.g. "dropout", "attention_dropout", "recurrent_dropout"; inside a
            module whose class has a `dropout_kind`, that.
        p: the probability of dropping a unit; of a uniform or normal draw the rate that its module states, or None.
        law: the law of the draw.
        scale: the value of a kept unit.
        shape: the shape of one pass's draw, for people; "batch" stands for the number of rows.
        row_axis: the axis of the draw that runs over the rows, or None where all rows share it (a weight, say).
        row_major: whether on that axis the row is the slow index, where the axis also runs over other units.
        active: whether it draws.
        reason: why it does not, where it does not.
        source: the line of code that draws, as "file:line"; None where it is PyTorch's or ours, as in `nn.Sequential`.
    """

    index: int
    path: str
    kind: str
    p: float | None
    law: Law
    scale: float
    shape: tuple[int | str, ...]
    row_axis: int | None
    row_major: bool
    active: bool
    reason: str | None
    source: str | None


@dataclass(frozen=True)
class Found:
    """What is known of a site while the graph is rewritten; `reason` says why it is inactive."""

    kind: str
    p: float | None
    law: Law
    scale: float
    path: str
    source: str | None
    reason: str | None = None


def kept_value(p: float) -> float:
    """1 / (1 - p), or 0 where every unit is dropped."""
    return 1 / (1 - p) if p < 1 else 0.0


def own_path(path: str) -> str:
    """A path in the adapter around a network as a path in the network."""
    return path.removeprefix("network").removeprefix(".") if path == "network" or path.startswith("network.") else path


def path_of(node: Node) -> str:
    """The module in which a traced operation stands, by its name below the user's network."""
    stack = node.meta.get("nn_module_stack") or {}
    path = next(reversed(stack.values()))[0] if stack else ""
    path = re.sub(r"@\d+$", "", path)
    return own_path(path)


# the folders of PyTorch and of this package, at the top of which `errors` lies
LIBRARIES = tuple(os.path.dirname(file) + os.sep for file in (torch.__file__, errors.__file__))
_FRAME = re.compile(r'File "([^"]+)", line (\d+)')


def source_of(node: Node) -> str | None:
    """The line of code from which a traced operation comes, as "file:line"; None where it is PyTorch's or ours."""
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    own = [f"{name}:{line}" for name, line in frames if not name.startswith(LIBRARIES)]
    return own[-1] if own else None


_RATES = ("p", "drop_prob", "drop_rate")


def told_by_modules(sites: Sequence[Site], model: nn.Module) -> tuple[Site, ...]:
    """The sites with what the modules of `model` say of themselves.

    A module with an attribute `dropout_kind` names the draws inside it; of several around a draw the innermost. Where
    the law of a draw has no rate, the rate is that module's (or, if none has the attribute, the draw's own module's)
    float attribute `p`, `drop_prob` or `drop_rate`.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    return tuple(_told(site, modules) for site in sites)


def _told(site: Site, modules: dict[str, nn.Module]) -> Site:
    names = site.path.split(".") if site.path else []
    around = [modules.get(".".join(names[:depth])) for depth in range(len(names), -1, -1)]  # innermost first
    owner = next((module for module in around if isinstance(getattr(module, "dropout_kind", None), str)), None)
    kind = site.kind if owner is None else str(owner.dropout_kind)
    stated = (getattr(owner or around[0], name, None) for name in _RATES)
    rate = next((value for value in stated if isinstance(value, float) and 0 <= value <= 1), None)
    return replace(site, kind=kind, p=rate if site.p is None else site.p)
