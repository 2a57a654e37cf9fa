"""What there is to say about a network with dropout, and how it prints: for a terminal of any width, and as text."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from io import StringIO
from typing import Any

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.text import Text

from mcdrop.graph.choosing import ALL_ROOT
from mcdrop.reporting.findings import Finding, Place
from mcdrop.reporting.measures import Cost
from mcdrop.surroundings.terminal import new_table

__all__ = ["Measured", "Report", "SiteReport", "as_text", "renderables"]

_WIDTH = 100  # of `print(report)`
_PLACES = 6  # shown of one finding
_STYLES = {"error": "bold red", "warning": "bold yellow", "note": "bold cyan"}
_SCORES = {"nll": "negative log likelihood, nats", "brier": "Brier score", "accuracy": "accuracy", "rmse": "RMSE"}


@dataclass(frozen=True)
class SiteReport:
    """A site, and what it contributes.

    `variance_alone` is the variance of the prediction over passes with this site alone active, averaged over rows and
    outputs; None where no inputs were given or it cannot be said. The variances of all sites need not add up to the
    full one: sites act on one another.
    """

    index: int
    path: str
    kind: str
    p: float | None
    shape: tuple[int | str, ...]
    active: bool
    reason: str | None
    source: str | None
    variance_alone: float | None = None


@dataclass(frozen=True)
class Measured:
    """What was measured on the inputs that were given.

    Attributes:
        rows, num_samples, seed: on how many rows, over how many passes, with which noise; no passes without dropout.
        variance: of the prediction over passes, averaged over rows and outputs.
        gap: distance of the deterministic prediction from the mean over passes (see `scores.gap`).
        deterministic, monte_carlo: scores without and with dropout, where targets were given.
        passes: how many reach a standard error of 0.01, for the typical (median) output and for the largest variance;
            at least 100 for a probability, see `scores.passes_for`; None where that variance is not finite.
    """

    rows: int
    num_samples: int
    seed: int
    variance: float | None = None
    gap: Mapping[str, float] | None = None
    deterministic: Mapping[str, float] | None = None
    monte_carlo: Mapping[str, float] | None = None
    passes: Mapping[str, int | None] | None = None


@dataclass(frozen=True, repr=False)
class Report:
    """What there is to say about a network. Prints as text; `to_dict` is plain JSON.

    Attributes:
        model: name, version, task, class names, inputs, defaults, device and dtype.
        findings: what a user should know, the gravest first.
        sites: every place where noise enters, or would.
        cost: what runs once and what in every pass; None where nothing was captured.
        measured: what the given inputs (and targets) showed; None without.
    """

    model: Mapping[str, Any]
    findings: tuple[Finding, ...]
    sites: tuple[SiteReport, ...]
    cost: Cost | None = None
    measured: Measured | None = None

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values; numbers that are not finite are None."""
        whole = {
            **self.model,
            "findings": [asdict(finding) for finding in self.findings],
            "sites": [asdict(site) for site in self.sites],
            "cost": None if self.cost is None else asdict(self.cost),
            "measured": None if self.measured is None else asdict(self.measured),
        }
        plain: dict[str, Any] = _plain(whole)
        return plain

    def __repr__(self) -> str:
        return as_text(self)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ---- as text


def as_text(report: Report) -> str:
    """The report in plain characters."""
    out = StringIO()
    console = Console(file=out, width=_WIDTH, highlight=False, markup=False, emoji=False, color_system=None)
    for part in renderables(report):
        console.print(part)
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip().splitlines())


def renderables(report: Report) -> Iterator[RenderableType]:
    """The parts of a report, for a console that takes strings literally."""
    yield _model(report)
    yield _title(_summary(report.findings))
    for finding in report.findings:
        yield from _finding(finding)
    yield from _sites(report)
    yield from _cost(report)
    if report.measured is not None:
        yield from _measured(report.measured, str(report.model["task"]))


def _title(text: str) -> Text:
    return Text(f"\n{text}", style="bold")


def _grid(rows: Sequence[tuple[str, ...]], *, right: bool = False) -> RenderableType:
    columns = [""] * max(len(row) for row in rows)
    table = new_table(columns)
    table.show_header = False
    for column in table.columns[1:]:
        column.justify = "right" if right else "left"
        column.overflow = "fold"
    for row in rows:
        table.add_row(*row)
    return table


def _model(report: Report) -> RenderableType:
    model = report.model
    names = model["class_names"]
    classes = f", {len(names)} classes: {', '.join(names[:10])}{', ...' * (len(names) > 10)}" if names else ""
    version = f", version {model['version']}" if model["version"] else ""
    rows = [
        ("model", f"{model['name']}{version}"),
        ("inputs", "\n".join(model["inputs"])),
        ("task", f"{model['task']}{classes}"),
    ]
    if (defaults := model["defaults"]) is not None:
        passes = f"{defaults['num_samples']} passes, seed {defaults['seed']}, {defaults['masks']} masks"
        rows.append(("defaults", passes))
    if model["dtype"] != "float32":
        rows.append(("computes in", model["dtype"]))
    return _grid(rows)


# ---- findings


def _summary(findings: Sequence[Finding]) -> str:
    counts = [(severity, sum(each.severity == severity for each in findings)) for severity in _STYLES]
    parts = [f"{count} {severity}{'s' * (count > 1)}" for severity, count in counts if count]
    return f"Findings: {', '.join(parts) or 'none'}"


