"""Choosing which sites draw, and how often they drop.

A pattern names sites:

    "encoder.*.dropout"    by module path, as in `named_modules`; * ? [...] as in file names, and * crosses dots
    "attention_dropout"    by kind, as `Site.kind` has it; short: "attention"
    "#3" or 3              by number, as the table of sites shows it

A word that is both a kind and a path is refused; "kind:dropout" and "path:dropout" say which is meant. Sites are
included first (all, where no `include` is given), then those that `exclude` names are taken out. Of several rates for a
site the last one counts; a rate of 0 takes the site out.

A site keeps its number whatever else is chosen, and its noise depends on nothing else: its masks are those of the
whole network, bit for bit, and with another rate they come from the same numbers.

The program knows what dropout at rate 0 is for a *native* site, one whose draw is used by `draws.scale` and
`draws.alpha_scale` only. A draw in the network's own code is left out by its mean, where capture has proved that means
leave the network as it is (`Program.neutral`); its rate, and the rest, are known to that code alone: see `switching`.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import fx

from mcdrop.errors import NoDropoutError, SettingError
from mcdrop.graph.draws import alpha_scale, bernoulli, noise, scale
from mcdrop.graph.last_layer import integrate
from mcdrop.graph.program import Program
from mcdrop.graph.sites import Site, kept_value

__all__ = [
    "Choice",
    "Pattern",
    "Patterns",
    "Place",
    "cannot_leave_out",
    "cannot_set",
    "choose",
    "label",
    "mean_of",
    "native_sites",
]

Pattern = str | int
Patterns = Pattern | Sequence[Pattern]


@dataclass(frozen=True)
class Place:
    """What patterns look at, for a draw that is no `Site` yet."""

    index: int
    path: str
    kind: str


ALL_ROOT = "(network)"  # how the network itself is shown, whose path is empty


def choose(
    program: Program,
    *,
    include: Patterns | None = None,
    exclude: Patterns = (),
    rates: Mapping[Pattern, float] | None = None,
) -> Program:
    """The same program with some of its sites alone, or other rates. Shares its weights; costs a copy of the graph.

    Args:
        include: patterns of the sites that draw; None for all.
        exclude: patterns of sites that do not draw, although included.
        rates: pattern -> probability of dropping, in [0, 1).

    Raises:
        SettingError: a pattern matches no site or is ambiguous, a rate is out of range, or the program cannot do it.
        NoDropoutError: no site is left.
    """
    return Choice.read(include, exclude, rates).apply(program)


@dataclass(frozen=True)
class Choice:
    """Patterns, read and checked, and how the last site draws. The empty one chooses everything as it is."""

    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    rates: Mapping[str, float] = field(default_factory=dict)
    last_layer: str = "sampled"

    @classmethod
    def read(
        cls,
        include: Patterns | None,
        exclude: Patterns | None,
        rates: Mapping[Pattern, float] | None,
        last_layer: str | None = None,
    ) -> "Choice":
        """The choice that arguments state. Raises SettingError where they cannot."""
        if rates is not None and not isinstance(rates, Mapping):
            raise SettingError(f"rates is a {type(rates).__name__}; give a mapping such as {{'head.*': 0.2}}.")
        stated = {_pattern("rates", pattern): p for pattern, p in (rates or {}).items()}
        for pattern, p in stated.items():
            if not _is_rate(p):
                raise SettingError(
                    f"rates[{pattern!r}] is {p!r}; expected the probability of dropping a unit, at least 0 and below 1 "
                    "(at 1 nothing would be left)."
                )
        return cls(
            include=None if include is None else _patterns("include", include),
            exclude=_patterns("exclude", exclude if exclude is not None else ()),
            rates={pattern: float(p) for pattern, p in stated.items()},
            last_layer=last_layer or "sampled",
        )

    def __bool__(self) -> bool:
        return self.include is not None or bool(self.exclude) or bool(self.rates) or self.integrates

    @property
    def integrates(self) -> bool:
        """Whether the last site is integrated in closed form instead of drawn."""
        return self.last_layer == "exact"

    def forget(self, sites: Iterable[Site]) -> "Choice":
        """The same choice without the numbers of sites that have lost them."""
        gone = {f"#{site.index}" for site in sites}
        return replace(
            self,
            exclude=tuple(pattern for pattern in self.exclude if pattern not in gone),
            rates={pattern: p for pattern, p in self.rates.items() if pattern not in gone},
        )

    def reason(self, site: Site | Place) -> str | None:
        """Why a site is to draw nothing; None where it draws."""
        if self.include is not None and not any(_matches(pattern, site) for pattern in self.include):
            return f"not included by include={_shown(self.include)}"
        for pattern in self.exclude:
            if _matches(pattern, site):
                return f"excluded by exclude={pattern!r}"
        stated = [pattern for pattern in self.rates if _matches(pattern, site)]
        return f"left out by rates={{{stated[-1]!r}: 0}}" if self.rate(site) == 0 else None

    def rate(self, site: Site | Place) -> float | None:
        """The rate that is chosen for a site, or None."""
        stated = [p for pattern, p in self.rates.items() if _matches(pattern, site)]
        return stated[-1] if stated else None

    def is_met(self, site: Site) -> bool:
        """Whether a site has the rate that is chosen for it, if one is."""
        rate = self.rate(site)
        return rate is None or (site.p is not None and math.isclose(rate, site.p, rel_tol=1e-9, abs_tol=1e-12))

    def check(self, sites: Sequence[Site]) -> None:
        """Raises SettingError for a pattern that matches none of the sites, or that may mean two things."""
        stated = {"include": self.include or (), "exclude": self.exclude, "rates": tuple(self.rates)}
        for argument, pattern in ((argument, pattern) for argument, patterns in stated.items() for pattern in patterns):
            matched = [site for site in sites if _matches(pattern, site)]
            if not matched:
                listed = "; ".join(label(site) for site in sites)
                raise SettingError(
                    f"{argument}={pattern!r} matches no site. Give a module path (* and ? as in file names), a kind or "
                    f"a number. The sites are: {listed}."
                )
            by_path = [site for site in matched if _matches(f"path:{pattern}", site)]
            by_kind = [site for site in matched if _matches(f"kind:{pattern}", site)]
            if by_path and by_kind and by_path != by_kind:
                raise SettingError(
                    f"{argument}={pattern!r} is a kind and a module path here, and they are not the same sites. "
                    f"Write 'kind:{pattern}' or 'path:{pattern}'."
                )

    def left_out(self, sites: Iterable[Site]) -> tuple[Site, ...]:
        """Those of the active sites that are not chosen, as inactive ones."""
        reasons = ((site, self.reason(site)) for site in sites if site.active)
        return tuple(replace(site, index=-1, active=False, reason=why) for site, why in reasons if why is not None)

    def marked(self, sites: Sequence[Site]) -> tuple[Site, ...]:
        """The sites as they are under this choice: the active ones first. Raises NoDropoutError if there is none."""
        active = [self._rated(site) for site in sites if site.active and self.reason(site) is None]
        inactive = [*self.left_out(sites), *(site for site in sites if not site.active)]
        if not active:
            listed = "; ".join(f"{label(site)}: {site.reason}" for site in inactive)
            raise NoDropoutError(
                f"no site is left to draw, so every sample would be the same ({listed}). Choose at least one.",
                inactive,
            )
        return (*active, *inactive)

    def _rated(self, site: Site) -> Site:
        rate = self.rate(site)
        if rate is None or self.is_met(site):
            return site
        scaled = site.scale == kept_value(site.p or 0.0)  # alpha dropout draws zeros and ones
        return replace(site, p=rate, scale=kept_value(rate) if scaled else site.scale)

    def apply(self, program: Program) -> Program:
        """The program under this choice. Raises as `choose` does."""
        self.check(program.sites)
        if not self:
            return program
        native = native_sites(program)
        for site in program.sites:
            self._check_possible(site, native, program.neutral)
        graph = fx.Graph()
        graph.output(graph.graph_copy(program.graph, {}))
        sites = self.marked(program.sites)
        before = {site.index: site for site in program.active_sites}
        kept = {site.index: site for site in sites if site.active}
        for node in [node for node in graph.nodes if node.target is noise]:
            if node.args[0] not in kept:
                _leave_out(graph, node, before[node.args[0]], program.device)
                continue
            for user in list(node.users):
                if user.target is alpha_scale:
                    user.args = (*user.args[:2], kept[node.args[0]].p)
        graph.eliminate_dead_code()
        used = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
        weights = {name: weight for name, weight in program.weights.items() if name in used}
        chosen = replace(program, graph=graph, weights=weights, sites=sites)
        return integrate(chosen) if self.integrates else chosen

    def _check_possible(self, site: Site, native: set[int], neutral: bool) -> None:
        reason = self.reason(site)
        if site.active and reason is not None and not neutral and site.index not in native:
            raise cannot_leave_out(site, reason)
        if self.needs_network(site, native):
            raise cannot_set(site, self.rate(site))

    def needs_network(self, site: Site, native: set[int]) -> bool:
        """Whether the chosen rate can only be set in the network itself: its code uses it, or it draws nothing yet."""
        if self.is_met(site) or self.reason(site) is not None:
            return False
        return site.index not in native if site.active else site.p in (0.0, 1.0)


def cannot_leave_out(site: Site, reason: str | None) -> SettingError:
    """The error for a draw of which no value is known to change nothing."""
    return SettingError(
        f"{label(site)} is noise that the network's own code draws, and no value of it is known to change nothing, so "
        f"it cannot be left out ({reason}). Put it into a module of its own that draws in training mode only and "
        "capture the network with this choice, or leave the site in."
    )


def cannot_set(site: Site, rate: float | None) -> SettingError:
    """The error for a rate that belongs to the network's own code."""
    what = "is noise that the network's own code draws and scales" if site.active else f"draws nothing at p = {site.p}"
    return SettingError(
        f"{label(site)} {what}, so its rate cannot be set to {rate}. At capture a rate is set where the module "
        "has it as a number named p, drop_prob, drop_rate or dropout; else set it in the network and capture it again."
    )


