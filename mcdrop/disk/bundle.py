"""A model on disk: a folder with three files, complete without the code that made the model.

    model.json            format, name, version, task, defaults, inputs, sites, noise version; checksums of the others
    program.json          the program: calls to listed operations (`codec`, `operators`) and the table of weights
    weights.safetensors   the tensors (`weights`)

Reading evaluates nothing: names are looked up in fixed tables, and what a program may say is checked before it runs
(`dialect`). File names are fixed and never come from a file. Whatever is wrong with a folder is a `BundleError` that
names the file, the fault and what to do. Reading is safe; running a model costs what its maker wrote into it.

Writing is all or nothing: the files are written and synced in a new folder beside, which then takes the place of the
old one (`folders`). Only an empty folder or a model is replaced. A folder written by any torch that mcdrop supports
loads on any other, on any device.
"""

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from mcdrop.disk.codec import decode_graph, encode_graph
from mcdrop.disk.dialect import check_graph
from mcdrop.disk.folders import AGAIN, check_replaceable, fingerprint, read_bytes, replacing, size_of, write_bytes
from mcdrop.disk.strictjson import Refused, as_list, as_text, from_json, loads, to_json
from mcdrop.disk.weights import load_weights, save_weights
from mcdrop.errors import BundleError, McdropError
from mcdrop.graph.inputs import InputSpec, Signature
from mcdrop.graph.program import Program
from mcdrop.graph.sites import Site
from mcdrop.modes import LAST_LAYERS, MASK_MODES
from mcdrop.randomness.noise import NOISE_VERSION

__all__ = ["FILES", "FORMAT", "read_bundle", "read_meta", "write_bundle"]

FORMAT = 1
MODEL, PROGRAM, WEIGHTS = FILES = ("model.json", "program.json", "weights.safetensors")

MAX_JSON_BYTES = 16 * 2**20
MAX_SITES = 10_000
MAX_INPUTS = 1000
_RESERVED = frozenset({"format", "written_with", "noise_version", "inputs", "dims", "sites", "files"})


def write_bundle(folder: str | os.PathLike[str], program: Program, meta: Mapping[str, Any]) -> None:
    """Write a model, or replace the one in `folder`.

    Args:
        folder: where; parents are made. An existing folder has to be empty or hold a model and nothing else.
        program: what is computed. Weights that its graph does not use are left out.
        meta: plain JSON values that describe the model (see `_META` for those that are checked); a reader gets them
            back as they were, tuples as lists. Names that the format uses itself cannot be used.

    Raises:
        BundleError: the program uses an operation or value that cannot be stored, or the folder cannot be written.
            Nothing is left behind, and what was there stays.
    """
    target = Path(folder).resolve()
    try:
        graph = encode_graph(program.graph)
        used = {str(node.target) for node in program.graph.nodes if node.op == "get_attr"}
        weights = {name: weight for name, weight in program.weights.items() if name in used}
        again = decode_graph(graph, device=program.device)  # what cannot be read is not written
        check_graph(again, weights=weights, inputs=len(program.inputs), sites=program.sites)
        model = _model(program, meta)
        _check_meta({name: value for name, value in model.items() if name not in _RESERVED})
    except Refused as refusal:
        raise BundleError(
            f"the model cannot be stored: {refusal}. Networks are stored as calls to PyTorch's own operations; "
            "express the part with them, or use the model in Python only."
        ) from refusal
    if check_replaceable(target, FILES) and not _is_model(target):
        raise BundleError(f"{target} is not empty and holds no model of mcdrop. Choose another folder, or empty it.")
    try:
        with replacing(target) as beside:
            table = save_weights(beside / WEIGHTS, weights)
            write_bytes(beside / PROGRAM, _bounded(PROGRAM, _program_text(graph, table)))
            (beside / WEIGHTS).chmod((beside / PROGRAM).stat().st_mode)  # safetensors makes files for the owner alone
            model["files"] = {name: fingerprint(beside / name) for name in (PROGRAM, WEIGHTS)}
            write_bytes(beside / MODEL, _bounded(MODEL, json.dumps(model, indent=2, allow_nan=False)))
    except Refused as refusal:
        raise BundleError(f"the model cannot be stored: {refusal}. Convert or shrink that part first.") from refusal


