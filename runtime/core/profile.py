"""A model profile: which provider, model and address a turn uses, and how to speak to it.

`resolve_profile` turns a profile's name, the profiles and the environment (passed in as a mapping) into
an address and a key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, SecretStr, ValidationError, field_validator

from runtime.core.model import Frozen
from runtime.core.turn import is_json
from runtime.core.urls import host_and_port, join_endpoint, normalise_url, require_callable
from runtime.errors import ConfigurationError, InvalidInput, MissingEnvironment

ProviderKind = Literal["openai_compatible", "messages_compatible"]

DEFAULT_KEY_ENV = "AGENT_RUNTIME_API_KEY"
DEFAULT_URL_ENV = "AGENT_RUNTIME_BASE_URL"

_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_KEY_HEADERS = frozenset({"authorization", "x-api-key"})
_PATHS = {"openai_compatible": "/chat/completions", "messages_compatible": "/v1/messages"}


class Timeouts(Frozen):
    """Bounds on one provider call, in seconds."""

    model_config = ConfigDict(strict=False)

    connect: Annotated[float, Field(gt=0)] = 5.0
    read: Annotated[float, Field(gt=0)] = 60.0
    total: Annotated[float, Field(gt=0)] = 120.0


class Prices(Frozen):
    """What a million tokens cost, in the currency of the budget."""

    model_config = ConfigDict(strict=False)

    input: Annotated[float, Field(ge=0)] = 0.0
    output: Annotated[float, Field(ge=0)] = 0.0


class ModelProfile(Frozen):
    """One entry of ``agent_runtime.models`` in the workspace file.

    Attributes:
        provider: The wire protocol.
        model: The model name that is sent.
        api_key_env: Environment variable that holds the key.
        base_url: API root; wins over ``base_url_env``.
        base_url_env: Environment variable that holds the API root.
        tool_mode: ``native`` uses the protocol's tool calls, ``prompt`` asks for JSON.
        endpoint: ``join`` appends the protocol's path to the base URL, ``exact`` calls it as given.
        headers: Extra request headers; never the key.
        timeouts: Bounds on one call.
        max_tokens: Upper bound on generated tokens; ``messages_compatible`` always sends one.
        max_tokens_field: Name of the field that carries it (chat completions).
        extra_body: Optional request fields, sent as given.
        send_bearer: ``messages_compatible``: send ``Authorization: Bearer`` as well.
        prices: What tokens cost.
        fallbacks: Profiles to try, in order, when this one keeps failing.
    """

    provider: ProviderKind
    model: Annotated[str, Field(pattern=r"\S")]
    api_key_env: Annotated[str, Field(pattern=r"\S")]
    base_url: Annotated[str, Field(pattern=r"\S")] | None = None
    base_url_env: Annotated[str, Field(pattern=r"\S")] | None = None
    tool_mode: Literal["native", "prompt"] = "native"
    endpoint: Literal["join", "exact"] = "join"
    headers: dict[str, str] = Field(default_factory=dict)
    timeouts: Timeouts = Timeouts()
    max_tokens: Annotated[int, Field(gt=0)] | None = None
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    extra_body: dict[str, Any] = Field(default_factory=dict)
    send_bearer: bool = False
    prices: Prices | None = None
    fallbacks: tuple[str, ...] = Field(default=(), strict=False)

    @field_validator("headers")
    @classmethod
    def _headers_can_be_sent(cls, headers: dict[str, str]) -> dict[str, str]:
        for name, value in headers.items():
            if not _HEADER_NAME.fullmatch(name) or not (value.isascii() and value.isprintable()):
                raise ValueError(f"the header {name!r} is not printable ASCII")
            if name.lower() in _KEY_HEADERS:
                raise ValueError(f"the header {name!r} carries the key; name its variable in api_key_env")
        return headers

    @field_validator("extra_body")
    @classmethod
    def _extra_body_is_json(cls, extra_body: dict[str, Any]) -> dict[str, Any]:
        if not is_json(extra_body):
            raise ValueError("it must be plain JSON with finite numbers (quote dates in YAML)")
        return extra_body


@dataclass(frozen=True)
class ResolvedProfile:
    """A profile with its address and key.

    Attributes:
        name: The profile's name in ``agent_runtime.models``.
        profile: The profile itself.
        request_url: The address as the turn gives it, else as the profile does; trimmed.
        api_key: The key; it never prints.
        required_env: Variables that were read, the key's first.
        network_allowlist: ``host:port`` of the address, as network scopes list it.
    """

    name: str
    profile: ModelProfile
    request_url: str
    api_key: SecretStr
    required_env: tuple[str, ...]
    network_allowlist: tuple[str, ...]

    @property
    def endpoint_url(self) -> str:
        """The address that is called: ``request_url`` itself, or with the protocol's path appended."""
        if self.profile.endpoint == "exact":
            return self.request_url
        path = _PATHS.get(self.profile.provider, "")
        return join_endpoint(normalise_url(self.request_url, source="the profile's URL"), path)


