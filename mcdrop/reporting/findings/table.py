"""The table of findings, and what a rule is given."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from mcdrop.engines.supplies import Drawn
from mcdrop.errors import McdropError
from mcdrop.graph.choosing import ALL_ROOT
from mcdrop.graph.sites import Site
from mcdrop.reporting.placement import Placement

__all__ = ["KINDS", "NETWORK", "Evidence", "Finding", "Kind", "Place", "Severity", "finding", "judge"]

Severity = Literal["error", "warning", "note"]
_ORDER: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Place:
    """Where something was found: the module's path (empty: the network itself), and the line of code if known."""

    path: str
    source: str | None = None

    def __str__(self) -> str:
        return self.path or ALL_ROOT


NETWORK = Place("")


@dataclass(frozen=True)
class Evidence:
    """What is known of a network.

    Attributes:
        sites: those that were found, inactive ones included.
        placements: of the active sites of a captured network, by site number.
        modules: dropout modules of the network by path, each with its rate; none of a model that was loaded.
        always: what the network draws in evaluation mode too.
        failure: why it cannot be sampled, if it cannot.
        eager: why it runs on the eager engine, if it does.
        variance_alone: variance of the output with one site active, by site number, where it was measured...
        num_samples: ...over so many passes...
        rows: ...of so many rows.
    """

    sites: tuple[Site, ...] = ()
    placements: Mapping[int, Placement] = field(default_factory=dict)
    modules: Mapping[str, float] = field(default_factory=dict)
    always: tuple[Drawn, ...] = ()
    failure: McdropError | None = None
    eager: str | None = None
    variance_alone: Mapping[int, float] = field(default_factory=dict)
    num_samples: int = 0
    rows: int = 0

    @property
    def placed(self) -> Iterator[tuple[Site, Place, Placement]]:
        """The active sites of a captured network, with their placements."""
        for site in self.sites:
            if site.active and site.index in self.placements:
                yield site, place_of(site), self.placements[site.index]


Rule = Callable[[Evidence], Iterator[tuple[Place, str]]]


@dataclass(frozen=True)
class Kind:
    """A row of the table: what can be found, and the rule that finds it."""

    code: str
    severity: Severity
    title: str
    source: str
    advice: str
    rule: Rule


@dataclass(frozen=True)
class Finding:
    """Something that a user should know about a network.

    Attributes:
        code: stable, as in the README.
        severity: "error" (there is nothing to sample), "warning" (it works against you) or "note" (good to know).
        title: what it is, in a few words.
        places: where.
        reason: what was seen there, and why it matters.
        source: the paper or documentation behind it.
        advice: what to do.
    """

    code: str
    severity: Severity
    title: str
    places: tuple[Place, ...]
    reason: str
    source: str
    advice: str


KINDS: dict[str, Kind] = {}


def finding(code: str, severity: Severity, *, title: str, source: str, advice: str) -> Callable[[Rule], Rule]:
    """Enter a rule into the table. It yields each place with the reason; places with one reason are one finding."""

    def enter(rule: Rule) -> Rule:
        KINDS[code] = Kind(code, severity, title, source, advice, rule)
        return rule

    return enter


def place_of(site: Site) -> Place:
    return Place(site.path, site.source)


def judge(evidence: Evidence) -> tuple[Finding, ...]:
    """Every finding about a network, the gravest first."""
    found: list[Finding] = []
    for kind in KINDS.values():
        places: dict[str, list[Place]] = {}
        for place, reason in kind.rule(evidence):
            places.setdefault(reason, []).append(place)
        found += [
            Finding(kind.code, kind.severity, kind.title, tuple(dict.fromkeys(at)), reason, kind.source, kind.advice)
            for reason, at in places.items()
        ]
    return tuple(sorted(found, key=lambda each: _ORDER.index(each.severity)))
