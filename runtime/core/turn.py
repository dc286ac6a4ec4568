"""The input of ``agent:execute-turn``: its shape, its limits, and the transcript a provider is given."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, cast

from runtime.core.model import Json, ToolFailure
from runtime.errors import ErrorCode, InvalidInput

Role = Literal["system", "user", "assistant", "tool"]
_ROLES = ("system", "user", "assistant", "tool")
_T = TypeVar("_T")

WHITESPACE = (
    "\t\n\v\f\r \u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000\ufeff"
)
"""What trimming removes: the white space of ECMA-262 (`str.strip` would take U+001C to U+001F as well)."""


@dataclass(frozen=True)
class ToolCall:
    """A tool call as an assistant message of the transcript records it.

    Attributes:
        id: The runtime's id, which the tool message answers.
        name: The tool's own name.
        input: The JSON object that was asked for.
        provider_id: The provider's id, if the call came as a native one; it is what goes back.
    """

    id: str
    name: str
    input: dict[str, Any]
    provider_id: str | None = None


@dataclass(frozen=True)
class TranscriptMessage:
    """One message of the conversation, as the runtime keeps it.

    Attributes:
        role: Who speaks.
        content: Text, possibly empty; may hold NUL and lone surrogates.
        tool_name: For a tool message: the tool that answers.
        tool_call_id: For a tool message: the call it answers, or an approval request.
        tool_calls: For an assistant message: the calls it asked for.
        reasoning: For an assistant message: `TurnOutput.reasoning`, sent back unchanged.
    """

    role: Role
    content: str
    tool_name: str | None = None
    tool_call_id: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    reasoning: tuple[Json, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The public form: role, content, and the two tool fields where they are set."""
        data: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.tool_name is not None:
            data["tool_name"] = self.tool_name
        if self.tool_call_id is not None:
            data["tool_call_id"] = self.tool_call_id
        return data


@dataclass(frozen=True)
class CatalogTool:
    """A tool that the model may ask for."""

    name: str
    description: str
    input_schema: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """The form of a turn's ``tool_catalog``."""
        schema = {} if self.input_schema is None else {"input_schema": self.input_schema}
        return {"name": self.name, "description": self.description, **schema}


@dataclass(frozen=True)
class CatalogIntent:
    """An intent that the model may state."""

    id: str
    description: str

    def to_json(self) -> dict[str, Any]:
        """The form of a turn's ``intent_catalog``."""
        return {"id": self.id, "description": self.description}


@dataclass(frozen=True)
class TurnLimits:
    """Upper bounds that one call brings along; ``None`` where it brings none."""

    max_turns_per_session: int | None = None
    max_tool_calls_per_session: int | None = None
    max_input_bytes: int | None = None

    def to_json(self) -> dict[str, int]:
        """The bounds that are set."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class TurnInput:
    """The validated input of one turn.

    Attributes:
        session_id: As given, trimmed; so are the next two.
        model_profile: Name of a model profile.
        url: The address the caller expects the profile to have, if it says so.
        messages: At least one.
        tool_catalog: ``None`` if absent: the runtime then fills in the governed listing.
        intent_catalog: ``None`` if absent: the runtime then fills in the configured intents.
        stream: ``None`` if absent, which means no.
        limits: ``None`` if absent.
    """

    session_id: str
    model_profile: str
    url: str | None
    messages: tuple[TranscriptMessage, ...]
    tool_catalog: tuple[CatalogTool, ...] | None = None
    intent_catalog: tuple[CatalogIntent, ...] | None = None
    stream: bool | None = None
    limits: TurnLimits | None = None

    def to_json(self) -> dict[str, Any]:
        """The validated input as JSON; catalogues that are absent show as empty lists."""
        data: dict[str, Any] = {"session_id": self.session_id, "model_profile": self.model_profile}
        if self.url is not None:
            data["url"] = self.url
        data["messages"] = [message.to_json() for message in self.messages]
        data["tool_catalog"] = [tool.to_json() for tool in self.tool_catalog or ()]
        data["intent_catalog"] = [intent.to_json() for intent in self.intent_catalog or ()]
        if self.stream is not None:
            data["stream"] = self.stream
        if self.limits is not None:
            data["limits"] = self.limits.to_json()
        return data

    def size_bytes(self) -> int:
        """UTF-8 length of the compact JSON of `to_json`, which ``max_input_bytes`` bounds."""
        return len(compact_json(self.to_json()))


@dataclass(frozen=True)
class ProviderRequest:
    """What one model call is made of.

    Attributes:
        messages: The conversation, oldest first.
        tools: What the model may ask for.
        intents: What the model may state the turn is about.
        stream: Whether to ask for a stream.
    """

    messages: tuple[TranscriptMessage, ...]
    tools: tuple[CatalogTool, ...] = ()
    intents: tuple[CatalogIntent, ...] = field(default=())
    stream: bool = False


def compact_json(value: Json) -> bytes:
    """UTF-8 of JSON without spaces, non-ASCII unescaped, lone surrogates escaped."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # Lone surrogates stand inside strings only, where the escape is JSON's own.
    return text.encode("utf-8", "backslashreplace")


