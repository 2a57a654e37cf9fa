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

from mcdrop.draws import alpha_scale, bernoulli, noise, scale
from mcdrop.eager import EagerEngine, Given, Traced, drawing, global_generators, neutral
from mcdrop.engine import Engine, GraphEngine, Mode
from mcdrop.errors import CaptureError, NoDropoutError, RowsInteractError
from mcdrop.flags import Flags, buffers_of, find_flags, put_back, same
from mcdrop.inputs import InputSpec
from mcdrop.masks import Masks
from mcdrop.program import Program
from mcdrop.sites import Site, own_path
from mcdrop.snapshot import Adapter
from mcdrop.tracing import EXPORT_LOCK, trace

__all__ = ["Captured", "capture"]

_PROOF_SEED = 0x9E3779B9
_CANNOT = (
    "every row and pass takes a forward pass of its own, calls wait for one another, nothing is proved, "
    "and the model cannot be saved or served from disk"
)

_MIXED = (
    "under one mask for all rows a row alone gives another output than among 3 rows: by its noise the rows of a batch "
    "influence one another, as where noise is scaled by statistics of the batch. Scale it by values of its row, or "
    "pass allow_row_interaction=True and read answers as answers about whole batches."
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
        telling = sorted(sites, key=lambda site: site.reason == "p is 0")  # what may surprise comes first
        listed = "; ".join(f"{site.path or name}: {site.reason}" for site in telling[:6])
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
    interact = _rows_interact(engine, rows, outputs)
    if interact and not allow_row_interaction:
        raise RowsInteractError(interact)
    if not any(engine.parts.stochastic_outputs):
        raise NoDropoutError("the network draws, but no draw reaches the output, so every sample would be the same.")
    _prove_replay(network, engine, rows)
    if not interact:
        program, engine = _with_layout(program, engine, rows)
    shared, own = (not interact and _noise_mixes_rows(engine, rows, n) for n in (None, torch.arange(3)))
    if shared and not allow_row_interaction:
        raise RowsInteractError(_MIXED)
    mixed = shared or own
    mode = _fastest_proved(engine, rows)
    proved = GraphEngine(program, mode, masks)
    proved.merges = not interact and not (mixed and allow_row_interaction)
    proved.joins = not interact and _rows_join(proved, rows)
    proved.apart = mixed and not allow_row_interaction
    return Captured(proved, program.sites, program, tuple(tuple(o.shape[1:]) for o in outputs), outputs)


def _once(network: nn.Module, rows: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """One forward pass of the copy, whose buffers are put back."""
    buffers = buffers_of(network)
    outputs = tuple(output.clone() for output in network(*(row.clone() for row in rows)))
    put_back(network, buffers)
    return outputs


def rounding(program: Program) -> float | None:
    """The relative difference that half precision anywhere inside explains; None where there is none."""
    dtypes = {weight.dtype for weight in program.weights.values()}
    dtypes |= {
        value for node in program.graph.nodes for value in node.kwargs.values() if isinstance(value, torch.dtype)
    }
    return 3e-2 if dtypes & {torch.bfloat16, torch.float16} else None


def _neutral_outputs(engine: GraphEngine, rows: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The program with every draw at its mean, by a graph in which dropout is the identity."""
    graph = torch.fx.Graph()
    graph.output(graph.graph_copy(engine.program.graph, {}))
    sites = {site.index: site for site in engine.program.active_sites}
    for node in list(graph.nodes):
        if node.target in (scale, alpha_scale):
            node.replace_all_uses_with(node.args[0])
        elif node.target is bernoulli:
            node.replace_all_uses_with(node.args[1])
    graph.eliminate_dead_code()
    for node in list(graph.nodes):
        if node.target is noise:
            site = sites[node.args[0]]
            mean = {"uniform": 0.5, "normal": 0.0}.get(site.law, 1 - (site.p or 0.0))
            with graph.inserting_before(node):
                filled = graph.call_function(torch.full, (node.args[1], mean), {"device": engine.device})
            node.replace_all_uses_with(filled)
            graph.erase_node(node)
    weights = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    module = torch.fx.GraphModule({name: engine.program.weights[name] for name in weights}, graph)
    with torch.no_grad():
        return tuple(module(*rows))


def _prove_neutral(network: nn.Module, engine: GraphEngine, rows: list[Tensor], flags: Flags) -> tuple[Tensor, ...]:
    found = _neutral_outputs(engine, rows)
    if flags.exact:
        truth, against = flags.neutral_outputs, "the network in evaluation mode"
    else:
        with neutral():
            truth, against = _once(network, rows), "the network under its mean noise"
    for a, b in zip(found, truth, strict=True):
        if not same(a, b, rounding(engine.program)):
            raise CaptureError(
                f"the captured program without noise differs from {against}: by {_gap(a, b)} where outputs reach "
                f"{float(b.abs().max()):.3g}. The network does something in training mode that is no dropout."
            )
    return found


def _gap(a: Tensor, b: Tensor) -> str:
    if a.shape != b.shape:
        return f"shape {tuple(a.shape)} for {tuple(b.shape)}"
    return f"{float((a.double() - b.double()).abs().nan_to_num(float('inf')).max()):.3g}"


def _prove_replay(network: nn.Module, engine: GraphEngine, rows: list[Tensor]) -> None:
    numbers = torch.arange(3)
    count = 0
    for t in range(2):
        draws = engine.draws(rows, passes=range(t, t + 1), seed=_PROOF_SEED, rows=numbers)
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
                    f"with the same draws the captured program differs from the network, by {_gap(a[0], b)} where "
                    f"outputs reach {float(b.abs().max()):.3g}: a site was lost or changed."
                )
        count += supply.count


def _rows_interact(engine: GraphEngine, rows: list[Tensor], outputs: tuple[Tensor, ...]) -> str | None:
    """Why the rows of a batch are not alone, or None: a row alone has to give what it gives among others."""
    specs = engine.program.inputs
    for output in outputs:
        if output.ndim == 0 or output.shape[0] != 3:
            return (
                f"the output has shape {tuple(output.shape)} for 3 rows, so its axis 0 is not the "
                "batch: return one row "
                "for each input row, batch first."
            )
    for i in range(3):
        alone = [row[i : i + 1] if spec.batched else row for row, spec in zip(rows, specs, strict=True)]
        try:
            single = _neutral_outputs(engine, alone)
        except Exception as error:  # a program that was made for several rows can fail in any way on one
            return f"one row alone cannot be computed ({type(error).__name__}: {str(error)[:200]}), three can"
        for a, b in zip(single, outputs, strict=True):
            if not same(a, b[i : i + 1], rounding(engine.program)):
                return (
                    f"row {i} alone gives another output than among 3 rows, by {_gap(a, b[i : i + 1])}: the rows of a "
                    "batch influence one another (batch statistics, or a product or mean over the batch). Give "
                    "BatchNorm its running averages, or pass allow_row_interaction=True and read answers as answers "
                    "about whole batches."
                )
    return None


def _with_layout(program: Program, engine: GraphEngine, rows: list[Tensor]) -> tuple[Program, GraphEngine]:
    """Find for axes that run over rows and other units which of the two is slow, by exchanging rows."""
    if _rows_move(engine, rows):
        return program, engine
    for chosen in [*((index,) for index in range(len(program.sites))), tuple(range(len(program.sites)))]:
        sites = tuple(
            replace(site, row_major=False) if number in chosen else site for number, site in enumerate(program.sites)
        )
        other = replace(program, sites=sites)
        candidate = GraphEngine(other, "loop")
        if _rows_move(candidate, rows):
            return other, candidate
    raise RowsInteractError(
        "rows in another order give other outputs under the same draws: the rows of a batch influence one another, or "
        "share an axis with other units in a way that mcdrop cannot tell apart. Pass allow_row_interaction=True to go "
        "on all the same."
    )


def _rows_move(engine: GraphEngine, rows: list[Tensor]) -> bool:
    """Whether rows in another order give the same outputs in that order, with both kinds of masks."""
    order = torch.tensor([2, 0, 1])
    moved = [row[order] if spec.batched else row for row, spec in zip(rows, engine.program.inputs, strict=True)]
    for numbers in (None, torch.arange(3)):
        there = None if numbers is None else numbers[order]
        first, second = (
            engine.apply(x, engine.prepare(x), engine.draws(x, passes=range(2), seed=_PROOF_SEED, rows=number), "loop")
            for x, number in ((rows, numbers), (moved, there))
        )
        if not all(same(b, a[:, order], rounding(engine.program)) for a, b in zip(first, second, strict=True)):
            return False
    return True


def _noise_mixes_rows(engine: GraphEngine, rows: list[Tensor], numbers: Tensor | None) -> bool:
    """Whether rows influence one another by noise, as where a mask is normalised over the batch.

    `numbers` are those of rows that draw for themselves; None is one draw for all. The mean noise of `_rows_interact`
    cannot show it. So one row drops all units but one and one keeps all but one, among others as alone.
    """
    sites = [site for site, _ in engine.parts.draws]
    alone = [
        [x[i : i + 1] if spec.batched else x for x, spec in zip(rows, engine.program.inputs, strict=True)]
        for i in range(3)
    ]
    draws = [
        engine.draws(one, passes=range(1), seed=_PROOF_SEED, rows=None if numbers is None else numbers[i : i + 1])
        for i, one in enumerate(alone)
    ]
    together = draws[0]
    if numbers is not None:
        for site, first, second in zip(sites, draws[0], draws[1], strict=True):
            if site.row_axis is not None:
                _set_apart(site, first, second)
        together = [_as_batch(site, each) for site, each in zip(sites, zip(*draws, strict=True), strict=True)]
    found = engine.apply(rows, engine.prepare(rows), together, "loop")
    truths = [engine.apply(one, engine.prepare(one), draw, "loop") for one, draw in zip(alone, draws, strict=True)]
    return not all(
        same(one, many[:, i : i + 1], rounding(engine.program))
        for i, outputs in enumerate(truths)
        for one, many in zip(outputs, found, strict=True)
    )


def _set_apart(site: Site, first: Tensor, second: Tensor) -> None:
    """Draws of two rows, as far apart as the law allows: at one end but for one unit, and at the other."""
    low, high = {"bernoulli": (0.0, site.scale), "uniform": (2.0**-12, 1 - 2.0**-12), "normal": (-3.0, 3.0)}[site.law]
    for draw, most, one in ((first, low, high), (second, high, low)):
        draw.fill_(most).view(-1)[draw.numel() // 2] = one


def _as_batch(site: Site, draws: Sequence[Tensor]) -> Tensor:
    """Draws (passes, ...) of single rows as the draw of their batch."""
    if site.row_axis is None:
        return draws[0]
    axis = site.row_axis + 1
    if site.row_major:
        return torch.cat(list(draws), axis)
    return torch.stack(list(draws), axis + 1).flatten(axis, axis + 1)


def _rows_join(engine: GraphEngine, rows: list[Tensor]) -> bool:
    """Whether the frontiers of single rows, joined, are the frontier of the batch: an axis may mix rows and units."""
    if engine.parts.frontier_axes is None:
        return False
    specs = engine.program.inputs
    single = [
        engine.prepare([row[i : i + 1] if spec.batched else row for row, spec in zip(rows, specs, strict=True)])
        for i in range(3)
    ]
    engine.joins = True
    joined = engine.join(single) or []
    return all(same(a, b, rounding(engine.program)) for a, b in zip(joined, engine.prepare(rows), strict=True))


def _fastest_proved(engine: GraphEngine, rows: list[Tensor]) -> Mode:
    """The fastest way to compute passes together that gives what one at a time gives."""
    prepared = engine.prepare(rows)
    draws = [engine.draws(rows, passes=range(3), seed=_PROOF_SEED, rows=r) for r in (None, torch.arange(3))]
    truths = [engine.apply(rows, prepared, draw, "loop") for draw in draws]
    modes: tuple[Mode, ...] = ("folded", "mapped") if engine.parts.folded is not None else ("mapped",)
    for mode in modes:
        try:
            founds = [engine.apply(rows, prepared, draw, mode) for draw in draws]
        except Exception:  # whatever an operation without a batching rule raises: the next way is tried
            continue
        pairs = [pair for found, truth in zip(founds, truths, strict=True) for pair in zip(found, truth, strict=True)]
        if all(same(a, b, rounding(engine.program)) for a, b in pairs):
            return mode
    return "loop"


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
    traced = [(a, a != b) for a, b in zip(*traces, strict=True)] if len(traces[0]) == len(traces[1]) else None
    engine = EagerEngine(copy.copy(network), batched, traced, together=allow_row_interaction)
    one, again = (engine.passes(rows, [], passes=range(8), seed=seed, rows=None) for seed in (1, 2))
    stochastic = any(not torch.equal(a, b) for a, b in zip(one, again, strict=True))
    if not stochastic and supply.count:  # a small rate may drop nothing in so few passes
        with neutral(kept=0.0):
            dropped = _once(network, part)
        stochastic = any(not torch.equal(a, b) for a, b in zip(outputs, dropped, strict=True))
    sites = _traced_sites(network, rows, traced)
    if not stochastic:
        raise _no_dropout(network.network, (), flags)
    shapes = tuple(tuple(o.shape[1:]) for o in outputs)
    return Captured(engine, sites, None, shapes, tuple(o.clone() for o in outputs))


def _traced_sites(
    network: Adapter, rows: list[Tensor], traced: Sequence[tuple[tuple[int, ...], bool]] | None
) -> tuple[Site, ...]:
    """What one forward pass of the network drew."""
    supply = Traced(network)
    try:
        with drawing(supply):
            _once(network, rows)
    finally:
        supply.close()
    sites = []
    for index, ((path, law, p, source), shape) in enumerate(zip(supply.found, supply.shapes, strict=True)):
        rowwise = traced is None or index >= len(traced) or traced[index][1]
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
