"""nn.Module + example inputs -> a proved program.

Capture takes a private copy, finds which training flags switch dropout on (`flags`), traces the copy (`tracing`), and
then proves what it has, by checks that each cost a few passes on the example (`comparing`, `proofs`):

    neutral   with every draw at its mean the program does what the network does in evaluation mode
    replay    with the same draws the program does what the flagged copy does: no mask lost, none out of order
    engine    many passes at a time give what one pass at a time gives; a row gives the same alone, among others and
              in another place

What fails is an error that says what differs. Nothing here touches the user's network or any global state that it does
not put back.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from mcdrop.capturing.captured import Captured, no_dropout
from mcdrop.capturing.comparing import compared
from mcdrop.capturing.eager_capture import capture_eagerly
from mcdrop.capturing.flags import Flags, buffers_of, find_flags, put_back
from mcdrop.capturing.proofs import proved_engine
from mcdrop.capturing.snapshot import Adapter
from mcdrop.capturing.switching import numbers_left, renumbered, set_rates, switch_off
from mcdrop.capturing.tracing import EXPORT_LOCK, trace
from mcdrop.engines.eager import EagerEngine, global_generators
from mcdrop.engines.masks import Masks
from mcdrop.errors import CaptureError
from mcdrop.graph.choosing import Choice, native_sites
from mcdrop.graph.examples import proof_rows
from mcdrop.graph.inputs import InputSpec
from mcdrop.graph.program import Program
from mcdrop.graph.sites import Site, own_path, told_by_modules
from mcdrop.shortcuts.kept_passes import gathered_bound

__all__ = ["capture"]

_CANNOT = (
    "every row and pass takes a forward pass of its own, calls wait for one another, nothing is proved, "
    "and the model cannot be saved or served from disk"
)


def capture(
    network: Adapter,
    example: Sequence[Tensor],
    specs: tuple[InputSpec, ...],
    *,
    engine: Literal["auto", "graph", "eager"],
    allow_row_interaction: bool,
    max_memory: int | None = None,
    thinned: bool = True,
    fast: bool = True,
    choice: Choice | None = None,
) -> Captured:
    """Turn a private copy into an engine; what is proved is the network whole, then `choice` is applied.

    Raises:
        NoDropoutError: nothing is stochastic.
        RowsInteractError: rows influence one another and `allow_row_interaction` is False.
        CaptureError: the program is not faithful, or `engine="graph"` and the network cannot be traced.
        SettingError: the choice fits no site, or cannot be applied.
    """
    choice = choice or Choice()
    rows = proof_rows(example, specs)
    with EXPORT_LOCK, EagerEngine.lock, global_generators():
        flags = find_flags(network, rows)
        buffers = buffers_of(network)
        if engine == "eager":
            return capture_eagerly(network, specs, rows, flags, allow_row_interaction, choice)
        try:
            if flags.foreign:
                raise CaptureError("the network draws random numbers outside of PyTorch (Python or NumPy)")
            program = _traced(network, rows, specs, buffers)
        except CaptureError as error:
            if engine == "graph" or type(error) is not CaptureError:
                raise
            captured = capture_eagerly(network, specs, rows, flags, allow_row_interaction, choice)
            warnings.warn(
                f"{type(network.network).__name__} cannot be captured as a graph, so it runs eagerly: {_CANNOT}. "
                f"Reason: {error}",
                stacklevel=3,
            )
            return replace(captured, reason=str(error))
        if sites := (*program.sites, *_flag_sites(flags)):  # where there is none, that is what has to be said
            choice.check(sites)
        set_in_network = [site for site in program.sites if choice.needs_network(site, native_sites(program))]
        if set_in_network:
            set_rates(network, set_in_network, choice)
            flags = find_flags(network, rows)
            program = _traced(network, rows, specs, buffers)
        program = replace(program, sites=(*program.sites, *_flag_sites(flags)), neutral=flags.exact)
        if not program.active_sites:
            raise no_dropout(network.network, program.sites, flags)
        choice.marked(program.sites)
        less, off, numbers = _without(network, program, choice, lambda: _traced(network, rows, specs, buffers))
        less, outputs, merges, apart = compared(network, less, rows, flags, allow_row_interaction)
        if off:
            less = renumbered(less, numbers)
            rest = [site for site in program.sites if not site.active]
            less = replace(less, sites=(*less.active_sites, *choice.left_out(off), *rest))
            choice = choice.forget(off)
        chosen = proved_engine(
            choice.apply(less),
            rows,
            masks=Masks.within(max_memory),
            merges=merges,
            apart=apart,
            gathered=gathered_bound(max_memory, thinned),
            fast=fast,
        )
        shapes = tuple(tuple(o.shape[1:]) for o in outputs)
        return Captured(chosen, chosen.program.sites, less, shapes, outputs, choice, flags.always)


def _traced(
    network: Adapter, rows: Sequence[Tensor], specs: tuple[InputSpec, ...], buffers: dict[str, Tensor]
) -> Program:
    """The program of the flagged copy, whose buffers are put back."""
    before = torch.random.get_rng_state()
    program = trace(network, [row.clone() for row in rows], specs)
    put_back(network, buffers)
    if not torch.equal(torch.random.get_rng_state(), before):
        raise CaptureError("the network drew a number while it was traced, which the graph would keep for ever")
    return replace(program, sites=told_by_modules(program.sites, network.network))


def _without(
    network: Adapter, program: Program, choice: Choice, again: Callable[[], Program]
) -> tuple[Program, list[Site], tuple[int, ...]]:
    """The program without the draws of the network's own code that are not chosen, those, and the numbers of the rest.

    Where a training flag cannot take them out they stay, to be left out by their mean.
    """
    native = native_sites(program)
    off = [site for site in program.active_sites if site.index not in native and choice.reason(site) is not None]
    if off:
        restore = switch_off(network, off)
        less = again()
        numbers = numbers_left(program.sites, less.sites, off)
        if numbers is not None:
            return replace(less, neutral=program.neutral), off, numbers
        restore()
    return program, [], ()


def _flag_sites(flags: Flags) -> tuple[Site, ...]:
    """The sites that stay off because their flag does more than switch dropout on."""
    return tuple(
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
