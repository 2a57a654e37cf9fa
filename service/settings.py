"""Everything about the server that can be set.

Each setting is the same word in three places; what stands further left wins:

    flag of `mcdrop serve`     environment            YAML file (--config or MCDROP_CONFIG)
    --max-rows 100             MCDROP_MAX_ROWS=100    max_rows: 100

Sizes are in bytes, times in seconds.
"""

import difflib
import os
import typing
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from mcdrop.errors import SettingError

PREFIX = "MCDROP_"
_OF_THE_CLIENT = (f"{PREFIX}API_KEY", f"{PREFIX}BASE_URL")


class Settings(BaseSettings):
    """Checked and frozen. Build one with `load_settings`, which says in plain words what is wrong with a value."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", frozen=True, validate_default=True
    )

    config: Path | None = Field(None, description="YAML file with any of the settings below.")

    models: Path = Field(
        Path("models"),
        description="A model folder (with model.json inside), a folder of them, or a repository NAME/VERSION/.",
    )
    fallback_models: Path | None = Field(
        None,
        description="Served instead when `models` does not exist or is empty; the image keeps its demo model here.",
    )
    default_model: str | None = Field(
        None, description="The model that /v1/predict answers with; a single model is the default by itself."
    )
    versions: Literal["latest", "all"] = Field(
        "latest", description="Which versions of each model are loaded: latest (the newest) or all."
    )
    enable_model_control: bool = Field(
        False, description="Whether models can be loaded, reloaded and unloaded over HTTP."
    )
    device: str = Field("auto", description="Where to compute: auto (CUDA if there is one), cpu, cuda, cuda:1, ...")
    threads: int | None = Field(
        None,
        ge=1,
        description="CPU threads for computing; left out, as many as there are CPUs, less one for the event loop.",
    )
    compile: bool = Field(
        False,
        description="Whether networks run as code that PyTorch's compiler makes while they are loaded; needs g++.",
    )
    max_memory: int | None = Field(
        None, ge=1, description="Bytes for the passes computed at one time; left out, a share of what is free."
    )

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 for every interface.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    shutdown_delay: float = Field(
        0,
        ge=0,
        description="After SIGTERM, keep serving this long with /health/ready at 503, so that balancers notice.",
    )
    shutdown_timeout: int = Field(30, ge=0, description="Then let requests in progress finish for at most this long.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="What the server logs.")
    log_format: Literal["text", "json"] = Field(
        "text", description="Lines to read, or one JSON object for each, with request id, route, status, ms and model."
    )

    api_keys: SecretStr | None = Field(
        None,
        description="Keys that requests need, separated by commas; none: everybody may ask. A flag shows in the "
        "process list, so give them by the environment or a file.",
    )
    api_keys_file: Path | None = Field(
        None, description="File with such keys, one on each line; empty lines and lines that begin with # do not count."
    )
    admin_keys: SecretStr | None = Field(
        None, description="Keys that may also change what is served; none: nobody may. They predict as well."
    )
    admin_keys_file: Path | None = Field(None, description="File with such keys, one on each line.")
    open_health: bool = Field(True, description="Whether probes (/health/, /v2/health/) are answered without a key.")
    open_metrics: bool = Field(True, description="Whether /metrics is answered without a key.")

    max_rows: int = Field(4096, ge=1, description="Rows in one request.")
    max_num_samples: int = Field(10_000, ge=1, description="Passes in one request.")
    max_cost: int = Field(4_000_000, ge=1, description="Rows x passes in one request.")
    max_body_bytes: int = Field(
        32 * 2**20, ge=1, description="Bytes of a request's body, as sent and once more decompressed."
    )
    max_input_bytes: int = Field(
        128 * 2**20, ge=1, description="Bytes of one input tensor, counted from its shape before it is read (/v2)."
    )
    max_inflight_body_bytes: int = Field(
        256 * 2**20, ge=1, description="Bytes of the bodies of all requests in progress; one more is refused."
    )
    max_header_bytes: int = Field(32 * 2**10, ge=1024, description="Bytes of a request's address and headers.")
    header_timeout: float = Field(10, gt=0, description="A request's headers have to arrive within this time.")
    body_timeout: float = Field(
        60,
        gt=0,
        description="A request's body has to arrive within this time, and of an answer some bytes have to be taken.",
    )
    max_answer_values: int = Field(
        10_000_000, ge=1, description="Numbers in one answer; samples and quantiles keep those of every pass."
    )
    allow_nonfinite_inputs: bool = Field(
        False, description="Whether inputs may hold NaN and infinity (/v2; plain JSON cannot carry them)."
    )
    nonfinite: Literal["null", "error"] = Field(
        "null", description="NaN and infinity in answers: null in JSON and as they are in binary tensors, or an error."
    )
    compress: Literal["json", "all", "none"] = Field(
        "json",
        description="Answers from 16 KiB that are compressed where a client asks: JSON, binary tensors too, or none.",
    )
    max_pending: int = Field(1024, ge=1, description="Requests that wait or are computed; one more is refused.")
    max_pending_seconds: float = Field(
        30, gt=0, description="Predicted seconds of computing that may wait; a request beyond them is refused."
    )
    overload_status: Literal[429, 503] = Field(
        429,
        description="The status of a request that finds the server full: 429, or 503 for balancers that then ask "
        "another one.",
    )
    stuck_after: float = Field(
        300, gt=0, description="Seconds of one slice of work after which /health/live turns 503, to be restarted."
    )
    stream_heartbeat: float = Field(15, gt=0, description="Seconds of silence after which a stream sends a comment.")

    @field_validator("api_keys", "admin_keys", mode="before")
    @classmethod
    def _join(cls, value: object) -> object:
        """A YAML file may have a list."""
        return ",".join(map(str, value)) if isinstance(value, list) else value

    @field_validator("overload_status", mode="before")
    @classmethod
    def _number(cls, value: object) -> object:
        """The environment and flags have text."""
        return int(value) if isinstance(value, str) and value.isdecimal() else value

    @model_validator(mode="after")
    def _fit(self) -> "Settings":
        if self.max_inflight_body_bytes < self.max_body_bytes:
            raise ValueError(
                f"The setting max_inflight_body_bytes, {self.max_inflight_body_bytes}, is below max_body_bytes, "
                f"{self.max_body_bytes}, so that the largest body would never be read. Raise the first of them."
            )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        given = init_settings.init_kwargs if isinstance(init_settings, InitSettingsSource) else {}
        path = given.get("config") or os.environ.get(f"{PREFIX}CONFIG")
        if not path:
            return init_settings, env_settings
        return init_settings, env_settings, YamlConfigSettingsSource(settings_cls, yaml_file=Path(path))


def load_settings(*, config: Path | str | None = None, **flags: object) -> Settings:
    """Settings from flags, environment and YAML file. A flag that is None was not given.

    Raises SettingError naming each wrong value, what is expected, and the places where it can be set.
    """
    path = config or os.environ.get(f"{PREFIX}CONFIG")
    if path:
        _check_yaml(Path(path))
    _check_environment()
    given = {name: value for name, value in {"config": config, **flags}.items() if value is not None}
    try:
        return Settings(**given)  # type: ignore[arg-type]  # pydantic checks the values, that is what it is for
    except ValidationError as error:
        raise SettingError("\n".join(_explain(problem) for problem in error.errors())) from error


def _check_yaml(path: Path) -> None:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingError(
            f"The settings file {path} cannot be opened ({error.strerror}). "
            f"Give --config, or {PREFIX}CONFIG, an existing YAML file."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingError(f"The settings file {path} is not YAML: {error}") from error
    if not isinstance(content, dict | None):
        raise SettingError(f"The settings file {path} must hold lines such as `max_rows: 100`, not {content!r}.")


def _check_environment() -> None:
    """Variables that are almost the name of a setting; others with our prefix may be somebody else's."""
    for variable in os.environ:
        name = variable.removeprefix(PREFIX).lower()
        if not variable.startswith(PREFIX) or name in Settings.model_fields or variable in _OF_THE_CLIENT:
            continue
        if near := difflib.get_close_matches(name, Settings.model_fields, n=1, cutoff=0.85):
            raise SettingError(f"{variable} is no setting. Write {PREFIX}{near[0].upper()}, or remove it.")


def _explain(problem: ErrorDetails) -> str:
    if not problem["loc"]:  # of settings that do not fit together
        return str(problem["ctx"]["error"])
    name = ".".join(str(part) for part in problem["loc"])
    field = Settings.model_fields.get(name)
    if field is None:
        return f"There is no setting {name!r}. The settings are: {', '.join(Settings.model_fields)}."
    message, value = problem["msg"], repr(problem["input"])
    if SecretStr in typing.get_args(field.annotation):
        value = "what it was set to"  # an error is no place for a key
    is_link = value.startswith("'tcp://")
    hint = " Kubernetes sets this for a service named mcdrop; switch it off by `enableServiceLinks: false` in the pod."
    return (
        f"The setting {name} cannot be {value}: {message}. {field.description} "
        f"Set it with --{name.replace('_', '-')}, {PREFIX}{name.upper()}, or `{name}:` in the settings file."
        f"{hint if is_link else ''}"
    )


def raise_limit(name: str) -> str:
    """How an error message says which setting to change."""
    return f"the setting {name} ({PREFIX}{name.upper()})"
