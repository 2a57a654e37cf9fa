"""A model into a folder, and out of one: what it is made of, checked on the way in."""

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from mcdrop.answering.definition import Definition
from mcdrop.disk.bundle import read_bundle, write_bundle
from mcdrop.disk.description import describe, restore, stated_choice
from mcdrop.engines.engine import GraphEngine
from mcdrop.errors import BundleError, SettingError

__all__ = ["read_model", "write_model"]


def write_model(folder: str | os.PathLike[str], model: Definition) -> None:
    """Write a model into a folder that needs none of the user's code to be loaded.

    Raises:
        BundleError: the network runs eagerly or uses an operation that the format does not hold, or the folder holds
            something else.
    """
    captured = model.captured
    program = captured.program
    if program is None or not isinstance(captured.engine, GraphEngine):
        raise BundleError(
            "this network runs on the eager engine, so there is no program to save. Rewrite what keeps it from being "
            "captured (the warning at construction says what) and capture it again."
        )
    # the lines of code that draw are kept by file name: where they lie is nobody else's business
    sites = tuple(replace(site, source=site.source and os.path.basename(site.source)) for site in program.sites)
    names = {"name": model.name, "version": model.version}
    defaults = {"num_samples": model.num_samples, "seed": model.seed, "masks": model.masks}
    described = describe(captured, captured.engine, model.task, model.signature)
    write_bundle(folder, replace(program, sites=sites), {**names, **described, **defaults})


def read_model(
    folder: str | os.PathLike[str],
    *,
    device: torch.device,
    thinned: bool,
    fast: bool,
    max_memory: int | None,
    instead: Mapping[str, Any],
) -> Definition:
    """Read what was written. `instead` has settings of the choice of sites, in place of the saved ones where not None.

    Raises:
        BundleError: the folder is incomplete, damaged, hostile or from a newer version.
        NoDropoutError, SettingError: something of `instead` does not fit.
    """
    program, meta = read_bundle(folder, device=device)
    program = replace(program.channels_last(), neutral=meta.get("neutral") is True)
    try:
        choice = stated_choice(meta, **instead, last_layer=None)
        choice.apply(program)
    except SettingError as error:
        if any(value is not None for value in instead.values()):
            raise
        raise BundleError(f"{os.fspath(folder)}: model.json chooses what cannot be: {error}") from error
    try:
        task, signature, captured = restore(program, meta, choice, max_memory, thinned, fast)
        return Definition(
            captured, task, signature, meta["num_samples"], meta["seed"], meta["masks"], meta.get("name"),
            meta["version"],
        )  # fmt: skip
    except (KeyError, TypeError, AttributeError, SettingError, StopIteration) as error:
        raise BundleError(
            f"{os.fspath(folder)}: model.json does not describe a model ({type(error).__name__}: {error}). Save the "
            "model again."
        ) from error
