"""Data files for the commands: inputs and targets from .npy, .npz and .csv, predictions to .npz, .csv and .json.

    .npy    the only input of a model, rows first
    .npz    arrays named after the inputs (one array alone may have any name)
    .csv    the only input, one row of numbers per line, in the order of its other axes; a header line is skipped

Predictions are fields by name, each an array whose first axis counts rows. A CSV gets one column per number:
`entropy`, `mean[3]`, or `mean[cat]` where class names are known.
"""

import csv
import io
import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from mcdrop.errors import InputError, SettingError
from mcdrop.graph.inputs import BATCH, InputSpec, Signature

__all__ = ["read_arrays", "read_inputs", "read_labelled", "read_targets", "write_csv", "write_fields"]

INPUT_SUFFIXES = (".npy", ".npz", ".csv")
OUTPUT_SUFFIXES = (".npz", ".csv", ".json")
LABELLED = ("inputs", "targets", "validation_inputs", "validation_targets")
HOW_LABELLED = "Write it with numpy.savez(path, inputs=..., targets=...)."
MOST_COLUMNS = 10_000  # beyond that nobody reads a CSV, and .npz is a hundred times smaller

Arrays = np.ndarray | dict[str, np.ndarray]


# ---- reading


def read_arrays(path: Path) -> Arrays:
    """What a .npy or .npz file holds; nothing is unpickled. Raises InputError."""
    _check_exists(path)
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            return loaded if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} cannot be read as NumPy arrays: {error}") from error


def read_inputs(path: Path, signature: Signature) -> Arrays:
    """The inputs of a model from a file, ready for `signature.bind`. Raises InputError."""
    if path.suffix not in INPUT_SUFFIXES:
        raise InputError(f"{path} is no data file that can be read; expected {', '.join(INPUT_SUFFIXES)}.")
    _check_exists(path)
    if path.suffix == ".csv":
        return _read_csv(path, signature)
    arrays = read_arrays(path)
    if isinstance(arrays, dict) and len(arrays) == len(signature.inputs) == 1:
        return next(iter(arrays.values()))
    return arrays


def read_targets(path: Path) -> np.ndarray:
    """The known answers of rows, from a .npy, an .npz with one array, or a .csv. Raises InputError."""
    if path.suffix == ".csv":
        _check_exists(path)
        table = _table(path, np.float64, "the targets")
        return table[:, 0] if table.shape[1] == 1 else table
    arrays = read_arrays(path)
    if isinstance(arrays, dict):
        if len(arrays) != 1:
            raise InputError(f"{path} holds {len(arrays)} arrays; expected one, the targets.")
        return next(iter(arrays.values()))
    return arrays


def read_labelled(path: Path) -> dict[str, np.ndarray]:
    """The arrays `inputs` and `targets` of an .npz file, and `validation_inputs` and `validation_targets` where it has
    them, with as many rows in each pair. Raises InputError."""
    arrays = read_arrays(path)
    if not isinstance(arrays, dict):
        raise InputError(f"{path} holds one array; expected an .npz file with inputs and targets. {HOW_LABELLED}")
    strangers = sorted(set(arrays) - set(LABELLED))
    lone = [
        name for name in LABELLED if name not in arrays and (name in LABELLED[:2] or set(LABELLED[2:]) & set(arrays))
    ]
    if strangers or lone:
        which = f"has no array {lone[0]!r}" if lone else f"has an array {strangers[0]!r} that means nothing here"
        raise InputError(
            f"{path} {which}; expected {', '.join(LABELLED[:2])} and, if wanted, "
            f"{', '.join(LABELLED[2:])}. {HOW_LABELLED}"
        )
    for inputs, targets in (LABELLED[:2], LABELLED[2:]):
        if inputs not in arrays:
            continue
        shapes = [arrays[name].shape for name in (inputs, targets)]
        if not all(shapes) or shapes[0][0] != shapes[1][0] or shapes[0][0] == 0:
            raise InputError(
                f"{path}: {inputs} has shape {shapes[0]} and {targets} {shapes[1]}; expected as many rows in both, "
                "at least one."
            )
    for name, values in arrays.items():
        if values.dtype.kind not in "fiub":
            raise InputError(f"{path}: {name} holds {values.dtype}; expected numbers.")
    return arrays


def _check_exists(path: Path) -> None:
    if not path.is_file():
        raise InputError(f"there is no data file {path}.")


def _read_csv(path: Path, signature: Signature) -> np.ndarray:
    if len(signature.inputs) != 1:
        raise InputError(
            f"the model has {len(signature.inputs)} inputs ({', '.join(signature.names)}) and {path} holds one table. "
            "Give an .npz file with one array for each."
        )
    spec = signature.inputs[0]
    integers = not (spec.dtype.is_floating_point or spec.dtype.is_complex)
    table = _table(path, np.int64 if integers else np.float64, str(spec))
    return table.reshape(len(table), *_row_shape(spec, table.shape[1], path))


