"""Monte Carlo dropout for PyTorch: predictions with uncertainty from any trained network with dropout.

The front door is lazy: a name is loaded when it is first used, so that `mcdrop.client` and the command line start
without importing torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mcdrop import layers
    from mcdrop.errors import (
        BundleError,
        CaptureError,
        InputError,
        McdropError,
        NoDropoutError,
        PassMemoryError,
        RowsInteractError,
        SettingError,
        TrainingError,
        UnsupportedRandomnessError,
    )
    from mcdrop.inspecting import inspect
    from mcdrop.prediction import (
        BinaryPrediction,
        ClassificationPrediction,
        MultilabelPrediction,
        Prediction,
        RawPrediction,
        RegressionPrediction,
    )
    from mcdrop.predictor import MCDropout
    from mcdrop.reporting.report import Report

__version__ = "0.1.0"

__all__ = [
    "BinaryPrediction",
    "BundleError",
    "CaptureError",
    "ClassificationPrediction",
    "InputError",
    "MCDropout",
    "McdropError",
    "MultilabelPrediction",
    "NoDropoutError",
    "PassMemoryError",
    "Prediction",
    "RawPrediction",
    "RegressionPrediction",
    "Report",
    "RowsInteractError",
    "SettingError",
    "TrainingError",
    "UnsupportedRandomnessError",
    "inspect",
    "layers",
]

_MODULES = {"MCDropout": "predictor", "Report": "reporting.report", "inspect": "inspecting"}
_ROOMS = ("layers", "sweep", "training")  # reached as `mcdrop.training` after `import mcdrop`


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"mcdrop.{name}")
    if name not in __all__:
        raise AttributeError(f"module 'mcdrop' has no attribute {name!r}")
    module = _MODULES.get(name, "prediction" if name.endswith("Prediction") else "errors")
    return getattr(importlib.import_module(f"mcdrop.{module}"), name)


def __dir__() -> list[str]:
    return sorted({*__all__, *_ROOMS, "__version__"})