def read_bundle(
    folder: str | os.PathLike[str], *, device: torch.device | str = "cpu"
) -> tuple[Program, dict[str, Any]]:
    """The program, with its weights on `device`, and the `meta` that was written. Raises `BundleError`."""
    path = Path(folder)
    model = _read_model(path)
    with _blame(path / MODEL):
        meta = _checked_meta(model)
        inputs, dims, sites = _inputs(model), _dims(model), _sites(model)
        files = _checksums(model)
    data = read_bytes(path / PROGRAM, most=MAX_JSON_BYTES)
    with _blame(path / PROGRAM):
        _compare(files[PROGRAM], len(data), lambda: hashlib.sha256(data).hexdigest())
        document = loads(data)
        if not isinstance(document, dict) or set(document) != {"nodes", "outputs", "weights"}:
            raise Refused("it should have nodes, outputs and weights")
        graph = decode_graph(document, device=torch.device(device))
        table = document["weights"]
        check_graph(graph, weights=table if isinstance(table, dict) else (), inputs=len(inputs), sites=sites)
    size = size_of(path / WEIGHTS)
    with _blame(path / WEIGHTS):
        _compare(files[WEIGHTS], size)
        data = read_bytes(path / WEIGHTS, most=size)
        _compare(files[WEIGHTS], len(data), lambda: hashlib.sha256(data).hexdigest())
        weights = load_weights(data, table, device=torch.device(device))
    return Program(graph=graph, weights=weights, inputs=inputs, sites=sites, dims=dims), meta


