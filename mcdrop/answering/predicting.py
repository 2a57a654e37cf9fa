"""A captured network that answers: inputs in, predictions, samples and runs out.

`mcdrop.predictor.MCDropout` is one that knows how to capture a network, and goes to disk and back.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mcdrop.answering.definition import Definition
from mcdrop.answering.runs import Collector, Run, Sink
from mcdrop.answering.sampling import Sampler
from mcdrop.answering.site_table import Sites
from mcdrop.answering.wanted import Passes, Wanted, check_drawn
from mcdrop.capturing.precision import dtype_of
from mcdrop.engines.engine import GraphEngine
from mcdrop.errors import SettingError
from mcdrop.graph.arrays import dtype_name
from mcdrop.modes import LastLayer, MaskMode
from mcdrop.prediction import Prediction
from mcdrop.streaming.stopping import Until

__all__ = ["Predictor"]


class Predictor:
    """Answers for one model, within `max_memory` bytes for each call (a quarter of what is free if None).

    Attributes:
        sites: where the network draws noise; prints as a table.
        task, signature: what its outputs mean, and what inputs it takes.
        num_samples, seed, masks: of a prediction that does not say.
        name, version: under which it is saved and served.
    """

    def __init__(self, model: Definition, max_memory: int | None) -> None:
        self.task, self.signature, self.name, self.version = model.task, model.signature, model.name, model.version
        self.num_samples, self.seed, self.masks = model.num_samples, model.seed, model.masks
        self.sites = Sites(model.captured.sites)
        self._captured, self._engine = model.captured, model.captured.engine
        self._max_memory = max_memory
        self._sampler = Sampler(self._engine, [spec.batched for spec in model.signature.inputs], max_memory)

    @property
    def _definition(self) -> Definition:
        return Definition(
            self._captured, self.task, self.signature, self.num_samples, self.seed, self.masks, self.name, self.version
        )

    # ---- what it is

    @property
    def engine(self) -> str:
        """ "graph" or "eager"."""
        return self._engine.kind

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        if self._captured.program is not None:
            return self._captured.program.device
        network: Any = self._engine
        return next((p.device for p in network.network.parameters()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """In which floating type the network computes: that of most of its weights."""
        if self._captured.program is not None:
            return dtype_of(self._captured.program.weights.values())
        network: Any = self._engine
        return dtype_of(network.network.parameters())

    @property
    def last_layer(self) -> LastLayer:
        """ "sampled", or "exact" where the last dropout is integrated: passes are not those of the network then."""
        exact = isinstance(self._engine, GraphEngine) and self._engine.program.integrated
        return "exact" if exact else "sampled"

    @property
    def cost(self) -> dict[str, Any]:
        """How much runs once per row and how much once per row and pass, in operations of the graph."""
        if not isinstance(self._engine, GraphEngine):
            return {"engine": "eager", "mode": "one row and one pass at a time"}
        parts = self._engine.parts
        total = max(parts.prefix_calls + parts.suffix_calls, 1)
        return {
            "engine": "graph",
            "mode": self._engine.mode,
            "prefix_operations": parts.prefix_calls,
            "suffix_operations": parts.suffix_calls,
            "prefix_fraction": parts.prefix_calls / total,
            "thinned_from_rows": self._engine.thinned and self._engine.thinned.cost.least_rows,
        }

    def __repr__(self) -> str:
        active = sum(site.active for site in self.sites)
        return (
            f"{type(self).__name__}({self.name or 'unnamed'} {self.version}: {self.task.name}, {active} active of "
            f"{len(self.sites)} sites, {self.num_samples} passes, seed {self.seed}, {self.masks} masks, {self.engine} "
            f"engine on {self.device}, {dtype_name(self.dtype)})"
        )

    # ---- predictions

    def __call__(
        self,
        inputs: Any,
        *,
        num_samples: int | None = None,
        seed: int | None = None,
        masks: MaskMode | None = None,
        standard_errors: bool = False,
        quantiles: Sequence[float] = (),
        samples: bool = False,
        tolerance: float | None = None,
        certified: bool = False,
        until: Until | None = None,
    ) -> Prediction:
        """Predict with uncertainty: mean, variance and entropy over passes.

        Args:
            inputs: in the form of the example; arrays are answered with arrays.
            num_samples, seed, masks: instead of the defaults of this object; at least 2 passes.
            standard_errors: also the Monte Carlo standard error of each number. That of a probability is
                sqrt((s^2 + 1/N) / N), never 0 where a few passes agree by luck; that of another mean s / sqrt(N).
            quantiles: levels in (0, 1) of which to give the quantiles over passes.
            samples: also the outputs of all passes (samples, batch, ...).
            tolerance: each row stops, after at most `num_samples` passes, when the half-width of every number of its
                mean is at most this, each at 95 % (`mcdrop.streaming.stopping`; asymptotic). `passes` and `converged`
                say of each row how many it took and whether it got there; its other numbers are those of that many
                passes, variance and mutual information too low on average.
            certified: keep the tolerance by a confidence sequence, for any number of passes; probabilities only.
            until: "label" stops each row when its label is settled, at 95 %.

        Raises:
            InputError: the inputs do not fit the model.
            SettingError: another argument makes no sense.
        """
        wanted = Wanted(standard_errors, tuple(quantiles), samples, tolerance, certified, until)
        run, as_numpy = self._start(inputs, self._passes(num_samples, seed, masks), wanted)
        self.advance(run)
        prediction = run.prediction()
        return prediction.numpy() if as_numpy else prediction

    def sample(
        self, inputs: Any, *, num_samples: int | None = None, seed: int | None = None, masks: MaskMode | None = None
    ) -> Any:
        """The network's own outputs, pass by pass: (samples, batch, ...), before any softmax.

        A tuple of two for a heteroscedastic network that returns mean and log variance; arrays for arrays.
        """
        tensors, as_numpy = self.signature.bind(inputs, device=self.device)
        passes = self._passes(num_samples, seed, masks)
        check_drawn("sample", self.last_layer)
        run = self._run(tensors, passes, lambda: Collector(passes.num_samples))
        self.advance(run)
        values = run.samples()
        if as_numpy:
            arrays = tuple(_array(value) for value in values)
            return arrays if len(arrays) > 1 else arrays[0]
        return values if len(values) > 1 else values[0]

    def stream(
        self,
        inputs: Any,
        *,
        num_samples: int | None = None,
        seed: int | None = None,
        masks: MaskMode | None = None,
        standard_errors: bool = False,
        tolerance: float | None = None,
        certified: bool = False,
        until: Until | None = None,
        every: int | None = None,
    ) -> Iterator[Prediction]:
        """Predictions as passes accumulate, after every `every` passes (an eighth of all if None); the last is whole.

        The inputs must stay as they are until then. `tolerance`, `certified` and `until` as for a prediction; there is
        then one each time that rows may stop, if `every` is None.
        """
        wanted = Wanted(standard_errors, tolerance=tolerance, certified=certified, until=until)
        run, as_numpy = self._start(inputs, self._passes(num_samples, seed, masks), wanted)
        step = every
        if step is None and not run.looks:
            step = max(2, -(-run.num_samples // 8))
        if step is not None and (isinstance(step, bool) or not isinstance(step, int) or step < 1):
            raise SettingError(f"every is {every!r}; give a number of passes, at least 1.")
        return self._stream(run, as_numpy, step)

    def _stream(self, run: Run, as_numpy: bool, step: int | None) -> Iterator[Prediction]:
        while not run.done:
            self.advance(run, run.stop_after(run.passes) - run.passes if step is None else step)
            if run.passes >= 2:
                prediction = run.prediction()
                yield prediction.numpy() if as_numpy else prediction

    # ---- runs

    def start(
        self,
        inputs: Any,
        *,
        num_samples: int | None = None,
        seed: int | None = None,
        masks: MaskMode | None = None,
        standard_errors: bool = False,
        quantiles: Sequence[float] = (),
        samples: bool = False,
        tolerance: float | None = None,
        certified: bool = False,
        until: Until | None = None,
        exact: bool = False,
    ) -> Run:
        """A run for these inputs, which must stay as they are until it is done: checks them and computes nothing.

        Arguments as for a prediction.

        A run that is `exact` is computed row by row, by itself and in chunks of fixed size: the answer for a row has
        the same bits whatever else is computed, at some cost; other answers agree up to rounding.
        """
        wanted = Wanted(standard_errors, tuple(quantiles), samples, tolerance, certified, until, exact)
        return self._start(inputs, self._passes(num_samples, seed, masks), wanted)[0]

    def split(self, run: Run, rows: int) -> list[Run]:
        """Runs of at most `rows` rows each that make up `run`, which must not have begun; itself if it is no longer."""
        return self._sampler.split(run, rows)

    def advance(self, runs: Run | Sequence[Run], budget: int | None = None, batch_sizes: Sequence[int] = ()) -> None:
        """Compute the next `budget` passes of each run, or all that are left; several runs together where they can be.

        With `batch_sizes`, ascending, rows that are computed together are filled up to the next of these sizes with
        copies, whose results are dropped: a server meets few shapes then.

        Raises:
            PassMemoryError: one pass does not fit into memory.
        """
        if budget is not None and (isinstance(budget, bool) or not isinstance(budget, int) or budget < 1):
            raise SettingError(f"budget is {budget!r}; give a number of passes, at least 1, or None for all.")
        self._sampler.advance([runs] if isinstance(runs, Run) else list(runs), budget, batch_sizes)

    def warm(self) -> None:
        """Predict once for one row of zeros, so that the first request finds everything ready."""
        sizes = {name: least for name, (least, _) in self.signature.dims.items()}
        inputs = [
            torch.zeros([1 if s == "batch" else sizes[s] if isinstance(s, str) else s for s in spec.shape],
                        dtype=spec.dtype, device=self.device)
            for spec in self.signature.inputs
        ]  # fmt: skip
        self(tuple(inputs), num_samples=max(self.num_samples, 2))

    def _passes(self, num_samples: int | None, seed: int | None, masks: MaskMode | None) -> Passes:
        """What is asked for, the defaults of this object where it is None."""
        return Passes.read(
            self.num_samples if num_samples is None else num_samples,
            self.seed if seed is None else seed,
            self.masks if masks is None else masks,
        )

    def _start(self, inputs: Any, passes: Passes, wanted: Wanted) -> tuple[Run, bool]:
        """A run, and whether the inputs are arrays."""
        tensors, as_numpy = self.signature.bind(inputs, device=self.device)
        rule = wanted.rule(self.task, passes, self.last_layer)

        def make() -> Sink:
            return wanted.sink(self.task, passes, self.last_layer, rule)

        looks = () if rule is None else rule.looks
        return self._run(tensors, passes, make, kind=wanted.kind(rule), exact=wanted.exact, looks=looks), as_numpy

    def _run(self, tensors: list[Tensor], passes: Passes, make: Callable[[], Sink], **settings: Any) -> Run:
        rows = self.signature.rows(tensors)
        return self._sampler.start(
            tensors,
            rows=1 if rows is None else rows,
            num_samples=passes.num_samples,
            seed=passes.seed,
            masks=passes.masks,
            make_sink=make,
            **settings,
        )


def _array(value: Tensor) -> Any:
    value = value.detach().cpu()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