def is_json(value: object) -> bool:
    """Whether a value is plain JSON, all numbers finite, with a JSON text."""
    try:
        compact_json(value)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def trimmed(text: str) -> str:
    """The text without white space at either end."""
    return text.strip(WHITESPACE)


# --- limits ---------------------------------------------------------------------------------------


def check_limits(
    limits: TurnLimits, *, input_bytes: int, turn_index: int | None, tool_call_count: int | None
) -> ToolFailure | None:
    """Say which bound a turn would exceed: bytes first, then turns, then tool calls.

    Args:
        limits: The bounds that apply.
        input_bytes: `TurnInput.size_bytes`, or the engine's own count of the same.
        turn_index: Turns before this one; ``None`` if nobody counts them.
        tool_call_count: Tool calls before this turn; ``None`` if nobody counts them.

    Returns:
        A ``LIMIT_EXCEEDED`` failure, or ``None``.
    """
    if limits.max_input_bytes is not None and input_bytes > limits.max_input_bytes:
        return _exceeded("max_input_bytes", limits.max_input_bytes, f"the input has {input_bytes} bytes")
    for name, bound, count, noun in (
        ("max_turns_per_session", limits.max_turns_per_session, turn_index, "turns"),
        ("max_tool_calls_per_session", limits.max_tool_calls_per_session, tool_call_count, "tool calls"),
    ):
        if bound is not None and count is not None and count >= bound:
            return _exceeded(name, bound, f"there were {count} {noun} before this turn")
    return None


def claimed_count(metadata: Mapping[str, Json], name: str) -> int | None:
    """A counter that execution metadata claims; ``None`` unless it is a non-negative integer."""
    value = metadata.get(name)
    return value if type(value) is int and value >= 0 else None


def _exceeded(name: str, bound: int, fact: str) -> ToolFailure:
    message = f"limits.{name} is {bound}, but {fact}; raise the limit or send less"
    return ToolFailure(
        code=ErrorCode.LIMIT_EXCEEDED, message=message, details={"limit": name, "maximum": bound}
    )


# --- shape ----------------------------------------------------------------------------------------

_FIELDS = (
    "session_id", "model_profile", "url", "stream", "messages", "tool_catalog", "intent_catalog", "limits",
)  # fmt: skip


