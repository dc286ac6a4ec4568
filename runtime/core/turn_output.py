"""What a turn yields, whatever the protocol: the normalised output and the snapshots on the way to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from runtime.core.model import Json

TurnStatus = Literal["reply", "tool_request", "complete", "escalate"]
STATUSES: tuple[TurnStatus, ...] = ("reply", "tool_request", "complete", "escalate")


@dataclass(frozen=True)
class RequestedTool:
    """One tool call that the model asks for.

    Attributes:
        name: The tool's own name, restored from the name on the wire.
        input: A JSON object without non-finite numbers.
        provider_call_id: The provider's id, distinct within the turn; the next request cites it.
    """

    name: str
    input: dict[str, Any]
    provider_call_id: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The public form: name and input."""
        return {"name": self.name, "input": self.input}


@dataclass(frozen=True)
class Exchange:
    """Facts about the HTTP exchange behind an output or an error; the key is not among them.

    Attributes:
        request_url: The address as the turn or the profile gives it.
        endpoint_url: The address that was called.
        response_mode: ``streaming`` if a stream was asked for.
        response_status: The HTTP status, if a response came.
    """

    request_url: str
    endpoint_url: str
    response_mode: Literal["streaming", "non_streaming"]
    response_status: int | None = None


@dataclass(frozen=True)
class TurnOutput:
    """The normalised outcome of one model call.

    Attributes:
        status: ``escalate`` also stands for a truncated, filtered or refused answer.
        intent: What the model states the turn is about; ``None`` if it states nothing, or if parallel
            calls disagree. It is never inferred.
        assistant_message: Text for the person; reasoning is never in it.
        requested_tools: The calls asked for, in the model's order.
        provider_kind: The protocol.
        model: The model that served the turn, else the one requested.
        usage: Token counts, by name; empty if the provider sent none.
        finish_reason: The provider's own word.
        reasoning: Opaque blocks that must go back unchanged with the next request.
        exchange: How the answer was obtained.
    """

    status: TurnStatus
    intent: str | None
    assistant_message: str
    provider_kind: str
    model: str
    finish_reason: str
    requested_tools: tuple[RequestedTool, ...] = ()
    usage: Mapping[str, int] = field(default_factory=dict)
    reasoning: tuple[Json, ...] = ()
    exchange: Exchange | None = None

    @property
    def requested_tool(self) -> RequestedTool | None:
        """The first call asked for."""
        return self.requested_tools[0] if self.requested_tools else None

    def to_json(self) -> dict[str, Any]:
        """The data of ``agent:execute-turn``; ``requested_tools`` appears with two or more calls."""
        data: dict[str, Any] = {
            "status": self.status,
            "intent": self.intent,
            "assistant_message": self.assistant_message,
        }
        if self.requested_tools:
            data["requested_tool"] = self.requested_tools[0].to_json()
        if len(self.requested_tools) > 1:
            data["requested_tools"] = [call.to_json() for call in self.requested_tools]
        data["provider"] = {"kind": self.provider_kind, "model": self.model}
        if self.usage:
            data["usage"] = dict(self.usage)
        data["finish_reason"] = self.finish_reason
        return data


@dataclass(frozen=True)
class Snapshot:
    """One state of a streamed answer.

    Attributes:
        sequence: Counts from 0 within the turn.
        state: ``final`` once, with the whole output, else ``partial``.
        data: Plain JSON; text accumulates.
    """

    sequence: int
    state: Literal["partial", "final"]
    data: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The form in which evidence and followers get it."""
        return {"sequence": self.sequence, "state": self.state, "data": self.data}
