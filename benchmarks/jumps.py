"""How often a tolerance holds for an output that is 0 in most passes and jumps to 1 in a few: exact, nothing is drawn.

After n passes all that counts is how many of them jumped. The law of that number is followed from look to look, by the
binomial law of the passes between, and at each look mcdrop's own rule says which numbers of jumps let a row stop.
"""

from collections.abc import Sequence

import numpy as np
import torch

from mcdrop.outputs.tasks import Task
from mcdrop.streaming.adaptive import AdaptiveSink
from mcdrop.streaming.moments import accumulator
from mcdrop.streaming.stopping import Rule

__all__ = ["coverage_of_jumps"]

_NEGLIGIBLE = 1e-14  # probability


def coverage_of_jumps(tolerance: float, probabilities: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """For each probability of a jump: how often the mean is within the tolerance of it, and the passes on average."""
    rule = Rule(10**6, tolerance=tolerance, task="binary")
    p = np.array(probabilities)
    laws = np.ones((len(p), 1))  # of the number of jumps, in rows that go on
    coverage, passes, before = np.zeros(len(p)), np.zeros(len(p)), 0
    for look in rule.looks:
        steps = [_binomial(look - before, each) for each in p]
        laws = np.stack([np.convolve(law, step) for law, step in zip(laws, steps, strict=True)])
        laws[laws < _NEGLIGIBLE] = 0
        jumps = np.flatnonzero(laws.any(0))
        if not len(jumps):
            break
        stopping = jumps[_enough(rule, look, jumps)]
        is_near = np.abs(stopping / look - p[:, None]) <= tolerance
        coverage += (laws[:, stopping] * is_near).sum(1)
        passes += look * laws[:, stopping].sum(1)
        laws[:, stopping] = 0
        before = look
    return coverage, passes


def _binomial(n: int, p: float) -> np.ndarray:
    """The probabilities of 0 to n successes."""
    counts = torch.arange(n + 1, dtype=torch.float64)
    law = torch.distributions.Binomial(n, torch.tensor(p, dtype=torch.float64))
    found: np.ndarray = law.log_prob(counts).exp().numpy()
    return found


def _enough(rule: Rule, look: int, jumps: np.ndarray) -> np.ndarray:
    """Whether rows with so many jumps in `look` passes may stop."""
    outputs = (torch.arange(look)[:, None] < torch.from_numpy(jumps)).double()
    sink = AdaptiveSink(rule, accumulator(Task("binary", output_kind="probs"), num_samples=rule.maximum))
    sink.update((outputs,), range(look))
    staying = sink.leave()
    enough = np.zeros(len(jumps), dtype=bool)
    if staying is not None:
        enough[:] = True
        enough[staying.numpy()] = False
    return enough
