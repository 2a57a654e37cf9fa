"""DropConnect: weights are dropped instead of units (Wan et al. 2013, ICML, "Regularization of Neural Networks using
DropConnect").

    V[i, j] = W[i, j] * m[i, j] / (1 - p),    m = 0 with probability p, else 1: one number for each weight

Mean of V: W. Variance: p / (1 - p) W**2, each weight alone. So a linear layer's output V x + b has the mean W x + b and
at unit i the variance p / (1 - p) sum_j W[i, j]**2 x[j]**2, which is that of dropout on x, but here the units of one
row are independent of one another. A pass has one weight matrix: all rows, and all steps of a recurrent layer, see the
same V, so the rows of one batch are correlated. Where a network reads a weight several times in a pass (a layer that is
called twice), each read draws.

The paper draws a matrix for each row, does not scale in training, and in evaluation samples units from a moment-matched
Gaussian; with the scale here, evaluation is the network as it is.

Confused with: dropout of the input, which drops whole columns of W; dropout of the output, whole rows; weight decay and
pruning, which last; AWD-LSTM's weight drop (Merity et al. 2018), which is DropConnect on `weight_hh`.
"""

from functools import partial
from typing import Any, ClassVar

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mcdrop.errors import SettingError
from mcdrop.layers.rates import check_rate

__all__ = ["DropConnect", "add_drop_connect", "drop_connect"]


def drop_connect(weight: Float[Tensor, "..."], p: float, training: bool) -> Float[Tensor, "..."]:
    """A weight, in training 0 in each element with probability `p`, else times 1 / (1 - p)."""
    return F.dropout(weight, p, training)


class DropConnect(nn.Module):
    """`drop_connect` as a parametrization of a weight (`torch.nn.utils.parametrize`); `add_drop_connect` registers it.

    Raises:
        SettingError: `p` is not from 0 to 1.
    """

    dropout_kind: ClassVar[str] = "drop_connect"

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = check_rate(p)

    def forward(self, weight: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return drop_connect(weight, self.p, self.training)

    def right_inverse(self, weight: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """What is assigned to the weight becomes the weight that is dropped from."""
        return weight

    def extra_repr(self) -> str:
        return f"p={self.p}"


def add_drop_connect(module: nn.Module, name: str = "weight", p: float = 0.5) -> nn.Module:
    """Put DropConnect on the parameter `name` of `module`, in place; returns `module`.

    `name` is "weight" in linear layers and convolutions, `weight_hh_l0` and the like in recurrent layers. What the
    module computes in evaluation, its other attributes and the names in its state dict do not change, so checkpoints
    written without DropConnect load, and those written with it load elsewhere. In `named_parameters` the weight is
    `parametrizations.<name>.original`, as with every parametrization of PyTorch, and
    `torch.nn.utils.parametrize.remove_parametrizations(module, name)` after `module.eval()` takes it off again.

    Raises:
        SettingError: `name` is no name of a parameter of the module, or `p` is not from 0 to 1.
    """
    drop = DropConnect(p)
    if not isinstance(name, str):
        raise SettingError(f'name is {name!r}; give the weight\'s name, "weight" say, and the rate as p={name!r}.')
    if not isinstance(getattr(module, name, None), Tensor):
        have = ", ".join(key for key, _ in module.named_parameters(recurse=False)) or "none"
        raise SettingError(
            f"{type(module).__name__} has no parameter {name!r} of its own; its parameters are: {have}. Give the "
            "module that holds the weight, and the weight's name."
        )
    parametrize.register_parametrization(module, name, drop)
    module.register_state_dict_post_hook(partial(_save_plain, name))
    module.register_load_state_dict_pre_hook(partial(_load_plain, name))
    return module


def _drops_alone(module: nn.Module, name: str) -> bool:
    """Whether the stored original of the parameter `name` is the weight itself: nothing else parametrizes it."""
    if not parametrize.is_parametrized(module, name):
        return False
    chain: Any = module.parametrizations
    return all(isinstance(part, DropConnect) for part in chain[name])


def _save_plain(name: str, module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    if _drops_alone(module, name):
        _rename(state, f"{prefix}parametrizations.{name}.original", f"{prefix}{name}")


def _load_plain(name: str, module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    if _drops_alone(module, name):
        _rename(state, f"{prefix}{name}", f"{prefix}parametrizations.{name}.original")


def _rename(state: dict[str, Any], old: str, new: str) -> None:
    if old in state:
        state[new] = state.pop(old)
