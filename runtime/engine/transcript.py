"""Between the transcript as stored and as the wire layer takes it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from runtime.core.canonical import canonical_json
from runtime.core.turn import ToolCall, TranscriptMessage


def stored_message(message: TranscriptMessage) -> dict[str, Any]:
    """The JSON form of a message, with the calls and the reasoning that only the wire layer reads."""
    data = message.to_json()
    if message.tool_calls:
        data["tool_calls"] = [
            {"id": call.id, "name": call.name, "input": call.input, "provider_id": call.provider_id}
            for call in message.tool_calls
        ]
    if message.reasoning:
        data["reasoning"] = list(message.reasoning)
    return data


def item_message(item: Any, number: int, count: int) -> dict[str, Any]:
    """One item of a list, as the message that starts its instance: data for the model, not instructions."""
    return {"role": "user", "content": f"Item {number + 1} of {count} (data): {canonical_json(item)}"}


def context_message(names: Sequence[str], results: Mapping[str, Any]) -> str:
    """What other nodes came to, as a message of the user's side: data for the model, not instructions."""
    told = canonical_json({name: results.get(name) for name in names})
    return canonical_json({"role": "user", "content": f"Results of earlier steps (data): {told}"})


def read_message(text: str) -> TranscriptMessage:
    """The message that `stored_message` wrote."""
    data = json.loads(text)
    return TranscriptMessage(
        role=data["role"],
        content=data["content"],
        tool_name=data.get("tool_name"),
        tool_call_id=data.get("tool_call_id"),
        tool_calls=tuple(
            ToolCall(call["id"], call["name"], call["input"], call.get("provider_id"))
            for call in data.get("tool_calls", ())
        ),
        reasoning=tuple(data.get("reasoning", ())),
    )