def _table(path: Path, dtype: Any, what: str) -> np.ndarray:
    """The numbers of a CSV, line by line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        lines = text.splitlines(keepends=True)
        if lines and _is_header(lines[0]):
            lines = lines[1:]
        if not any(line.strip() for line in lines):
            raise InputError(f"{path} has no row of numbers.")
        return np.loadtxt(io.StringIO("".join(lines)), delimiter=",", comments=None, ndmin=2, dtype=dtype)
    except OSError as error:
        raise InputError(f"the data file {path} cannot be opened: {error.strerror}.") from error
    except (ValueError, OverflowError) as error:  # UnicodeDecodeError too
        raise InputError(
            f"{path} cannot be read as a table of numbers for {what}: {error} Expected comma-separated "
            f"{'integers' if dtype is np.int64 else 'numbers'}, one line per row."
        ) from error


def _is_header(line: str) -> bool:
    """Whether a line has a field that is no number."""
    for fieldtext in next(csv.reader([line]), []):
        try:
            float(fieldtext)
        except ValueError:
            return True
    return False


def _row_shape(spec: InputSpec, columns: int, path: Path) -> list[int]:
    """The sizes of one row; a single dynamic size follows from the number of columns."""
    sizes = list(spec.shape[1:] if spec.shape[:1] == (BATCH,) else spec.shape)
    dynamic = [axis for axis, size in enumerate(sizes) if isinstance(size, str)]
    fixed = math.prod(size for size in sizes if isinstance(size, int))
    if len(dynamic) == 1 and columns % fixed == 0:
        sizes[dynamic[0]] = columns // fixed
    elif dynamic or columns != fixed:
        expected = f"{fixed}" if not dynamic else f"a multiple of {fixed}" if len(dynamic) == 1 else "an .npy file"
        raise InputError(f"{path} has {columns} numbers in each row; expected {expected} for {spec}.")
    return [int(size) for size in sizes]


# ---- writing


def write_fields(
    path: Path, fields: Mapping[str, np.ndarray], *, facts: Mapping[str, Any], class_names: Sequence[str] | None
) -> None:
    """Write predictions as the suffix of `path` says; `facts` (number of samples, seed) are left out of a CSV."""
    check_output(path)
    try:
        if path.suffix == ".npz":
            with path.open("wb") as file:
                np.savez_compressed(file, allow_pickle=False, **_arrays(fields, facts))
        elif path.suffix == ".json":
            path.write_text(as_json(fields, facts=facts) + "\n", encoding="utf-8")
        else:
            with path.open("w", encoding="utf-8", newline="") as file:
                write_csv(file, fields, class_names=class_names)
    except OSError as error:
        raise SettingError(f"predictions cannot be written to {path}: {error.strerror}.") from error


def _arrays(fields: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> dict[str, Any]:
    return {**fields, **{name: np.asarray(value) for name, value in facts.items()}}


def check_output(path: Path) -> None:
    """Raises SettingError when predictions cannot be written in the format that `path` asks for."""
    if path.suffix not in OUTPUT_SUFFIXES:
        raise SettingError(f"{path} names no known format for predictions; end it with {', '.join(OUTPUT_SUFFIXES)}.")


def as_json(fields: Mapping[str, np.ndarray], *, facts: Mapping[str, Any]) -> str:
    """One JSON object; a number that JSON does not have (the entropy at variance 0 is -inf) becomes null."""
    return json.dumps({**facts, **{name: _finite(values.tolist()) for name, values in fields.items()}}, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_csv(file: TextIO, fields: Mapping[str, np.ndarray], *, class_names: Sequence[str] | None) -> None:
    """A header, then one line per row of the predictions."""
    columns: dict[str, np.ndarray] = {}
    for name, values in fields.items():
        flat = values.reshape(len(values), math.prod(values.shape[1:]))
        for column, index in enumerate(np.ndindex(values.shape[1:])):
            columns[name + _index_text(index, class_names, values.shape[1:])] = flat[:, column]
            if len(columns) > MOST_COLUMNS:
                raise SettingError(
                    f"these predictions have more than {MOST_COLUMNS} numbers in each row, too many for the columns of "
                    "a CSV. Write an .npz file."
                )
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["row", *columns])
    for row, numbers in enumerate(zip(*(column.tolist() for column in columns.values()), strict=True)):
        writer.writerow([row, *(f"{number:.9g}" if isinstance(number, float) else number for number in numbers)])


def _index_text(index: tuple[int, ...], class_names: Sequence[str] | None, shape: tuple[int, ...]) -> str:
    if not index:
        return ""
    if class_names is not None and shape == (len(class_names),):
        return f"[{class_names[index[0]]}]"
    return f"[{','.join(map(str, index))}]"
