"""Which versions of which models there are, what has become of each, and which answer.

States are those of the Open Inference Protocol's repository index: READY answers requests, LOADING will, UNAVAILABLE
does not. Everything here happens on the event loop, and each change at once: no request sees half of it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mcdrop.errors import McdropError
from service.errors import NotReadyError, UnknownModelError
from service.model import ServedModel
from service.repository import Scan, age

State = Literal["READY", "LOADING", "UNAVAILABLE"]
REPLACED = "another version took its place"


@dataclass
class Version:
    """One version of one model."""

    folder: Path
    state: State = "UNAVAILABLE"
    reason: str = "not loaded"
    served: ServedModel | None = None  # None: requests for it are refused

    def become(self, state: State, reason: str = "", served: ServedModel | None = None) -> None:
        """Another state, and what answers from now on."""
        self.state, self.reason, self.served = state, reason, served


class Shelf:
    """All models by name and version."""

    def __init__(self) -> None:
        self._models: dict[str, dict[str, Version]] = {}  # versions oldest first
        self._faults: Mapping[str, McdropError] = {}
        self.newest: dict[str, ServedModel] = {}  # what answers where no version is named

    def __iter__(self) -> Iterator[tuple[str, str, Version]]:
        for name, versions in self._models.items():
            for version, entry in versions.items():
                yield name, version, entry

    def names(self) -> dict[Path, str]:
        """The models' names by the folders of their versions."""
        return {entry.folder: name for name, _, entry in self}

    def find(self, name: str, version: str | None) -> ServedModel:
        """What answers for a name; raises UnknownModelError, and NotReadyError while it is being loaded."""
        versions = self._models.get(name, {})
        if not versions:
            raise UnknownModelError(f"There is no model {name!r}. Served are: {', '.join(self.newest)}.")
        if version is not None and version not in versions:
            raise UnknownModelError(f"The model {name} has no version {version!r}. It has: {', '.join(versions)}.")
        served = self.newest.get(name) if version is None else versions[version].served
        if served is not None:
            return served
        asked = list(versions.values()) if version is None else [versions[version]]
        what = f"The model {name}" if version is None else f"Version {version} of the model {name}"
        if any(entry.state == "LOADING" for entry in asked):
            raise NotReadyError(f"{what} is still being loaded. Try again in a moment.")
        others = ", ".join(other for other, entry in versions.items() if entry.served is not None)
        hint = f" Served is: {others}." if others else " Load it first, or ask for another model."
        raise UnknownModelError(f"{what} is not served: {asked[-1].reason.rstrip('.')}.{hint}")

    def versions(self, name: str) -> list[dict[str, str]]:
        """The versions of a model with their states, oldest first."""
        return [
            {"version": version, "state": entry.state, "reason": entry.reason}
            for version, entry in self._models.get(name, {}).items()
        ]

    def index(self) -> list[dict[str, str]]:
        """Every version of every model as the protocol's repository index has it; of what cannot be read, the name."""
        unread = [{"name": name, "state": "UNAVAILABLE", "reason": str(fault)} for name, fault in self._faults.items()]
        return [{"name": name, **entry} for name in self._models for entry in self.versions(name)] + [
            entry for entry in unread if entry["name"] not in self._models
        ]

    def update(self, found: Scan) -> None:
        """Take over what a scan found. What is served stays, wherever its folder went."""
        self._faults = found.faults
        for name in {*self._models, *found.models}:
            before = self._models.get(name, {})
            kept = {version: entry for version, entry in before.items() if entry.served is not None}
            folders = found.models.get(name, {})
            entries = kept | {version: before.get(version) or Version(folder) for version, folder in folders.items()}
            for version, folder in folders.items():
                entries[version].folder = folder
            self._models[name] = {version: entries[version] for version in sorted(entries, key=age)}
        self._models = {name: self._models[name] for name in sorted(self._models) if self._models[name]}

    def expect(self, name: str, models: Sequence[ServedModel]) -> None:
        """Let `models` be what answers once they are loaded: before that, a server is not ready."""
        for model in models:
            self._models[name][model.version].become("LOADING", served=model)
        self.newest[name] = models[-1]

    def begin(self, models: Sequence[ServedModel]) -> Callable[[], None]:
        """Mark what is being loaded; what answers meanwhile stays READY. Returns what takes the marks back."""
        entries = [self._models[model.name][model.version] for model in models]
        before = [(entry, entry.state, entry.reason) for entry in entries if entry.served is None]
        for entry, _, _ in before:
            entry.become("LOADING")

        def restore() -> None:
            for entry, state, reason in before:
                entry.become(state, reason)

        return restore

    def failed(self, name: str, versions: Sequence[str], reason: str) -> None:
        """Say why versions of a model were not loaded. What is served stays so, and says it too."""
        for version, entry in self._models.get(name, {}).items():
            if entry.state == "READY":
                entry.reason = f"served as it was, since the last reload failed: {reason}"
            elif version in versions:
                entry.become("UNAVAILABLE", reason)

    def switch(self, name: str, models: Sequence[ServedModel]) -> list[ServedModel]:
        """Let `models`, all versions of one model and oldest first, answer from now on, instead of those returned."""
        retired = self.remove(name, REPLACED)
        for model in models:
            self._models[name][model.version].become("READY", served=model)
        self.newest = dict(sorted({**self.newest, name: models[-1]}.items()))
        return retired

    def remove(self, name: str, reason: str) -> list[ServedModel]:
        """Let no version of a model answer any more; returns those that did."""
        if name not in self._models:
            raise UnknownModelError(f"There is no model {name!r}. Served are: {', '.join(self.newest)}.")
        retired = [entry.served for entry in self._models[name].values() if entry.served is not None]
        for entry in self._models[name].values():
            if entry.served is not None:
                entry.become("UNAVAILABLE", reason)
        self.newest.pop(name, None)
        return retired
