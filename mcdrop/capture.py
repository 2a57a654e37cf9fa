"""nn.Module + example inputs -> a proved program.

Capture takes a private copy, finds which training flags switch dropout on (`flags`), traces the copy (`tracing`), and
then proves what it has, by checks that each cost a few passes on the example:

    neutral   with every draw at its mean the program does what the network does in evaluation mode
    replay    with the same draws the program does what the flagged copy does: no mask lost, none out of order
    engine    many passes at a time give what one pass at a time gives; a row gives the same alone, among others and
              in another place

What fails is an error that says what differs. Nothing here touches the user's network or any global state that it does
not put back.
"""

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from mcdrop.eager import EagerEngine, Given, Traced, drawing, global_generators, neutral
from mcdrop.engine import Engine, GraphEngine
from mcdrop.errors import CaptureError, NoDropoutError, RowsInteractError
from mcdrop.flags import Flags, buffers_of, find_flags, put_back, same
from mcdrop.inputs import InputSpec
from mcdrop.masks import Masks
from mcdrop.program import Program
from mcdrop.proofs import PROOF_SEED, gap, neutral_outputs, proved_engine, rounding, rows_interact, with_layout
from mcdrop.sites import Site, own_path
from mcdrop.snapshot import Adapter
from mcdrop.tracing import EXPORT_LOCK, trace

__all__ = ["Captured", "capture"]

_CANNOT = (
    "every row and pass takes a forward pass of its own, calls wait for one another, nothing is proved, "
    "and the model cannot be saved or served from disk"
)


@dataclass(frozen=True)
class Captured:
    """What capture found: an engine, the sites, and for the graph engine its program."""

    engine: Engine
    sites: tuple[Site, ...]
    program: Program | None
    output_shapes: tuple[tuple[int, ...], ...]  # of one row, without the batch axis
    output_example: tuple[Tensor, ...]


def capture(
    network: Adapter,
    example: Sequence[Tensor],
    specs: tuple[InputSpec, ...],
    *,
    engine: Literal["auto", "graph", "eager"],
    allow_row_interaction: bool,
    max_memory: int | None = None,
) -> Captured:
    """Turn a private copy into an engine.

    Raises:
        NoDropoutError: nothing is stochastic.
        RowsInteractError: rows influence one another and `allow_row_interaction` is False.
        CaptureError: the program is not faithful, or `engine="graph"` and the network cannot be traced.
    """
    rows = _proof_rows(example, specs)
    with EXPORT_LOCK, EagerEngine.lock, global_generators():
        flags = find_flags(network, rows)
        buffers = buffers_of(network)
        if engine == "eager":
            return _eager(network, specs, rows, flags, allow_row_interaction)
        try:
            if flags.foreign:
                raise CaptureError("the network draws random numbers outside of PyTorch (Python or NumPy)")
            before = torch.random.get_rng_state()
            program = trace(network, [row.clone() for row in rows], specs)
            put_back(network, buffers)
            if not torch.equal(torch.random.get_rng_state(), before):
                raise CaptureError("the network drew a number while it was traced, which the graph would keep for ever")
        except CaptureError as error:
            if engine == "graph" or type(error) is not CaptureError:
                raise
            captured = _eager(network, specs, rows, flags, allow_row_interaction)
            warnings.warn(
                f"{type(network.network).__name__} cannot be captured as a graph, so it runs eagerly: {_CANNOT}. "
                f"Reason: {error}",
                stacklevel=3,
            )
            return captured
        program = _with_inactive(program, flags)
        if not program.active_sites:
            raise _no_dropout(network.network, program.sites, flags)
        return _proved(network, program, rows, flags, allow_row_interaction, Masks.within(max_memory))


# ---- the rows on which things are proved


def _proof_rows(example: Sequence[Tensor], specs: Sequence[InputSpec]) -> list[Tensor]:
    """Three rows made from the example's; an example of one row is varied, so that rows differ."""
    rows = []
    for tensor, spec in zip(example, specs, strict=True):
        if not spec.batched:
            rows.append(tensor)
        elif tensor.shape[0] >= 3:
            rows.append(tensor[:3].contiguous())
        else:
            first = tensor[:1]
            second = tensor[1:2] if tensor.shape[0] == 2 else _varied(first, 1)
            rows.append(torch.cat([first, second, _varied(first, 2)]))
    return rows


def _varied(row: Tensor, number: int) -> Tensor:
    """A row like `row` but not equal to it: scaled if it holds real numbers, rolled along its last axis if not."""
    if row.is_floating_point():
        return row * (1 - 0.15 * number) + 0.05 * number * (1 if row.any() else 5)
    if row.dtype != torch.bool and row.ndim > 1:
        return row.roll(number, -1)
    return row


# ---- sites


def _with_inactive(program: Program, flags: Flags) -> Program:
    """Add the sites that stay off because their flag does more than switch dropout on."""
    off = tuple(
        Site(
            index=-1,
            path=own_path(path),
            kind="training flag",
            p=None,
            law="bernoulli",
            scale=1.0,
            shape=(),
            row_axis=None,
            row_major=True,
            active=False,
            reason=reason,
            source=None,
        )
        for path, reason in flags.off.items()
    )
    return replace(program, sites=(*program.sites, *off))


