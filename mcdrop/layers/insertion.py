"""Dropout for networks that were trained without it.

Read the answers with care. The spread of Monte Carlo passes says something about a network because training under the
same masks made every thinned network a good one; a network that never saw them was fitted to rely on all its units.
After insertion the mean is in general worse than the network's own output, and the spread follows the rate that was
chosen, not what the data leave open: it may rank inputs, it is no calibrated uncertainty (Gal & Ghahramani 2016 derive
theirs from the training objective; Verdoja & Kyrki 2020, arXiv 2008.02627, show how the spread follows the rate).
Train on for a few epochs after inserting, keep rates small, and choose them on held-out likelihood.
"""

import copy
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from mcdrop.errors import InputError, SettingError
from mcdrop.layers.rates import check_rate

__all__ = ["insert_dropout"]

_NAME = "inserted_dropout"
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)

Where = str | type[nn.Module]


def insert_dropout(
    model: nn.Module,
    after: Where | Iterable[Where],
    p: float,
    *,
    layer: Callable[[float], nn.Module] = nn.Dropout,
) -> nn.Module:
    """A copy of `model` with dropout on the output of chosen modules; the spread it gives is no calibrated uncertainty.

        insert_dropout(model, "encoder.*.relu", p=0.1)
        insert_dropout(model, nn.ReLU, p=0.1, layer=nn.Dropout2d)

    The copy has the classes, attributes and state-dict names of the model: a chosen module gets the dropout as a child,
    `inserted_dropout`, and a forward hook that applies it to the output; where that is a tuple, as of `nn.LSTM`, to its
    first tensor. An `nn.Sequential` gets it as its last child. A module that is called several times drops each time.
    One that is never called (the `out_proj` of `nn.MultiheadAttention`, whose weight is read directly) never does:
    `MCDropout(...).sites` tells.

    Args:
        model: any module; it is deep-copied and left as it is.
        after: which modules: patterns of paths as in `model.named_modules()`, where `*` stands for any characters,
            dots included, or module classes, subclasses included; one or several. The model as a whole is never chosen.
        p: the rate, from 0 to 1.
        layer: makes the dropout of one place from the rate.

    Raises:
        SettingError: a pattern or class chooses no module, or one that cannot take a child; `after` is empty or holds
            something else; `p` is not from 0 to 1.
    """
    check_rate(p)
    places = list(after) if isinstance(after, Iterable) and not isinstance(after, str | type) else [after]
    if not (places and all(isinstance(where, str | type) for where in places)):
        raise SettingError(f"after is {after!r}; give a path, a pattern such as '*.relu', a module class, or several.")
    twin = copy.deepcopy(model)
    modules = {path: module for path, module in twin.named_modules() if path}
    chosen: dict[str, nn.Module] = {}
    for where in places:
        found = {path: module for path, module in modules.items() if _fits(path, module, where)}
        if not found:
            raise SettingError(_nothing(model, modules, where))
        chosen |= found
    for path, module in chosen.items():
        _insert(path, module, layer(p).train(module.training))
    return twin


def _fits(path: str, module: nn.Module, where: Where) -> bool:
    return fnmatchcase(path, where) if isinstance(where, str) else isinstance(module, where)


def _nothing(model: nn.Module, modules: dict[str, nn.Module], where: Where) -> str:
    wanted = f"path fits {where!r}" if isinstance(where, str) else f"class is {where.__name__}"
    listed = [f"{path} ({type(module).__name__})" for path, module in modules.items()]
    more = f" and {len(listed) - 12} more" if len(listed) > 12 else ""
    return (
        f"{type(model).__name__} has no module whose {wanted}. Its modules are: "
        f"{', '.join(listed[:12]) or 'none'}{more}. Give a path, a pattern such as '*.relu', or a module class."
    )


def _insert(path: str, module: nn.Module, dropout: nn.Module) -> None:
    if hasattr(module, _NAME):
        raise SettingError(f"{path} already has inserted dropout: insert once, with all modules in `after`.")
    if isinstance(module, _CONTAINERS) and type(module).forward is not nn.Sequential.forward:
        raise SettingError(
            f"{path} is a {type(module).__name__}, which may call its children one by one, so it cannot be given "
            "another child. Choose the module inside or around it whose output is meant."
        )
    module.add_module(_NAME, dropout)
    if not isinstance(module, nn.Sequential):  # which calls its children itself
        module.register_forward_hook(_drop)


def _drop(module: nn.Module, args: Any, output: Any) -> Any:
    dropout = module.get_submodule(_NAME)
    if isinstance(output, Tensor):
        return dropout(output)
    if isinstance(output, tuple) and output and isinstance(output[0], Tensor) and not hasattr(output, "_fields"):
        return dropout(output[0]), *output[1:]
    raise InputError(
        f"{type(module).__name__}, after which dropout was inserted, returned a {type(output).__name__}; insert it "
        "after modules that return a tensor, or a tuple with a tensor at its front."
    )
