"""Every exception of the library.

Each says three things: what was wrong, what was expected, what to do. All share one base, carry a stable `code` (the
same over HTTP) and inherit the built-in they refine, so that `except ValueError` keeps working.

    McdropError
    |-- NoDropoutError             no stochastic site: every pass would be the same
    |-- CaptureError               a network cannot be turned into a faithful program
    |   |-- RowsInteractError      the rows of a batch influence one another
    |   `-- UnsupportedRandomnessError   a random operation whose law is unknown
    |-- InputError                 a tensor at the door does not fit the model
    |-- SettingError               an argument has a value that means nothing
    |-- BundleError                a model on disk is damaged, hostile or from another version
    |-- PassMemoryError            one pass of one row does not fit into memory
    |-- TrainingError              a loss is no longer a finite number
    `-- PortError                  the server cannot listen where it was told to
"""

from collections.abc import Sequence
from typing import Any

__all__ = [
    "BundleError",
    "CaptureError",
    "InputError",
    "McdropError",
    "NoDropoutError",
    "PassMemoryError",
    "PortError",
    "RowsInteractError",
    "SettingError",
    "TrainingError",
    "UnsupportedRandomnessError",
]


class McdropError(Exception):
    """Base of all errors that mcdrop raises on purpose."""

    code: str = "mcdrop-error"


class NoDropoutError(McdropError, ValueError):
    """The network has no active stochastic site, so every sample would be the same.

    `sites` are those that were found and are inactive (`mcdrop.graph.sites.Site`), where there are any.
    """

    code = "no-dropout"

    def __init__(self, message: str = "", sites: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.sites = tuple(sites)


class CaptureError(McdropError, RuntimeError):
    """The network could not be captured, or its captured program does not do what the network does."""

    code = "capture-failed"


class RowsInteractError(CaptureError):
    """The rows of a batch influence one another, so a row's answer would depend on its neighbours."""

    code = "rows-interact"


class UnsupportedRandomnessError(CaptureError):
    """The network draws random numbers by an operation whose law mcdrop does not know."""

    code = "unsupported-randomness"


class InputError(McdropError, ValueError):
    """An input tensor has the wrong name, shape, type or values."""

    code = "invalid-input"


class SettingError(McdropError, ValueError):
    """An argument or setting has a value that means nothing."""

    code = "invalid-setting"


class BundleError(McdropError, ValueError):
    """A model on disk is incomplete, damaged, hostile, or written by a newer format."""

    code = "invalid-bundle"


class PassMemoryError(McdropError, MemoryError):
    """Not even one pass of one row fits into memory."""

    code = "out-of-memory"


class TrainingError(McdropError, ArithmeticError):
    """A loss is NaN or infinite, so training cannot go on."""

    code = "training-failed"


class PortError(McdropError, OSError):
    """The server cannot listen on the address it was given."""

    code = "port-unavailable"
