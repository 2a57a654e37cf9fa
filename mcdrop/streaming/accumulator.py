"""What all accumulators share: passes in, chunk by chunk in any order, and a Prediction out at any time.

An accumulator keeps sums, so that its memory does not depend on the number of passes unless samples or quantiles are
asked for. Outputs of half precision are used as float32, sums are float64 (see mcdrop.streaming.sums). Work on a chunk
goes by blocks that fit into the cache, so it needs little memory beside the chunk. mcdrop.streaming.moments has one
kind for each task.
"""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Self

import torch
from torch import Tensor

from mcdrop.errors import SettingError
from mcdrop.outputs.tasks import Task
from mcdrop.prediction import Prediction
from mcdrop.statistics import mixture_quantiles, sample_quantiles
from mcdrop.streaming.block_sums import BlockSums, error_of_mean, several
from mcdrop.streaming.sums import GROUPS, CentralSums, Place

__all__ = ["Accumulator", "Pick", "check_passes"]

_BLOCK = 2**18  # numbers on a CPU: a handful of float64 copies stay in its cache
_BLOCK_ELSEWHERE = 2**22  # numbers that keep an accelerator busy
_INNER = 256  # numbers, the shortest run of memory worth cutting a block to

Pick = Callable[[Tensor, int], Tensor]  # some rows of sums, along an axis that rows come first in


