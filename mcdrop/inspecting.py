"""`mcdrop.inspect`: the report about any network, whether it can be sampled or not."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mcdrop.capturing.precision import dtype_of
from mcdrop.capturing.snapshot import Adapter, private_copy, read_example
from mcdrop.engines.eager import EagerEngine, global_generators, neutral
from mcdrop.errors import CaptureError, McdropError, NoDropoutError, RowsInteractError, SettingError
from mcdrop.graph.arrays import dtype_name
from mcdrop.graph.choosing import Pattern, Patterns
from mcdrop.graph.sites import Site
from mcdrop.outputs.tasks import OutputKind, Task, TaskName
from mcdrop.predictor import MCDropout, dropout_modules
from mcdrop.reporting.examining import measure, read_inputs, report_on, site_reports
from mcdrop.reporting.findings import Evidence, judge
from mcdrop.reporting.measures import as_prediction
from mcdrop.reporting.report import Report
from mcdrop.surroundings.plain import plain

__all__ = ["inspect"]

_ROWS = 64  # computed at once


def inspect(
    model: nn.Module,
    example_inputs: Any,
    inputs: Any = None,
    targets: Any = None,
    *,
    task: TaskName = "raw",
    num_samples: int = 64,
    seed: int = 0,
    output: str | int | None = None,
    output_kind: OutputKind = "logits",
    class_axis: int = -1,
    class_names: Sequence[str] | None = None,
    dynamic: Mapping[Any, Any] | None = None,
    include: Patterns | None = None,
    exclude: Patterns = (),
    rates: Mapping[Pattern, float] | None = None,
    allow_row_interaction: bool = False,
) -> Report:
    """What an expert would say about a network: its sites, its cost, and what speaks against its dropout.

    A network that cannot be sampled gets a report too, which says why. The model is copied and never touched.

    Args:
        model: any `nn.Module`.
        example_inputs: with which to capture it, batch first, as for `MCDropout`.
        inputs: rows in the form of the example, on which to measure what each site contributes, by a prediction for
            every site; None to measure nothing.
        targets: the known answers of `inputs`: class numbers, 0 and 1, or values.
        task: what the output means; it decides in which unit variances are.
        num_samples: passes to measure with, at least 2.
        seed, output, output_kind, class_axis, class_names, dynamic, include, exclude, rates, allow_row_interaction: as
            for `MCDropout`.

    Raises:
        InputError, SettingError: an argument does not fit the network.
    """
    if not isinstance(model, nn.Module):
        raise SettingError(f"model is a {type(model).__name__}; give a torch.nn.Module.")
    settings: dict[str, Any] = {
        "task": task, "output": output, "output_kind": output_kind, "class_axis": class_axis,
        "class_names": class_names, "dynamic": dynamic, "num_samples": num_samples, "seed": seed,
        "include": include, "exclude": exclude, "rates": rates, "name": type(model).__name__,
    }  # fmt: skip
    failure: McdropError | None = None
    try:
        try:
            mc = MCDropout(model, example_inputs, allow_row_interaction=allow_row_interaction, **settings)
        except RowsInteractError as error:
            failure = error
            mc = MCDropout(model, example_inputs, allow_row_interaction=True, **settings)
    except (NoDropoutError, CaptureError) as error:
        network = _Evaluated(model, example_inputs, dynamic, output, pair=task == "heteroscedastic", whole=True)
        kind = Task(task, output_kind=output_kind, class_axis=class_axis, class_names=_tuple(class_names))
        return _unsampled(network, kind, inputs, targets, failure or error)
    whole = allow_row_interaction or failure is not None
    network = _Evaluated(model, example_inputs, dynamic, output, pair=task == "heteroscedastic", whole=whole)
    return report_on(mc.subject(), inputs, targets, deterministic=network, failure=failure)


class _Evaluated:
    """A private copy of a network in evaluation mode, for the deterministic prediction.

    `whole` computes all rows at once: those of a batch may influence one another.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        dynamic: Mapping[Any, Any] | None,
        output: str | int | None,
        *,
        pair: bool,
        whole: bool,
    ) -> None:
        self.network = private_copy(getattr(model, "_orig_mod", model)).float().eval()
        tensors = [*self.network.parameters(), *self.network.buffers()]
        self.device = next((tensor.device for tensor in tensors), torch.device("cpu"))
        example = read_example(self.network, example_inputs, dynamic, torch.float32, self.device)
        self.signature = example.signature
        self.adapter = Adapter(self.network, example, output, pair).eval()
        self.whole = whole

    def __call__(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The outputs for all rows; a draw that is on in evaluation mode too has its mean."""
        specs = self.signature.inputs
        rows = self.signature.rows(inputs) or 1
        size = rows if self.whole else _ROWS
        parts = []
        with EagerEngine.lock, global_generators(), plain(), neutral():
            for start in range(0, rows, size):
                some = [x[start : start + size] if spec.batched else x for x, spec in zip(inputs, specs, strict=True)]
                parts.append(tuple(output.cpu() for output in self.adapter(*(x.to(self.device) for x in some))))
        return tuple(torch.cat(each) for each in zip(*parts, strict=True))


def _tuple(names: Sequence[str] | None) -> tuple[str, ...] | None:
    return None if names is None else tuple(names)


def _unsampled(network: _Evaluated, task: Task, inputs: Any, targets: Any, failure: McdropError) -> Report:
    """What can be said about a network that cannot be sampled."""
    tensors = read_inputs(network.signature, inputs, targets)
    sites: tuple[Site, ...] = getattr(failure, "sites", ())
    measured = None if tensors is None else measure(task, as_prediction(task, network(tensors)), None, targets)
    facts = {
        "name": type(network.network).__name__,
        "version": None,
        "task": task.name,
        "class_names": task.class_names,
        "inputs": [str(spec) for spec in network.signature.inputs],
        "defaults": None,
        "device": str(network.device),
        "dtype": dtype_name(dtype_of(network.network.parameters())),
    }
    evidence = Evidence(sites=sites, modules=dropout_modules(network.network), failure=failure)
    return Report(facts, judge(evidence), site_reports(sites, {}), None, measured)
