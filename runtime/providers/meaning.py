"""What an answer means: a decoded reply becomes the normalised output of a turn.

Two readings. ``prompt_output`` is the reference's: the text must be a JSON object. ``native_output`` takes
the protocol's own tool calls and plain text, and a JSON object in the documented
form where the model gives one.
Rule numbers are those of the provider protocol notes.
"""

from __future__ import annotations

from typing import Any, cast

from runtime.core.model import Json
from runtime.core.turn_output import STATUSES, RequestedTool, TurnOutput, TurnStatus
from runtime.providers.bodies import is_finite, parse_object, text_of
from runtime.providers.errors import malformed
from runtime.providers.names import ToolNames
from runtime.providers.native_tools import IntentFields
from runtime.providers.reply import ModelReply, NativeCall

_DONE = frozenset({"stop", "end_turn", "stop_sequence", "tool_calls", "tool_use", "function_call", "eos"})
_CUT_SHORT = frozenset(
    {
        "length",
        "max_tokens",
        "model_length",
        "model_context_window_exceeded",
        "content_filter",
        "safety",
        "recitation",
        "refusal",
        "error",
    }
)
_NAMELESS = "the name of a native tool call (function or tool_use) must be a non-blank string"
_NO_ARGUMENTS = "the arguments (or input) of a native tool call (function or tool_use) must be a JSON object"


def prompt_output(reply: ModelReply, *, kind: str, model: str) -> TurnOutput:
    """Normalise an answer whose text must be a JSON object.

    Raises:
        ProviderError: ``PROVIDER_MALFORMED_RESPONSE`` if it is not, or a field of it is wrong.
    """
    stated = parse_object(reply.text)
    if stated is None:
        raise malformed("the model's text is not a JSON object; it must be one in tool_mode prompt")
    native = _checked_prompt_call(reply.calls)
    tool = _usable_tool(stated) or native
    intent = text_of(stated.get("intent"))
    if intent is None:
        raise malformed("intent in the model's JSON must be a non-blank string")
    status, tools = _settled(_status(stated, tool), (tool,) if tool else (), reply)
    return _output(reply, status, intent, _message(stated), tools, kind=kind, model=model)


def native_output(
    reply: ModelReply, *, kind: str, model: str, names: ToolNames, intent_fields: IntentFields
) -> TurnOutput:
    """Normalise an answer that may hold native tool calls.

    Raises:
        ProviderError: ``PROVIDER_MALFORMED_RESPONSE`` if a call that would run is malformed.
    """
    stated = _documented(reply.text)
    text = reply.text if stated is None else _message(stated)
    intent = text_of(stated.get("intent")) if stated is not None else None
    if _is_cut_short(reply):
        # Rule 13: nothing runs. Rule 15: it must not read as complete, unless the JSON shows that it is.
        status: TurnStatus = "escalate"
        if stated is not None:
            status, _ = _settled(_status(stated, None, strict=False), (), reply)
        return _output(reply, status, intent, text or reply.refusal or "", (), kind=kind, model=model)
    if reply.calls:
        tools, intent = _native_tools(reply.calls, names, intent_fields, stated_intent=intent)
        return _output(reply, "tool_request", intent, text, tools, kind=kind, model=model)
    if stated is None:
        plain: TurnStatus = "reply" if _is_done(reply) else "escalate"
        return _output(reply, plain, None, text, (), kind=kind, model=model)
    tool = _usable_tool(stated)
    return _output(
        reply, _status(stated, tool), intent, text, (tool,) if tool else (), kind=kind, model=model
    )


# --- JSON in the text -----------------------------------------------------------------------------


def _documented(text: str) -> dict[str, Any] | None:
    """The JSON object of a text, if it has the documented form; other JSON is just what the model says."""
    stated = parse_object(text)
    if stated is None or stated.get("status") not in STATUSES:
        return None
    return stated if isinstance(stated.get("assistant_message", ""), str | None) else None


def _usable_tool(stated: dict[str, Any]) -> RequestedTool | None:
    tool = stated.get("requested_tool")
    if not isinstance(tool, dict):
        return None
    name, given = text_of(tool.get("name")), tool.get("input")
    if name is None or not isinstance(given, dict):
        return None
    if not is_finite(given):
        raise malformed("requested_tool.input holds a number that is not finite", retryable=True)
    return RequestedTool(name, given)