class Accumulator(ABC):
    """Sums over passes of what a task needs; made by `accumulator`."""

    def __init__(
        self,
        task: Task,
        num_samples: int,
        standard_errors: bool,
        quantiles: tuple[float, ...],
        samples: bool,
        block: int = 1,
    ) -> None:
        self.task = task
        self.num_samples = num_samples
        self.passes = 0  # done
        self._with_errors, self._levels, self._with_samples = standard_errors, quantiles, samples
        self._block = block  # passes that depend on one another
        self._layout: tuple[int, ...] = ()  # the output's own shape, batch first
        self._dtype = torch.float32  # of the answer
        self._started = False
        self._samples: tuple[Tensor, ...] = ()
        self._done: list[range] = []
        self._group_counts = [0] * GROUPS
        self._blocks: BlockSums | None = None  # of what is averaged, where passes depend on one another

    # ---- what each task does

    @abstractmethod
    def _start(self, outputs: tuple[Tensor, ...]) -> None:
        """Allocate the sums for outputs like these, each (passes, batch, ...)."""

    @abstractmethod
    def _add(self, chunk: tuple[Tensor, ...], groups: Tensor | None, place: Place, before: int) -> None:
        """Add a block (passes, ...) of the flattened outputs, of which `before` passes were added before."""

    @abstractmethod
    def _merge(self, other: Any) -> None:
        """Add the sums of another accumulator of the same kind."""

    @abstractmethod
    def _predict(self, shared: dict[str, Any]) -> Prediction:
        """The prediction; `shared` holds the fields that all kinds have."""

    def _parts(self, outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The outputs as tensors of one meaning each."""
        return outputs

    def _check(self, outputs: tuple[Tensor, ...]) -> None:
        """Raise SettingError where outputs (passes, batch, ...) cannot be what the task says."""
        self.task.check_outputs([output[0] for output in outputs])

    def _flatten(self, output: Tensor) -> Tensor:
        """(passes, batch, ...) to (passes, elements), or for classes (passes, outer, classes[, inner])."""
        return output.reshape(output.shape[0], math.prod(output.shape[1:]))

    @abstractmethod
    def _values(self, samples: tuple[Tensor, ...]) -> tuple[Tensor, Tensor | None]:
        """What `mean` averages (samples, batch, ...), and the noise's variances (samples or 1, batch, ...)."""

    @property
    @abstractmethod
    def spread(self) -> Tensor:
        """Variance over the passes so far, ddof 1, of each number that `mean` averages: (batch, numbers), float64."""

    @abstractmethod
    def _select(self, twin: Any, pick: Pick) -> None:
        """Give `twin` the sums of some rows, each `pick(sums, axis of the rows)`."""

    # ---- what all tasks share

    @torch.no_grad()
    def update(self, outputs: tuple[Tensor, ...], passes: range) -> None:
        """Add the model's outputs, each (len(passes), batch, ...), of the passes of these indexes.

        Raises:
            SettingError: outputs that cannot be what the task says, as far as the first chunk's shapes tell; or
                probabilities that are none. The accumulator is then of no use any more.
        """
        if not len(passes):
            return
        if not self._started:
            self._check(outputs)
            self._layout = tuple(self._parts(outputs)[0].shape[1:])
            self._dtype = torch.float64 if outputs[0].dtype is torch.float64 else torch.float32
            self._start(outputs)
            if self._with_samples or self._levels:
                self._samples = tuple(output.new_empty(self.num_samples, *output.shape[1:]) for output in outputs)
            self._started = True
        for kept, output in zip(self._samples, outputs, strict=False):
            kept[passes.start : passes.stop : passes.step] = output
        flat = tuple(self._flatten(part) for part in self._parts(outputs))
        groups = None
        if self._with_errors or self._block > 1:
            indexes = [index // self._block % GROUPS for index in passes]
            groups = torch.tensor(indexes, device=flat[0].device)
            for group in indexes:
                self._group_counts[group] += 1
        for block in _blocks(flat[0]):
            before = self.passes + (block[0].start if block else 0)
            chunk = tuple(values[block] for values in flat) if block else flat
            self._add(chunk, groups if groups is None or not block else groups[block[0]], block[1:], before)
        self.passes += len(passes)
        self._done.append(passes)

    @torch.no_grad()
    def merge(self, other: "Accumulator") -> None:
        """Add another accumulator's passes, which must be other ones; `other` stays as it is."""
        if self._settings() != other._settings():
            raise SettingError(f"accumulators of different settings: {self._settings()} and {other._settings()}.")
        if not other.passes:
            return
        if not self.passes:
            vars(self).update(copy.deepcopy(vars(other)))
            return
        if other._layout != self._layout:
            raise SettingError(f"outputs of shape {other._layout} cannot be merged with {self._layout}.")
        twice = self._indexes() & other._indexes()
        if twice:
            raise SettingError(f"pass {min(twice)} is in both accumulators; merge different passes.")
        self._merge(other)
        if self._blocks is not None and other._blocks is not None:
            self._blocks.merge(other._blocks, other._group_counts)
        for passes in other._done:
            for kept, theirs in zip(self._samples, other._samples, strict=False):
                kept[passes.start : passes.stop : passes.step] = theirs[passes.start : passes.stop : passes.step]
        self._group_counts = [a + b for a, b in zip(self._group_counts, other._group_counts, strict=True)]
        self._done += other._done
        self.passes += other.passes

    def values(self, outputs: tuple[Tensor, ...]) -> Tensor:
        """What `mean` averages, (passes, batch, ...), from outputs that have been added."""
        return self._values(outputs)[0]

    def select(self, rows: Tensor) -> Self:
        """The sums of some rows alone, by their numbers (kept,); this accumulator stays as it is."""
        twin, batch = copy.copy(self), self._layout[0]
        twin._layout = (len(rows), *self._layout[1:])
        twin._done, twin._group_counts = list(self._done), list(self._group_counts)
        twin._samples = tuple(kept[:, rows] for kept in self._samples)

        def pick(sums: Tensor, axis: int) -> Tensor:
            by_row = sums.unflatten(axis, (batch, sums.shape[axis] // batch))
            picked: Tensor = by_row.index_select(axis, rows)
            return picked.flatten(axis, axis + 1)

        self._select(twin, pick)
        twin._blocks = None if self._blocks is None else self._blocks.select(pick)
        return twin

    def prediction(self, *, seed: int) -> Prediction:
        """The prediction from the passes so far; later updates do not change it.

        Raises:
            SettingError: fewer than two passes so far.
        """
        check_passes(self.passes)
        shared: dict[str, Any] = {"num_samples": self.passes, "seed": seed}
        if self._samples:
            samples = self._kept()
            if self._with_samples:
                shared["samples"] = samples if len(samples) > 1 else samples[0]
            if self._levels:
                shared |= {"quantile_levels": self._levels, "quantiles": self._quantiles(samples)}
        return self._predict(shared)

    def _kept(self) -> tuple[Tensor, ...]:
        """The samples of the passes done, in the order of their indexes."""
        if self.passes == self.num_samples:
            return self._samples
        done = sorted(self._indexes())
        if done == list(range(self.passes)):
            return tuple(kept[: self.passes] for kept in self._samples)
        return tuple(kept[done] for kept in self._samples)

    def _indexes(self) -> set[int]:
        return {index for passes in self._done for index in passes}

    def _settings(self) -> tuple[object, ...]:
        return self.task, self.num_samples, self._with_errors, self._levels, self._with_samples, self._block

    def _quantiles(self, samples: tuple[Tensor, ...]) -> Tensor:
        answers = []
        values, noise = self._values(samples)
        flat = values.reshape(values.shape[0], math.prod(values.shape[1:]))
        if noise is not None:
            noise = noise.reshape(noise.shape[0], flat.shape[1]).expand_as(flat)
        for block in _blocks(flat, cut_passes=False):
            part = flat[block] if block else flat
            if noise is None:
                answers.append(sample_quantiles(part, self._levels))
            else:
                answers.append(mixture_quantiles(part, noise[block] if block else noise, self._levels))
        return torch.cat(answers, dim=1).reshape(len(self._levels), *values.shape[1:])

    def _with_error(self, sums: CentralSums) -> tuple[Tensor, Tensor | None]:
        """The variance over passes and, where they came in several blocks, the squared error of their mean."""
        if self._blocks is None or not several(self._group_counts):
            return sums.variance(self.passes), None
        error = self._error(self._blocks.deviations(self._group_counts))
        return sums.state[1] / self.passes + error, error

    def _error(self, deviations: Tensor) -> Tensor:
        """The squared error of a mean from the deviations of the groups; NaN where all passes are of one block."""
        return error_of_mean(deviations, self._group_counts)

    def _shaped(self, values: Tensor) -> Tensor:
        """A number of each element of the output, in its layout and dtype."""
        values = values.to(self._dtype, copy=True)
        return values if values.shape == self._layout else values.view(self._layout)


def check_passes(passes: int, block: int = 1) -> None:
    """Raise SettingError where so few passes, `block` of them one unit, have no spread."""
    if isinstance(passes, bool) or not isinstance(passes, int) or passes < 2:
        raise SettingError(
            f"num_samples={passes!r}: a prediction's variance takes at least 2 passes. Ask for more; "
            "for the network's own outputs, even of one pass, use `sample`."
        )
    if passes <= block > 1:
        raise SettingError(
            f"num_samples={passes}: standard errors come from the spread of blocks of {block} passes, which balanced "
            f"masks make dependent. Ask for at least {2 * block}, leave standard_errors out, or use masks='shared'."
        )


def _blocks(values: Tensor, *, cut_passes: bool = True) -> Iterator[tuple[slice, ...]]:
    """Indexes of blocks of (passes, outer[, classes[, inner]]); () stands for everything."""
    limit = _BLOCK if values.device.type == "cpu" else _BLOCK_ELSEWHERE
    if values.numel() <= limit:
        yield ()
        return
    passes, outer, classes, inner = (*values.shape, 1, 1)[:4]
    inner_step = min(inner, max(_INNER, limit // (passes * classes)))
    pass_step = min(passes, max(1, limit // (classes * inner_step))) if cut_passes else passes
    outer_step = min(outer, max(1, limit // (pass_step * classes * inner_step)))
    for i in range(0, outer, outer_step):
        for j in range(0, inner, inner_step):
            for k in range(0, passes, pass_step):
                block = (slice(k, k + pass_step), slice(i, i + outer_step), slice(None), slice(j, j + inner_step))
                yield block[: values.ndim]