def read_meta(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What `meta` was written, without loading the model. Raises `BundleError`."""
    path = Path(folder)
    model = _read_model(path)
    with _blame(path / MODEL):
        return _checked_meta(model)


# ---- model.json


def _model(program: Program, meta: Mapping[str, Any]) -> dict[str, Any]:
    if taken := sorted(_RESERVED & set(meta)):
        raise Refused(f"its description uses {taken[0]!r}, a name that the format uses itself")
    try:
        plain = loads(json.dumps(dict(meta), allow_nan=False).encode())
    except (TypeError, ValueError) as error:
        raise Refused(f"its description is no plain JSON: {error}") from error
    return {
        "format": FORMAT,
        "written_with": {"mcdrop": _installed("mcdrop"), "torch": str(torch.__version__)},
        **plain,
        "noise_version": NOISE_VERSION,
        "inputs": [str(spec) for spec in program.inputs],
        "dims": {name: list(bounds) for name, bounds in program.dims.items()},
        "sites": [to_json(site) for site in program.sites],
    }


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # used from a checkout
        return None


def _read_model(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise BundleError(f"{folder} is no folder. Give the folder that `mcdrop export` or `save` wrote.")
    if not (folder / MODEL).exists():
        inside = sorted(path.parent.name for path in folder.glob(f"*/{MODEL}"))
        hint = (
            f"Did you mean {folder / inside[0]}?" if inside else "Give the folder that `mcdrop export` or `save` wrote."
        )
        raise BundleError(f"{folder} holds no {MODEL}, so it is no model. {hint}")
    data = read_bytes(folder / MODEL, most=MAX_JSON_BYTES)
    with _blame(folder / MODEL):
        model = loads(data)
        if not isinstance(model, dict) or type(model.get("format")) is not int or model["format"] < 1:
            raise Refused("it names no format of mcdrop")
        for what, known in (("format", FORMAT), ("noise_version", NOISE_VERSION)):
            number = model.get(what)
            if type(number) is int and number > known:
                raise BundleError(
                    f"{folder / MODEL} has {what} {number} and was made by a newer mcdrop; "
                    f"this one knows up to {known}. Upgrade: pip install --upgrade mcdrop."
                )
        if model.get("noise_version") != NOISE_VERSION:
            raise Refused(f"its noise version {model.get('noise_version')!r:.80} is unknown")
    return model


def _checked_meta(model: Mapping[str, Any]) -> dict[str, Any]:
    meta = {name: value for name, value in model.items() if name not in _RESERVED}
    _check_meta(meta)
    return meta


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_names(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(name, str) for name in value))


def _is_patterns(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, str | int) for item in value))


def _is_rates(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(p, int | float) for p in value.values())


_META: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "name": (lambda value: isinstance(value, str) or value is None, "a text"),
    "version": (lambda value: isinstance(value, str), "a text"),
    "task": (lambda value: isinstance(value, str | dict), "the name of a task or its settings"),
    "class_names": (_is_names, "a list of texts"),
    "num_samples": (_is_count, "a whole number of at least 1"),
    "seed": (lambda value: type(value) is int, "a whole number"),
    "masks": (lambda value: value in MASK_MODES, "'shared', 'independent' or 'balanced'"),
    "include": (lambda value: value is None or _is_patterns(value), "null, a pattern or a list of patterns"),
    "exclude": (_is_patterns, "a pattern or a list of patterns"),
    "rates": (_is_rates, "an object of rates by pattern"),
    "last_layer": (lambda value: value in LAST_LAYERS, "'sampled' or 'exact'"),
    "keyword": (lambda value: isinstance(value, bool), "true or false"),
}


def _check_meta(meta: Mapping[str, Any]) -> None:
    for name, (holds, expected) in _META.items():
        if name in meta and not holds(meta[name]):
            raise Refused(f"{name!r} should be {expected}, not {meta[name]!r:.80}")


def _inputs(model: Mapping[str, Any]) -> tuple[InputSpec, ...]:
    texts = as_list(model.get("inputs"), "inputs", MAX_INPUTS)
    return Signature(tuple(InputSpec.parse(as_text(text, "an input")) for text in texts)).inputs


def _dims(model: Mapping[str, Any]) -> dict[str, tuple[int, int | None]]:
    dims = model.get("dims")
    if not isinstance(dims, dict):
        raise Refused("'dims' should be an object")
    result: dict[str, tuple[int, int | None]] = {}
    for name, bounds in dims.items():
        match bounds:
            case [int(least), int() | None as most]:
                result[as_text(name, "a dimension")] = (least, most)
            case _:
                raise Refused(f"the dimension {name!r:.80} should have a least and a greatest size")
    return result


def _sites(model: Mapping[str, Any]) -> tuple[Site, ...]:
    sites = tuple(from_json(Site, site) for site in as_list(model.get("sites"), "sites", MAX_SITES))
    for site in sites:
        if not (site.p is None or 0 <= site.p <= 1) or not math.isfinite(site.scale):
            raise Refused(f"the site {site.path!r:.80} has p = {site.p} and scale {site.scale}")
    return sites


# ---- program.json


def _program_text(graph: Mapping[str, Any], table: Mapping[str, Any]) -> str:
    """One node and one weight a line, so that two programs can be compared by eye."""
    nodes = ",\n".join(json.dumps(node, allow_nan=False) for node in graph["nodes"])
    weights = ",\n".join(f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in table.items())
    return f'{{"nodes": [\n{nodes}\n],\n"outputs": {json.dumps(graph["outputs"])},\n"weights": {{\n{weights}\n}}}}\n'


def _bounded(name: str, text: str) -> bytes:
    data = text.encode()
    if len(data) > MAX_JSON_BYTES:
        raise Refused(f"its {name} would have {len(data)} bytes, more than {MAX_JSON_BYTES}")
    return data


def _is_model(folder: Path) -> bool:
    try:
        model = loads(read_bytes(folder / MODEL, most=MAX_JSON_BYTES))
    except (BundleError, Refused):
        return False
    return isinstance(model, dict) and type(model.get("format")) is int


# ---- checks against model.json


def _checksums(model: Mapping[str, Any]) -> dict[str, tuple[int, str]]:
    match model.get("files"):
        case {
            "program.json": {"bytes": int(program_size), "sha256": str(program_sum)},
            "weights.safetensors": {"bytes": int(weights_size), "sha256": str(weights_sum)},
        }:
            return {PROGRAM: (program_size, program_sum), WEIGHTS: (weights_size, weights_sum)}
    raise Refused("'files' should give size and sha256 of the other two files")


def _compare(expected: tuple[int, str], size: int, checksum: Callable[[], str] | None = None) -> None:
    if size != expected[0]:
        raise Refused(f"it has {size} bytes, {MODEL} says {expected[0]}: it is cut off, or of another model")
    if checksum is not None and checksum() != expected[1]:
        raise Refused(f"its sha256 is not the one in {MODEL}: it was changed, or is of another model")


@contextlib.contextmanager
def _blame(path: Path) -> Iterator[None]:
    """Say in which file a rule is broken, and what to do."""
    try:
        yield
    except BundleError:
        raise
    except (Refused, McdropError, RecursionError) as refusal:  # a reason may quote values nested without end
        raise BundleError(f"{path} cannot be used: {str(refusal).rstrip('.')}. {AGAIN}") from refusal
