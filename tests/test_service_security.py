"""API keys: who gets in, who may change what is served, and that no key shows anywhere."""

import asyncio
import hmac
import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.datastructures import Headers

from mcdrop.errors import SettingError
from service.app import create_app
from service.dependencies import ADMIN
from service.security import Keys
from service.settings import load_settings
from serving import live, settings

KEY, OTHER_KEY, ADMIN_KEY = "key-of-one-client", "key-of-another", "key-of-the-admin"
INSECTS = "/v1/models/insects/predict"
REQUEST = {"inputs": [[0, 0, 0, 0]]}


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with live(api_keys=f"{KEY}, {OTHER_KEY}", admin_keys=ADMIN_KEY) as client:
        yield client


def ask(app: FastAPI, path: str, headers: dict[str, str], method: str = "GET") -> httpx.Response:
    """One request to an application that was never started."""

    async def request() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
            return await client.request(method, path, headers=headers)

    return asyncio.run(request())


@pytest.mark.parametrize(
    "headers",
    [bearer(KEY), bearer(OTHER_KEY), bearer(ADMIN_KEY), {"x-api-key": KEY}, {"authorization": f"bearer  {KEY}"},
     {"authorization": "Basic eDp5", "x-api-key": KEY}],
)  # fmt: skip
def test_with_a_key_requests_are_answered(http, headers):
    assert http.post(INSECTS, json=REQUEST, headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("headers", "sentence"),
    [
        ({}, "only requests with an API key. Send the header Authorization: Bearer KEY."),
        ({"authorization": "Bearer"}, "only requests with an API key"),
        (bearer("wrong"), "none of this server's"),
        (bearer(KEY[:-1]), "none of this server's"),
        (bearer(f"{KEY}, {OTHER_KEY}"), "none of this server's"),
        ({"x-api-key": "wrong"}, "none of this server's"),
        ({"authorization": KEY}, "only requests with an API key"),
    ],
)
@pytest.mark.parametrize("path", [INSECTS, "/", "/docs", "/openapi.json", "/v1/models", "/nope", "/docs/static/x.js"])
def test_without_a_key_nothing_is_said(http, path, headers, sentence):
    answer = http.post(path, json=REQUEST, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert sentence in answer.json()["detail"]


@pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/metrics"])
def test_probes_and_metrics_are_open_unless_closed(http, path):
    assert http.get(path).status_code == 200
    closed = create_app(settings(api_keys=KEY, open_health=False, open_metrics=False))
    assert ask(closed, path, {}).status_code == 401
    assert ask(closed, path, bearer(KEY)).status_code != 401


def test_what_only_looks_like_a_probe_is_closed(http):
    for path in ("/health", "/metrics-of-all", "/metrics/x", "/v1/models/health/"):
        assert http.get(path).status_code == 401, path


def test_without_keys_everything_is_open_but_administration():
    app = create_app(settings())
    assert ask(app, "/docs", {}).status_code == 200
    assert "security" not in ask(app, "/openapi.json", {}).json()


def test_the_documentation_names_the_key(http):
    document = http.get("/openapi.json", headers=bearer(KEY)).json()
    schemes = document["components"]["securitySchemes"]
    assert {name: (scheme["type"], scheme["scheme"]) for name, scheme in schemes.items()} == {
        "key": ("http", "bearer"), "admin_key": ("http", "bearer")
    }  # fmt: skip
    for path, operations in document["paths"].items():
        wanted = (
            "admin_key"
            if path.endswith("load")
            else None
            if path.startswith(("/health/", "/v2/health/", "/metrics"))
            else "key"
        )
        for operation in operations.values():
            assert operation.get("security") == (None if wanted is None else [{wanted: []}]), path
            assert ("401" in operation["responses"]) == (wanted is not None)


def administered(**changes: Any) -> FastAPI:
    """An application with one route that changes something."""
    app = create_app(settings(**changes))

    @app.post("/v1/change", dependencies=ADMIN)
    async def change() -> dict[str, str]:
        return {}

    return app


@pytest.mark.parametrize(
    ("changes", "headers", "status", "sentence"),
    [
        ({}, {}, 403, "Set MCDROP_ADMIN_KEYS or admin_keys_file"),
        ({"api_keys": KEY}, bearer(KEY), 403, "Set MCDROP_ADMIN_KEYS or admin_keys_file"),
        ({"api_keys": KEY, "admin_keys": ADMIN_KEY}, bearer(KEY), 403, "may predict, and not change"),
        ({"admin_keys": ADMIN_KEY}, {}, 401, "Only an admin key"),
        ({"admin_keys": ADMIN_KEY}, bearer("wrong"), 401, "none of this server's"),
        ({"admin_keys": ADMIN_KEY}, bearer(ADMIN_KEY), 200, None),
        ({"api_keys": KEY, "admin_keys": ADMIN_KEY}, bearer(ADMIN_KEY), 200, None),
    ],
)
def test_only_an_admin_key_changes_what_is_served(changes, headers, status, sentence):
    answer = ask(administered(**changes), "/v1/change", headers, "POST")
    assert answer.status_code == status
    assert answer.json().get("detail") is None if sentence is None else sentence in answer.json()["detail"]


def test_admin_keys_alone_leave_predicting_open():
    assert ask(create_app(settings(admin_keys=ADMIN_KEY)), "/v1/models", {}).status_code == 200


def test_every_key_is_compared_whichever_fits(monkeypatch):
    keys = Keys([KEY, OTHER_KEY], [ADMIN_KEY])
    compared = []
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((len(a), len(b))) or a == b)
    for key in (KEY, OTHER_KEY, ADMIN_KEY):
        keys.check(Headers(bearer(key)))
    assert compared == [(32, 32)] * 9  # digests of one length: not even the length of a key shows