def _no_dropout(model: nn.Module, sites: Sequence[Site], flags: Flags) -> NoDropoutError:
    name, count = type(model).__name__, sum(1 for _ in model.modules())
    if sites:
        listed = "; ".join(f"{site.path or name}: {site.reason}" for site in sites[:6])
        return NoDropoutError(
            f"{name} has {len(sites)} stochastic site{'s' * (len(sites) != 1)} and none is active, so "
            "every sample would "
            f"be the same ({listed}). Train the network with a rate above 0."
        )
    idle = [path for path, module in model.named_modules() if getattr(module, "p", None) == 0]
    if idle:
        return NoDropoutError(
            f"{name} has dropout with p = 0 alone ({', '.join(idle[:6])}), so every sample would be the same: p is 0. "
            "Train the network with a rate above 0."
        )
    return NoDropoutError(
        f"{name} has no dropout, so every sample would be the same. Looked at {count} modules ({flags.readers} of them "
        "read their training flag) for dropout, feature, alpha and attention dropout, dropout "
        "between recurrent layers, "
        "and bernoulli, uniform and normal draws. Train the network with dropout."
    )


# ---- the proofs


def _proved(
    network: nn.Module,
    program: Program,
    rows: list[Tensor],
    flags: Flags,
    allow_row_interaction: bool,
    masks: Masks,
) -> Captured:
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
    proved = proved_engine(program, rows, masks=masks, merges=not interact)
    return Captured(proved, program.sites, program, tuple(tuple(o.shape[1:]) for o in outputs), outputs)


def _once(network: nn.Module, rows: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """One forward pass of the copy, whose buffers are put back."""
    buffers = buffers_of(network)
    outputs = tuple(output.clone() for output in network(*(row.clone() for row in rows)))
    put_back(network, buffers)
    return outputs


def _prove_neutral(network: nn.Module, engine: GraphEngine, rows: list[Tensor], flags: Flags) -> tuple[Tensor, ...]:
    found = neutral_outputs(engine, rows)
    if flags.exact:
        truth, against = flags.neutral_outputs, "the network in evaluation mode"
    else:
        with neutral():
            truth, against = _once(network, rows), "the network under its mean noise"
    for a, b in zip(found, truth, strict=True):
        if not same(a, b, rounding(engine.program)):
            raise CaptureError(
                f"the captured program without noise differs from {against}: by {gap(a, b)} where outputs reach "
                f"{float(b.abs().max()):.3g}. The network does something in training mode that is no dropout."
            )
    return found


def _prove_replay(network: nn.Module, engine: GraphEngine, rows: list[Tensor]) -> None:
    numbers = torch.arange(3)
    count = 0
    for t in range(2):
        draws = engine.draws(rows, passes=range(t, t + 1), seed=PROOF_SEED, rows=numbers)
        by_index = {site.index: draw[0] for (site, _), draw in zip(engine.parts.draws, draws, strict=True)}
        values = [by_index.get(index) for index in range(max(by_index) + 1)]
        supply = Given(values)
        with drawing(supply):
            truth = _once(network, rows)
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


# ---- the network itself as engine


def _eager(
    network: Adapter, specs: Sequence[InputSpec], rows: list[Tensor], flags: Flags, allow_row_interaction: bool
) -> Captured:
    batched = [spec.batched for spec in specs]
    traces = []
    for count in (1, 2):
        part = [row[:count] if spec.batched else row for row, spec in zip(rows, specs, strict=True)]
        with neutral() as supply:
            outputs = _once(network, part)
        traces.append(supply.shapes)
    by_row = [a != b for a, b in zip(*traces, strict=False)] if len(traces[0]) == len(traces[1]) else None
    engine = EagerEngine(copy.copy(network), batched, by_row, together=allow_row_interaction)
    one, again = (engine.passes(rows, [], passes=range(8), seed=seed, rows=None) for seed in (1, 2))
    stochastic = any(not torch.equal(a, b) for a, b in zip(one, again, strict=True))
    if not stochastic and supply.count:  # a small rate may drop nothing in so few passes
        with neutral(kept=0.0):
            dropped = _once(network, part)
        stochastic = any(not torch.equal(a, b) for a, b in zip(outputs, dropped, strict=True))
    sites = _traced_sites(network, rows, by_row)
    if not stochastic:
        raise _no_dropout(network.network, (), flags)
    shapes = tuple(tuple(o.shape[1:]) for o in outputs)
    return Captured(engine, sites, None, shapes, tuple(o.clone() for o in outputs))


def _traced_sites(network: Adapter, rows: list[Tensor], by_row: Sequence[bool] | None) -> tuple[Site, ...]:
    """What one forward pass of the network drew."""
    supply = Traced(network)
    try:
        with drawing(supply):
            _once(network, rows)
    finally:
        supply.close()
    sites = []
    for index, ((path, law, p, source), shape) in enumerate(zip(supply.found, supply.shapes, strict=True)):
        rowwise = by_row is None or index >= len(by_row) or by_row[index]
        axis = next((axis for axis, size in enumerate(shape) if rowwise and size == len(rows[0])), None)
        sites.append(
            Site(
                index=index,
                path=own_path(path),
                kind="dropout" if law == "bernoulli" else law,
                p=p,
                law="bernoulli" if law == "bernoulli" else "normal" if law == "normal" else "uniform",
                scale=1.0,
                shape=tuple("batch" if number == axis else size for number, size in enumerate(shape)),
                row_axis=axis,
                row_major=True,
                active=True,
                reason=None,
                source=source,
            )
        )
    return tuple(sites)
