"""What a server answers, as arrays; several answers put together."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mcdrop.errors import InputError

_DURATION = re.compile(r"\s*([\w-]+)\s*(?:;[^,]*?)?;\s*dur=([0-9.]+)")


@dataclass(frozen=True)
class Timings:
    """Where the time of a call went, in milliseconds; None for what the server does not tell.

    `queue_ms` and `compute_ms` are the server's, of the answer that counted (header Server-Timing); `total_ms` is this
    client's own, from the call to the arrays, with `retries` further attempts and the waits before them.
    """

    total_ms: float = 0.0
    queue_ms: float | None = None
    compute_ms: float | None = None
    retries: int = 0

    @classmethod
    def read(cls, server_timing: str, *, seconds: float, retries: int) -> "Timings":
        """From the header `queue;dur=0.2, compute;dur=3.1`, which may be empty."""
        server = {name: float(value) for name, value in _DURATION.findall(server_timing) if value.count(".") < 2}
        return cls(1000 * seconds, server.get("queue"), server.get("compute"), retries)


@dataclass(frozen=True)
class RemotePrediction:
    """A prediction from a server; each array has one entry per row of the input.

    Fields asked for by `outputs=` are attributes too (`prediction.std`) and stand in `fields`; `standard_errors` is a
    dict of arrays by name, `quantiles` an array whose first axis goes with `quantile_levels`.

    Numbers that are no numbers: binary answers carry float32 (float64 where the model is) bit for bit, so the entropy
    of a regression without variance is minus infinity. JSON answers carry float32, and all that JSON cannot hold (NaN
    and both infinities) arrives as NaN.

    Where rows stop by a rule, `passes` and `converged` are fields too, and `num_samples` is the most of all rows.

    `partial` says that the deadline came before all passes, `num_samples` how many there were. `raw` is the answer as
    it came, of a binary one the JSON before the numbers.
    """

    model: str
    version: str
    num_samples: int
    seed: int
    fields: Mapping[str, Any]
    class_names: tuple[str, ...] | None = None
    quantile_levels: tuple[float, ...] = ()
    partial: bool = False
    request_id: str | None = None
    timings: Timings = field(default_factory=Timings)
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __getattr__(self, name: str) -> Any:
        fields: Mapping[str, Any] = self.__dict__.get("fields", {})  # empty while unpickling
        if name in fields:
            return fields[name]
        raise AttributeError(
            f"this prediction has no {name!r}, it has {', '.join(fields)}. Ask for more with outputs=[...]."
        )

    def __len__(self) -> int:
        return len(self.fields["mean"])


def joined(parts: Sequence[RemotePrediction], *, seconds: float) -> RemotePrediction:
    """The predictions of consecutive rows as one, after `seconds` in all.

    Passes are the least of all parts (the most where rows stop by a rule), server times their sums, the versions of a
    model that was replaced in between stand side by side, and `raw` has the `request_ids`. Raises InputError without
    any part.
    """
    if not parts:
        raise InputError("there was no batch to predict; give at least one, even if it has no rows.")
    first = parts[0]
    return RemotePrediction(
        model=first.model,
        version=", ".join(dict.fromkeys(part.version for part in parts)),
        num_samples=_passes(parts),
        seed=first.seed,
        fields={name: _joined_field(name, parts) for name in first.fields},
        class_names=first.class_names,
        quantile_levels=first.quantile_levels,
        partial=any(part.partial for part in parts),
        request_id=first.request_id if len(parts) == 1 else None,
        timings=Timings(
            1000 * seconds,
            _sum([part.timings.queue_ms for part in parts]),
            _sum([part.timings.compute_ms for part in parts]),
            sum(part.timings.retries for part in parts),
        ),
        raw={"request_ids": [part.request_id for part in parts]},
    )


def _passes(parts: Sequence[RemotePrediction]) -> int:
    counts = [part.num_samples for part in parts]
    return max(counts) if "passes" in parts[0].fields else min(counts)


def _joined_field(name: str, parts: Sequence[RemotePrediction]) -> Any:
    values = [part.fields[name] for part in parts if name in part.fields]  # a partial part has more than was asked for
    if isinstance(values[0], Mapping):
        return {key: np.concatenate([value[key] for value in values]) for key in values[0]}
    if name == "samples":
        fewest = min(part.num_samples for part in parts)
        axes = [_axis_of_rows(part) for part in parts]
        values = [value[:fewest] if axis == 1 else value[:, :fewest] for value, axis in zip(values, axes, strict=True)]
        return np.concatenate(values, axis=axes[0])
    return np.concatenate(values, axis=int(name == "quantiles"))


def _axis_of_rows(part: RemotePrediction) -> int:
    """Of samples: 1 in (samples, rows, ...), 2 in a pair (2, samples, rows, ...)."""
    shape = part.fields["samples"].shape
    pair = part.fields["mean"].ndim + 2 == len(shape) and shape[:3] == (2, part.num_samples, len(part))
    return 1 + int(pair and shape[:2] != (part.num_samples, len(part)))


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
