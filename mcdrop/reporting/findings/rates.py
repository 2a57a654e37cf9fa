"""Findings about rates: zero, one, too high on the input, unusual for their place."""

from collections.abc import Iterator
from typing import NamedTuple

from mcdrop.graph.sites import ONE_LAYER
from mcdrop.reporting.findings.table import Evidence, Place, finding, place_of

__all__ = ["USUAL", "Usual"]

HIGHEST_ON_INPUT = 0.2  # Srivastava et al. 2014, A.4: 0.8 of the inputs are kept
_ROUNDING = 1e-6  # a rate that was written as 1 - p


class Usual(NamedTuple):
    """The rate that the literature uses at a place, and the range outside of which one is named."""

    text: str
    low: float
    high: float


USUAL: dict[str, Usual] = {
    "input": Usual("0.1 at most", 0.0, 0.1),
    "fully connected": Usual("0.2 to 0.5", 0.1, 0.6),
    "convolutional": Usual("0.25 to 0.3", 0.1, 0.5),
    "recurrent": Usual("0.2 to 0.3", 0.1, 0.5),
    "transformer": Usual("0.1", 0.05, 0.3),
    "weights": Usual("0.5", 0.1, 0.6),
    "path": Usual("up to 0.2, in very deep networks up to 0.5", 0.0, 0.5),
}

_ANY = Usual("any", 0.0, 1.0)  # where blocks start: the rate of dropping depends on their size


@finding(
    "input-rate",
    "warning",
    title="a high rate on raw inputs",
    source="Srivastava et al. 2014, appendix A.4",
    advice="Use 0.1 at most on inputs (0.2 where they are very redundant), or none, and train again.",
)
def _input_rate(evidence: Evidence) -> Iterator[tuple[Place, str]]:
    for site, place, placement in evidence.placed:
        if placement.masks and placement.place == "input" and (site.p or 0) > HIGHEST_ON_INPUT + _ROUNDING:
            yield (
                place,
                f"p is {site.p:g} on the inputs themselves. What is dropped there no later layer can bring back, so "
                "the spread is mostly that of missing data.",
            )


@finding(
    "unusual-rate",
    "note",
    title="a rate that is unusual for its place",
    source="Srivastava et al. 2014, appendix A.4; Gal & Ghahramani 2016, arXiv 1506.02142 (p by held-out likelihood)",
    advice="Choose the rate by the likelihood of held-out data; if that was done, all is well.",
)
def _unusual_rate(evidence: Evidence) -> Iterator[tuple[Place, str]]:
    for site, place, placement in evidence.placed:
        usual = USUAL.get(placement.place, _ANY)
        on_input = placement.place == "input" and (site.p or 0) > HIGHEST_ON_INPUT + _ROUNDING
        if site.p is None or (not placement.masks and placement.place != "weights") or on_input:
            continue
        if not usual.low - _ROUNDING <= site.p <= usual.high + _ROUNDING:
            wide = "spread over passes is large whatever the data" if site.p > usual.high else "passes hardly differ"
            yield place, f"p is {site.p:g}; usual here ({placement.place}) is {usual.text}. The {wide}."


@finding(
    "rate-one",
    "warning",
    title="p = 1: the output of a dropout is always 0",
    source="torch.nn.Dropout",
    advice="p is the probability of dropping a unit, not of keeping it.",
)
def _rate_one(evidence: Evidence) -> Iterator[tuple[Place, str]]:
    for site in evidence.sites:
        if site.p == 1 and not site.active:
            yield place_of(site), "Everything is dropped in training, so nothing that comes before it was trained."


@finding(
    "rate-zero",
    "note",
    title="p = 0: a dropout that does nothing",
    source="torch.nn.Dropout",
    advice="Nothing, if the rate was set to 0 on purpose.",
)
def _rate_zero(evidence: Evidence) -> Iterator[tuple[Place, str]]:
    idle = {site.path: place_of(site) for site in evidence.sites if not site.active and site.p == 0}
    idle |= {path: Place(path) for path, p in evidence.modules.items() if p == 0 and path not in idle}
    for place in idle.values():
        yield place, "Its rate is 0, so it draws nothing."


@finding(
    "recurrent-one-layer",
    "warning",
    title="dropout= of a recurrent network with one layer",
    source="torch.nn.LSTM: dropout acts on the outputs of each layer except the last",
    advice="Put nn.Dropout behind it (or a locked mask over time), or use two layers, and train again.",
)
def _recurrent_one_layer(evidence: Evidence) -> Iterator[tuple[Place, str]]:
    for site in evidence.sites:
        if site.reason == ONE_LAYER:
            yield place_of(site), f"dropout={site.p:g} has no effect: {ONE_LAYER}."
