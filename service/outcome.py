"""What a request is answered with, before any protocol writes it: named arrays and how they were obtained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mcdrop.answering.runs import Share
from mcdrop.prediction import Prediction

ROWS_SECOND = ("samples", "quantiles")  # fields whose first axis are passes or levels


@dataclass(frozen=True)
class Outcome:
    """A prediction as arrays.

    `fields` holds, in the order of the answer, an array by name (float32, or float64 where the model is; rows first,
    for `quantiles` and `samples` after the axis of levels or passes); for `standard_errors` arrays by name; for the
    `samples` of a pair (mean, log variance) a list of two arrays.
    """

    model: str
    version: str
    num_samples: int  # passes really used
    seed: int
    fields: Mapping[str, Any]
    quantile_levels: tuple[float, ...] = ()
    class_names: Sequence[str] = ()
    final: bool = True  # False for an estimate on the way
    partial: bool = False  # fewer passes than asked for, since the deadline came
    queue_ms: float = 0.0  # from arrival to the first computation
    compute_ms: float = 0.0  # of the inference thread, for this request and those computed together with it


def arrays(result: Prediction | Share, names: Sequence[str]) -> dict[str, Any]:
    """The named fields of a prediction as arrays. Computes those that were put off, once for all who share it."""
    if isinstance(result, Prediction):
        return {name: _plain(getattr(result, name)) for name in names}
    for name in names:
        if name not in result.derived:
            result.derived[name] = _plain(getattr(result.whole, name))
    return {name: _rows(result.derived[name], result.rows, name in ROWS_SECOND) for name in names}


def _rows(value: Any, rows: slice, rows_second: bool) -> Any:
    """Some rows of an array, in whatever it is nested."""
    if isinstance(value, Mapping):
        return {name: _rows(item, rows, rows_second) for name, item in value.items()}
    if isinstance(value, list):
        return [_rows(item, rows, rows_second) for item in value]
    return np.ascontiguousarray(value[:, rows] if rows_second else value[rows])


def _plain(value: Any) -> Any:
    """Tensors as arrays, in whatever they are nested."""
    if isinstance(value, Tensor):
        if value.is_floating_point() and value.dtype != torch.float64:
            value = value.float()  # NumPy has no bfloat16
        return np.ascontiguousarray(value.cpu().numpy())
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value
