"""The floor: the operations that a prediction takes at least, over the rate at which this machine multiplies.

What no noise reaches counts once per row. The rest counts once per row and pass, less what a mask drops: a linear layer
or a convolution counts by the share of units (or channels) that reach it times the share that is not dropped behind it.
It is counted on the network in training mode by passes of a single row, not in what mcdrop computes:

    reaches noise       the result of a product differs between passes
    reaches a layer     a unit of its input is not zero
    dropped behind it   the gradient of the output with regard to a unit of its output is zero

Weights are made positive for it, so that nothing but a mask makes a zero. Masks that differ along a sequence or a map
drop no unit as a whole and save nothing here. A multiplication and an addition are two operations.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from benchmarks.baselines import train_mode
from benchmarks.cases import Case

__all__ = ["PRODUCT", "Floor", "computed", "floor", "product"]

PRODUCT = 2 * 2048**3  # operations of one call of `product()`

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)
_SAME = 1e-9  # relative difference of results that no noise has reached
_PATIENCE, _MOST = 2.0, 400  # seconds, and passes, that are looked at


@dataclass(frozen=True)
class Floor:
    """Operations of one row: those that no noise reaches, and of one pass those that are kept and all of them."""

    once: float
    kept: float
    whole: float

    def least(self, rows: int, num_samples: int) -> float:
        """What a prediction takes at least."""
        return rows * (self.once + num_samples * self.kept)

    def plain(self, rows: int, num_samples: int) -> float:
        """What as many whole passes take: those of a loop or a replicated batch."""
        return rows * num_samples * self.whole


def product() -> object:
    """A call that multiplies two matrices of 2048 x 2048 in float32."""
    a, b = torch.ones(2, 2048, 2048)
    return lambda: a @ b


def floor(case: Case) -> Floor:
    """The floor of a case's network."""
    model, inputs = case.network.build(1)
    training = train_mode(model).double()  # recurrent layers of float32 hide their products
    with torch.no_grad():
        for parameter in training.parameters():
            parameter.abs_()
    if inputs.is_floating_point():
        inputs = inputs.abs().double()
    products = _passes(lambda: _products(training, inputs))
    whole = sum(flops for flops, _ in products[0])
    once = sum(each[0][0] for each in zip(*products, strict=True) if not _differs(digest for _, digest in each))
    return Floor(once, whole - once - _dropped(training, inputs), whole)


def computed(call: object) -> int:
    """Operations that a call really takes."""
    with FlopCounterMode(display=False, custom_mapping={torch.ops.mcdrop.recurrent: _recurrent}) as counter:
        call()
    return counter.get_total_flops()


def _recurrent(kind: str, x: list[int], hx: object, weights: list[torch.Size], *rest: object, out_shape: object) -> int:
    return 2 * x[0] * x[1] * sum(math.prod(weight) for weight in weights if len(weight) == 2)


class _Recording(TorchDispatchMode):
    """Records the operations of every product, and a digest of its result."""

    def __init__(self) -> None:
        super().__init__()
        self.products: list[tuple[float, float]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = function(*args, **(kwargs or {}))
        count = flop_registry.get(function.overloadpacket)
        if count is not None:
            self.products.append((count(*args, **(kwargs or {}), out_val=out), _digest(out)))
        return out


def _products(model: nn.Module, inputs: Tensor) -> list[tuple[float, float]]:
    with torch.no_grad(), _Recording() as recording:
        model(inputs)
    return recording.products


def _digest(x: Tensor) -> float:
    return float(x.detach().square().sum())


def _dropped(model: nn.Module, inputs: Tensor) -> float:
    """Operations that one pass of one row saves where dropped units are left out, on average."""
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []

    def record(layer: nn.Module, arguments: tuple[Tensor, ...], out: Tensor) -> None:
        out.retain_grad()
        calls.append((layer, arguments[0].detach(), out))

    hooks = [module.register_forward_hook(record) for module in model.modules() if isinstance(module, _LAYERS)]

    def one_pass() -> list[tuple[float, float]]:
        calls.clear()
        model(inputs).sum().backward()
        return [(_saved(*call), _digest(call[2])) for call in calls]

    layers = [*zip(*_passes(one_pass), strict=True)]
    for hook in hooks:
        hook.remove()
    return sum(
        statistics.fmean(saved for saved, _ in each) for each in layers if _differs(digest for _, digest in each)
    )


def _passes(one: Callable[[], list[tuple[float, float]]]) -> list[list[tuple[float, float]]]:
    """What many passes give: a branch that is rarely dropped is the same in most of them."""
    found, begin = [one(), one()], time.monotonic()
    while len(found) < _MOST and time.monotonic() - begin < _PATIENCE:
        found.append(one())
    return found


def _differs(digests: Iterable[float]) -> bool:
    """Whether noise reaches what has these digests in several passes."""
    first, *others = digests
    return not all(math.isclose(first, other, rel_tol=_SAME) for other in others)


def _saved(layer: nn.Module, x: Tensor, out: Tensor) -> float:
    axis = -1 if isinstance(layer, nn.Linear) else 1
    places = (x if isinstance(layer, nn.ConvTranspose2d) else out).movedim(axis, 0)[0].numel()
    gradient = out.grad if out.grad is not None else torch.zeros_like(out)
    return 2 * layer.weight.numel() * places * (1 - _share(x, axis) * _share(gradient, axis))


def _share(x: Tensor, axis: int) -> float:
    """The share of units that are not zero everywhere."""
    return float((x != 0).movedim(axis, 0).flatten(1).any(1).double().mean())