def _finding(finding: Finding) -> Iterator[RenderableType]:
    head = Text(f"\n{finding.severity}", style=_STYLES[finding.severity])
    yield head + Text(f"  {finding.title}", style="bold") + Text(f"  [{finding.code}]", style="dim")
    places = [_place(place) for place in finding.places[:_PLACES]]
    if (left := len(finding.places) - _PLACES) > 0:
        places.append(f"and {left} more")
    lines = [("at", ", ".join(places)), ("why", finding.reason), ("do", finding.advice), ("source", finding.source)]
    if places == [ALL_ROOT]:
        lines = lines[1:]
    yield Padding(_grid(lines), (0, 0, 0, 2))


def _place(place: Place) -> str:
    source = "" if place.source is None else f" ({os.path.basename(place.source)})"
    return f"{place}{source}"


# ---- sites and cost


def _sites(report: Report) -> Iterator[RenderableType]:
    count, active = len(report.sites), sum(site.active for site in report.sites)
    yield _title(f"Sites: {active} active of {count}" if count else "Sites: none")
    if not count:
        return
    measured = any(site.variance_alone is not None for site in report.sites)
    columns = ["#", "module", "kind", "p", "mask of one pass", *["variance alone"] * measured, "source"]
    table = new_table(columns, numeric=("#", "p", "variance alone"))
    for column in table.columns:
        column.overflow = "fold"  # a long path goes on in the next line, whole
        column.no_wrap = str(column.header) in ("kind", "source")
    for site in report.sites:
        cells = [
            str(site.index) if site.active else "",
            site.path or ALL_ROOT,
            site.kind,
            "" if site.p is None else f"{site.p:.4g}",
            " x ".join(map(str, site.shape)) if site.active else f"inactive: {site.reason}",
            *["" if site.variance_alone is None else f"{site.variance_alone:.3g}"] * measured,
            "" if site.source is None else os.path.basename(site.source),
        ]
        table.add_row(*cells)
    if measured and report.measured is not None and report.measured.variance is not None:
        table.add_row("", "all together", "", "", "", f"{report.measured.variance:.3g}", "")
    yield table
    if measured:
        yield Text(
            "variance of the prediction over passes, mean over rows and outputs; it need not add up", style="dim"
        )


def _cost(report: Report) -> Iterator[RenderableType]:
    cost = report.cost
    if cost is None:
        return
    yield _title("Cost")
    if cost.prefix_operations is None:
        yield _grid([("once per pass", "everything: it runs eagerly, one row and one pass at a time")])
    else:
        share = cost.prefix_fraction
        once = _work(cost.prefix_operations, cost.prefix_flops)
        each = f"{_work(cost.suffix_operations or 0, cost.suffix_flops)}, {cost.mode}"
        yield _grid([("once per row", f"{share:.1%}", once), ("once per row and pass", f"{1 - share:.1%}", each)])
    yield Text(f"{cost.num_samples} passes cost about {_short(cost.relative)} times one", style="dim")


def _work(operations: int, flops: int | None) -> str:
    return f"{operations} operation{'s' * (operations != 1)}" + ("" if not flops else f", {_unit(flops)}FLOP for a row")


def _unit(number: int) -> str:
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {prefix}"
    return f"{number} "


def _short(number: float) -> str:
    return f"{number:.0f}" if number >= 10 else f"{number:.2g}"


# ---- what was measured


def _measured(measured: Measured, task: str) -> Iterator[RenderableType]:
    rows = f"{measured.rows} row{'s' * (measured.rows != 1)}"
    over = f", {measured.num_samples} passes, seed {measured.seed}" if measured.num_samples else ""
    yield _title(f"Measured on {rows}{over}")
    is_probability = task in ("classification", "binary", "multilabel")
    table = _compared(measured.deterministic, measured.monte_carlo)
    if table is not None:
        yield table
    lines = []
    if measured.gap is not None:
        labels = f"; {measured.gap['labels']:.1%} of the labels differ" if "labels" in measured.gap else ""
        far = f"{measured.gap['mean']:.3g} on average, {measured.gap['largest']:.3g} at most{labels}"
        lines.append(("deterministic to mean over passes", far))
    if measured.passes is not None:
        unit = "" if is_probability else " in the output's unit"
        shown = {which: "no number" if passes is None else passes for which, passes in measured.passes.items()}
        each = f"{shown['typical']} for the typical output, {shown['largest']} for the noisiest"
        lines.append((f"passes for a standard error of 0.01{unit}", each))
    if lines:
        yield _grid(lines)
    if measured.passes is not None and is_probability:
        yield Text(
            "a probability takes 100 at least: its standard error is sqrt((s^2 + 1/N) / N), never 0", style="dim"
        )


def _compared(first: Mapping[str, Any] | None, second: Mapping[str, Any] | None) -> RenderableType | None:
    """Scores without dropout beside those with."""
    columns = {"deterministic": first, "mean over passes": second}
    shown = {name: scores for name, scores in columns.items() if scores is not None}
    if not shown:
        return None
    table = new_table(("score", *shown), numeric=tuple(shown))
    for score in next(iter(shown.values())):
        table.add_row(_SCORES[score], *(f"{scores[score]:.4g}" for scores in shown.values()))
    return table