def _status(stated: dict[str, Any], tool: RequestedTool | None, *, strict: bool = True) -> TurnStatus:
    if tool is not None:
        return "tool_request"
    status = stated.get("status")
    if status == "tool_request":
        if strict:
            raise malformed("status is tool_request, but requested_tool has no name or no input object")
        return "escalate"
    return cast(TurnStatus, status) if status in STATUSES else "reply"


def _message(stated: dict[str, Any]) -> str:
    message = stated.get("assistant_message")
    if message is None:
        return ""
    if not isinstance(message, str):
        raise malformed("assistant_message in the model's JSON must be a string")
    return message


# --- native calls ---------------------------------------------------------------------------------


def _checked_prompt_call(calls: tuple[NativeCall, ...]) -> RequestedTool | None:
    if not calls:
        return None
    call = calls[0]
    name, arguments = text_of(call.name), _arguments(call.arguments)
    if name is None:
        raise malformed(_NAMELESS)
    return RequestedTool(name, arguments, call.id)


def _native_tools(
    calls: tuple[NativeCall, ...], names: ToolNames, intent_fields: IntentFields, *, stated_intent: str | None
) -> tuple[tuple[RequestedTool, ...], str | None]:
    tools: list[RequestedTool] = []
    intents: set[str | None] = set()
    for call, call_id in zip(calls, _distinct_ids(calls), strict=True):
        wire = text_of(call.name)
        if wire is None:
            raise malformed(_NAMELESS, retryable=True)
        name, given = names.from_wire(wire), call.arguments
        blank = given is None or (isinstance(given, str) and text_of(given) is None)
        stripped, intent = intent_fields.split(name, {} if blank else _arguments(given))
        tools.append(RequestedTool(name, stripped, call_id))
        intents.add(intent if intent is not None else stated_intent)
    # Calls that disagree leave the intent open: choosing one would be a guess that widens what may run.
    return tuple(tools), intents.pop() if len(intents) == 1 else None


def _arguments(arguments: Json) -> dict[str, Any]:
    value = parse_object(arguments) if isinstance(arguments, str) else arguments
    if not isinstance(value, dict):
        raise malformed(_NO_ARGUMENTS, retryable=True)
    if not is_finite(value):
        raise malformed("the arguments of a native tool call hold a non-finite number", retryable=True)
    return value


def _distinct_ids(calls: tuple[NativeCall, ...]) -> list[str]:
    """Rule 12: ids may be missing or repeated; mint distinct ones."""
    sent = {call.id for call in calls if call.id}
    taken: set[str] = set()
    ids: list[str] = []
    for position, call in enumerate(calls):
        wish, number = call.id, position
        while not wish or wish in taken or (wish != call.id and wish in sent):
            wish, number = f"call_{number}", number + 1
        taken.add(wish)
        ids.append(wish)
    return ids


# --- the end of the answer ------------------------------------------------------------------------


def _is_cut_short(reply: ModelReply) -> bool:
    return reply.refusal is not None or (reply.finish_reason or "").lower() in _CUT_SHORT


def _is_done(reply: ModelReply) -> bool:
    return (reply.finish_reason or "stop").lower() in _DONE


def _settled(
    status: TurnStatus, tools: tuple[RequestedTool, ...], reply: ModelReply
) -> tuple[TurnStatus, tuple[RequestedTool, ...]]:
    """A complete JSON answer keeps its status whatever the finish reason, but nothing runs on a cut one."""
    if tools and _is_cut_short(reply):
        return "escalate", ()
    return status, tools


def _output(
    reply: ModelReply,
    status: TurnStatus,
    intent: str | None,
    message: str,
    tools: tuple[RequestedTool, ...],
    *,
    kind: str,
    model: str,
) -> TurnOutput:
    return TurnOutput(
        status=status,
        intent=intent,
        assistant_message=message,
        provider_kind=kind,
        model=reply.model or model,
        finish_reason="refusal" if reply.refusal is not None else reply.finish_reason or "stop",
        requested_tools=tools,
        usage=reply.usage,
        reasoning=reply.reasoning,
    )
