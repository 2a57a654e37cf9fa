"""`MCDropout`: a network, captured, that answers with its uncertainty.

    mc = MCDropout(model, example_inputs, task="classification")
    prediction = mc(x, num_samples=100, seed=7)

A prediction depends on (model, input row, seed, num_samples, mask mode) alone, with independent masks also on the
row's index in its request; many threads may ask one object at the same time.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, nn

from mcdrop.answering.arguments import (
    cast,
    check_engine,
    check_last_layer,
    check_masks,
    check_memory,
    check_num_samples,
    check_seed,
    check_switches,
    checked_device,
    device_of,
)
from mcdrop.answering.definition import Definition
from mcdrop.answering.observation_noise import residual_variance
from mcdrop.answering.predicting import Predictor
from mcdrop.capturing.capture import capture
from mcdrop.capturing.captured import Captured, moved
from mcdrop.capturing.compiling import compile_engine
from mcdrop.capturing.precision import as_dtype, check_precision, explained, input_dtype
from mcdrop.capturing.snapshot import Adapter, private_copy, read_example
from mcdrop.disk.saving import read_model, write_model
from mcdrop.engines.engine import GraphEngine
from mcdrop.engines.masks import Masks
from mcdrop.errors import SettingError
from mcdrop.graph.arrays import dtype_name
from mcdrop.graph.choosing import Choice, Pattern, Patterns
from mcdrop.graph.program import Program
from mcdrop.modes import LastLayer, MaskMode
from mcdrop.outputs.tasks import OutputKind, Task, TaskName
from mcdrop.prediction import Prediction
from mcdrop.reporting.examining import Subject, report_on
from mcdrop.reporting.report import Report
from mcdrop.surroundings.plain import plain

__all__ = ["MCDropout", "dropout_modules"]


class MCDropout(Predictor):
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
        compile: whether to run as code that PyTorch's compiler makes, once, in a minute or so (see
            `mcdrop.capturing.compiling`).
        fast: compute with fewer operations where the numbers are the same up to rounding (see
            `mcdrop.shortcuts.fusing`); False computes as the network was captured.
        max_memory: bytes that one call may use beyond weights, inputs and results; a quarter of what is free if None.
        allow_row_interaction: go on although the rows of a batch influence one another.
        include: which sites draw: module paths (`"encoder.*.dropout"`), kinds (`"attention"`) or numbers; all if None.
        exclude: which of them do not.
        rates: {pattern: p} in [0, 1): rates instead of the network's own; of several the last one counts.
        last_layer: "sampled", or "exact": the last dropout is integrated in closed form instead of drawn, where a
            regression ends in dropout and a Linear (`mcdrop.graph.last_layer`). There are no samples and quantiles
            then.

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
        check_switches(thinned=thinned, compile=compile, fast=fast)
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
        definition = Definition(captured, kind, example.signature, num_samples, seed, masks, name, version)
        super().__init__(definition, max_memory)
        self._modules = dropout_modules(copied)
        if compile:
            self._compile()

    def _compile(self) -> None:
        if not isinstance(self._engine, GraphEngine):
            raise SettingError("a network on the eager engine cannot be compiled: leave compile out.")
        compile_engine(self._engine)
        self._compiles = True

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
        """What `mcdrop.reporting.examining` takes."""
        facts = {
            "name": self.name or "unnamed",
            "version": self.version,
            "task": self.task.name,
            "class_names": self.task.class_names,
            "inputs": [str(spec) for spec in self.signature.inputs],
            "defaults": {"num_samples": self.num_samples, "seed": self.seed, "masks": self.masks},
            "device": str(self.device),
            "dtype": dtype_name(self.dtype),
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
        Predictor.__init__(twin, replace(self._definition, captured=captured), self._max_memory)
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
        noise = residual_variance(self(inputs, num_samples=num_samples), targets)
        self.task = Task(self.task.name, noise_variance=noise)
        return noise

    # ---- disk and device

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the model into a folder that needs none of the user's code to be loaded.

        Raises:
            BundleError: the network runs eagerly or uses an operation that the format does not hold, or the folder
                holds something else.
        """
        write_model(folder, self._definition)

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
        check_memory(max_memory)
        check_switches(thinned=thinned, compile=compile, fast=fast)
        model = read_model(
            folder,
            device=place,
            thinned=thinned,
            fast=fast and not compile,
            max_memory=max_memory,
            instead={"include": include, "exclude": exclude, "rates": rates},
        )
        self = object.__new__(cls)
        Predictor.__init__(self, model, max_memory)
        if compile:
            self._compile()
        return self

    def to(self, device: torch.device | str) -> "MCDropout":
        """The same model on another device; this object stays where it is."""
        twin = self._twin(moved(self._captured, checked_device(device), self._max_memory))
        if self._compiles:
            twin._compile()
        return twin

    # ---- copies

    def __copy__(self) -> "MCDropout":
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> "MCDropout":
        """The same as a shallow copy: nothing changes the network that both then have."""
        return self.__copy__()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "an MCDropout cannot be pickled, since it holds functions made for its network. Save it, mc.save(folder), "
            "and read it in the other process, MCDropout.load(folder)."
        )


def dropout_modules(network: nn.Module) -> dict[str, float]:
    """The paths of PyTorch's dropout modules in a network, each with its rate."""
    kinds = nn.modules.dropout._DropoutNd
    return {path: float(module.p) for path, module in network.named_modules() if isinstance(module, kinds)}
