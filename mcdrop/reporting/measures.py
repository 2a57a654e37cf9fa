"""What is measured of a captured network: each site's share of the variance, the work of a pass, what noise changes.

None of it knows what is good or bad; `findings` judges.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mcdrop.capturing.proofs import neutral_outputs
from mcdrop.engines.engine import Engine, GraphEngine
from mcdrop.errors import SettingError
from mcdrop.graph.choosing import choose, native_sites
from mcdrop.graph.draws import noise
from mcdrop.graph.inputs import Signature
from mcdrop.graph.program import Program
from mcdrop.graph.sites import Site
from mcdrop.outputs.tasks import Task
from mcdrop.prediction import Prediction
from mcdrop.splitting.recurrent import LAYERS
from mcdrop.streaming.moments import accumulator

__all__ = ["Cost", "alone", "as_prediction", "cost_of", "spread", "unrandom", "variance_of_one"]

_ROWS = 64  # computed at once where nothing is sampled
_SIZE = 8  # of a dynamic dimension of which nothing is known


@dataclass(frozen=True)
class Cost:
    """How much runs once, and how much in every pass.

    Attributes:
        engine, mode: how passes are computed.
        prefix_operations, suffix_operations: operations of the graph that run once per row, and once per row and pass.
        prefix_flops, suffix_flops: floating point operations of their products, of one row; None where not counted.
        prefix_fraction: share of the work that runs once, by floating point operations if there are any.
        num_samples: number of passes for which `relative` holds.
        relative: work of so many passes, relative to one.
    """

    engine: str
    mode: str
    prefix_operations: int | None
    suffix_operations: int | None
    prefix_flops: int | None
    suffix_flops: int | None
    prefix_fraction: float
    num_samples: int
    relative: float


def cost_of(engine: Engine, inputs: Sequence[Tensor] | None, signature: Signature, num_samples: int) -> Cost:
    """The cost of a prediction; floating point operations are those of one row like `inputs` (zeros if None)."""
    if not isinstance(engine, GraphEngine):
        mode = "one row and one pass at a time"
        return Cost(engine.kind, mode, None, None, None, None, 0.0, num_samples, float(num_samples))
    parts = engine.parts
    one = _zeros(signature)
    if inputs is not None:
        one = [x[:1] if spec.batched else x for x, spec in zip(inputs, signature.inputs, strict=True)]
    once, each = _flops(engine.program, [x.to(engine.device) for x in one])
    work = (once, each) if once + each else (parts.prefix_calls, parts.suffix_calls)
    total = max(sum(work), 1)
    return Cost(
        engine=engine.kind,
        mode=engine.mode,
        prefix_operations=parts.prefix_calls,
        suffix_operations=parts.suffix_calls,
        prefix_flops=once,
        suffix_flops=each,
        prefix_fraction=work[0] / total,
        num_samples=num_samples,
        relative=(work[0] + num_samples * work[1]) / total,
    )


def _zeros(signature: Signature) -> list[Tensor]:
    """One row of zeros; dynamic sizes are small."""
    sizes = {name: max(least, min(_SIZE, most or _SIZE)) for name, (least, most) in signature.dims.items()}
    sizes["batch"] = 1
    return [
        torch.zeros([sizes[size] if isinstance(size, str) else size for size in spec.shape], dtype=spec.dtype)
        for spec in signature.inputs
    ]


class _Flops(fx.Interpreter):
    """Runs a program with every draw a 1, and counts by node."""

    def __init__(self, program: Program) -> None:
        graph = fx.Graph()
        graph.output(graph.graph_copy(program.graph, {}))
        super().__init__(fx.GraphModule(dict(program.weights), graph))
        self.stochastic: set[fx.Node] = set()
        self.counts = {False: 0, True: 0}

    def run_node(self, n: fx.Node) -> Any:
        if n.target is noise:
            self.stochastic.add(n)
            return torch.ones([int(size) for size in self.fetch_args_kwargs_from_env(n)[0][1]])
        if any(parent in self.stochastic for parent in n.all_input_nodes):
            self.stochastic.add(n)
        if n.target in LAYERS.values():  # fused, so the counter sees nothing inside
            x, _, params = self.fetch_args_kwargs_from_env(n)[0][:3]
            steps = x.shape[0] * x.shape[1]
            count, result = (
                2 * steps * sum(weight.numel() for weight in params if weight.ndim == 2),
                super().run_node(n),
            )
        else:
            with FlopCounterMode(display=False) as counter:
                result = super().run_node(n)
            count = counter.get_total_flops()
        self.counts[n in self.stochastic] += count
        return result


def _flops(program: Program, inputs: Sequence[Tensor]) -> tuple[int, int]:
    """Floating point operations that no draw reaches, and those that one does."""
    tally = _Flops(program)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        tally.run(*inputs)
    return tally.counts[False], tally.counts[True]


# ---- predictions


def alone(program: Program, site: Site) -> Program | None:
    """The program with the draw of one site alone; None where it is not known how to leave out another one."""
    try:
        return choose(program, include=site.index)
    except SettingError:
        return None


def unrandom(engine: GraphEngine, inputs: Sequence[Tensor]) -> tuple[Tensor, ...] | None:
    """The outputs without noise; None where no value of a draw is known to change nothing."""
    program = engine.program
    if not program.neutral and not {site.index for site in program.active_sites} <= native_sites(program):
        return None
    rows = engine.rows_of(inputs)
    size = _ROWS if engine.merges else rows
    parts = []
    for start in range(0, rows, size):
        some = [x[start : start + size] if s.batched else x for x, s in zip(inputs, program.inputs, strict=True)]
        parts.append(neutral_outputs(engine, [x.to(engine.device) for x in some]))
    outputs = tuple(torch.cat(each) for each in zip(*parts, strict=True))
    return outputs[:1] if program.integrated else outputs


def as_prediction(task: Task, outputs: Sequence[Tensor]) -> Tensor:
    """What the task makes of a network's own outputs: the `mean` that a prediction of equal passes has."""
    equal = accumulator(task, num_samples=2)
    equal.update(tuple(torch.stack([output, output]) for output in outputs), range(2))
    return equal.prediction(seed=0).mean


def spread(prediction: Prediction) -> Tensor:
    """The variance over passes, without what a regression adds for the noise of its targets."""
    found: Tensor = getattr(prediction, "epistemic_variance", prediction.variance)
    return found


def variance_of_one(prediction: Prediction) -> Tensor:
    """What the squared standard error of the mean is over one pass: N times that over N passes."""
    error = prediction.error_of_mean
    return spread(prediction) if error is None else error * prediction.num_samples
