"""What the caller has switched on around a computation, switched off inside it."""

import contextlib
from collections.abc import Iterator

import torch

__all__ = ["plain"]


def plain() -> contextlib.AbstractContextManager[None]:
    """Inside, what the caller has switched on around us (autocast, inference mode, gradients) is off."""
    on = torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda") or torch.is_inference_mode_enabled()
    return _without_modes() if on else torch.no_grad()


@contextlib.contextmanager
def _without_modes() -> Iterator[None]:
    with contextlib.ExitStack() as off:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                off.enter_context(torch.autocast(device, enabled=False))
        if torch.is_inference_mode_enabled():
            off.enter_context(torch.inference_mode(False))
        off.enter_context(torch.no_grad())
        yield