def parse_profile(name: str, value: object) -> ModelProfile:
    """Check one entry of ``agent_runtime.models``.

    Raises:
        ConfigurationError: With the entry's name and every problem in it.
    """
    if isinstance(value, ModelProfile):
        profile = value
    else:
        try:
            profile = ModelProfile.model_validate(value)
        except ValidationError as error:
            # Pydantic's own text would repeat the values, and a key may have been put in the wrong place.
            problems = "; ".join(f"{_path(item['loc'])}: {item['msg']}" for item in error.errors())
            raise ConfigurationError(f"agent_runtime.models.{name} is no model profile: {problems}") from None
    if profile.base_url is None and profile.base_url_env is None:
        raise ConfigurationError(f"agent_runtime.models.{name} has no address; set base_url or base_url_env")
    return profile


def resolve_profile(
    models: Mapping[str, object], name: str, env: Mapping[str, str], *, url: str | None = None
) -> ResolvedProfile:
    """Find a profile's address and key.

    With no models at all, ``AGENT_RUNTIME_API_KEY`` and ``AGENT_RUNTIME_BASE_URL`` serve, with the profile's
    name as the model.

    Args:
        models: The profiles, each a `ModelProfile` or its plain form.
        name: The profile to use.
        env: The environment.
        url: The address that the caller expects; equal under the WHATWG rules, or refused.

    Raises:
        ConfigurationError: If the profile is wrong, or an address cannot be used.
        MissingEnvironment: If a variable that it names is unset or blank.
        InvalidInput: If there is no such profile, or ``url`` names another address.
    """
    if name in models:
        profile = parse_profile(name, models[name])
    elif models:
        known = ", ".join(sorted(models))
        raise InvalidInput(f"model_profile {name!r} is not configured; name one of {known}")
    else:
        profile = ModelProfile(
            provider="openai_compatible",
            model=name,
            api_key_env=DEFAULT_KEY_ENV,
            base_url_env=DEFAULT_URL_ENV,
        )
    api_key = _variable(env, profile.api_key_env)
    if not (api_key.isascii() and api_key.isprintable()):
        raise ConfigurationError(f"{profile.api_key_env} holds characters that no HTTP header may carry")
    base_url, source = _base_url(name, profile, env)
    given = base_url if url is None else url.strip()
    address = normalise_url(base_url, source=source)
    if normalise_url(given, source="url") != address:
        raise InvalidInput(f"url is not the address in {source}; leave url out, or make them equal")
    require_callable(address, source=source)
    required = [profile.api_key_env]
    if profile.base_url is None and profile.base_url_env is not None:
        required.append(profile.base_url_env)
    return ResolvedProfile(
        name, profile, given, SecretStr(api_key), tuple(required), (host_and_port(address),)
    )


def _base_url(name: str, profile: ModelProfile, env: Mapping[str, str]) -> tuple[str, str]:
    if profile.base_url is not None or profile.base_url_env is None:
        return (profile.base_url or "").strip(), f"agent_runtime.models.{name}.base_url"
    return _variable(env, profile.base_url_env), profile.base_url_env


def _variable(env: Mapping[str, str], name: str) -> str:
    value = env.get(name, "").strip()
    if not value:
        raise MissingEnvironment(f"the environment variable {name} is unset or blank; set it")
    return value


def _path(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location) or "it"
