"""Finding models: one folder, folders side by side, repositories of versions, and folders that are none of these."""

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcdrop.errors import BundleError, SettingError
from service.repository import age, find_models, scan
from serving import models_folder, settings


def find(folder: Path, **changes: object) -> dict[str, dict[str, Path]]:
    return {name: dict(versions) for name, versions in find_models(settings(models=folder, **changes)).items()}


def copy(source: str, target: Path) -> Path:
    return shutil.copytree(models_folder() / source, target)


def test_a_model_folder_is_served_by_itself_as_its_description_says():
    assert find(models_folder() / "one") == {"insects": {"3": models_folder() / "one"}}


def test_a_folder_of_folders_is_served_whole():
    folder = models_folder()
    assert find(folder) == {
        "insects": {"3": folder / "one"}, "pair": {"1": folder / "pair"}, "slope": {"1": folder / "slope"}
    }  # fmt: skip


def test_a_repository_has_names_and_versions_from_its_folders_oldest_first(tmp_path):
    for version in ("10", "9", "2"):
        copy("slope", tmp_path / "hill" / version)
    found = find(tmp_path)
    assert found == {"hill": {version: tmp_path / "hill" / version for version in ("2", "9", "10")}}
    assert list(found["hill"]) == ["2", "9", "10"]


def test_a_repository_and_model_folders_stand_side_by_side(tmp_path):
    copy("slope", tmp_path / "hill" / "1")
    copy("one", tmp_path / "one")
    assert find(tmp_path) == {"hill": {"1": tmp_path / "hill" / "1"}, "insects": {"3": tmp_path / "one"}}


@pytest.mark.parametrize(
    "versions",
    [
        ["1", "2", "10"],
        ["1.9", "1.10", "2"],
        ["1", "1.5", "2"],
        ["2025-12-31", "2026-01-01"],
        ["beta", "v9", "v10", "0", "1"],
        ["", "latest", "1"],
        ["01", "1", "1a", "1b2", "1b10"],
    ],
)
def test_versions_are_ordered_number_by_number(versions):
    backwards = list(reversed(versions))
    assert sorted(backwards, key=age) == versions


@given(st.lists(st.integers(0, 10**30), min_size=1))
def test_numbers_are_ordered_as_numbers(numbers):
    assert [int(text) for text in sorted(map(str, numbers), key=age)] == sorted(numbers)


@given(st.lists(st.text(max_size=8), max_size=6), st.randoms(use_true_random=False))
def test_every_text_has_its_place(versions, random):
    shuffled = list(versions)
    random.shuffle(shuffled)
    assert sorted(versions, key=age) == sorted(shuffled, key=age)


def test_a_number_may_be_of_any_length():
    assert sorted(["9" * 5000, "1" + "0" * 5000, "0" * 5000, "\N{SUPERSCRIPT TWO}"], key=age)[-1] == "1" + "0" * 5000


def test_a_model_without_a_name_takes_its_folders(tmp_path, monkeypatch):
    copied = copy("slope", tmp_path / "hill")
    assert list(find(copied)) == ["hill"]
    monkeypatch.chdir(copied)
    assert list(find(Path())) == ["hill"]


def test_a_link_to_a_version_is_a_version(tmp_path):
    copy("slope", tmp_path / "store" / "elsewhere")
    (tmp_path / "models" / "hill").mkdir(parents=True)
    (tmp_path / "models" / "hill" / "4").symlink_to(tmp_path / "store" / "elsewhere")
    assert find(tmp_path / "models") == {"hill": {"4": tmp_path / "models" / "hill" / "4"}}


def test_other_things_in_the_folder_are_left_alone(tmp_path):
    copy("one", tmp_path / "one")
    copy("one", tmp_path / ".one.new")
    copy("slope", tmp_path / "hill" / "1")
    copy("slope", tmp_path / "hill" / ".2.new")
    (tmp_path / "hill" / "3").mkdir()
    (tmp_path / "hill" / "notes.txt").write_text("hello")
    (tmp_path / "notes").mkdir()
    (tmp_path / "readme.txt").write_text("hello")
    assert {name: list(versions) for name, versions in find(tmp_path).items()} == {"hill": ["1"], "insects": ["3"]}


def test_two_models_of_one_name_are_an_error(tmp_path):
    copy("one", tmp_path / "a")
    copy("one", tmp_path / "b")
    with pytest.raises(SettingError, match=r"both hold a model named 'insects'.*insects/1, insects/2"):
        find(tmp_path)


def test_a_repository_and_a_model_of_one_name_are_an_error(tmp_path):
    copy("one", tmp_path / "insects" / "1")
    copy("one", tmp_path / "other")
    with pytest.raises(SettingError, match=r"both hold a model named 'insects'"):
        find(tmp_path)


def test_models_side_by_side_are_not_taken_for_versions_of_the_folder_around_them(tmp_path):
    copy("one", tmp_path / "models" / "insects")
    copy("pair", tmp_path / "models" / "pair")
    with pytest.raises(BundleError, match=r"a model named 'pair'.*a version of 'models'. Serve .*models to have"):
        find(tmp_path)


def test_a_name_that_no_url_can_hold_is_an_error(tmp_path):
    with pytest.raises(SettingError, match=r"named 'my hill', which cannot stand in a URL"):
        find(copy("slope", tmp_path / "my hill"))
    copy("slope", tmp_path / "repository" / "my hill" / "1")
    with pytest.raises(SettingError, match=r"named 'my hill', which cannot stand in a URL"):
        find(tmp_path / "repository")


@pytest.mark.parametrize("place", ["stats", "stats/1"])
def test_a_word_of_the_protocol_is_no_name(tmp_path, place):
    copy("slope", tmp_path / place)
    with pytest.raises(SettingError, match=r"named 'stats', a word of the protocol"):
        find(tmp_path)


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


@pytest.mark.parametrize("place", ["one", "insects/4"])
def test_a_damaged_description_is_an_error_before_anything_starts(tmp_path, place):
    copy("pair", tmp_path / "pair")
    (copy("one", tmp_path / place) / "model.json").write_text("{")
    with pytest.raises(BundleError, match=r"model.json"):
        find(tmp_path)


def test_a_scan_goes_on_behind_a_fault_and_says_whose_it_is(tmp_path):
    copy("pair", tmp_path / "pair")
    (copy("one", tmp_path / "one") / "model.json").write_text("{")
    found = scan(tmp_path)
    assert (list(found.models), list(found.faults)) == (["pair"], ["one"])
    known = scan(tmp_path, {tmp_path / "one": "insects"})
    assert (list(known.models), list(known.faults)) == (["pair"], ["insects"])
