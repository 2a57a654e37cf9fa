"""Whether a way to sample computes the right thing: the law of the network's own noise, and nothing changed by it.

On the small twin of a case, mean and variance of each probability are compared with those of many passes in training
mode, normalisation apart. They may differ by `_ERRORS` standard errors, those of the variance from fourth moments:
right code fails once in 10^8 comparisons, and a variance of light tails that is off by a fifth is found. What the
network draws by itself, outside of dropout modules, is then compared alone, with the modules' rates next to 0: where it
is left out, nothing remains. Passes that are not drawn anew stray too far from the mean of many.
"""

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.baselines import Sample, Way, replicated
from benchmarks.cases import Case

__all__ = ["Reference", "first_line", "references", "verdict"]

_ROWS, _PASSES, _LONG, _CHUNK = 2, 2000, 10_000, 500
_ERRORS = 6.0
_NEXT_TO_NONE = 1e-6  # a rate of 0 would make a library say that there is no dropout


@dataclass(frozen=True)
class Reference:
    """Mean, variance and fourth central moment of probabilities over many passes; with the rates of modules, or not."""

    modules: bool
    mean: Tensor
    variance: Tensor
    fourth: Tensor


@torch.no_grad()
def references(case: Case) -> list[Reference]:
    """The truth about a case's twin, by passes in training mode; a row draws for itself, so they go in as more rows."""
    found = []
    for modules in (True, False):
        model, inputs = _twin(case, modules)
        sample = replicated(model)
        if modules or sample(inputs, 50).var(0).max() > 1e-6:  # else modules draw everything
            found.append(_moments(modules, _probs(sample, inputs, _LONG, case.class_axis)))
    return found


def verdict(case: Case, way: Way, truth: list[Reference]) -> str:
    """What is wrong with a way to sample; an empty string where nothing is."""
    return next(filter(None, (_fault(case, way, wanted) for wanted in truth)), "")


def _fault(case: Case, way: Way, wanted: Reference) -> str:
    model, inputs = _twin(case, wanted.modules)
    before = copy.deepcopy(model.state_dict())
    try:
        probs = _probs(way(model), inputs, _PASSES, case.class_axis)
    except Exception as error:  # of any library: told in the results
        return f"fails: {first_line(error)}"
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    if changed or model.training:
        return f"changes the network: {', '.join(changed) or 'its training flag'}"
    return _difference(_moments(wanted.modules, probs), wanted)


def _twin(case: Case, modules: bool) -> tuple[nn.Module, Tensor]:
    model, inputs = case.twin.build(_ROWS)
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) and not modules:
            module.p = _NEXT_TO_NONE
    return model, inputs


def _probs(sample: Sample, inputs: Tensor, passes: int, class_axis: int) -> Tensor:
    axis = class_axis if class_axis < 0 else class_axis + 1
    with torch.no_grad():
        return torch.cat([sample(inputs, _CHUNK).softmax(axis) for _ in range(passes // _CHUNK)])


def _moments(modules: bool, probs: Tensor) -> Reference:
    probs = probs.double()
    mean = probs.mean(0)
    return Reference(modules, mean, probs.var(0), (probs - mean).pow(4).mean(0))


def _difference(found: Reference, wanted: Reference) -> str:
    share = 1 / _PASSES + 1 / _LONG
    far = (found.mean - wanted.mean).abs() / (wanted.variance * share).sqrt().clamp_min(1e-9)
    leading = (wanted.fourth - wanted.variance.square()).clamp_min(0) * share  # 0 for two values of equal chance, ...
    error = (leading + (_ERRORS * wanted.variance * share).square()).sqrt().clamp_min(1e-12)  # ... whose error is this
    wide = (found.variance - wanted.variance).abs() / error
    if not math.isfinite(float(far.max() + wide.max())):
        return "is not finite"
    if far.max() < _ERRORS and wide.max() < _ERRORS:
        return ""
    whose = "" if wanted.modules else " of what no module draws"
    off, ratio = float(far.max()), float(found.variance.sum() / wanted.variance.sum())
    return f"{ratio:.2f} of the variance{whose}, mean off by up to {off:.0f} standard errors"


def first_line(error: BaseException) -> str:
    """An error in at most 120 characters."""
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"[:120]