# ---- where keys come from


def test_keys_come_from_flags_environment_yaml_and_files(tmp_path, monkeypatch):
    (tmp_path / "keys").write_text(f"# clients\n\n{KEY}\n  {OTHER_KEY}\r\n")
    (tmp_path / "server.yaml").write_text(f"admin_keys:\n- {ADMIN_KEY}\n- more\n")
    monkeypatch.setenv("MCDROP_API_KEYS", "third")
    found = Keys.of(load_settings(config=tmp_path / "server.yaml", api_keys_file=tmp_path / "keys"))
    for key in (KEY, OTHER_KEY, "third", ADMIN_KEY, "more"):
        found.check(Headers(bearer(key)))
    found.check_admin(Headers(bearer("more")))


@pytest.mark.parametrize("listed", [",", " ", "a,,b", "a b", "schlüssel", "a\tb"])
def test_a_list_of_keys_that_is_none_is_an_error_and_not_an_open_server(tmp_path, listed):
    file = tmp_path / "keys"
    file.write_text(listed.replace(",", "\n").replace("\n\n", "\nc d\n"))
    for changes in ({"api_keys": listed}, {"api_keys_file": file}):
        with pytest.raises(SettingError, match="api_keys") as caught:
            create_app(settings(**changes))
        assert "schl" not in str(caught.value)


def test_a_file_of_keys_that_cannot_be_read_is_an_error(tmp_path):
    with pytest.raises(SettingError, match=r"setting admin_keys_file cannot be read: No such file"):
        create_app(settings(admin_keys_file=tmp_path / "nope"))
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingError, match=r"cannot be read: it is not UTF-8"):
        create_app(settings(api_keys_file=tmp_path / "binary"))


# ---- that no key shows


def test_no_key_shows_anywhere(tmp_path, caplog, capfd):
    secret = "a-secret-that-must-not-show"
    (tmp_path / "keys").write_text("another-secret-that-must-not-show\n")
    caplog.set_level(logging.DEBUG)
    given = {"api_keys": secret, "admin_keys": f"admin-{secret}", "api_keys_file": tmp_path / "keys"}
    with live(log_level="debug", log_format="json", **given) as http:
        said = [str(http.get(path, headers=bearer(secret)).content) for path in ("/", "/v1/models", "/openapi.json")]
        said += [http.get("/v1/models/insects", headers=bearer(secret)).text, http.get("/metrics").text]
        said += [http.get("/v1/models", headers=bearer(f"wrong-{secret}")).text]
        said += [http.post(INSECTS, content=b"{", headers=bearer(secret)).text]
    found = settings(**given)
    said += [repr(found), str(found), found.model_dump_json(), repr(Keys.of(found)), repr(vars(Keys.of(found)))]
    for wrong in ({"api_keys": 3.5}, {"api_keys": {"x": secret}}):
        with pytest.raises(SettingError, match="cannot be what it was set to") as caught:
            settings(**wrong)
        said.append(str(caught.value))
    said += [caplog.text, *capfd.readouterr()]
    assert [text for text in said if "must-not-show" in text] == []
