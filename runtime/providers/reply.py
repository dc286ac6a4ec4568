"""One model answer as both protocols decode it, before its meaning is settled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from httpx_sse import ServerSentEvent

from runtime.core.model import Json
from runtime.providers.bodies import count_of


@dataclass(frozen=True)
class NativeCall:
    """A tool call of the protocol itself, unchecked.

    Attributes:
        name: As on the wire; not a non-blank string in a malformed call.
        arguments: A JSON object, or its text; anything else is malformed.
        id: The provider's id, if it sent a usable one.
    """

    name: Json
    arguments: Json
    id: str | None = None


@dataclass(frozen=True)
class ModelReply:
    """A decoded answer.

    Attributes:
        text: What the model says, reasoning excluded.
        calls: Native tool calls in order.
        model: The model that served, if stated.
        finish_reason: The provider's word, if stated.
        usage: Token counts by name.
        refusal: The text of a refusal that came beside the answer.
        reasoning: Opaque blocks to send back.
    """

    text: str
    calls: tuple[NativeCall, ...] = ()
    model: str | None = None
    finish_reason: str | None = None
    usage: Mapping[str, int] = field(default_factory=dict)
    refusal: str | None = None
    reasoning: tuple[Json, ...] = ()


class StreamReader(Protocol):
    """Puts a streamed answer together, event by event."""

    @property
    def text(self) -> str:
        """What the model has said so far."""

    @property
    def model(self) -> str | None:
        """The model that serves, as far as stated."""

    @property
    def ended(self) -> bool:
        """Whether the stream's own end marker was seen, after which a broken connection does no harm."""

    def feed(self, event: ServerSentEvent) -> bool:
        """Take in an event; return whether it added text that followers should see.

        Raises:
            ProviderError: If the event is malformed or reports an error.
        """

    def finish(self) -> ModelReply:
        """The whole answer.

        Raises:
            ProviderError: If the stream ended before the answer did.
        """


def read_usage(usage: Json, extra: tuple[str, ...] = ()) -> dict[str, int]:
    """Token counts under their common names, plus ``extra`` ones that stand apart from them."""
    if not isinstance(usage, dict):
        return {}

    def first(*names: str) -> Json:
        return next((usage[name] for name in names if usage.get(name) is not None), None)

    found: dict[str, Any] = {
        "input_tokens": first("input_tokens", "prompt_tokens"),
        "output_tokens": first("output_tokens", "completion_tokens"),
        "total_tokens": first("total_tokens"),
        **{name: first(name) for name in extra},
    }
    counts = {name: count_of(value) for name, value in found.items()}
    return {name: count for name, count in counts.items() if count is not None}
