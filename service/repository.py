"""The folders that models lie in, and how their versions are ordered. Nothing is loaded here.

`models`, the folder that is served, has one of two forms:

    model.json ...              one model
    pets/model.json ...         models side by side, each called as its `model.json` says, or else like its folder
    birds/1/model.json ...      a repository: the model `birds`, whose versions are called like their folders
    birds/2/model.json ...

The last two may stand side by side. Names that begin with a dot are passed over, so that a folder can be written under
such a name and renamed when it is whole. Versions compare number by number: 2 is older than 10, 1.9 than 1.10; one
that does not begin with a digit is older than all that do.
"""

import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mcdrop.disk.bundle import FILES, read_meta
from mcdrop.errors import BundleError, McdropError, SettingError
from service.settings import Settings

log = logging.getLogger("service.repository")

MANIFEST = FILES[0]
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
RESERVED = ("stats",)  # /v2/models/stats is the statistics of all models
WRITE_ONE = "`mcdrop export` and `MCDropout.save` write one."

Versions = Mapping[str, Path]  # model folders by version, oldest first


@dataclass(frozen=True)
class Scan:
    """What lies in a folder: models by name, and the names of which there is something that cannot be served."""

    models: Mapping[str, Versions]
    faults: Mapping[str, McdropError]


def find_models(settings: Settings) -> Mapping[str, Versions]:
    """Every model and version. Raises SettingError where there is none, and the first fault that a scan finds."""
    root = serving_root(settings)
    if not root.is_dir():
        raise SettingError(
            f"There is no folder {root}. Give a model folder (one with {MANIFEST} inside) or a folder of them; "
            f"{WRITE_ONE}"
        )
    found = scan(root)
    for fault in found.faults.values():
        raise fault
    if not found.models:
        raise SettingError(
            f"{root} is no model folder and has none inside: no {MANIFEST} in it, one level below (NAME/{MANIFEST}) "
            f"or two (NAME/VERSION/{MANIFEST}). {WRITE_ONE}"
        )
    return found.models


def serving_root(settings: Settings) -> Path:
    """The folder that `models` means: the fallback where there is nothing in it."""
    folder = settings.models
    if settings.fallback_models is None or (folder.is_dir() and any(folder.iterdir())):
        return folder
    log.warning("no models in %s: serving %s", folder, settings.fallback_models)
    return settings.fallback_models


def scan(root: Path, known: Mapping[Path, str] | None = None) -> Scan:
    """Look through a folder.

    `known` are model folders with the names that they had when they were whole: a fault of one is that model's.
    """
    claims: dict[str, list[tuple[Path, Versions]]] = {}
    faults: dict[str, McdropError] = {}
    for place, versions in _places(root):
        name = (known or {}).get(place, _called(place))
        try:
            if versions is None:
                name, version = _described(place)
                versions = {version: place}
            else:
                _check_newest(name, versions)
            claims.setdefault(_checked(name, place), []).append((place, versions))
        except McdropError as error:
            faults[name] = error
    for name, places in claims.items():
        if len(places) > 1:
            faults[name] = SettingError(
                f"{places[0][0]} and {places[1][0]} both hold a model named {name!r}. Save one under another name, "
                f"or put them in one folder as its versions: {name}/1, {name}/2."
            )
    return Scan({name: places[0][1] for name, places in claims.items() if name not in faults}, faults)


def age(version: str) -> tuple[bool, list[tuple[int, str]], str]:
    """What versions are sorted by, oldest first."""
    parts = re.findall(r"[0-9]+|[^0-9]+", version)
    return _is_number(version[:1]), [_magnitude(part) if _is_number(part) else (0, part) for part in parts], version


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _magnitude(number: str) -> tuple[int, str]:
    """Whole numbers of any length compare by their length, then digit by digit."""
    digits = number.lstrip("0")
    return len(digits), digits


def _places(root: Path) -> Iterator[tuple[Path, Versions | None]]:
    """Folders that hold a model, or (with its versions) a repository's."""
    if _is_model(root):
        yield root, None
        return
    for place in _folders(root):
        if _is_model(place):
            yield place, None
        elif versions := {path.name: path for path in _folders(place) if _is_model(path)}:
            yield place, {version: versions[version] for version in sorted(versions, key=age)}


def _folders(parent: Path) -> list[Path]:
    """Sorted by name; those that vanish meanwhile, or that cannot be read, hold nothing."""
    try:
        return sorted(path for path in parent.iterdir() if not path.name.startswith(".") and path.is_dir())
    except OSError:
        return []


def _is_model(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def _described(folder: Path) -> tuple[str, str]:
    """The name and version in a model's description, read without loading it."""
    meta = read_meta(folder)
    return meta.get("name") or _called(folder), meta.get("version") or "1"


def _called(folder: Path) -> str:
    """The last word of a path, also of `.` and of a link."""
    return Path(os.path.abspath(folder)).name


def _check_newest(name: str, versions: Versions) -> None:
    """Raise BundleError where the newest version calls itself otherwise: then this is no repository of versions."""
    newest = list(versions.values())[-1]
    called = read_meta(newest).get("name") or name
    if called != name:
        raise BundleError(
            f"{newest} holds a model named {called!r}, but its place NAME/VERSION makes it a version of {name!r}. "
            f"Serve {newest.parent} to have its folders as models of their own, or save it under the name {name!r}."
        )


def _checked(name: str, folder: Path) -> str:
    """A name that can stand in a URL."""
    if NAME.fullmatch(name) is None:
        raise SettingError(
            f"The model in {folder} is named {name!r}, which cannot stand in a URL. "
            "Use letters, digits, '.', '_' and '-', starting with a letter or digit; "
            f"the name is `name` in {MANIFEST}, or else the folder's."
        )
    if name in RESERVED:
        raise SettingError(f"The model in {folder} is named {name!r}, a word of the protocol. Save it under another.")
    return name
