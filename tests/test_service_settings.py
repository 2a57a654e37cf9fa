"""Settings: three places, one order, errors that name all three."""

import re
from pathlib import Path

import pytest

from mcdrop.errors import SettingError
from service.settings import Settings, load_settings


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "server.yaml"
    path.write_text(text)
    return path


def test_a_flag_wins_over_the_environment_and_that_over_the_file(tmp_path, monkeypatch):
    config = write(tmp_path, "max_rows: 1\nport: 1\nhost: file\n")
    monkeypatch.setenv("MCDROP_MAX_ROWS", "2")
    monkeypatch.setenv("MCDROP_PORT", "2")
    found = load_settings(config=config, max_rows=3, device=None)
    assert (found.max_rows, found.port, found.host, found.device) == (3, 2, "file", "auto")


def test_the_file_can_be_named_by_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("MCDROP_CONFIG", str(write(tmp_path, "max_pending: 7\n")))
    assert load_settings().max_pending == 7


def test_flags_come_as_text_from_a_command_line():
    found = load_settings(max_rows="12", shutdown_delay="0.5", models="somewhere", port="0")
    assert (found.max_rows, found.shutdown_delay, found.models, found.port) == (12, 0.5, Path("somewhere"), 0)


def test_empty_variables_and_files_set_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("MCDROP_MAX_ROWS", "")
    assert load_settings(config=write(tmp_path, "")).max_rows == Settings.model_fields["max_rows"].default


@pytest.mark.parametrize(("name", "value"), [("max_rows", 0), ("port", 65536), ("log_level", "loud"), ("threads", "x")])
def test_a_wrong_value_is_told_with_every_place_to_set_it(name, value):
    with pytest.raises(SettingError) as caught:
        load_settings(**{name: value})
    message = str(caught.value)
    assert f"The setting {name} cannot be {value!r}" in message
    for place in (f"--{name.replace('_', '-')}", f"MCDROP_{name.upper()}", f"`{name}:`"):
        assert place in message


def test_all_wrong_values_are_told_at_once():
    with pytest.raises(
        SettingError, match=re.compile("max_rows cannot.*port cannot|port cannot.*max_rows cannot", re.DOTALL)
    ):
        load_settings(max_rows=0, port=-1)


def test_a_setting_that_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(SettingError, match=r"no setting 'max_row'.*max_rows"):
        load_settings(config=write(tmp_path, "max_row: 3\n"))


def test_a_variable_that_is_almost_a_setting_is_an_error(monkeypatch):
    monkeypatch.setenv("MCDROP_API_KEY", "the client's")
    monkeypatch.setenv("MCDROP_SERVICE_HOST", "10.0.0.1")
    load_settings()
    monkeypatch.setenv("MCDROP_MAX_ROW", "5")
    with pytest.raises(SettingError, match=r"MCDROP_MAX_ROW is no setting. Write MCDROP_MAX_ROWS"):
        load_settings()


def test_what_kubernetes_sets_for_a_service_is_explained(monkeypatch):
    monkeypatch.setenv("MCDROP_PORT", "tcp://10.0.0.1:8000")
    with pytest.raises(SettingError, match="enableServiceLinks: false"):
        load_settings()


@pytest.mark.parametrize("text", ["- 1\n", "a: [1\n", "a:\n\tb: 1\n"])
def test_a_file_that_is_no_list_of_settings_is_an_error(tmp_path, text):
    with pytest.raises(SettingError, match=r"settings file .*server.yaml"):
        load_settings(config=write(tmp_path, text))


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(SettingError, match=r"cannot be opened.*--config"):
        load_settings(config=tmp_path / "nope.yaml")


def test_a_choice_of_numbers_may_come_as_text(monkeypatch):
    assert load_settings().overload_status == 429
    monkeypatch.setenv("MCDROP_OVERLOAD_STATUS", "503")
    assert load_settings().overload_status == 503
    with pytest.raises(SettingError, match="overload_status cannot be 500"):
        load_settings(overload_status="500")


def test_every_setting_says_what_it_is():
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []
