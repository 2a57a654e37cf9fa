"""`MCDropout`: a network, captured, that answers with its uncertainty.

    mc = MCDropout(model, example_inputs, task="classification")
    prediction = mc(x, num_samples=100, seed=7)

A prediction depends on (model, input row, seed, num_samples, mask mode) alone, with independent masks also on the
row's index in its request; many threads may ask one object at the same time.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mcdrop.adaptive import AdaptiveSink
from mcdrop.arguments import (
    cast,
    check_engine,
    check_last_layer,
    check_masks,
    check_memory,
    check_num_samples,
    check_seed,
    checked_device,
    device_of,
)
from mcdrop.bundle import read_bundle, write_bundle
from mcdrop.capture import capture
from mcdrop.captured import Captured
from mcdrop.choosing import Choice, Pattern, Patterns
from mcdrop.compiling import compile_engine
from mcdrop.description import describe, restore, stated_choice
from mcdrop.engine import GraphEngine
from mcdrop.errors import BundleError, SettingError
from mcdrop.inputs import Signature
from mcdrop.masks import Masks
from mcdrop.modes import LastLayer, MaskMode, block_length
from mcdrop.moments import accumulator, check_passes
from mcdrop.plain import plain
from mcdrop.precision import as_dtype, check_precision, explained, input_dtype
from mcdrop.prediction import Prediction
from mcdrop.program import Program
from mcdrop.proofs import fuse
from mcdrop.report import Report, Subject, report_on
from mcdrop.runs import Collector, Run
from mcdrop.sampling import Sampler
from mcdrop.site_table import Sites
from mcdrop.snapshot import Adapter, private_copy, read_example
from mcdrop.statistics import check_levels
from mcdrop.stopping import Until, read_rule
from mcdrop.tasks import OutputKind, Task, TaskName

__all__ = ["MCDropout", "dropout_modules"]


class MCDropout:
    """A snapshot of a trained network that predicts with Monte Carlo dropout (Gal & Ghahramani 2016, arXiv 1506.02142).

    Args:
        model: any trained `nn.Module` with dropout in it; it is copied and never touched.
        example_inputs: a tensor, a tuple of inputs, or a dict of keyword inputs, each tensor of shape (batch, ...).
        task: "classification", "binary", "multilabel", "regression", "heteroscedastic" or "raw".
        num_samples: stochastic passes of a prediction, unless it says otherwise; at least 1.
        seed: of the noise, unless a prediction says otherwise.
        masks: "shared", one mask for all rows of a pass, "independent", one for each row, or "balanced", shared and
            every unit dropped equally often in each block of passes (`mcdrop.modes`).
        output: name or number of the output that counts; by default the only one, `logits`, or the first.
        output_kind: "logits", or "probs" where the network ends in a softmax or sigmoid itself. Never guessed.
        class_axis: axis of the classes in the network's output.
        class_names: one name for each class.
        name, version: under which the model is saved and served.
        noise_variance: variance of the observation noise of a regression, in squared units of the target.
        dynamic: further axes of free size, {input name: {axis: "length"}} or {axis: "length<=512"} for the first input.
        dtype: in which the network computes: "float32", "bfloat16", "float16", "float64", or PyTorch's of these. Inputs
            of a network in half precision stay float32, and so do statistics.
        device: where; the model's own unless said otherwise.
        engine: "graph", "eager", or "auto": graph, and eager with a warning where capture fails.
        thinned: with shared masks, leave out the computation of dropped units where that is faster; `cost` says from
            how many rows on. The numbers are the same up to rounding.
        compile: whether to run as code that PyTorch's compiler makes, once, in a minute or so (see `mcdrop.compiling`).
        fast: compute with fewer operations where the numbers are the same up to rounding (see `mcdrop.fusing`); False
            computes as the network was captured.
        max_memory: bytes that one call may use beyond weights, inputs and results; a quarter of what is free if None.
        allow_row_interaction: go on although the rows of a batch influence one another.
        include: which sites draw: module paths (`"encoder.*.dropout"`), kinds (`"attention"`) or numbers; all if None.
        exclude: which of them do not.
        rates: {pattern: p} in [0, 1): rates instead of the network's own; of several the last one counts.
        last_layer: "sampled", or "exact": the last dropout is integrated in closed form instead of drawn, where a
            regression ends in dropout and a Linear (`mcdrop.last_layer`). There are no samples and quantiles then.

    Raises:
        NoDropoutError: the network has no active dropout, or none is chosen.
        CaptureError: the network cannot be captured faithfully.
        InputError, SettingError: an argument does not fit.
    """

    _compiles = False
    _modules: Mapping[str, float] = MappingProxyType({})  # nothing is known of them where there is only a program

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        *,
        task: TaskName,
        num_samples: int = 64,
        seed: int = 0,
        masks: MaskMode = "shared",
        output: str | int | None = None,
        output_kind: OutputKind = "logits",
        class_axis: int = -1,
        class_names: Sequence[str] | None = None,
        name: str | None = None,
        version: str = "1",
        noise_variance: float | Tensor | None = None,
        dynamic: Mapping[Any, Any] | None = None,
        dtype: torch.dtype | str = torch.float32,
        device: torch.device | str | None = None,
        engine: Literal["auto", "graph", "eager"] = "auto",
        thinned: bool = True,
        compile: bool = False,
        fast: bool = True,
        max_memory: int | None = None,
        allow_row_interaction: bool = False,
        include: Patterns | None = None,
        exclude: Patterns = (),
        rates: Mapping[Pattern, float] | None = None,
        last_layer: LastLayer = "sampled",
    ) -> None:
        if not isinstance(model, nn.Module):
            raise SettingError(f"model is a {type(model).__name__}; give a torch.nn.Module.")
        check_engine(engine)
        dtype = as_dtype(dtype)
        names = None if class_names is None else tuple(class_names)
        if isinstance(noise_variance, int):
            noise_variance = float(noise_variance)
        kind = Task(
            task, output_kind=output_kind, class_axis=class_axis, noise_variance=noise_variance, class_names=names
        )
        check_num_samples(num_samples)
        check_seed(seed)
        check_masks(masks)
        check_memory(max_memory)
        check_last_layer(last_layer, task)
        choice = Choice.read(include, exclude, rates, last_layer)
        model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
        with plain():
            place = device_of(device, model)
            copied = private_copy(model)
            example = read_example(copied, example_inputs, dynamic, input_dtype(dtype), place)
            check_precision(copied, example.tensors, dtype)
            copied = cast(copied, dtype, place)
            adapter = Adapter(copied, example, output, pair=task == "heteroscedastic", dtype=dtype)
            with explained(dtype):
                captured = capture(
                    adapter,
                    example.tensors,
                    example.signature.inputs,
                    engine=engine,
                    allow_row_interaction=allow_row_interaction,
                    max_memory=max_memory,
                    thinned=thinned,
                    fast=fast and not compile,  # which does as much, and better when it sees all
                    choice=choice,
                )
        kind.check_outputs(captured.output_example)
        self._setup(kind, example.signature, captured, num_samples, seed, masks, name, version, max_memory)
        self._modules = dropout_modules(copied)
        if compile:
            self._compile()

    def _setup(
        self,
        task: Task,
        signature: Signature,
        captured: Captured,
        num_samples: int,
        seed: int,
        masks: str,
        name: str | None,
        version: str,
        max_memory: int | None,
    ) -> None:
        check_memory(max_memory)
        self.task, self.signature, self.name, self.version = task, signature, name, version
        self.num_samples, self.seed, self.masks = num_samples, seed, masks
        self.sites = Sites(captured.sites)
        self._captured, self._engine = captured, captured.engine
        self._max_memory = max_memory
        self._sampler = Sampler(self._engine, [spec.batched for spec in signature.inputs], max_memory)

    def _compile(self) -> None:
        if not isinstance(self._engine, GraphEngine):
            raise SettingError("a network on the eager engine cannot be compiled: leave compile out.")
        compile_engine(self._engine)
        self._compiles = True

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
            f"MCDropout({self.name or 'unnamed'} {self.version}: {self.task.name}, {active} active of "
            f"{len(self.sites)} "
            f"sites, {self.num_samples} passes, seed {self.seed}, {self.masks} masks, {self.engine} "
            f"engine on {self.device})"
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
                mean is at most this, each at 95 % (`mcdrop.stopping`; asymptotic). `passes` and `converged` say of each
                row how many it took and whether it got there; its other numbers are those of that many passes,
                variance and mutual information too low on average.
            certified: keep the tolerance by a confidence sequence, for any number of passes; probabilities only.
            until: "label" stops each row when its label is settled, at 95 %.

        Raises:
            InputError: the inputs do not fit the model.
            SettingError: another argument makes no sense.
        """
        run, as_numpy = self._start(
            inputs, num_samples, seed, masks, standard_errors, quantiles, samples, stop=(tolerance, certified, until)
        )
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
        count = self.num_samples if num_samples is None else num_samples
        self._refuse_samples("sample")
        run = self._run(tensors, num_samples, seed, masks, lambda: Collector(count))
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
        stop = tolerance, certified, until
        run, as_numpy = self._start(inputs, num_samples, seed, masks, standard_errors, (), False, stop=stop)
        step = every
        if step is None and not run.looks:
            step = max(2, -(-run.num_samples // 8))
        if step is not None and step < 1:
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
        stop = tolerance, certified, until
        return self._start(inputs, num_samples, seed, masks, standard_errors, quantiles, samples, exact, stop)[0]

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

    def _start(
        self,
        inputs: Any,
        num_samples: int | None,
        seed: int | None,
        masks: str | None,
        standard_errors: bool,
        quantiles: Sequence[float],
        samples: bool,
        exact: bool = False,
        stop: tuple[float | None, bool, Until | None] = (None, False, None),
    ) -> tuple[Run, bool]:
        tensors, as_numpy = self.signature.bind(inputs, device=self.device)
        count = self.num_samples if num_samples is None else num_samples
        check_num_samples(count)
        count = int(count)
        levels = tuple(quantiles)
        tolerance, certified, until = stop
        mode = self.masks if masks is None else masks
        check_masks(mode)
        block = block_length(mode)

        def make() -> Any:
            sums = accumulator(
                self.task,
                num_samples=count,
                standard_errors=standard_errors,
                quantiles=levels,
                samples=samples,
                block=block,
                integrated=self.last_layer == "exact",
            )
            return sums if rule is None else AdaptiveSink(rule, sums)

        for asked in [name for name, given in (("samples", samples), ("quantiles", levels)) if given]:
            self._refuse_samples(asked)
        check_levels(levels)  # here: errors belong to the caller, not to the thread that computes
        check_passes(count, block if standard_errors else 1)
        rule = read_rule(
            self.task, tolerance=tolerance, certified=certified, until=until, maximum=count,
            masks=mode, kept=samples or bool(levels),
        )  # fmt: skip
        kind = (standard_errors, levels, samples, rule)
        looks = () if rule is None else rule.looks
        return self._run(tensors, num_samples, seed, masks, make, kind, exact, looks), as_numpy

    @property
    def last_layer(self) -> LastLayer:
        """ "sampled", or "exact" where the last dropout is integrated: passes are not those of the network then."""
        exact = isinstance(self._engine, GraphEngine) and self._engine.program.integrated
        return "exact" if exact else "sampled"

    def _refuse_samples(self, what: str) -> None:
        if self.last_layer == "exact":
            raise SettingError(
                f'{what}: with last_layer="exact" the last dropout is integrated and not drawn, so there are no '
                'outputs of single passes. Use last_layer="sampled" for them.'
            )

    def _run(
        self,
        tensors: list[Tensor],
        num_samples: int | None,
        seed: int | None,
        masks: str | None,
        make: Any,
        kind: Any = None,
        exact: bool = False,
        looks: tuple[int, ...] = (),
    ) -> Run:
        count = self.num_samples if num_samples is None else num_samples
        chosen = self.seed if seed is None else seed
        mode = self.masks if masks is None else masks
        check_num_samples(count)
        check_seed(chosen)
        check_masks(mode)
        rows = self.signature.rows(tensors)
        return self._sampler.start(
            tensors,
            rows=1 if rows is None else rows,
            num_samples=int(count),
            seed=int(chosen),
            masks=mode,
            make_sink=make,
            kind=kind,
            exact=exact,
            looks=looks,
        )

    # ---- what an expert would say about it

    def inspect(self, inputs: Any = None, targets: Any = None, *, num_samples: int | None = None) -> Report:
        """A report about the network: its sites, what a prediction costs, and findings with what to do about them.

        Args:
            inputs: rows in the form of the example, on which to measure what each site contributes; it takes a
                prediction for every site.
            targets: their known answers, to score predictions with and without dropout.
            num_samples: passes to measure with, at least 2; the default of this object if None.

        Raises:
            InputError, SettingError: inputs or targets do not fit the model.
        """
        return report_on(self.subject(num_samples), inputs, targets)

    def subject(self, num_samples: int | None = None) -> Subject:
        """What `mcdrop.report` takes."""
        facts = {
            "name": self.name or "unnamed",
            "version": self.version,
            "task": self.task.name,
            "class_names": self.task.class_names,
            "inputs": [str(spec) for spec in self.signature.inputs],
            "defaults": {"num_samples": self.num_samples, "seed": self.seed, "masks": self.masks},
            "device": str(self.device),
        }
        count = self.num_samples if num_samples is None else num_samples
        check_num_samples(count)

        def predict(inputs: Sequence[Tensor], count: int, program: Program | None) -> Prediction:
            twin = self if program is None else self._with_program(program)
            return twin(tuple(inputs), num_samples=count, masks="independent").cpu()

        return Subject(facts, self._captured, self.task, self.signature, self._modules, max(int(count), 2), predict)

    def _with_program(self, program: Program) -> "MCDropout":
        """The same model with another program, which is not proved: it runs pass by pass."""
        engine = GraphEngine(program, "loop", Masks.within(self._max_memory))
        engine.merges = self._engine.merges
        engine.apart = isinstance(self._engine, GraphEngine) and self._engine.apart
        return self._twin(replace(self._captured, engine=engine, sites=program.sites, program=program))

    def _twin(self, captured: Captured) -> "MCDropout":
        """The same model with another engine."""
        twin = object.__new__(type(self))
        twin._setup(
            self.task, self.signature, captured, self.num_samples, self.seed, self.masks, self.name, self.version,
            self._max_memory,
        )  # fmt: skip
        twin._modules = self._modules
        return twin

    # ---- regression noise

    def fit_noise_variance(self, inputs: Any, targets: Any, *, num_samples: int | None = None) -> float:
        """Fit the observation noise of a regression on held-out data, and use it from now on.

        The noise is what is left of the squared error after the spread over passes and its share in the error of the
        mean: mean((y - mean)^2) - mean(squared standard error of the mean), at least 0, in squared units of the target.
        """
        if self.task.name != "regression":
            raise SettingError(
                f"fit_noise_variance is for regression; this model's task is {self.task.name!r}, "
                "which has no noise to fit."
            )
        prediction = self(inputs, num_samples=num_samples)
        mean = torch.as_tensor(prediction.mean, device="cpu").double()
        target = torch.as_tensor(targets).detach().cpu().double()
        if target.shape != mean.shape and target.numel() == mean.numel() and target.numel() == len(mean):
            target = target.reshape(mean.shape)
        if target.shape != mean.shape or not target.numel():
            raise SettingError(
                f"targets have the shape {tuple(target.shape)}; the model's mean has "
                f"{tuple(mean.shape)}: give one target "
                "for each output, at least one row."
            )
        error = prediction.error_of_mean
        if error is None:
            error = prediction.epistemic_variance / prediction.num_samples  # type: ignore[attr-defined]
        share = torch.as_tensor(error, device="cpu").double()
        noise = float(((target - mean).square() - share).mean().clamp_min(0))
        self.task = Task(self.task.name, noise_variance=noise)
        return noise

    # ---- disk and device

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the model into a folder that needs none of the user's code to be loaded.

        Raises:
            BundleError: the network runs eagerly or uses an operation that the format does not hold, or the folder
                holds something else.
        """
        program = self._captured.program
        if program is None or not isinstance(self._engine, GraphEngine):
            raise BundleError(
                "this network runs on the eager engine, so there is no program to save. Rewrite what "
                "keeps it from being "
                "captured (the warning at construction says what) and capture it again."
            )
        # the lines of code that draw are kept by file name: where they lie is nobody else's business
        sites = tuple(replace(site, source=site.source and os.path.basename(site.source)) for site in program.sites)
        names = {"name": self.name, "version": self.version}
        defaults = {"num_samples": self.num_samples, "seed": self.seed, "masks": self.masks}
        described = describe(self._captured, self._engine, self.task, self.signature)
        write_bundle(folder, replace(program, sites=sites), {**names, **described, **defaults})

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        *,
        device: torch.device | str | None = None,
        thinned: bool = True,
        compile: bool = False,
        fast: bool = True,
        max_memory: int | None = None,
        include: Patterns | None = None,
        exclude: Patterns | None = None,
        rates: Mapping[Pattern, float] | None = None,
    ) -> "MCDropout":
        """Read a saved model. Nothing of the folder is evaluated as code.

        Args:
            folder: where it was saved.
            device, thinned, compile, fast, max_memory: as for a new model; the CPU if None.
            include, exclude, rates: as for a new model, each instead of the saved setting of its name, if not None:
                `include="*"`, `exclude=()` and `rates={}` undo what was saved. Noise of the network's own code keeps
                its rate.

        Raises:
            BundleError: the folder is incomplete, damaged, hostile or from a newer version.
            NoDropoutError, SettingError: an argument does not fit.
        """
        place = torch.device("cpu") if device is None else checked_device(device)
        program, meta = read_bundle(folder, device=place)
        program = replace(program.channels_last(), neutral=meta.get("neutral") is True)
        try:
            choice = stated_choice(meta, include=include, exclude=exclude, rates=rates, last_layer=None)
            choice.apply(program)
        except SettingError as error:
            if (include, exclude, rates) != (None, None, None):
                raise
            raise BundleError(f"{os.fspath(folder)}: model.json chooses what cannot be: {error}") from error
        try:
            task, signature, captured = restore(program, meta, choice, max_memory, thinned, fast and not compile)
            self = object.__new__(cls)
            self._setup(
                task, signature, captured, meta["num_samples"], meta["seed"], meta["masks"], meta.get("name"),
                meta["version"], max_memory,
            )  # fmt: skip
        except (KeyError, TypeError, AttributeError, SettingError, StopIteration) as error:
            raise BundleError(
                f"{os.fspath(folder)}: model.json does not describe a model ({type(error).__name__}: "
                f"{error}). Save the "
                "model again."
            ) from error
        if compile:
            self._compile()
        return self

    def to(self, device: torch.device | str) -> "MCDropout":
        """The same model on another device; this object stays where it is."""
        program = self._captured.program
        if program is None or not isinstance(self._engine, GraphEngine):
            raise SettingError("a network on the eager engine stays where it was captured: capture it on that device.")
        place = checked_device(device)
        moved: Program = program.to(place)
        choice = self._captured.choice
        engine = GraphEngine(choice.apply(moved), self._engine.mode, Masks.within(self._max_memory))
        engine.merges, engine.joins, engine.apart = self._engine.merges, self._engine.joins, self._engine.apart
        if place == self.device:
            engine.thinned = self._engine.thinned  # whose weights are there
        if self._engine.fused:
            fuse(engine)
        twin = self._twin(replace(self._captured, engine=engine, program=moved, output_example=()))
        if self._compiles:
            twin._compile()
        return twin


def dropout_modules(network: nn.Module) -> dict[str, float]:
    """The paths of PyTorch's dropout modules in a network, each with its rate."""
    kinds = nn.modules.dropout._DropoutNd
    return {path: float(module.p) for path, module in network.named_modules() if isinstance(module, kinds)}


def _array(value: Tensor) -> Any:
    value = value.detach().cpu()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
