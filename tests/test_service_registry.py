"""Finding models: one folder, a folder of folders, names, and folders that are neither."""

import shutil
from pathlib import Path

import pytest

from mcdrop.errors import BundleError, SettingError
from service.registry import Registry, find_models
from service.server import serve, serving
from serving import models_folder, settings


def find(folder: Path, **changes: object) -> dict[str, Path]:
    return find_models(settings(models=folder, **changes))


def copy(source: str, target: Path) -> Path:
    return shutil.copytree(models_folder() / source, target)


def test_a_model_folder_is_served_by_itself():
    assert find(models_folder() / "one") == {"insects": models_folder() / "one"}


def test_a_folder_of_folders_is_served_whole():
    folder = models_folder()
    assert find(folder) == {"insects": folder / "one", "pair": folder / "pair", "slope": folder / "slope"}


def test_a_model_without_a_name_takes_its_folders(tmp_path, monkeypatch):
    copied = copy("slope", tmp_path / "hill")
    assert list(find(copied)) == ["hill"]
    monkeypatch.chdir(copied)
    assert list(find(Path())) == ["hill"]


def test_other_things_in_the_folder_are_left_alone(tmp_path):
    copy("one", tmp_path / "one")
    copy("one", tmp_path / ".one.new")
    (tmp_path / "notes").mkdir()
    (tmp_path / "readme.txt").write_text("hello")
    assert list(find(tmp_path)) == ["insects"]


def test_two_models_of_one_name_are_an_error(tmp_path):
    copy("one", tmp_path / "a")
    copy("one", tmp_path / "b")
    with pytest.raises(SettingError, match=r"both hold a model named 'insects'"):
        find(tmp_path)


def test_a_name_that_no_url_can_hold_is_an_error(tmp_path):
    with pytest.raises(SettingError, match=r"named 'my hill', which cannot stand in a URL"):
        find(copy("slope", tmp_path / "my hill"))


def test_a_folder_that_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(SettingError, match=r"There is no folder .*nope.*mcdrop export"):
        find(tmp_path / "nope")


def test_a_folder_without_models_is_an_error(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SettingError, match=r"no model folder and has none inside: no model.json"):
        find(tmp_path)


@pytest.mark.parametrize("given", ["empty", "missing"])
def test_the_fallback_is_served_where_no_model_was_given(tmp_path, given):
    if given == "empty":
        (tmp_path / "models").mkdir()
    assert list(find(tmp_path / "models", fallback_models=models_folder() / "one")) == ["insects"]


def test_the_fallback_does_not_hide_a_mistake(tmp_path):
    (tmp_path / "wrong").mkdir()
    with pytest.raises(SettingError, match="none inside"):
        find(tmp_path, fallback_models=models_folder() / "one")


def test_the_default_is_the_only_model_or_the_one_that_is_named(tmp_path):
    assert Registry(settings(models=models_folder() / "one")).default == "insects"
    assert Registry(settings()).default is None
    assert Registry(settings(default_model="pair")).default == "pair"
    copy("slope", tmp_path / "default")
    copy("one", tmp_path / "other")
    assert Registry(settings(models=tmp_path)).default == "default"


def test_a_default_that_is_not_served_is_an_error():
    with pytest.raises(SettingError, match=r"default_model names 'nope'.*Served: insects, pair, slope"):
        Registry(settings(default_model="nope"))


@pytest.mark.parametrize("name", ["cuda:99", "toaster"])
def test_a_device_that_is_not_there_is_an_error(name):
    with pytest.raises(SettingError, match=rf"device is '{name}'"):
        Registry(settings(device=name))


def test_a_damaged_description_is_an_error_before_anything_starts(tmp_path):
    folder = copy("one", tmp_path / "one")
    (folder / "model.json").write_text("{")
    with pytest.raises(BundleError, match=r"model.json"):
        find(folder)


def test_damaged_weights_end_the_server_with_their_error(tmp_path):
    folder = copy("one", tmp_path / "one")
    largest = max(folder.iterdir(), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-10])
    with pytest.raises(BundleError), serving(settings(models=folder)):
        pass
    with pytest.raises(BundleError):
        serve(settings(models=folder))
