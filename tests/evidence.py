"""Evidence that many tests ask for: one law on both sides, and nothing else changed."""

import copy
import random
from typing import Any

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from bounds import FALSE_ALARM
from mcdrop import MCDropout
from networks import NETWORKS, Inputs, Network
from oracles import train_mode_samples

PASSES = 4000
COMPARISONS = 2 * 3 * 2 * len(NETWORKS)  # mean and variance of three outputs of two rows, more for few networks


def assert_same_moments(ours: Tensor, theirs: Tensor) -> None:
    """Two samples (passes, ...) have one mean and one variance.

    The difference of two means is judged by its standard error, and so is that of two variances, by the fourth
    moments; the quantile is normal, at a hundredth of the false alarm to be spent, since outputs are skewed.
    With PASSES passes on either side this fails right code at most once in a million runs of the whole table, and
    sees a mean off by 0.2 standard deviations or a variance off by about a quarter.
    """
    z = norm.isf(FALSE_ALARM / COMPARISONS / 100 / 2)
    a, b = ours.double(), theirs.double()
    for what, left, right in (("mean", a, b), ("variance", (a - a.mean(0)) ** 2, (b - b.mean(0)) ** 2)):
        error = torch.sqrt(left.var(0) / len(left) + right.var(0) / len(right)) + 1e-6 * (1 + a.abs().amax())
        worst = ((left.mean(0) - right.mean(0)).abs() / error).max()
        assert worst <= z, f"{what}: {worst:.1f} standard errors apart (at most {z:.1f})"


def assert_training_mode(network: Network, mc: MCDropout, inputs: Inputs, passes: int = PASSES) -> None:
    """Passes of `mc` have mean and variance of the network in training mode, under PyTorch's own generator."""
    copies = 1 if any(site.row_axis is None for site in mc.sites if site.active) else min(200, passes)
    keywords = {"frozen": network.frozen, "output": network.keywords.get("output"), "copies": copies}
    parts: list[Any] = [inputs]
    if network.alone:  # the copies of a row would share the normalisation of their masks
        keywords["copies"], parts = 1, [rows_of(inputs, slice(i, i + 1)) for i in range(rows_in(inputs))]
    truths = [tensors(train_mode_samples(network.build(), part, passes, 1, **keywords)) for part in parts]
    got = tensors(mc.sample(inputs, num_samples=passes, seed=1))
    for ours, *theirs in zip(got, *truths, strict=True):
        assert_same_moments(ours.flatten(1), torch.cat(theirs, 1).flatten(1))


def tensors(samples: Any) -> tuple[Tensor, ...]:
    return samples if isinstance(samples, tuple) else (samples,)


def rows_of(inputs: Any, rows: Any) -> Any:
    """Some rows of inputs in any form."""
    return tree_map(lambda leaf: leaf[rows], inputs)


def rows_in(inputs: Any) -> int:
    return len(tree_leaves(inputs)[0])


def fingerprint(model: nn.Module, inputs: Any = None) -> dict[str, Any]:
    """Everything about a network, inputs and the process's generators that a user could notice to have changed."""
    values: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state(),
        "python": random.getstate(),
        "state_dict": copy.copy(model.state_dict()),
        "grad mode": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "inputs": [leaf.clone() for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)],
    }
    for name, module in model.named_modules(remove_duplicate=False):
        values[f"{name}: module"] = (id(module), type(module), module.training, sorted(vars(module)))
        for key, value in vars(module).items():
            if "hooks" in key:
                values[f"{name}: {key}"] = [(number, id(hook)) for number, hook in (value or {}).items()]
            elif not key.startswith("_") and isinstance(value, (int, float, str, tuple, type(None))):
                values[f"{name}: {key}"] = value
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        values[f"{name}: tensor"] = (
            id(tensor),
            tensor.data_ptr(),
            tensor._version,
            tensor.requires_grad,
            tensor.is_leaf,
            tensor.grad is None,
            type(tensor),
        )
        values[f"{name}: value"] = tensor.detach().clone()
    return values


def assert_same(before: Any, after: Any, where: str = "") -> None:
    if isinstance(before, dict):
        assert before.keys() == after.keys(), where
        for key in before:
            assert_same(before[key], after[key], f"{where} {key}")
    elif isinstance(before, Tensor):
        assert (before.dtype, before.shape) == (after.dtype, after.shape), where
        assert torch.equal(before.reshape(-1).view(torch.uint8), after.reshape(-1).view(torch.uint8)), where
    elif isinstance(before, np.ndarray):
        assert np.array_equal(before, after), where
    elif isinstance(before, (tuple, list)):
        assert len(before) == len(after), where
        for index, pair in enumerate(zip(before, after, strict=True)):
            assert_same(*pair, f"{where}[{index}]")
    else:
        assert before == after, where
