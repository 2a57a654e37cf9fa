"""Who may ask: API keys, and admin keys for what changes the server.

A key comes as `Authorization: Bearer KEY`, or as `X-API-Key: KEY`. Without keys in the settings everybody may ask, and
nobody may change what is served. Only digests are kept, so that no log, error or answer can hold a key, and every one
of them is compared in constant time, whichever fits.
"""

import functools
import hashlib
import hmac
from collections.abc import Iterable
from pathlib import Path

from pydantic import SecretStr
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from mcdrop.errors import SettingError
from service.errors import ForbiddenError, UnauthorizedError
from service.settings import PREFIX, Settings

HOW = "Send the header Authorization: Bearer KEY."


class Keys:
    """The keys of one server."""

    def __init__(self, keys: Iterable[str] = (), admin_keys: Iterable[str] = ()) -> None:
        self._keys = tuple(_digest(key.encode()) for key in keys)
        self._admin_keys = tuple(_digest(key.encode()) for key in admin_keys)

    @classmethod
    def of(cls, settings: Settings) -> "Keys":
        """Those of the settings and of the files they name. Raises SettingError, which holds no key."""
        return cls(
            _keys("api_keys", settings.api_keys, settings.api_keys_file),
            _keys("admin_keys", settings.admin_keys, settings.admin_keys_file),
        )

    @property
    def needed(self) -> bool:
        """Whether a request needs a key."""
        return bool(self._keys)

    @property
    def any_admin(self) -> bool:
        """Whether there is a key that may change what is served."""
        return bool(self._admin_keys)

    def check(self, headers: Headers) -> None:
        """Raise UnauthorizedError unless a key is given, or none is needed."""
        if self.needed and not self._fits(given := _given(headers), (*self._keys, *self._admin_keys)):
            raise UnauthorizedError(_refusal(given, f"This server answers only requests with an API key. {HOW}"))

    def check_admin(self, headers: Headers) -> None:
        """Raise UnauthorizedError or ForbiddenError unless an admin key is given."""
        if not self._admin_keys:
            raise ForbiddenError(
                "This server has no admin key, so nobody may change what it serves. "
                f"Set {PREFIX}ADMIN_KEYS or admin_keys_file, and enable_model_control, and start it again."
            )
        given = _given(headers)
        if self._fits(given, self._admin_keys):
            return
        if self._fits(given, self._keys):
            raise ForbiddenError("This API key may predict, and not change what is served. Send an admin key.")
        raise UnauthorizedError(_refusal(given, f"Only an admin key may change what is served. {HOW}"))

    @staticmethod
    def _fits(given: bytes, digests: tuple[bytes, ...]) -> bool:
        """Compares with all of them, so that the time it takes does not tell which one, or how much of it, fits."""
        presented, found = _digest(given), False
        for digest in digests:
            found |= hmac.compare_digest(digest, presented)
        return found and bool(given)


class Gate:
    """Lets requests through that have a key, and those that need none: probes and metrics, while they are open."""

    def __init__(self, app: ASGIApp, *, keys: Keys, open_health: bool = True, open_metrics: bool = True) -> None:
        self._app = app
        self._keys = keys
        self._is_open = functools.partial(is_open, open_health=open_health, open_metrics=open_metrics)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._is_open(scope["path"]):
            self._keys.check(Headers(scope=scope))
        await self._app(scope, receive, send)


def is_open(path: str, *, open_health: bool, open_metrics: bool) -> bool:
    """Whether an address needs no key, whatever keys there are."""
    if path.rstrip("/") == "/metrics":
        return open_metrics
    return open_health and path.startswith(("/health/", "/v2/health/"))


def _keys(name: str, listed: SecretStr | None, file: Path | None) -> list[str]:
    """The keys of a setting and its file; none where neither is set."""
    found = [] if listed is None else [key.strip() for key in listed.get_secret_value().split(",")]
    _check(found, listed is not None, f"The setting {name}", "separated by commas")
    if file is not None:
        try:
            lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8"
            raise SettingError(f"The file {file} of the setting {name}_file cannot be read: {reason}.") from None
        in_file = [line for line in lines if line and not line.startswith("#")]
        _check(in_file, True, f"The file {file} of the setting {name}_file", "one on each line")
        found += in_file
    return found


def _check(keys: list[str], wanted: bool, where: str, how: str) -> None:
    """An empty list would open the server to everybody, and such a key could not stand in a header."""
    if wanted and not any(keys):
        raise SettingError(f"{where} has no key. Give keys, {how}, or leave it out.")
    if not all(key and key.isascii() and key.isprintable() and " " not in key for key in keys):
        raise SettingError(f"{where} has an empty key, or one with a space or sign beyond ASCII. Give keys, {how}.")


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _given(headers: Headers) -> bytes:
    """The key of a request; empty for none."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    key = key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "").strip()
    return key.encode("latin-1")


def _refusal(given: bytes, missing: str) -> str:
    return "The key of this request is none of this server's." if given else missing
