"""Proofs about a program alone, by a few passes over rows: what its rows and passes may be put together.

The network that a program was made from has no part in them; `comparing` compares the two.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mcdrop.capturing.flags import same
from mcdrop.engines.engine import GraphEngine, Mode
from mcdrop.engines.masks import Masks
from mcdrop.errors import RowsInteractError
from mcdrop.graph.choosing import mean_of
from mcdrop.graph.draws import alpha_scale, bernoulli, noise, scale
from mcdrop.graph.examples import example_inputs, proof_rows
from mcdrop.graph.program import Program
from mcdrop.graph.sites import Site
from mcdrop.shortcuts.fusing import fused
from mcdrop.shortcuts.thinning import Thinned, can_be_thinned, thin

__all__ = [
    "PROOF_SEED",
    "fuse",
    "gap",
    "made_rows",
    "neutral_outputs",
    "proved_engine",
    "proved_thinned",
    "rounding",
    "rows_interact",
    "with_layout",
]

PROOF_SEED = 0x9E3779B9

_ROUNDING = 1e-5  # by which fused parts may differ, relative to the largest number


def rounding(program: Program) -> float | None:
    """The relative difference that half precision anywhere inside explains; None where there is none."""
    dtypes = {weight.dtype for weight in program.weights.values()}
    dtypes |= {
        value for node in program.graph.nodes for value in node.kwargs.values() if isinstance(value, torch.dtype)
    }
    return 3e-2 if dtypes & {torch.bfloat16, torch.float16} else None


def neutral_outputs(engine: GraphEngine, rows: Sequence[Tensor]) -> tuple[Tensor, ...]:
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
            with graph.inserting_before(node):
                filled = graph.call_function(torch.full, (node.args[1], mean_of(site)), {"device": engine.device})
            node.replace_all_uses_with(filled)
            graph.erase_node(node)
    weights = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    module = torch.fx.GraphModule({name: engine.program.weights[name] for name in weights}, graph)
    with torch.no_grad():
        return tuple(module(*rows))


def gap(a: Tensor, b: Tensor) -> str:
    if a.shape != b.shape:
        return f"shape {tuple(a.shape)} for {tuple(b.shape)}"
    return f"{float((a.double() - b.double()).abs().nan_to_num(float('inf')).max()):.3g}"


def rows_interact(engine: GraphEngine, rows: list[Tensor], outputs: tuple[Tensor, ...]) -> str | None:
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
            single = neutral_outputs(engine, alone)
        except Exception as error:  # a program that was made for several rows can fail in any way on one
            return f"one row alone cannot be computed ({type(error).__name__}: {str(error)[:200]}), three can"
        for a, b in zip(single, outputs, strict=True):
            if not same(a, b[i : i + 1], rounding(engine.program)):
                return (
                    f"row {i} alone gives another output than among 3 rows, by {gap(a, b[i : i + 1])}: the rows of a "
                    "batch influence one another (batch statistics, or a product or mean over the batch). Give "
                    "BatchNorm its running averages, or pass allow_row_interaction=True and read answers as answers "
                    "about whole batches."
                )
    return None


def with_layout(program: Program, engine: GraphEngine, rows: list[Tensor]) -> tuple[Program, GraphEngine]:
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
    order = torch.tensor([2, 0, 1], device="cpu")
    moved = [row[order] if spec.batched else row for row, spec in zip(rows, engine.program.inputs, strict=True)]
    for numbers in (None, torch.arange(3, device="cpu")):
        there = None if numbers is None else numbers[order]
        first, second = (
            engine.apply(x, engine.prepare(x), engine.draws(x, passes=range(2), seed=PROOF_SEED, rows=number), "loop")
            for x, number in ((rows, numbers), (moved, there))
        )
        if not all(same(b, a[:, order], rounding(engine.program)) for a, b in zip(first, second, strict=True)):
            return False
    return True


def noise_mixes_rows(engine: GraphEngine, rows: list[Tensor], numbers: Tensor | None) -> bool:
    """Whether rows influence one another by noise, as where a mask is normalised over the batch.

    `numbers` are those of rows that draw for themselves; None is one draw for all. The mean noise of `rows_interact`
    cannot show it. So one row drops all units but one and one keeps all but one, among others as alone.
    """
    sites = [site for site, _ in engine.parts.draws]
    alone = [
        [x[i : i + 1] if spec.batched else x for x, spec in zip(rows, engine.program.inputs, strict=True)]
        for i in range(3)
    ]
    draws = [
        engine.draws(one, passes=range(1), seed=PROOF_SEED, rows=None if numbers is None else numbers[i : i + 1])
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


def proved_engine(
    program: Program, rows: list[Tensor], *, masks: Masks, merges: bool, apart: bool, gathered: int, fast: bool = True
) -> GraphEngine:
    """An engine that computes passes together in the fastest way that is proved; `merges` says that rows are alone,
    `apart` that their own masks would mix, `gathered` how many bytes thinned passes may keep, `fast` that its parts
    may be fused."""
    mode = _fastest_proved(GraphEngine(program, "loop"), rows) if program.active_sites else "loop"
    engine = GraphEngine(program, mode, masks)
    engine.merges, engine.apart = merges, apart
    engine.joins = merges and _rows_join(engine, rows)
    engine.thinned = proved_thinned(engine, rows, gathered) if merges and program.active_sites else None
    if fast and program.active_sites:
        fuse(engine, rows)
    return engine


def proved_thinned(engine: GraphEngine, rows: list[Tensor], gathered: int) -> Thinned | None:
    """The suffix over kept units, where there is one and it gives what plain passes give; keeps `gathered` bytes."""
    if gathered == 0 or engine.device.type != "cpu" or not can_be_thinned(engine.parts):
        return None
    prepared, sizes = engine.prepare(rows), engine.parts.sizes(rows)
    draws = [draw.clone() for draw in engine.draws(rows, passes=range(4), seed=PROOF_SEED, rows=None)]
    for (site, _), draw in zip(engine.parts.draws, draws, strict=True):
        if site.law == "bernoulli":  # besides what is likely, all dropped and all kept
            draw[2], draw[3] = 0.0, site.scale
    with torch.no_grad():
        arguments = [*sizes, *prepared, *(draw[0] for draw in draws)]
        thinned = thin(engine.parts, arguments, engine.rows_of(rows), bound=gathered)
        if thinned is None or thinned.cost.least_rows is None:
            return None
        try:
            founds = thinned.passes(sizes, prepared, draws, passes=range(4), seed=PROOF_SEED)
        except RuntimeError:  # vmap has no rule for an operation in some layout
            return None
    truths = engine.apply(rows, prepared, draws, "loop")
    proved = all(same(a, b, rounding(engine.program)) for a, b in zip(founds, truths, strict=True))
    return thinned if proved else None


def fuse(engine: GraphEngine, rows: list[Tensor] | None = None) -> None:
    """Give an engine fused parts where they do what its own do, on made-up rows if none are given."""
    plain, twin = engine.parts, copy.copy(engine)
    folded = fused(plain.folded) if engine.mode == "folded" and plain.folded is not None else plain.folded
    twin.parts = replace(plain, prefix=fused(plain.prefix), folded=folded)
    try:
        rows = rows or made_rows(engine.program)
        pairs = [*zip(twin.prepare(rows), engine.prepare(rows), strict=True)]
        for numbers in (None, torch.arange(3, device="cpu")):
            draws = engine.draws(rows, passes=range(3), seed=PROOF_SEED, rows=numbers)
            found, truth = (each.apply(rows, each.prepare(rows), draws, engine.mode) for each in (twin, engine))
            pairs += zip(found, truth, strict=True)
    except Exception:  # a network may fail in any way on inputs that mean nothing to it
        return
    if all(same(a, b, rounding(engine.program) or _ROUNDING) for a, b in pairs):
        engine.parts, engine.fused = twin.parts, True


def made_rows(program: Program) -> list[Tensor]:
    """Rows that fit the inputs of a program and mean nothing, where there is no example."""
    made = [tensor.to(program.device) for tensor in example_inputs(program.inputs).values()]
    return proof_rows(made, program.inputs)


def _rows_join(engine: GraphEngine, rows: list[Tensor]) -> bool:
    """Whether the frontiers of single rows, joined, are the frontier of the batch: an axis may mix rows and units."""
    if engine.parts.frontier_axes is None:
        return False
    specs = engine.program.inputs
    single = [
        engine.prepare([row[i : i + 1] if spec.batched else row for row, spec in zip(rows, specs, strict=True)])
        for i in range(3)
    ]
    pairs = zip(engine.join(single), engine.prepare(rows), strict=True)
    return all(same(a, b, rounding(engine.program)) for a, b in pairs)


def _fastest_proved(engine: GraphEngine, rows: list[Tensor]) -> Mode:
    """The fastest way to compute passes together that gives what one at a time gives."""
    prepared = engine.prepare(rows)
    draws = [
        engine.draws(rows, passes=range(3), seed=PROOF_SEED, rows=r) for r in (None, torch.arange(3, device="cpu"))
    ]
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
