"""One version of a model: reading and warming it, checking a request against its limits, the work that answers it."""

import asyncio
import functools
import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch
from numpy.typing import NDArray

from mcdrop.answering.runs import Run, Share
from mcdrop.graph.arrays import dtype_name
from mcdrop.prediction import Prediction
from mcdrop.predictor import MCDropout
from service import wire
from service.backlog import Steps
from service.errors import LimitError, NotReadyError
from service.jobs import Job
from service.outcome import Outcome, arrays
from service.pace import Pace, calibrate
from service.quota import set_threads
from service.settings import Settings, raise_limit
from service.tally import Tally
from service.v2.outputs import tensors

log = logging.getLogger("service.model")

LIMITS = ("max_rows", "max_num_samples", "max_cost", "max_body_bytes", "max_answer_values")
SHAPES = 256  # of rows, whose numbers are kept
EXAMPLE_BYTES = 20_000  # a longer example would bury the documentation


@dataclass(frozen=True)
class Example:
    """A request that was answered while warming up, and its answer."""

    request: dict[str, Any]
    answer: dict[str, Any]


@dataclass
class ServedModel:
    """One version of a model, from the moment its folder is found."""

    name: str
    version: str
    folder: Path
    device: torch.device
    settings: Settings
    mc: MCDropout | None = None
    example: Example | None = None
    pace: Pace = field(default_factory=Pace)
    values_per_row: int = 1  # numbers in one row of one pass, as seen while warming up
    seen: dict[str, NDArray[Any]] = field(default_factory=dict)  # its output tensors by name, without their values
    tally: Tally = field(default_factory=Tally)
    _values: dict[Hashable, int] = field(default_factory=dict)  # numbers in one row of one pass, by the row's shape

    @property
    def loaded(self) -> MCDropout:
        """The model itself; raises NotReadyError while it is being loaded."""
        if self.mc is None:
            raise NotReadyError(f"The model {self.name} is still being loaded. Try again in a moment.")
        return self.mc

    def read(self) -> MCDropout:
        """The model in the folder, verified and built."""
        settings = self.settings
        if settings.compile:
            set_threads(settings.threads)  # of this thread: what is compiled is for as many as will compute
        return MCDropout.load(self.folder, device=self.device, compile=settings.compile, max_memory=settings.max_memory)

    def warm_up(self, mc: MCDropout) -> Steps[None]:
        """Warm every batch size up, keep an answer as the documentation's example; from then on the model answers."""
        mc.warm()
        yield
        yield from self._make_example(mc)
        self.mc = mc

    def _make_example(self, mc: MCDropout) -> Steps[None]:
        inputs = {spec.name: wire.example_input(spec) for spec in mc.signature.inputs}
        content = {"inputs": inputs if len(inputs) > 1 else next(iter(inputs.values())), "num_samples": 32, "seed": 0}
        sampled = mc.last_layer == "sampled"
        try:
            run = mc.start(
                content["inputs"],
                num_samples=32,
                seed=0,
                standard_errors=True,
                quantiles=wire.QUANTILE_LEVELS if sampled else (),
                samples=sampled,
            )
            yield from calibrate(mc, self.pace, run.inputs)
            while not run.done:
                mc.advance(run, 1)
                yield
            prediction = run.prediction()
        except Exception as error:  # made-up values need not suit every network
            log.info("no example for %s: %s: %s", self.name, type(error).__name__, error)
            return
        self.values_per_row = prediction.mean[0].numel()
        everything = self._outcome(prediction, list(wire.available_outputs(mc)), mc, None)
        self.seen = {
            name: np.broadcast_to(array.dtype.type(0), array.shape) for name, array in tensors(everything).items()
        }
        names = wire.field_names(wire.PredictRequest.model_validate(content), mc.task)
        fields = {name: everything.fields[name] for name in names}
        answer = wire.encode(replace(everything, fields=fields, quantile_levels=()))
        if len(answer) + len(orjson.dumps(content)) <= EXAMPLE_BYTES:
            self.example = Example(content, orjson.loads(answer))

    def start(self, request: wire.PredictRequest) -> Run:
        """Check everything that can be checked before computing. Raises what the error table knows."""
        mc, settings = self.loaded, self.settings
        wire.check_outputs(request, mc)
        num_samples = mc.num_samples if request.num_samples is None else request.num_samples
        _limit(num_samples, settings.max_num_samples, "passes (num_samples)", "max_num_samples")
        run = mc.start(
            request.inputs,
            num_samples=num_samples,
            seed=request.seed,
            standard_errors="standard_errors" in request.outputs,
            quantiles=request.quantile_levels,
            samples="samples" in request.outputs,
            tolerance=request.tolerance,
            certified=request.certified,
            until=request.until,
            exact=request.determinism == "exact",
        )
        _limit(run.rows, settings.max_rows, "rows", "max_rows")
        _limit(run.rows * num_samples, settings.max_cost, "rows x passes", "max_cost")
        if not mc.signature.dims:  # else it depends on the inputs, and `check_size` looks at it
            self._limit_values(run.rows * self.values_per_row, num_samples, request)
        return run

    def check_size(self, run: Run, rows: int, request: wire.PredictRequest) -> None:
        """Raise LimitError for an answer with too many numbers. Two passes of a row are computed to know, per shape."""
        mc, shape = self.loaded, tuple(x.shape[1:] for x in run.inputs)
        if shape not in self._values:
            probe = mc.split(mc.start(tuple(run.inputs), num_samples=2), 1)[0]
            mc.advance(probe)
            prediction = probe.prediction()
            if len(self._values) >= SHAPES:
                self._values.clear()
            self._values[shape] = prediction.mean.numel() // max(len(prediction), 1)
        self._limit_values(rows * self._values[shape], run.num_samples, request)

    def _limit_values(self, values: int, num_samples: int, request: wire.PredictRequest) -> None:
        keeps_passes = "samples" in request.outputs or request.quantile_levels
        copies = len(wire.ALWAYS) + (num_samples if keeps_passes else 0) + len(request.quantile_levels)
        _limit(values * copies, self.settings.max_answer_values, "numbers", "max_answer_values")

    def job(
        self,
        request: wire.PredictRequest,
        write: Callable[[Outcome], bytes],
        *,
        arrived: float,
        estimate: Callable[[bytes], None] | None = None,
    ) -> Job:
        """The work of one request, whose answer `write` puts into the caller's protocol. `arrived` is monotonic.

        With `estimate`, which is told the answer from fewer passes now and then, all have standard errors.
        """
        if (estimate is not None or request.allow_partial) and "standard_errors" not in request.outputs:
            request = request.model_copy(update={"outputs": [*request.outputs, "standard_errors"]})
        mc = self.loaded
        names = wire.field_names(request, mc.task)

        def finish(result: Prediction | Share, job: Job) -> bytes:
            outcome = self._outcome(result, names, mc, job)
            if outcome.final:
                job.answered = result, outcome
            return write(outcome)

        job = Job(
            model=self,
            mc=mc,
            pace=self.pace,
            start=functools.partial(self.start, request),
            finish=finish,
            future=asyncio.get_running_loop().create_future(),
            arrived=arrived,
            deadline=None if request.deadline_ms is None else arrived + request.deadline_ms / 1000,
            allow_partial=request.allow_partial,
            estimate=estimate,
        )
        if mc.signature.dims:
            job.check = functools.partial(self.check_size, job.run, job.rows, request)
        return job

    def _outcome(self, result: Prediction | Share, names: Sequence[str], mc: MCDropout, job: Job | None) -> Outcome:
        """The fields that are asked for; computes them, so it belongs on the inference thread."""
        prediction = result if isinstance(result, Prediction) else result.whole
        return Outcome(
            model=self.name,
            version=self.version,
            num_samples=result.num_samples,
            seed=prediction.seed,
            fields=arrays(result, names),
            quantile_levels=prediction.quantile_levels,
            class_names=mc.task.class_names or (),
            final=job is None or job.done or job.partial,
            partial=job is not None and job.partial,
            queue_ms=0.0 if job is None else job.queue_ms,
            compute_ms=0.0 if job is None else job.computed * 1000,
        )

    def summary(self) -> dict[str, Any]:
        """One line of GET /v1/models."""
        if self.mc is None:
            return {"name": self.name, "ready": False}
        return {"name": self.name, "ready": True, "version": self.version, "task": self.mc.task.name}

    def describe(self) -> dict[str, Any]:
        """GET /v1/models/{name}: everything a caller has to know."""
        mc, settings = self.loaded, self.settings
        return {
            **self.summary(),
            "inputs": [wire.describe_input(spec) for spec in mc.signature.inputs],
            "class_names": mc.task.class_names,
            "outputs": wire.available_outputs(mc),
            "defaults": {"num_samples": mc.num_samples, "seed": mc.seed, "masks": mc.masks},
            "last_layer": mc.last_layer,
            "limits": {name: getattr(settings, name) for name in LIMITS},
            "sites": [
                {"path": site.path, "kind": site.kind, "p": site.p, "active": site.active, "reason": site.reason}
                for site in mc.sites
            ],
            "device": str(mc.device),
            "dtype": dtype_name(mc.dtype),
            "example": None if self.example is None else self.example.request,
        }


def _limit(value: int, limit: int, what: str, setting: str) -> None:
    if value > limit:
        raise LimitError(
            f"The request asks for {value} {what} and this server allows {limit}. "
            f"Ask for less at a time, or raise {raise_limit(setting)}."
        )
