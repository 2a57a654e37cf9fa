"""A folder is written whole or not at all."""

import os
from pathlib import Path

import pytest

from mcdrop.disk import folders
from mcdrop.errors import BundleError


def write(target: Path, text: str) -> None:
    with folders.replacing(target) as beside:
        folders.write_bytes(beside / "a.txt", text.encode())


def test_new_empty_and_old_folders_are_replaced(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "model"
    write(target, "one")
    assert (target / "a.txt").read_text() == "one"
    write(target, "two")
    assert (target / "a.txt").read_text() == "two"
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty", "three")
    assert (tmp_path / "empty" / "a.txt").read_text() == "three"
    assert sorted(path.name for path in target.parent.iterdir()) == ["model"]


def test_an_error_while_writing_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "model"
    write(target, "old")
    with pytest.raises(KeyboardInterrupt), folders.replacing(target) as beside:
        folders.write_bytes(beside / "a.txt", b"new")
        raise KeyboardInterrupt
    assert (target / "a.txt").read_text() == "old"
    assert os.listdir(tmp_path) == ["model"]


def test_an_error_while_renaming_brings_the_old_one_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "model"
    write(target, "old")
    rename = os.rename

    def fail_into_place(source: Path, destination: Path) -> None:
        if str(source).endswith(".new"):
            raise OSError(28, "No space left on device")
        rename(source, destination)

    monkeypatch.setattr(os, "rename", fail_into_place)
    with pytest.raises(BundleError, match=r"model cannot be written: No space left on device. Choose a folder"):
        write(target, "new")
    assert (target / "a.txt").read_text() == "old"
    assert os.listdir(tmp_path) == ["model"]


def test_a_folder_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match=r"cannot be written: .*Choose a folder"):
        write(tmp_path / "file" / "model", "new")


def test_only_known_files_are_replaced(tmp_path: Path) -> None:
    assert not folders.check_replaceable(tmp_path / "none", ["a.txt"])
    assert not folders.check_replaceable(tmp_path, ["a.txt"])
    (tmp_path / "a.txt").write_text("")
    assert folders.check_replaceable(tmp_path, ["a.txt"])
    (tmp_path / "notes.md").write_text("")
    with pytest.raises(BundleError, match=r"holds 'notes.md', which is no part of a model"):
        folders.check_replaceable(tmp_path, ["a.txt"])
    with pytest.raises(BundleError, match=r"notes.md is a file"):
        folders.check_replaceable(tmp_path / "notes.md", ["a.txt"])


def test_only_ordinary_files_of_bounded_size_are_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert folders.read_bytes(tmp_path / "a", most=5) == b"12345"
    with pytest.raises(BundleError, match="has 5 bytes, more than the 4"):
        folders.read_bytes(tmp_path / "a", most=4)
    with pytest.raises(BundleError, match="is missing"):
        folders.read_bytes(tmp_path / "b", most=4)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BundleError, match="is no ordinary file"):
        folders.read_bytes(tmp_path / "pipe", most=4)
    os.symlink("/dev/zero", tmp_path / "zero")
    with pytest.raises(BundleError, match="is no ordinary file"):
        folders.read_bytes(tmp_path / "zero", most=4)
    os.symlink("loop", tmp_path / "loop")
    with pytest.raises(BundleError, match="cannot be read"):
        folders.read_bytes(tmp_path / "loop", most=4)


def test_files_can_be_read_by_others_as_the_process_allows(tmp_path: Path) -> None:
    write(tmp_path / "model", "text")
    plain = tmp_path / "plain"
    plain.write_text("")
    assert (tmp_path / "model" / "a.txt").stat().st_mode == plain.stat().st_mode
    (tmp_path / "folder").mkdir()
    assert (tmp_path / "model").stat().st_mode == (tmp_path / "folder").stat().st_mode
