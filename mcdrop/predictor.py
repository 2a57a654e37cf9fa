"""`MCDropout`: a network, captured, that answers with its uncertainty.

    mc = MCDropout(model, example_inputs, task="classification")
    prediction = mc(x, num_samples=100, seed=7)

A prediction depends on (model, input row, seed, num_samples, mask mode) alone, with independent masks also on the
row's index in its request; many threads may ask one object at the same time.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mcdrop.bundle import read_bundle, write_bundle
from mcdrop.capture import Captured, capture
from mcdrop.engine import GraphEngine
from mcdrop.errors import BundleError, SettingError
from mcdrop.inputs import Signature
from mcdrop.masks import Masks
from mcdrop.moments import accumulator, check_passes
from mcdrop.prediction import Prediction
from mcdrop.program import Program
from mcdrop.sampling import Collector, Run, Sampler, plain
from mcdrop.sites import Site
from mcdrop.snapshot import Adapter, private_copy, read_example
from mcdrop.statistics import check_levels
from mcdrop.tasks import OutputKind, Task, TaskName

__all__ = ["MCDropout", "Sites"]

MaskMode = Literal["shared", "independent"]
_MODES = ("folded", "mapped", "loop")
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class Sites(tuple[Site, ...]):
    """The sites of a network; prints as a table."""

    def __repr__(self) -> str:
        head = ("#", "module", "kind", "p", "mask of one pass", "active", "source")
        rows = [
            (
                "" if site.index < 0 else str(site.index),
                site.path or "(network)",
                site.kind,
                "" if site.p is None else f"{site.p:g}",
                " x ".join(map(str, site.shape)),
                "yes" if site.active else f"no: {site.reason}",
                "" if site.source is None else os.path.basename(site.source),
            )
            for site in self
        ]
        widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in [head, *rows]
        )


class MCDropout:
    """A snapshot of a trained network that predicts with Monte Carlo dropout (Gal & Ghahramani 2016, arXiv 1506.02142).

    Args:
        model: any trained `nn.Module` with dropout in it; it is copied and never touched.
        example_inputs: a tensor, a tuple of inputs, or a dict of keyword inputs, each tensor of shape (batch, ...).
        task: "classification", "binary", "multilabel", "regression", "heteroscedastic" or "raw".
        num_samples: stochastic passes of a prediction, unless it says otherwise; at least 1.
        seed: of the noise, unless a prediction says otherwise.
        masks: "shared", one mask for all rows of a pass, or "independent", one for each row.
        output: name or number of the output that counts; by default the only one, `logits`, or the first.
        output_kind: "logits", or "probs" where the network ends in a softmax or sigmoid itself. Never guessed.
        class_axis: axis of the classes in the network's output.
        class_names: one name for each class.
        name, version: under which the model is saved and served.
        noise_variance: variance of the observation noise of a regression, in squared units of the target.
        dynamic: further axes of free size, {input name: {axis: "length"}} or {axis: "length<=512"} for the first input.
        dtype: in which the network computes; float32 unless said otherwise.
        device: where; the model's own unless said otherwise.
        engine: "graph", "eager", or "auto": graph, and eager with a warning where capture fails.
        max_memory: bytes that one call may use beyond weights, inputs and results; a quarter of what is free if None.
        allow_row_interaction: go on although the rows of a batch influence one another.

    Raises:
        NoDropoutError: the network has no active dropout.
        CaptureError: the network cannot be captured faithfully.
        InputError, SettingError: an argument does not fit.
    """

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
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        engine: Literal["auto", "graph", "eager"] = "auto",
        max_memory: int | None = None,
        allow_row_interaction: bool = False,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise SettingError(f"model is a {type(model).__name__}; give a torch.nn.Module.")
        if engine not in ("auto", "graph", "eager"):
            raise SettingError(f"engine is {engine!r}; choose 'auto', 'graph' or 'eager'.")
        if dtype not in _DTYPES:
            raise SettingError(
                f"dtype is {dtype!r}; choose torch.float32, torch.bfloat16, torch.float16 or torch.float64."
            )
        names = None if class_names is None else tuple(class_names)
        if isinstance(noise_variance, int):
            noise_variance = float(noise_variance)
        kind = Task(
            task, output_kind=output_kind, class_axis=class_axis, noise_variance=noise_variance, class_names=names
        )
        _check_num_samples(num_samples)
        _check_seed(seed)
        _check_masks(masks)
        _check_memory(max_memory)
        model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
        with plain():
            place = _device(device, model)
            copied = _cast(private_copy(model), dtype, place)
            example = read_example(copied, example_inputs, dynamic, dtype, place)
            adapter = Adapter(copied, example, output, pair=task == "heteroscedastic")
            captured = capture(
                adapter,
                example.tensors,
                example.signature.inputs,
                engine=engine,
                allow_row_interaction=allow_row_interaction,
                max_memory=max_memory,
            )
        kind.check_outputs(captured.output_example)
        self._setup(kind, example.signature, captured, num_samples, seed, masks, name, version, max_memory)

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
        _check_memory(max_memory)
        self.task, self.signature, self.name, self.version = task, signature, name, version
        self.num_samples, self.seed, self.masks = num_samples, seed, masks
        self.sites = Sites(captured.sites)
        self._captured, self._engine = captured, captured.engine
        self._max_memory = max_memory
        self._sampler = Sampler(self._engine, [spec.batched for spec in signature.inputs], max_memory)

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
    ) -> Prediction:
        """Predict with uncertainty: mean, variance and entropy over passes.

        Args:
            inputs: in the form of the example; arrays are answered with arrays.
            num_samples, seed, masks: instead of the defaults of this object; at least 2 passes.
            standard_errors: also the Monte Carlo standard error of each number.
            quantiles: levels in (0, 1) of which to give the quantiles over passes.
            samples: also the outputs of all passes (samples, batch, ...).

        Raises:
            InputError: the inputs do not fit the model.
            SettingError: another argument makes no sense.
        """
        run, as_numpy = self._start(inputs, num_samples, seed, masks, standard_errors, quantiles, samples)
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
        every: int | None = None,
    ) -> Iterator[Prediction]:
        """Predictions as passes accumulate, after every `every` passes (an eighth of all if None); "
        "the last is whole."""
        run, as_numpy = self._start(inputs, num_samples, seed, masks, standard_errors, (), False)
        step = max(2, -(-run.num_samples // 8)) if every is None else every
        if step < 1:
            raise SettingError(f"every is {every!r}; give a number of passes, at least 1.")
        return self._stream(run, as_numpy, step)

    def _stream(self, run: Run, as_numpy: bool, step: int) -> Iterator[Prediction]:
        while not run.done:
            self.advance(run, step)
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
    ) -> Run:
        """A run for these inputs: checks them and computes nothing. Arguments as for a prediction."""
        return self._start(inputs, num_samples, seed, masks, standard_errors, quantiles, samples)[0]

    def advance(self, runs: Run | Sequence[Run], budget: int | None = None) -> None:
        """Compute the next `budget` passes of each run, or all that are left; several runs together where they can be.

        Raises:
            PassMemoryError: one pass does not fit into memory.
        """
        if budget is not None and (isinstance(budget, bool) or not isinstance(budget, int) or budget < 1):
            raise SettingError(f"budget is {budget!r}; give a number of passes, at least 1, or None for all.")
        self._sampler.advance([runs] if isinstance(runs, Run) else list(runs), budget)

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
    ) -> tuple[Run, bool]:
        tensors, as_numpy = self.signature.bind(inputs, device=self.device)
        count = self.num_samples if num_samples is None else num_samples
        _check_num_samples(count)
        count = int(count)
        levels = tuple(quantiles)

        def make() -> Any:
            return accumulator(
                self.task, num_samples=count, standard_errors=standard_errors, quantiles=levels, samples=samples
            )

        check_levels(levels)  # here: errors belong to the caller, not to the thread that computes
        check_passes(count)
        return self._run(tensors, num_samples, seed, masks, make), as_numpy

    def _run(
        self, tensors: list[Tensor], num_samples: int | None, seed: int | None, masks: str | None, make: Any
    ) -> Run:
        count = self.num_samples if num_samples is None else num_samples
        chosen = self.seed if seed is None else seed
        mode = self.masks if masks is None else masks
        _check_num_samples(count)
        _check_seed(chosen)
        _check_masks(mode)
        rows = self.signature.rows(tensors)
        return self._sampler.start(
            tensors,
            rows=1 if rows is None else rows,
            num_samples=int(count),
            seed=int(chosen),
            masks=mode,
            make_sink=make,
        )

    # ---- regression noise

    def fit_noise_variance(self, inputs: Any, targets: Any, *, num_samples: int | None = None) -> float:
        """Fit the observation noise of a regression on held-out data, and use it from now on.

        The noise is what is left of the squared error after the spread over passes and its share in the error of the
        mean: mean((y - mean)^2) - mean(epistemic variance) / N, at least 0, in squared units of the target.
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
        spread = torch.as_tensor(prediction.epistemic_variance, device="cpu").double()  # type: ignore[attr-defined]
        noise = float(((target - mean).square() - spread / prediction.num_samples).mean().clamp_min(0))
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
        noise = self.task.noise_variance
        # the lines of code that draw are kept by file name: where they lie is nobody else's business
        sites = tuple(replace(site, source=site.source and os.path.basename(site.source)) for site in program.sites)
        write_bundle(
            folder,
            replace(program, sites=sites),
            {
                "name": self.name,
                "version": self.version,
                "task": {
                    "name": self.task.name,
                    "output_kind": self.task.output_kind,
                    "class_axis": self.task.class_axis,
                    "noise_variance": noise.tolist() if isinstance(noise, Tensor) else noise,
                },
                "class_names": None if self.task.class_names is None else list(self.task.class_names),
                "num_samples": self.num_samples,
                "seed": self.seed,
                "masks": self.masks,
                "keyword": self.signature.keyword,
                "mode": self._engine.mode,
                "merges": self._engine.merges,
                "joins": self._engine.joins,
                "apart": self._engine.apart,
                "output_shapes": [list(shape) for shape in self._captured.output_shapes],
            },
        )

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        *,
        device: torch.device | str | None = None,
        max_memory: int | None = None,
    ) -> "MCDropout":
        """Read a saved model. Nothing of the folder is evaluated as code.

        Raises:
            BundleError: the folder is incomplete, damaged, hostile or from a newer version.
        """
        place = torch.device("cpu") if device is None else _checked_device(device)
        program, meta = read_bundle(folder, device=place)
        program = program.channels_last()
        try:
            stated = meta["task"]
            noise = stated.get("noise_variance")
            names = meta.get("class_names")
            task = Task(
                stated["name"],
                output_kind=stated["output_kind"],
                class_axis=stated["class_axis"],
                noise_variance=torch.tensor(noise) if isinstance(noise, list) else noise,
                class_names=None if names is None else tuple(names),
            )
            mode = meta["mode"]
            if mode not in _MODES:
                raise SettingError(f"mode {mode!r} is unknown")
            engine = GraphEngine(program, mode, Masks.within(max_memory))
            engine.merges, engine.joins = bool(meta["merges"]), bool(meta["joins"])
            engine.apart = bool(meta.get("apart", False))  # older folders do not say
            shapes = tuple(tuple(int(size) for size in shape) for shape in meta["output_shapes"])
            signature = Signature(program.inputs, keyword=bool(meta["keyword"]))
            self = object.__new__(cls)
            self._setup(
                task,
                signature,
                Captured(engine, program.sites, program, shapes, ()),
                meta["num_samples"],
                meta["seed"],
                meta["masks"],
                meta.get("name"),
                meta["version"],
                max_memory,
            )
        except (KeyError, TypeError, AttributeError, SettingError, StopIteration) as error:
            raise BundleError(
                f"{os.fspath(folder)}: model.json does not describe a model ({type(error).__name__}: "
                f"{error}). Save the "
                "model again."
            ) from error
        return self

    def to(self, device: torch.device | str) -> "MCDropout":
        """The same model on another device; this object stays where it is."""
        program = self._captured.program
        if program is None or not isinstance(self._engine, GraphEngine):
            raise SettingError("a network on the eager engine stays where it was captured: capture it on that device.")
        place = _checked_device(device)
        moved: Program = program.to(place)
        engine = GraphEngine(moved, self._engine.mode, Masks.within(self._max_memory))
        engine.merges, engine.joins, engine.apart = self._engine.merges, self._engine.joins, self._engine.apart
        twin = object.__new__(type(self))
        captured = Captured(engine, self.sites, moved, self._captured.output_shapes, ())
        twin._setup(
            self.task, self.signature, captured, self.num_samples, self.seed, self.masks, self.name, self.version,
            self._max_memory,
        )  # fmt: skip
        return twin


def _array(value: Tensor) -> Any:
    value = value.detach().cpu()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()


def _check_num_samples(value: Any) -> None:
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < 1:
        raise SettingError(f"num_samples is {value!r}; give a whole number of passes, at least 1.")


def _check_seed(value: Any) -> None:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise SettingError(f"seed is {value!r}; give a whole number.")


def _check_masks(value: Any) -> None:
    if value not in ("shared", "independent"):
        raise SettingError(f"masks is {value!r}; choose 'shared' (one mask for all rows of a pass) or 'independent'.")


def _check_memory(value: Any) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise SettingError(f"max_memory is {value!r}; give a number of bytes, at least 1, or None.")


def _checked_device(device: torch.device | str) -> torch.device:
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise SettingError(f"device is {device!r}: {error}") from error
    if place.type == "cuda" and not torch.cuda.is_available():
        raise SettingError(f"device is {device!r} and this PyTorch sees no CUDA device: use 'cpu'.")
    return place


def _device(device: torch.device | str | None, model: nn.Module) -> torch.device:
    if device is not None:
        return _checked_device(device)
    return next((tensor.device for tensor in [*model.parameters(), *model.buffers()]), torch.device("cpu"))


def _cast(model: nn.Module, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The private copy in the type and on the device in which it will compute."""
    wide = torch.complex128 if dtype == torch.float64 else torch.complex64

    def cast(tensor: Tensor) -> Tensor:
        kind = wide if tensor.is_complex() else dtype if tensor.is_floating_point() else tensor.dtype
        return tensor.to(device=device, dtype=kind)

    moved: nn.Module = model._apply(cast)
    return moved
