"""The report that an expert would write about a network with dropout, as `mcdrop inspect` prints it, is made here.

What is measured is measured with masks of their own for every row (`masks="independent"`), since the Monte Carlo error
of an average over rows does not become smaller with more rows where all of them share their masks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from torch import Tensor

from mcdrop.capturing.captured import Captured
from mcdrop.engines.engine import GraphEngine
from mcdrop.errors import InputError, McdropError, SettingError
from mcdrop.graph.inputs import Signature, check_finite
from mcdrop.graph.program import Program
from mcdrop.graph.sites import Site
from mcdrop.outputs.scores import gap, passes_for, read_targets, scores
from mcdrop.outputs.tasks import Task
from mcdrop.prediction import Prediction
from mcdrop.reporting.findings import Evidence, judge
from mcdrop.reporting.measures import alone, as_prediction, cost_of, spread, unrandom, variance_of_one
from mcdrop.reporting.placement import placements
from mcdrop.reporting.report import Measured, Report, SiteReport

__all__ = ["Subject", "measure", "read_inputs", "report_on", "site_reports"]


@dataclass(frozen=True)
class Subject:
    """What a report needs of a captured network.

    `facts` are those of `Report.model`, `modules` the dropout modules of the network by path, each with its rate.
    `predict` takes inputs, a number of passes, and a program to use instead of the network's own.
    """

    facts: Mapping[str, Any]
    captured: Captured
    task: Task
    signature: Signature
    modules: Mapping[str, float]
    num_samples: int
    predict: Callable[[Sequence[Tensor], int, Program | None], Prediction]


def report_on(
    subject: Subject,
    inputs: Any = None,
    targets: Any = None,
    *,
    deterministic: Callable[[Sequence[Tensor]], Sequence[Tensor] | None] | None = None,
    failure: McdropError | None = None,
) -> Report:
    """The report about a captured network.

    Args:
        inputs: rows on which to measure, in the form of the example; None to measure nothing.
        targets: their known answers.
        deterministic: inputs -> outputs in evaluation mode, where that is known better than by the program without
            noise.
        failure: why the network cannot be sampled as it is, where it was captured all the same.

    Raises:
        InputError, SettingError: inputs or targets do not fit.
    """
    captured, passes = subject.captured, subject.num_samples
    engine = captured.engine if isinstance(captured.engine, GraphEngine) else None
    program = None if engine is None else engine.program
    tensors = read_inputs(subject.signature, inputs, targets)
    measured, of_sites = None, dict[int, float]()
    if tensors is not None:
        whole = subject.predict(tensors, passes, None)
        if program is not None:
            of_sites = _variances(subject, program, tensors)
        if deterministic is None and engine is not None:
            deterministic = partial(unrandom, engine)
        outputs = None if deterministic is None else deterministic(tensors)
        without = as_prediction(subject.task, outputs) if outputs else None
        measured = measure(subject.task, without, whole, targets)
    evidence = Evidence(
        sites=captured.sites,
        placements={} if program is None else placements(program),
        modules=subject.modules,
        always=captured.always,
        failure=failure,
        eager=captured.reason,
        variance_alone=of_sites,
        num_samples=passes,
        rows=0 if measured is None else measured.rows,
    )
    return Report(
        model=subject.facts,
        findings=judge(evidence),
        sites=site_reports(captured.sites, of_sites),
        cost=cost_of(captured.engine, tensors, subject.signature, passes),
        measured=measured,
    )


def read_inputs(signature: Signature, inputs: Any, targets: Any) -> list[Tensor] | None:
    """Checked inputs with at least one row, or None where there are none. Raises InputError and SettingError."""
    if inputs is None:
        if targets is not None:
            raise SettingError("targets were given without inputs; give the inputs that they belong to.")
        return None
    tensors, _ = signature.bind(inputs)
    check_finite(tensors, signature.names)
    if signature.rows(tensors) == 0:
        raise InputError("the inputs to measure on have no row; give at least one.")
    return tensors


def site_reports(sites: Sequence[Site], variance_alone: Mapping[int, float]) -> tuple[SiteReport, ...]:
    """The sites as a report lists them."""
    names = [field.name for field in fields(SiteReport)][:-1]
    return tuple(
        SiteReport(**{name: getattr(site, name) for name in names}, variance_alone=variance_alone.get(site.index))
        for site in sites
    )


def _variances(subject: Subject, program: Program, tensors: Sequence[Tensor]) -> dict[int, float]:
    """The variance of each active site alone, where it can be had."""
    found = {}
    for site in program.active_sites:
        single = alone(program, site)
        if single is not None:
            prediction = subject.predict(tensors, subject.num_samples, single)
            found[site.index] = float(spread(prediction).double().mean())
    return found


def measure(task: Task, deterministic: Tensor | None, whole: Prediction | None, targets: Any) -> Measured:
    """Compare a deterministic prediction, one over passes, and targets, as far as there are any."""
    means = [mean for mean in (deterministic, None if whole is None else whole.mean) if mean is not None]
    truth = None if targets is None else read_targets(task, targets, means[-1])
    scored = [None if truth is None else scores(task, mean, truth) for mean in means]
    return Measured(
        rows=len(means[-1]),
        num_samples=0 if whole is None else whole.num_samples,
        seed=0 if whole is None else whole.seed,
        variance=None if whole is None else float(spread(whole).double().mean()),
        gap=gap(task, *means) if len(means) == 2 else None,
        deterministic=None if deterministic is None else scored[0],
        monte_carlo=None if whole is None else scored[-1],
        passes=None if whole is None else passes_for(task, variance_of_one(whole)),
    )