def _leave_out(graph: fx.Graph, node: Any, site: Site, device: torch.device) -> None:
    """Put in place of a draw what changes nothing: the activations themselves, or its mean."""
    for user in list(node.users):
        value = {scale: 0, alpha_scale: 0, bernoulli: 1}.get(user.target)  # the argument that is left alone
        if value is not None and user.args[value] is not node:
            user.replace_all_uses_with(user.args[value])
            graph.erase_node(user)
    if node.users:
        with graph.inserting_before(node):
            options: dict[str, Any] = {"dtype": torch.float32, "device": device}
            mean = graph.call_function(torch.ops.aten.full.default, (node.args[1], mean_of(site)), options)
        node.replace_all_uses_with(mean)
    graph.erase_node(node)


def mean_of(site: Site) -> float:
    """The mean of a site's draw before it is scaled."""
    return {"uniform": 0.5, "normal": 0.0}.get(site.law, 1 - (site.p or 0.0))


def native_sites(program: Program) -> set[int]:
    """The numbers of the sites whose draws do nothing but scale activations."""
    return {
        node.args[0]
        for node in program.graph.nodes
        if node.target is noise
        and all(u.target in (scale, alpha_scale) and u.args[1] is node and u.args[0] is not node for u in node.users)
    }


def label(site: Site) -> str:
    """A site in words: "#2 encoder.drop (dropout)"."""
    number = f"#{site.index} " if site.index >= 0 else ""
    return f"{number}{site.path or ALL_ROOT} ({site.kind})"


