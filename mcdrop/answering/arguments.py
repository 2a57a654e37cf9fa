"""The settings of a model that are no tensors: what they may be, checked once, at the door."""

from typing import Any

import torch
from torch import Tensor, nn

from mcdrop.errors import SettingError
from mcdrop.modes import LAST_LAYERS, MASK_MODES

__all__ = [
    "cast",
    "check_engine",
    "check_last_layer",
    "check_masks",
    "check_memory",
    "check_num_samples",
    "check_seed",
    "check_switches",
    "checked_device",
    "device_of",
]


def check_engine(value: Any) -> None:
    if value not in ("auto", "graph", "eager"):
        raise SettingError(f"engine is {value!r}; choose 'auto', 'graph' or 'eager'.")


def check_num_samples(value: Any) -> None:
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < 1:
        raise SettingError(f"num_samples is {value!r}; give a whole number of passes, at least 1.")


def check_seed(value: Any) -> None:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise SettingError(f"seed is {value!r}; give a whole number.")


def check_masks(value: Any) -> None:
    if value not in MASK_MODES:
        raise SettingError(
            f"masks is {value!r}; choose 'shared' (one mask for all rows of a pass), 'independent' (one for each "
            "row) or 'balanced' (shared, every unit dropped equally often)."
        )


def check_last_layer(value: Any, task: str) -> None:
    if value not in LAST_LAYERS:
        raise SettingError(f"last_layer is {value!r}; choose 'sampled' or 'exact'.")
    if value == "exact" and task != "regression":
        raise SettingError(
            f'last_layer="exact" is for task="regression"; this is {task!r}, whose answer is no linear function '
            'of the last layer\'s output. Use last_layer="sampled".'
        )


def check_memory(value: Any) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise SettingError(f"max_memory is {value!r}; give a number of bytes, at least 1, or None.")


def check_switches(**values: Any) -> None:
    for name, value in values.items():
        if not isinstance(value, bool):
            raise SettingError(f"{name} is {value!r}; expected True or False.")


def checked_device(device: torch.device | str) -> torch.device:
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise SettingError(f"device is {device!r}: {error}") from error
    if place.type == "cuda" and not torch.cuda.is_available():
        raise SettingError(f"device is {device!r} and this PyTorch sees no CUDA device: use 'cpu'.")
    return place


def device_of(device: torch.device | str | None, model: nn.Module) -> torch.device:
    if device is not None:
        return checked_device(device)
    return next((tensor.device for tensor in [*model.parameters(), *model.buffers()]), torch.device("cpu"))


def cast(model: nn.Module, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The private copy in the type and on the device in which it will compute."""
    wide = torch.complex128 if dtype == torch.float64 else torch.complex64

    def moved(tensor: Tensor) -> Tensor:
        kind = wide if tensor.is_complex() else dtype if tensor.is_floating_point() else tensor.dtype
        return tensor.to(device=device, dtype=kind)

    twin: nn.Module = model._apply(moved)
    return twin
