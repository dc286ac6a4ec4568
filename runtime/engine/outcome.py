"""What one governed call came to, before it is recorded."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from runtime.core.model import ToolOutput


class CallResult(StrEnum):
    """How receipts name the end of a call."""

    SUCCESS = "success"
    FAILURE = "failure"
    DENIED = "denied"
    CRASHED = "crashed"
    IN_DOUBT = "in_doubt"


@dataclass(frozen=True, slots=True)
class RequestedCall:
    """One tool call that a turn asks for."""

    name: str
    input: Any
    provider_call_id: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of one governed call.

    Attributes:
        output: What the caller, or the model, is told.
        result: How receipts name it.
        progress: Snapshots of ``tool_call_progress``, in order.
        duration_ms: Time spent acting.
        calls: For turns: the tool calls that the model asks for.
        assistant_message: For turns: the transcript entry, as plain JSON.
        intent: For turns: what the model says the turn is about.
        usage: For turns: token counts as the provider states them.
        retry_in_ms: Set when the step should run again after that delay.
        reconciled: What the tool said of a call that was cut off: ``happened``, ``prevented``, ``unknown``.
    """

    output: ToolOutput
    result: CallResult
    progress: tuple[dict[str, Any], ...] = ()
    duration_ms: int = 0
    calls: tuple[RequestedCall, ...] = ()
    assistant_message: dict[str, Any] | None = None
    intent: str | None = None
    usage: dict[str, Any] | None = None
    retry_in_ms: int | None = None
    reconciled: str | None = None
