"""Where a deployment's servers and files are, and how patient it is: arguments, environment, defaults.

What agents may do is not here but in the workspace file (`runtime.workspace`).
"""

from __future__ import annotations

import difflib
import logging
import os
import re
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import parse_qsl, urlsplit

from pydantic import AfterValidator, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from runtime.errors import ConfigurationError

PREFIX = "AGENT_RUNTIME_"
"""What the names of the settings' environment variables begin with."""

_log = logging.getLogger(__name__)

_DIALECTS = {
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
    "sqlite": "sqlite",
    "sqlite+pysqlite": "sqlite",
}
_REDIS_SCHEMES = {
    "redis": "redis",
    "rediss": "rediss",
    "unix": "unix",
    "valkey": "redis",
    "valkeys": "rediss",
}
_HARMLESS_PARAMETERS = frozenset(
    {"application_name", "channel_binding", "connect_timeout", "db", "mode", "sslmode", "ssl_cert_reqs"}
)


def redact_url(url: str) -> str:
    """Return ``url`` fit for a log: no password, no token, no parameter value that might be one.

    >>> redact_url("postgresql://app:s3cret@db/app?sslmode=require")
    'postgresql://app:***@db/app?sslmode=require'
    """
    scheme, separator, rest = url.partition("://")
    if not separator or not re.fullmatch(r"[A-Za-z0-9+.-]*", scheme):
        return "***"
    # The last @ ends the credentials, because an unquoted password may contain @, / and ?.
    credentials, at, place = rest.rpartition("@")
    user, colon, _ = credentials.partition(":")
    place, question, query = place.partition("?")
    parameters = "&".join(
        f"{name}={value if name in _HARMLESS_PARAMETERS else '***'}"
        for name, value in parse_qsl(query, keep_blank_values=True)
    )
    return f"{scheme}://{user + ':***' if colon else '***' if at else ''}{at}{place}{question}{parameters}"


def _database_url(url: str) -> str:
    """Name the driver we depend on; make a SQLite path absolute, so that every process opens one file."""
    scheme, separator, rest = url.partition("://")
    dialect = _DIALECTS.get(scheme.lower())
    if not separator or dialect is None:
        raise ValueError("is not a database URL that is supported — use postgresql://… or sqlite:///path")
    if dialect != "sqlite":
        return f"{dialect}://{rest}"
    path, question, query = rest.removeprefix("/").partition("?")
    if path in ("", ":memory:"):
        raise ValueError(
            "is a database in memory, which no other process can see — name a file: sqlite:///path"
        )
    return f"sqlite:///{Path(path).expanduser().absolute()}{question}{query}"


