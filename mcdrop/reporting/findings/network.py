"""Findings about a network as a whole: nothing to sample, noise that capture cannot see, sites without effect."""

from collections.abc import Iterator
from math import prod

from mcdrop.capturing.flags import RRELU
from mcdrop.errors import CaptureError, NoDropoutError, RowsInteractError, UnsupportedRandomnessError
from mcdrop.graph.sites import UNREACHED, Site
from mcdrop.reporting.findings.table import NETWORK, Evidence, Place, finding, place_of

_SURE = 20.0  # so many units dropped on average, and none is by chance: e^-20


@finding(
    "no-dropout",
    "error",
    title="nothing is random",
    source="Gal & Ghahramani 2016, arXiv 1506.02142",
    advice="Train the network with dropout, of the rate that you want to sample. Where that lowers the accuracy, an "
    "ensemble is the better source of uncertainty.",
)
def _no_dropout(evidence: Evidence) -> Iterator[tuple[Place, str]]:
    if isinstance(evidence.failure, NoDropoutError):
        yield NETWORK, _sentence(str(evidence.failure))


@finding(
    "rows-interact",
    "error",
    title="the rows of a batch influence one another",
    source="Ioffe & Szegedy 2015, arXiv 1502.03167: evaluation takes running averages",
    advice="Give BatchNorm its running averages (track_running_stats=True), and take nothing over the batch axis.",
)
def _rows_interact(evidence: Evidence) -> Iterator[tuple[Place, str]]:
    if isinstance(evidence.failure, RowsInteractError):
        yield NETWORK, _sentence(str(evidence.failure))


@finding(
    "unknown-randomness",
    "error",
    title="a random operation of unknown law",
    source="mcdrop.capturing.exposing.TABLE: the operations whose law is known",
    advice="Write the noise with dropout, bernoulli, uniform or normal draws, or switch it off in evaluation mode.",
)
def _unknown_randomness(evidence: Evidence) -> Iterator[tuple[Place, str]]:
    if isinstance(evidence.failure, UnsupportedRandomnessError):
        yield NETWORK, _sentence(str(evidence.failure))


@finding(
    "capture-failed",
    "error",
    title="the network cannot be captured",
    source="torch.export: one graph for all inputs",
    advice="Rewrite what the reason names.",
)
def _capture_failed(evidence: Evidence) -> Iterator[tuple[Place, str]]:
    if type(evidence.failure) is CaptureError:
        yield NETWORK, _sentence(str(evidence.failure))


@finding(
    "eager-engine",
    "warning",
    title="randomness or control flow that capture cannot see",
    source="Fan et al. 2020, arXiv 1909.11556 (LayerDrop), and other choices made outside of the graph",
    advice="Draw with PyTorch instead of Python or NumPy and mask instead of branching; else live with the eager "
    "engine: slow, not proved, not saved. What is drawn outside of PyTorch is no site, and is not listed.",
)
def _eager(evidence: Evidence) -> Iterator[tuple[Place, str]]:
    if evidence.eager is not None:
        yield NETWORK, _sentence(evidence.eager)


@finding(
    "random-in-evaluation",
    "warning",
    title="noise that is on in evaluation mode too",
    source="torch.nn.functional.dropout: training=True is its default",
    advice="Pass training=self.training, as in F.dropout(x, p, self.training), or use nn.Dropout.",
)
def _random_in_evaluation(evidence: Evidence) -> Iterator[tuple[Place, str]]:
    for drawn in evidence.always:
        yield (
            Place(drawn.path, drawn.source),
            f"A draw ({drawn.kind}) is made in evaluation mode too, so that model.eval() may answer differently from "
            "call to call.",
        )


@finding(
    "shared-training-flag",
    "warning",
    title="a training flag that serves dropout and something else",
    source="torch.nn.Module.train",
    advice="Give the dropout a module of its own (nn.Dropout), whose flag serves nothing else.",
)
def _shared_flag(evidence: Evidence) -> Iterator[tuple[Place, str]]:
    for site in evidence.sites:
        if site.kind == "training flag" and site.reason != RRELU:
            yield place_of(site), f"The noise under this flag stays off: {site.reason}."


@finding(
    "no-effect",
    "warning",
    title="a site that never changes the output",
    source="dead code, or a branch that is multiplied by 0",
    advice="Look at what reads its result: a branch that is thrown away, a gate or layer scale that stayed at 0.",
)
def _no_effect(evidence: Evidence) -> Iterator[tuple[Place, str]]:
    weights = {site.path for site in evidence.sites if site.active and site.kind == "drop_connect"}
    for site in evidence.sites:
        if site.reason == UNREACHED and site.path in weights:
            continue  # the weight is also read for its shape or type alone, as attention does, and each read draws
        if site.reason == UNREACHED:
            yield place_of(site), f"The site is inactive: {UNREACHED}."
        elif evidence.variance_alone.get(site.index) == 0 and _dropped(site, evidence) > _SURE:
            passes = evidence.num_samples
            yield place_of(site), f"With this site alone active, {passes} passes gave the same output in every row."


def _sentence(text: str) -> str:
    """What an error says, as a sentence of its own."""
    return text[:1].upper() + text[1:].rstrip(".") + "."


def _dropped(site: Site, evidence: Evidence) -> float:
    """How many units were dropped on average; sizes that are not known count as 1."""
    units = prod(size for size in site.shape if isinstance(size, int))
    rows = 1 if site.row_axis is None else evidence.rows
    return units * rows * evidence.num_samples * (1.0 if site.p is None else site.p)


@finding(
    "unreached-module",
    "note",
    title="a dropout module that evaluation never reaches",
    source="torch.nn.Module: only what forward() calls takes part",
    advice="Nothing, if it belongs to an auxiliary head; else check that forward() calls it.",
)
def _unreached(evidence: Evidence) -> Iterator[tuple[Place, str]]:
    if evidence.eager is not None or (evidence.failure and not isinstance(evidence.failure, NoDropoutError)):
        return
    paths = {site.path for site in evidence.sites}
    rates = {(site.path, site.p) for site in evidence.sites}
    for path, p in evidence.modules.items():
        parent = path.rpartition(".")[0]  # attention modules hand the rate of a dropout module to a fused function
        if p and path not in paths and (parent, p) not in rates:
            yield Place(path), "It is part of the network and its draw is no part of the prediction."
