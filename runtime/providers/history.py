"""The transcript as providers demand it: every tool call directly followed by exactly one result.

The transcript holds what happened: results under the runtime's ids, approval messages under request ids,
calls that never got an answer, host-driven tool messages without a call. Here they are paired:

1. a tool message answers the call whose id it carries;
2. a call left over is answered by the next tool message of its name (an approval message, for one);
3. a call still left over gets a result that says so (rule 4);
4. a tool message left over gets a call of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from runtime.core.messages import APPROVAL_TOOL
from runtime.core.model import Json
from runtime.core.turn import ToolCall, TranscriptMessage
from runtime.providers.bodies import object_of, parse_object

_LEGAL_ID = re.compile(r"[a-zA-Z0-9_-]{1,40}")
_UNNAMED = "unnamed_tool"
_NO_RESULT = '{"success":false,"error":{"message":"no result was recorded for this call"}}'


@dataclass(frozen=True)
class AnsweredCall:
    """A call with its result, under an id that is distinct in the whole request."""

    id: str
    call: ToolCall
    content: str

    @property
    def failed(self) -> bool:
        """Whether the result tells of a failure or a refusal."""
        return _tells_failure(self.content)


@dataclass(frozen=True)
class Said:
    """A message without tool calls."""

    message: TranscriptMessage


@dataclass(frozen=True)
class Called:
    """An assistant message with its calls and their results."""

    content: str
    calls: tuple[AnsweredCall, ...]
    reasoning: tuple[Json, ...] = ()


def pair_calls(messages: Sequence[TranscriptMessage]) -> list[Said | Called]:
    """Pair the calls and results of a transcript, in order."""
    ids = _Ids()
    items: list[Said | Called] = []
    answered: set[int] = set()
    for position, message in enumerate(messages):
        if message.role == "assistant" and message.tool_calls:
            results = _results(message.tool_calls, messages, position)
            answered.update(index for index in results if index is not None)
            found = [messages[index].content if index is not None else _NO_RESULT for index in results]
            pairs = zip(message.tool_calls, found, strict=True)
            calls = tuple(ids.answer(call, text) for call, text in pairs)
            items.append(Called(message.content, calls, message.reasoning))
        elif message.role != "tool":
            items.append(Said(message))
        elif position not in answered:
            call = ToolCall(message.tool_call_id or "", message.tool_name or _UNNAMED, {})
            items.append(Called("", (ids.answer(call, message.content),)))
    return items


def tool_names(items: Sequence[Said | Called]) -> Iterator[str]:
    """The names of all tools in a paired transcript."""
    return (answer.call.name for item in items if isinstance(item, Called) for answer in item.calls)


def _results(
    calls: Sequence[ToolCall], messages: Sequence[TranscriptMessage], start: int
) -> list[int | None]:
    """For each call, the position of the message that answers it, before the next assistant message."""
    free: list[int] = []
    for position in range(start + 1, len(messages)):
        if messages[position].role == "assistant":
            break
        if messages[position].role == "tool":
            free.append(position)

    def take(fits: set[int]) -> int | None:
        found = next((position for position in free if position in fits), None)
        if found is not None:
            free.remove(found)
        return found

    results: list[int | None] = []
    for call in calls:
        own = {call.id, call.provider_id} - {None}
        results.append(take({position for position in free if messages[position].tool_call_id in own}))
    for number, call in enumerate(calls):
        if results[number] is None:
            fits = (call.name, APPROVAL_TOOL)  # a denial names the request it answers, and no tool
            named = {position for position in free if messages[position].tool_name in fits}
            results[number] = take(named)
    return results


class _Ids:
    """Hands out ids: the provider's own, else the runtime's, else a minted one where that cannot serve."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def answer(self, call: ToolCall, content: str) -> AnsweredCall:
        wish = call.provider_id or call.id
        number = len(self._taken)
        while not wish or wish in self._taken or not (wish == call.provider_id or _LEGAL_ID.fullmatch(wish)):
            wish, number = f"call_{number}", number + 1
        self._taken.add(wish)
        return AnsweredCall(wish, call, content)


def _tells_failure(content: str) -> bool:
    told = parse_object(content)
    if told is None:
        return False
    if object_of(told.get("approval")).get("approved") is False:
        return True
    return told.get("success") is False or ("error" in told and told.get("success") is not True)