def _is_rate(p: Any) -> bool:
    """Whether a value may be the rate of a site."""
    return isinstance(p, float | int) and not isinstance(p, bool) and 0 <= p < 1


def _patterns(argument: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str | int):
        value = (value,)
    if not isinstance(value, Iterable) or isinstance(value, Mapping):
        raise SettingError(f"{argument} is {value!r}; give a pattern or a list of patterns.")
    return tuple(_pattern(argument, pattern) for pattern in value)


def _pattern(argument: str, value: Any) -> str:
    if hasattr(value, "__index__") and not isinstance(value, bool) and value >= 0:
        return f"#{int(value)}"
    if isinstance(value, str):
        return value
    raise SettingError(f"{argument} has the pattern {value!r}; give a module path, a kind, or the number of a site.")


def _matches(pattern: str, site: Site | Place) -> bool:
    by, colon, what = pattern.partition(":")
    if by == "path" and colon:
        return fnmatchcase(site.path or ALL_ROOT, what)
    if by == "kind" and colon:
        return what in (site.kind, site.kind.removesuffix("_dropout"))
    if re.fullmatch(r"#\d+", pattern):
        return site.index == int(pattern[1:])
    return _matches(f"path:{pattern}", site) or _matches(f"kind:{pattern}", site)


def _shown(patterns: tuple[str, ...]) -> str:
    return repr(patterns[0]) if len(patterns) == 1 else repr(list(patterns))
