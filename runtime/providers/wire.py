"""What a wire protocol must offer to the client, and the request pieces that both share."""

from __future__ import annotations

from typing import Any, Protocol

from runtime.core.profile import ModelProfile
from runtime.core.turn import ProviderRequest, TranscriptMessage, compact_json
from runtime.providers.history import pair_calls, tool_names
from runtime.providers.names import ToolNames
from runtime.providers.native_tools import IntentFields
from runtime.providers.reply import ModelReply, StreamReader


class Wire(Protocol):
    """One provider protocol. Instances hold no state."""

    def headers(self, profile: ModelProfile, key: str) -> dict[str, str]:
        """The headers that identify the caller."""

    def body(self, profile: ModelProfile, request: ProviderRequest, table: NativeTables) -> dict[str, Any]:
        """The JSON body of the request."""

    def decode(self, body: dict[str, Any], profile: ModelProfile) -> ModelReply:
        """Read a whole JSON answer.

        Raises:
            ProviderError: If it has not the protocol's form.
        """

    def reader(self, profile: ModelProfile) -> StreamReader:
        """A new reader for one streamed answer."""


class NativeTables:
    """What a native request and the reading of its answer must agree on.

    Attributes:
        history: The transcript with calls and results paired.
        names: Wire names of all tools in the request.
        intent_fields: Where calls state their intent.
    """

    def __init__(self, request: ProviderRequest) -> None:
        self.history = pair_calls(request.messages)
        self.names = ToolNames([*(tool.name for tool in request.tools), *tool_names(self.history)])
        self.intent_fields = IntentFields(request.tools, request.intents)


def is_reference_form(profile: ModelProfile) -> bool:
    """Whether the request must be exactly the reference's: ``tool_mode: prompt`` at an ``exact`` endpoint."""
    return profile.tool_mode == "prompt" and profile.endpoint == "exact"


def merge_body(
    profile: ModelProfile, required: dict[str, Any], optional: dict[str, Any], *, tools: bool
) -> dict[str, Any]:
    """Put a body together; ``extra_body`` may replace or, with ``null``, remove optional fields (rule 5)."""
    chosen = {**optional, **profile.extra_body}
    if not tools:
        for name in ("tools", "tool_choice", "parallel_tool_calls"):
            chosen.pop(name, None)
    body = {**chosen, **required}
    return {name: value for name, value in body.items() if value is not None}


def in_words(message: TranscriptMessage) -> tuple[str, str]:
    """Role and text of a message for servers that know neither tool calls nor the ``tool`` role."""
    if message.role == "tool":
        return "user", f"Result of the tool {message.tool_name or '(unnamed)'}:\n{message.content}"
    asked = [f"[requested {call.name}: {compact_json(call.input).decode()}]" for call in message.tool_calls]
    return message.role, "\n".join([message.content, *asked] if message.content else asked)
