"""The training loop behind the demo and the sweep."""

from mcdrop.training.fitting import Data, Epoch, History, fit

__all__ = ["Data", "Epoch", "History", "fit"]