def validate_turn_input(
    value: Json, *, require_url: bool = False, default_model: str | None = None
) -> TurnInput:
    """Check the argument of ``agent:execute-turn``; the first problem wins, ``null`` is not absent.

    Args:
        value: Plain JSON.
        require_url: Whether ``url`` must be given, as in the reference.
        default_model: The profile of an input that names none; ``None``: it must name one.

    Raises:
        InvalidInput: With the field that is wrong and what it must be.
    """
    data = _object(value, "the turn input", _FIELDS)
    session_id = _text(data.get("session_id"), "session_id")
    model_profile = _text(data.get("model_profile", default_model), "model_profile")
    url = _text(data.get("url"), "url") if require_url or "url" in data else None
    stream = data.get("stream")
    if "stream" in data and not isinstance(stream, bool):
        raise InvalidInput(f"stream must be true or false, not {_shown(stream)}")
    messages = _entries(data.get("messages"), "messages", _message)
    if not messages:
        raise InvalidInput("messages must hold at least one message")
    tools = _entries(data["tool_catalog"], "tool_catalog", _tool) if "tool_catalog" in data else None
    intents = (
        _entries(data["intent_catalog"], "intent_catalog", _intent) if "intent_catalog" in data else None
    )
    limits = _limits(data["limits"]) if "limits" in data else None
    return TurnInput(session_id, model_profile, url, messages, tools, intents, stream, limits)


def _message(value: Json) -> TranscriptMessage:
    data = _object(value, "messages", ("role", "content", "tool_name", "tool_call_id"))
    role = data.get("role")
    if role not in _ROLES:
        raise InvalidInput(f"messages.role must be one of {', '.join(_ROLES)}, not {_shown(role)}")
    content = data.get("content")
    if not isinstance(content, str):
        raise InvalidInput(f"messages.content must be a string, not {_shown(content)}")
    return TranscriptMessage(
        cast(Role, role),
        content,
        _text(data["tool_name"], "messages.tool_name") if "tool_name" in data else None,
        _text(data["tool_call_id"], "messages.tool_call_id") if "tool_call_id" in data else None,
    )


def _tool(value: Json) -> CatalogTool:
    data = _object(value, "tool_catalog", ("name", "description", "input_schema"))
    name = _text(data.get("name"), "tool_catalog.name")
    description = _text(data.get("description"), "tool_catalog.description")
    schema = data.get("input_schema")
    if "input_schema" in data and not isinstance(schema, dict):
        raise InvalidInput(f"tool_catalog.input_schema must be an object, not {_shown(schema)}")
    if not is_json(schema):
        raise InvalidInput(
            f"tool_catalog.input_schema of {_shown(name)} must be plain JSON with finite numbers"
        )
    return CatalogTool(name, description, schema)


def _intent(value: Json) -> CatalogIntent:
    data = _object(value, "intent_catalog", ("id", "description"))
    return CatalogIntent(
        _text(data.get("id"), "intent_catalog.id"),
        _text(data.get("description"), "intent_catalog.description"),
    )


def _limits(value: Json) -> TurnLimits:
    names = ("max_turns_per_session", "max_tool_calls_per_session", "max_input_bytes")
    data = _object(value, "limits", names)
    for name in names:
        bound = data.get(name)
        if name in data and (type(bound) is not int or bound <= 0):
            raise InvalidInput(f"limits.{name} must be a positive integer, not {_shown(bound)}")
    return TurnLimits(**data)


def _object(value: Json, field_name: str, known: tuple[str, ...]) -> dict[str, Json]:
    if not isinstance(value, dict):
        raise InvalidInput(f"{field_name} must be an object, not {_shown(value)}")
    for name in value:
        if name not in known:
            fix = f"use only {', '.join(known)}"
            raise InvalidInput(f"{field_name} has the unknown property {_shown(name)}; {fix}")
    return value


def _entries(value: Json, field_name: str, read: Callable[[Json], _T]) -> tuple[_T, ...]:
    if not isinstance(value, list | tuple):
        raise InvalidInput(f"{field_name} must be a list of objects, not {_shown(value)}")
    return tuple(read(entry) for entry in value)


def _text(value: Json, field_name: str) -> str:
    text = trimmed(value) if isinstance(value, str) else ""
    if not text:
        raise InvalidInput(f"{field_name} must be a non-blank string, not {_shown(value)}")
    return text


def _shown(value: Json) -> str:
    """A value for a message: short, and printable whatever it holds."""
    if isinstance(value, dict | list | tuple):
        return "a list" if not isinstance(value, dict) else "an object"
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