def _redis_url(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    known = _REDIS_SCHEMES.get(scheme.lower())
    if not separator or known is None:
        raise ValueError("is not a Redis URL — use redis://host:6379/0, rediss://… or unix:///path/to/socket")
    if known == "unix" and not urlsplit(url).path.strip("/"):
        raise ValueError("names no socket — write unix:///path/to/socket")
    return f"{known}://{rest}"


Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Settings(BaseSettings):
    """The settings of one process; build them with `Settings.load`.

    Attributes:
        database_url: SQLAlchemy URL of the SQL database; default: SQLite in ``state_dir``.
        redis_url: URL of Redis; None: the embedded server recorded in ``state_dir``.
        workspace: Path of the workspace file.
        state_dir: Absolute directory of the embedded servers' data.
        lease_seconds: How long a worker's claim on a step holds without a heartbeat.
        heartbeat_seconds: How often a running step extends its lease; at most half of it.
        republish_seconds: When the sweep first publishes a ready step again.
        republish_max_seconds: What that delay grows to.
        max_crashes: After so many crashes a step is quarantined.
        seal_key_file: File with the private key that seals evidence; only the sealing process needs it.
        seal_key_env: Name of a variable that holds the key's text instead.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="forbid", hide_input_in_errors=True
    )

    database_url: Annotated[str, AfterValidator(_database_url)] = Field(default="", repr=False)
    redis_url: Annotated[str, AfterValidator(_redis_url)] | None = Field(default=None, repr=False)
    workspace: Path = Path("workspace.yaml")
    state_dir: Annotated[Path, AfterValidator(lambda p: p.expanduser().absolute())] = Field(
        default=Path(".agent-runtime"), validate_default=True
    )
    lease_seconds: Seconds = 30.0
    heartbeat_seconds: Seconds = 10.0
    republish_seconds: Seconds = 5.0
    republish_max_seconds: Seconds = 60.0
    max_crashes: Annotated[int, Field(gt=0)] = 10
    seal_key_file: Path | None = None
    seal_key_env: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _default_database(cls, values: Any) -> Any:
        if isinstance(values, dict) and not values.get("database_url"):
            state_dir = Path(values.get("state_dir") or ".agent-runtime").expanduser().absolute()
            return {**values, "database_url": f"sqlite:///{state_dir / 'runtime.db'}"}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.heartbeat_seconds * 2 > self.lease_seconds:
            raise ValueError(
                f"{PREFIX}HEARTBEAT_SECONDS: {self.heartbeat_seconds:g} is more than half of "
                f"{PREFIX}LEASE_SECONDS ({self.lease_seconds:g}), so one late heartbeat would lose the "
                "lease — lower the one or raise the other"
            )
        if self.republish_max_seconds < self.republish_seconds:
            raise ValueError(
                f"{PREFIX}REPUBLISH_MAX_SECONDS: {self.republish_max_seconds:g} is less than "
                f"{PREFIX}REPUBLISH_SECONDS ({self.republish_seconds:g}) — raise the one or lower the other"
            )
        return self

    @classmethod
    def load(cls, **arguments: Any) -> Self:
        """Settings from ``arguments`` (None: not given), then ``AGENT_RUNTIME_*``, then the defaults.

        Raises:
            ConfigurationError: Naming each variable that is wrong, its value and the fix.
        """
        given = {name: value for name, value in arguments.items() if value is not None}
        _warn_of_misspelt_variables(cls)
        try:
            return cls(**given)
        except ValidationError as error:
            problems = [_problem(cls, item, given) for item in error.errors()]
        raise ConfigurationError("; ".join(problems))

    def describe(self) -> dict[str, str]:
        """Every setting as text, without secrets."""
        return {
            name: redact_url(value) if name.endswith("_url") and value else str(value)
            for name, value in self.model_dump().items()
        }


def _problem(settings: type[Settings], item: Any, given: dict[str, Any]) -> str:
    message = str(item["msg"]).removeprefix("Value error, ")
    if not item["loc"]:
        return message
    name = str(item["loc"][0])
    if name not in settings.model_fields:
        close = difflib.get_close_matches(name, settings.model_fields, n=1)
        return f"{name}: there is no such setting — " + (
            f"did you mean {close[0]!r}?" if close else f"there are {', '.join(settings.model_fields)}"
        )
    value = str(given.get(name, os.environ.get(PREFIX + name.upper(), "")))
    shown = redact_url(value) if name.endswith("_url") else value
    source = f"the argument {name}" if name in given else PREFIX + name.upper()
    fix = "" if "—" in message else f" — the default is {settings.model_fields[name].default!s}"
    return f"{source}: {shown!r}: {message}{fix}"


_OTHER_VARIABLES = frozenset({PREFIX + "BASE_URL", PREFIX + "API_KEY", PREFIX + "MODEL"})
"""Read elsewhere: the address, key and model of the default profile and of the demo."""


def _warn_of_misspelt_variables(settings: type[Settings]) -> None:
    """A misspelt database variable would silently mean SQLite; other names may belong to model profiles."""
    known = [PREFIX + name.upper() for name in settings.model_fields]
    for variable in os.environ:
        if variable.startswith(PREFIX) and variable not in {*known, *_OTHER_VARIABLES}:
            for meant in difflib.get_close_matches(variable, known, n=1, cutoff=0.9):
                _log.warning("%s is not a setting and is ignored; did you mean %s?", variable, meant)
