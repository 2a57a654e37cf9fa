"""The models that are served, by name: finding their folders, loading them, and the thread that computes for them.

A model folder has a `model.json`; `models` is one such folder or a folder of them. A model saved without a name is
called like its folder.
"""

import functools
import logging
import re
from pathlib import Path

import torch

from mcdrop.bundle import FILES, read_meta
from mcdrop.errors import SettingError
from service.errors import NotReadyError, UnknownModelError
from service.model import ServedModel
from service.quota import set_threads
from service.scheduler import Scheduler
from service.settings import Settings, raise_limit

log = logging.getLogger("service.registry")

MANIFEST = FILES[0]
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


class Registry:
    """All models by name, the scheduler that computes for them, and whether the server takes requests."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        device = choose_device(settings.device)
        self.models = {
            name: ServedModel(name, folder, device, settings) for name, folder in find_models(settings).items()
        }
        self.default = self._default_name()
        self.scheduler = Scheduler(
            max_pending=settings.max_pending,
            max_pending_seconds=settings.max_pending_seconds,
            stuck_seconds=settings.stuck_after,
            prepare=functools.partial(set_threads, settings.threads),
        )
        self.draining = False
        self.failure: Exception | None = None

    def get(self, name: str | None) -> ServedModel:
        """A model by name, None for the default; raises UnknownModelError, and NotReadyError until it is loaded."""
        if name is None:
            name = self.default
        if name is None:
            raise UnknownModelError(
                f"Several models are served ({', '.join(self.models)}) and none is the default. "
                f"Use /v1/models/NAME/predict, or set {raise_limit('default_model')}."
            )
        if name not in self.models:
            raise UnknownModelError(f"There is no model {name!r}. Served are: {', '.join(self.models)}.")
        model = self.models[name]
        _ = model.loaded
        return model

    def check_ready(self) -> None:
        """Raise NotReadyError unless every model is loaded and warm and the server is not about to stop."""
        if self.draining:
            raise NotReadyError("The server is about to stop. Send requests to another one.")
        if self.failure is not None:
            raise NotReadyError(f"A model could not be loaded: {self.failure}")
        missing = [model.name for model in self.models.values() if model.mc is None]
        if missing:
            raise NotReadyError(f"Models are still being loaded: {', '.join(missing)}.")

    async def load(self) -> None:
        """Load and warm every model on the inference thread. Raises what the first faulty one raises."""
        for model in self.models.values():
            try:
                await self.scheduler.run(model.load())
            except Exception as error:
                self.failure = error
                raise
            log.info("model %s is ready (%s)", model.name, model.folder)

    def _default_name(self) -> str | None:
        wanted = self.settings.default_model
        if wanted is not None and wanted not in self.models:
            raise SettingError(
                f"The setting default_model names {wanted!r}, which is not served. Served: {', '.join(self.models)}."
            )
        if wanted is None and len(self.models) == 1:
            return next(iter(self.models))
        return "default" if wanted is None and "default" in self.models else wanted


def find_models(settings: Settings) -> dict[str, Path]:
    """Model folders by model name. Raises SettingError where there is none, BundleError for a damaged `model.json`."""
    folder = settings.models
    if settings.fallback_models is not None and (not folder.is_dir() or not any(folder.iterdir())):
        log.warning("no models in %s: serving %s", folder, settings.fallback_models)
        folder = settings.fallback_models
    if not folder.is_dir():
        raise SettingError(
            f"There is no folder {folder}. Give a model folder (one with {MANIFEST} inside) or a folder of them; "
            "`mcdrop export` and `MCDropout.save` write one."
        )
    folders = (
        [folder] if (folder / MANIFEST).is_file() else sorted(path.parent for path in folder.glob(f"*/{MANIFEST}"))
    )
    folders = [path for path in folders if path == folder or not path.name.startswith(".")]
    if not folders:
        raise SettingError(
            f"{folder} is no model folder and has none inside: no {MANIFEST} in it or one level below. "
            "`mcdrop export` and `MCDropout.save` write one."
        )
    found: dict[str, Path] = {}
    for path in folders:
        name = _name(path)
        if name in found:
            raise SettingError(
                f"{found[name]} and {path} both hold a model named {name!r}. Save one under another name."
            )
        found[name] = path
    return found


def _name(folder: Path) -> str:
    """The name under which a model is served, read without loading it."""
    name: str = read_meta(folder).get("name") or folder.resolve().name
    if NAME.fullmatch(name) is None:
        raise SettingError(
            f"The model in {folder} is named {name!r}, which cannot stand in a URL. "
            "Use letters, digits, '.', '_' and '-', starting with a letter or digit; "
            f"the name is `name` in {MANIFEST}, or else the folder's."
        )
    return name


def choose_device(setting: str) -> torch.device:
    """The device that the setting means. Raises SettingError for one that is not there."""
    if setting == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(setting)
    except RuntimeError as error:
        raise SettingError(f"The setting device is {setting!r}; expected auto, cpu, cuda or cuda:1.") from error
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        raise SettingError(
            f"The setting device is {setting!r} and PyTorch sees {count or 'no'} CUDA device{'s' * (count != 1)} here. "
            "Use --device cpu, or check the driver and that this PyTorch was built for CUDA."
        )
    return device
