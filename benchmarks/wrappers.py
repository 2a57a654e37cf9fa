"""Monte Carlo dropout of other libraries, as their documentation shows it. No dependency: used where installed.

Both replace or switch on dropout modules; dropout that a network writes as a function of its own training flag they
cannot see. Both are given a copy of the network.
"""

import contextlib
import copy
import importlib
import importlib.metadata
import warnings
from collections.abc import Callable

from torch import Tensor, nn

__all__ = ["installed", "versions"]

Sample = Callable[[Tensor, int], Tensor]


def baal(model: nn.Module) -> Sample:
    """`baal.modelwrapper.ModelWrapper` around a patched network; it replicates the batch (Atighehchian et al. 2020)."""
    from baal.bayesian.dropout import patch_module
    from baal.modelwrapper import ModelWrapper, TrainingArgs

    wrapper = ModelWrapper(patch_module(model, inplace=False).eval(), TrainingArgs(use_cuda=False))

    def sample(inputs: Tensor, num_samples: int) -> Tensor:
        outputs: Tensor = wrapper.predict_on_batch(inputs, iterations=num_samples)  # (batch, ..., samples)
        return outputs.movedim(-1, 0)

    return sample


def torch_uncertainty(model: nn.Module) -> Sample:
    """`torch_uncertainty.methods.mc_dropout`; it replicates the batch too."""
    from torch_uncertainty.methods import mc_dropout

    inner = copy.deepcopy(model)

    def sample(inputs: Tensor, num_samples: int) -> Tensor:
        outputs: Tensor = mc_dropout(inner, num_estimators=num_samples).eval()(inputs)
        return outputs.unflatten(0, (num_samples, -1))

    return sample


_WRAPPERS = {
    "baal": (baal, "baal.modelwrapper"),
    "torch-uncertainty": (torch_uncertainty, "torch_uncertainty.methods"),
}


def installed() -> dict[str, Callable[[nn.Module], Sample]]:
    """The wrappers whose library can be imported, by its name."""
    there = {}
    for name, (wrap, module) in _WRAPPERS.items():
        with contextlib.suppress(ImportError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(module)
            there[name] = wrap
    return there


def versions() -> dict[str, str]:
    """The version of each of these libraries, or "not installed"."""
    there = installed()
    return {name: importlib.metadata.version(name) if name in there else "not installed" for name in _WRAPPERS}
