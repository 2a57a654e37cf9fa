"""The models that are served: finding, loading, replacing and dropping them, and the thread that computes for them.

A model is replaced only when everything new is loaded and warm, in one step: a request is answered by the version that
was served when it came, also where that is replaced meanwhile, and a version is dropped with its last request. What
fails to load changes nothing but the index and the log.
"""

import asyncio
import functools
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from mcdrop.errors import BundleError, McdropError, SettingError
from service.errors import LoadError, NotOfferedError, NotReadyError, UnknownModelError
from service.loading import beside, load
from service.metrics import Metrics
from service.model import ServedModel
from service.quota import set_threads
from service.repository import Scan, Versions, find_models, scan, serving_root
from service.scheduler import Scheduler
from service.settings import Settings, raise_limit
from service.versions import Shelf
from service.watch import Watch

log = logging.getLogger("service.registry")


class Registry:
    """All models by name, the scheduler that computes for them, and whether the server takes requests."""

    def __init__(self, settings: Settings, metrics: Metrics | None = None) -> None:
        self.settings = settings
        self.device = choose_device(settings.device)
        self.metrics = Metrics() if metrics is None else metrics
        self.watch = Watch(self.metrics)
        self._shelf = Shelf()
        self._changing = asyncio.Lock()  # one change at a time, in the order in which they were asked for
        found = find_models(settings)
        self._shelf.update(Scan(found, {}))
        for name, versions in found.items():
            self._shelf.expect(name, self._chosen(name, versions))
        self.default = self._default_name()
        self.scheduler = Scheduler(
            max_pending=settings.max_pending,
            max_pending_seconds=settings.max_pending_seconds,
            stuck_seconds=settings.stuck_after,
            prepare=functools.partial(set_threads, settings.threads),
            watch=self.watch,
        )
        self.draining = False
        self.failure: Exception | None = None

    @property
    def models(self) -> Mapping[str, ServedModel]:
        """What answers where no version is named: the newest version of each model that is not unloaded."""
        return self._shelf.newest

    def get(self, name: str | None, version: str | None = None) -> ServedModel:
        """A model by name, None for the default, and version, None for the newest.

        Raises UnknownModelError for one that is not served, and NotReadyError until it is loaded.
        """
        if name is None:
            name = self.default
        if name is None:
            raise UnknownModelError(
                f"Several models are served ({', '.join(self.models)}) and none is the default. "
                f"Use /v1/models/NAME/predict, or set {raise_limit('default_model')}."
            )
        model = self._shelf.find(name, version)
        _ = model.loaded
        return model

    def index(self) -> list[dict[str, str]]:
        """Every version in the repository, as it was last looked through: name, version, state and reason."""
        return self._shelf.index()

    def versions(self, name: str) -> list[dict[str, str]]:
        """The versions of a model, oldest first: version, state and reason."""
        return self._shelf.versions(name)

    def check_ready(self) -> None:
        """Raise NotReadyError unless what was found at the start is loaded and the server is not about to stop."""
        if self.draining:
            raise NotReadyError("The server is about to stop. Send requests to another one.")
        if self.failure is not None:
            raise NotReadyError(f"A model could not be loaded: {self.failure}")
        missing = [model.name for model in self.models.values() if model.mc is None]
        if missing:
            raise NotReadyError(f"Models are still being loaded: {', '.join(missing)}.")

    async def load(self) -> None:
        """Load and warm what was found at the start. Raises what the first faulty one raises."""
        async with self._changing:
            for name, _, entry in list(self._shelf):
                if entry.served is None:
                    continue
                try:
                    await self._load(entry.served)
                except Exception as error:
                    self.failure = error
                    self._failed(name, [entry.served], error)
                    raise
                self._announce([entry.served])
                entry.become("READY", served=entry.served)

    async def load_model(self, name: str) -> None:
        """Look through the repository again, and load a model from it or load it again.

        Returns when the new version answers. Raises LoadError when it cannot be loaded, UnknownModelError when nothing
        has that name, NotOfferedError where the setting enable_model_control is off.
        """
        self._check_control()
        async with self._changing:
            found = await beside(functools.partial(self._scan, self._shelf.names()))
            served = self.models.get(name)
            self._shelf.update(found)
            if name not in found.models and name not in found.faults and served is None:
                there = ", ".join(found.models)
                raise UnknownModelError(f"There is no model {name!r} in {self.settings.models}. There are: {there}.")
            fresh: Sequence[ServedModel] = ()
            try:
                fresh = self._chosen(name, _versions(found, name))
                await self._load_all(fresh)
            except NotReadyError:  # the server stops
                raise
            except Exception as error:
                self._failed(name, fresh, error)
                foreseen = isinstance(error, McdropError)
                kept = f"; version {served.version} is served as before" if served is not None else ""
                log.error("model %s could not be loaded%s: %s", name, kept, error, exc_info=None if foreseen else error)
                raise LoadError(f"The model {name} could not be loaded{kept}: {error}") from error
            self._announce(fresh, self._shelf.switch(name, fresh))
            if name == "default":
                self.default = self.default or name

    async def unload_model(self, name: str) -> None:
        """Stop serving a model; requests in progress end as they would. To be loaded again by its name.

        Raises UnknownModelError when nothing has that name, NotOfferedError where enable_model_control is off.
        """
        self._check_control()
        async with self._changing:
            self._announce((), self._shelf.remove(name, "unloaded"))

    def _check_control(self) -> None:
        if not self.settings.enable_model_control:
            raise NotOfferedError(
                "This server neither loads nor unloads models while it runs. "
                f"To have it do so, start it with {raise_limit('enable_model_control')} on."
            )

    def _chosen(self, name: str, versions: Versions) -> list[ServedModel]:
        """The versions that are to be served, not loaded yet, oldest first."""
        wanted = list(versions.items()) if self.settings.versions == "all" else list(versions.items())[-1:]
        return [ServedModel(name, version, folder, self.device, self.settings) for version, folder in wanted]

    def _scan(self, known: Mapping[Path, str]) -> Scan:
        return scan(serving_root(self.settings), known)

    async def _load_all(self, models: Sequence[ServedModel]) -> None:
        """All or none; whatever happens, no version is left marked as being loaded."""
        restore = self._shelf.begin(models)
        try:
            for model in models:
                await self._load(model)
        except BaseException:
            restore()
            raise

    async def _load(self, model: ServedModel) -> None:
        started = time.perf_counter()
        await load(model, self.scheduler)
        seconds = time.perf_counter() - started
        log.info("model %s, version %s, is ready after %.1f s (%s)", model.name, model.version, seconds, model.folder)
        self.metrics.model_loaded(model.name, model.version, seconds)

    def _failed(self, name: str, models: Sequence[ServedModel], error: Exception) -> None:
        self._shelf.failed(name, [model.version for model in models], str(error))
        self.metrics.load_failed(name)

    def _announce(self, fresh: Sequence[ServedModel], retired: Sequence[ServedModel] = ()) -> None:
        """Say what answers from now on, and what does not. The last request with a version frees it."""
        versions = {model.version for model in fresh}
        gone = [model for model in retired if model.version not in versions]
        for model in gone:
            log.info("model %s, version %s, takes no more requests", model.name, model.version)
        for model in fresh:
            self.metrics.model_ready(model.name, model.version, True)
        for model in gone:
            self.metrics.model_ready(model.name, model.version, False)

    def _default_name(self) -> str | None:
        wanted = self.settings.default_model
        if wanted is not None and wanted not in self.models:
            raise SettingError(
                f"The setting default_model names {wanted!r}, which is not served. Served: {', '.join(self.models)}."
            )
        if wanted is None and len(self.models) == 1:
            return next(iter(self.models))
        return "default" if wanted is None and "default" in self.models else wanted


def _versions(found: Scan, name: str) -> Versions:
    """The versions that a scan found of a model. Raises what it found wrong with it."""
    if name in found.faults:
        raise found.faults[name]
    if name not in found.models:
        raise BundleError("its folder is gone.")
    return found.models[name]


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
