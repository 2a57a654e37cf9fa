"""A captured program compared with its network: the same without noise, and the same under the same draws.

`proofs` goes on from there, without the network.
"""

import torch
from torch import Tensor, nn

from mcdrop.capturing.flags import Flags, once, same
from mcdrop.capturing.proofs import (
    PROOF_SEED,
    gap,
    neutral_outputs,
    noise_mixes_rows,
    rounding,
    rows_interact,
    with_layout,
)
from mcdrop.engines.eager import drawing, neutral
from mcdrop.engines.engine import GraphEngine
from mcdrop.engines.supplies import Given
from mcdrop.errors import CaptureError, NoDropoutError, RowsInteractError
from mcdrop.graph.program import Program

__all__ = ["compared"]

_MIXED = (
    "under one mask for all rows a row alone gives another output than among 3 rows: by its noise the rows of a batch "
    "influence one another, as where noise is scaled by statistics of the batch. Scale it by values of its row, or "
    "pass allow_row_interaction=True and read answers as answers about whole batches."
)


def compared(
    network: nn.Module, program: Program, rows: list[Tensor], flags: Flags, allow_row_interaction: bool
) -> tuple[Program, tuple[Tensor, ...], bool, bool]:
    """The proved program, its outputs without noise, whether rows are alone, and whether their own masks would mix.

    Raises:
        CaptureError: the program does not do what the network does.
        NoDropoutError: no draw reaches the output.
        RowsInteractError: rows influence one another and `allow_row_interaction` is False.
    """
    program = program.channels_last()
    engine = GraphEngine(program, "loop")
    outputs = _prove_neutral(network, engine, rows, flags)
    interact = rows_interact(engine, rows, outputs)
    if interact and not allow_row_interaction:
        raise RowsInteractError(interact)
    if not any(engine.parts.stochastic_outputs):
        raise NoDropoutError("the network draws, but no draw reaches the output, so every sample would be the same.")
    _prove_replay(network, engine, rows)
    if not interact:
        program, engine = with_layout(program, engine, rows)
    shared, own = (not interact and noise_mixes_rows(engine, rows, n) for n in (None, torch.arange(3, device="cpu")))
    if shared and not allow_row_interaction:
        raise RowsInteractError(_MIXED)
    mixed = shared or own
    merges = not interact and not (mixed and allow_row_interaction)
    return program, outputs, merges, mixed and not allow_row_interaction


def _prove_neutral(network: nn.Module, engine: GraphEngine, rows: list[Tensor], flags: Flags) -> tuple[Tensor, ...]:
    found = neutral_outputs(engine, rows)
    if flags.exact:
        truth, against = flags.neutral_outputs, "the network in evaluation mode"
    else:
        with neutral():
            truth, against = once(network, rows), "the network under its mean noise"
    for a, b in zip(found, truth, strict=True):
        if not same(a, b, rounding(engine.program)):
            raise CaptureError(
                f"the captured program without noise differs from {against}: by {gap(a, b)} where outputs reach "
                f"{float(b.abs().max()):.3g}. The network does something in training mode that is no dropout."
            )
    return found


def _prove_replay(network: nn.Module, engine: GraphEngine, rows: list[Tensor]) -> None:
    numbers = torch.arange(3, device="cpu")
    count = 0
    for t in range(2):
        draws = engine.draws(rows, passes=range(t, t + 1), seed=PROOF_SEED, rows=numbers)
        by_index = {site.index: draw[0] for (site, _), draw in zip(engine.parts.draws, draws, strict=True)}
        values = [by_index.get(index) for index in range(max(by_index) + 1)]
        supply = Given(values)
        with drawing(supply):
            truth = once(network, rows)
        wanted = [tuple(by_index[i].shape) if i in by_index else None for i in range(len(values))]
        for number, shape in enumerate(wanted):
            if shape is not None and (number >= supply.count or supply.shapes[number] != shape):
                raise CaptureError(
                    f"the network and its captured program draw differently: draw {number} has shape "
                    f"{supply.shapes[number] if number < supply.count else None} in the network and "
                    f"{shape} in the program."
                )
        found = engine.apply(rows, engine.prepare(rows), draws, "loop")
        for a, b in zip(found, truth, strict=True):
            if not same(a[0], b, rounding(engine.program)):
                raise CaptureError(
                    f"with the same draws the captured program differs from the network, by {gap(a[0], b)} where "
                    f"outputs reach {float(b.abs().max()):.3g}: a site was lost or changed."
                )
        count += supply.count
