"""Folders that are written whole or not at all, and files read within bounds.

A folder is written beside its place under a name of its own and renamed into it; what stood there is moved aside first
and comes back when the renaming fails. Only a folder that holds nothing but files of the given names is ever replaced.
"""

import contextlib
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from mcdrop.errors import BundleError

__all__ = ["AGAIN", "check_replaceable", "fingerprint", "read_bytes", "replacing", "size_of", "write_bytes"]

AGAIN = "Copy the whole folder again, or save the model again."


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A new empty folder that takes the place of `target` when the block ends well, and vanishes when it does not."""
    beside = target.with_name(f".{target.name}.{secrets.token_hex(4)}.new")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        beside.mkdir()
        yield beside
        for path in (*beside.iterdir(), beside):
            _sync(path)
        _swap(target, beside)
    except OSError as error:
        raise BundleError(
            f"{target} cannot be written: {error.strerror or error}. Choose a folder that can be written and has room."
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def check_replaceable(target: Path, names: Sequence[str]) -> bool:
    """Whether `target` holds files that would be replaced; `BundleError` where it holds something besides `names`."""
    if not target.exists():
        return False
    if not target.is_dir():
        raise BundleError(f"{target} is a file. Choose another folder for the model.")
    there = sorted(os.listdir(target))
    if strangers := [name for name in there if name not in names]:
        raise BundleError(
            f"{target} holds {strangers[0]!r}, which is no part of a model. Choose another folder, or move it away."
        )
    return bool(there)


def size_of(path: Path) -> int:
    """The size of an ordinary file in bytes; `BundleError` where there is none."""
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise BundleError(f"{path} is missing. {AGAIN}") from error
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror or error}.") from error
    if not stat.S_ISREG(status.st_mode):  # a pipe would wait for ever, a device would never end
        raise BundleError(f"{path} is no ordinary file. {AGAIN}")
    return status.st_size


def read_bytes(path: Path, *, most: int) -> bytes:
    """The content of an ordinary file of at most `most` bytes."""
    size = size_of(path)
    if size > most:
        raise BundleError(f"{path} has {size} bytes, more than the {most} that such a file may have. {AGAIN}")
    try:
        with path.open("rb") as file:
            return file.read(most + 1)
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror or error}.") from error


def write_bytes(path: Path, data: bytes) -> None:
    """A new file with this content."""
    with path.open("xb") as file:
        file.write(data)


def fingerprint(path: Path) -> dict[str, int | str]:
    """Size in bytes and sha256 of a file."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _swap(target: Path, beside: Path) -> None:
    if not target.exists() or not os.listdir(target):
        os.rename(beside, target)
    else:
        aside = beside.with_suffix(".old")
        os.rename(target, aside)
        try:
            os.rename(beside, target)
        except OSError:
            os.rename(aside, target)
            raise
        shutil.rmtree(aside, ignore_errors=True)
    _sync(target.parent)
