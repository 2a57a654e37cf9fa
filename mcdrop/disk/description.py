"""What `model.json` says of a model beside its program: what a loaded model needs to be the one that was saved.

The folder holds the whole program; which of its sites draw is stated beside it (`include`, `exclude`, `rates`) and can
be changed there. How passes are computed together was proved for the sites named in `proved_sites`; for others it is
proved again, on made-up inputs.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mcdrop.answering.arguments import check_last_layer
from mcdrop.capturing.captured import Captured
from mcdrop.capturing.proofs import fuse, made_rows, proved_engine, proved_thinned
from mcdrop.engines.engine import GraphEngine
from mcdrop.engines.masks import Masks
from mcdrop.errors import SettingError
from mcdrop.graph.choosing import Choice
from mcdrop.graph.inputs import Signature
from mcdrop.graph.program import Program
from mcdrop.outputs.tasks import Task
from mcdrop.shortcuts.kept_passes import gathered_bound
from mcdrop.shortcuts.thinning import Thinned

__all__ = ["describe", "restore", "stated_choice"]

_MODES = ("folded", "mapped", "loop")


def describe(captured: Captured, engine: GraphEngine, task: Task, signature: Signature) -> dict[str, Any]:
    """The description of a model as plain JSON, less the names and defaults that its owner gave."""
    noise, choice = task.noise_variance, captured.choice
    return {
        "task": {
            "name": task.name,
            "output_kind": task.output_kind,
            "class_axis": task.class_axis,
            "noise_variance": noise.tolist() if isinstance(noise, Tensor) else noise,
        },
        "class_names": None if task.class_names is None else list(task.class_names),
        "include": None if choice.include is None else list(choice.include),
        "exclude": list(choice.exclude),
        "rates": dict(choice.rates),
        "last_layer": choice.last_layer,
        "keyword": signature.keyword,
        "mode": engine.mode,
        "merges": engine.merges,
        "joins": engine.joins,
        "apart": engine.apart,
        "proved_sites": [site.index for site in engine.program.active_sites],
        "neutral": engine.program.neutral,
        "output_shapes": [list(shape) for shape in captured.output_shapes],
    }


def stated_choice(meta: Mapping[str, Any], **instead: Any) -> Choice:
    """The choice that a description states, with settings that are given (not None) in place of its own."""
    return Choice.read(**{name: meta.get(name) if value is None else value for name, value in instead.items()})


def restore(
    program: Program,
    meta: Mapping[str, Any],
    choice: Choice,
    max_memory: int | None,
    thinned: bool = True,
    fast: bool = True,
) -> tuple[Task, Signature, Captured]:
    """What was described, under a choice that fits the program. Raises the errors of lookups where it cannot be."""
    stated = meta["task"]
    noise, names = stated.get("noise_variance"), meta.get("class_names")
    task = Task(
        stated["name"],
        output_kind=stated["output_kind"],
        class_axis=stated["class_axis"],
        noise_variance=torch.tensor(noise, device="cpu") if isinstance(noise, list) else noise,
        class_names=None if names is None else tuple(names),
    )
    check_last_layer(choice.last_layer, task.name)
    mode, merges = meta["mode"], bool(meta["merges"])
    apart = bool(meta.get("apart", False))  # older folders do not say
    if mode not in _MODES:
        raise SettingError(f"mode {mode!r} is unknown")
    chosen, masks = choice.apply(program), Masks.within(max_memory)
    if [site.index for site in chosen.active_sites] == meta.get("proved_sites", _numbers(program)):
        engine = GraphEngine(chosen, mode, masks)
        engine.merges, engine.joins, engine.apart = merges, bool(meta["joins"]), apart
        engine.thinned = _thinned_again(engine, gathered_bound(max_memory, thinned))
        if fast:
            fuse(engine)
    else:
        engine = _proved_again(chosen, masks, merges, apart, gathered_bound(max_memory, thinned), fast)
    shapes = tuple(tuple(int(size) for size in shape) for shape in meta["output_shapes"])
    signature = Signature(program.inputs, keyword=bool(meta["keyword"]))
    return task, signature, Captured(engine, chosen.sites, program, shapes, (), choice)


def _numbers(program: Program) -> list[int]:
    return [site.index for site in program.active_sites]


def _thinned_again(engine: GraphEngine, gathered: int) -> Thinned | None:
    """Thinned passes are not stored: they are made and proved anew, on made-up inputs."""
    try:
        return proved_thinned(engine, made_rows(engine.program), gathered) if engine.merges else None
    except Exception:  # a network may fail in any way on inputs that mean nothing to it
        return None


def _proved_again(program: Program, masks: Masks, merges: bool, apart: bool, gathered: int, fast: bool) -> GraphEngine:
    """An engine for sites that nothing is proved for yet: pass by pass where made-up inputs cannot prove more."""
    try:
        rows = made_rows(program)
        return proved_engine(program, rows, masks=masks, merges=merges, apart=apart, gathered=gathered, fast=fast)
    except Exception:  # a network may fail in any way on inputs that mean nothing to it
        engine = GraphEngine(program, "loop", masks)
        engine.merges, engine.apart = merges, apart
        return engine
