"""The chat completions protocol from the server's side: a request in, JSON or server-sent events out.

Every answer says that no model wrote it: its ``model`` is ``demo-scripted``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from runtime.edges.demo.script import Call, Line, next_line, text_of

MODEL_NAME = "demo-scripted"
FINGERPRINT = "scripted-stand-in-not-a-model"
INTENT_FIELD = "agent_intent"
STATUS_FIELD = '"assistant_message"'

Request = Mapping[str, Any]


def completion(request: Request) -> dict[str, Any]:
    """The whole ``chat.completion`` object that answers ``request``."""
    messages = request.get("messages") or []
    line = next_line(messages)
    functions = [tool.get("function", {}) for tool in request.get("tools") or []]
    digest = hashlib.sha256(json.dumps(messages, sort_keys=True).encode()).hexdigest()
    message: dict[str, Any] = {"role": "assistant", "content": _content(line, messages)}
    if line.calls:
        ids = (f"call_{digest[:16]}_{index}" for index in range(len(line.calls)))
        message["tool_calls"] = [
            _tool_call(call, functions, id_) for call, id_ in zip(line.calls, ids, strict=True)
        ]
    return {
        "id": f"chatcmpl-{digest[:24]}",
        "object": "chat.completion",
        "created": 0,
        "model": MODEL_NAME,
        "system_fingerprint": FINGERPRINT,
        "choices": [
            {"index": 0, "message": message, "finish_reason": "tool_calls" if line.calls else "stop"}
        ],
        "usage": _usage(messages, line),
    }


def chunks(request: Request) -> Iterator[bytes]:
    """The same answer as server-sent events: text word by word, arguments in two fragments."""
    whole = completion(request)
    choice = whole["choices"][0]
    head = {key: whole[key] for key in ("id", "created", "model", "system_fingerprint")}
    head["object"] = "chat.completion.chunk"

    def event(delta: Mapping[str, Any], finish: str | None = None) -> bytes:
        return _event({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})

    yield event({"role": "assistant", "content": ""})
    for word in re.findall(r"\S+\s*", choice["message"]["content"] or ""):
        yield event({"content": word})
    for index, call in enumerate(choice["message"].get("tool_calls", [])):
        arguments = call["function"]["arguments"]
        middle = len(arguments) // 2
        opening = {"name": call["function"]["name"], "arguments": arguments[:middle]}
        yield event({"tool_calls": [{**call, "index": index, "function": opening}]})
        yield event({"tool_calls": [{"index": index, "function": {"arguments": arguments[middle:]}}]})
    yield event({}, choice["finish_reason"])
    if (request.get("stream_options") or {}).get("include_usage"):
        yield _event({**head, "choices": [], "usage": whole["usage"]})
    yield b"data: [DONE]\n\n"


def _content(line: Line, messages: Sequence[Mapping[str, Any]]) -> str | None:
    """The text, in the JSON form in which the runtime asks a model to state that its work is done."""
    told = "\n".join(text_of(message) for message in messages if message.get("role") == "system")
    if line.verbatim or not line.text or STATUS_FIELD not in told:
        return line.text or None
    intents = re.findall(r"^- (\S+): ", told.partition("Intents:")[2], re.MULTILINE)
    return json.dumps(
        {"status": "complete", "intent": _fitting_intent(intents), "assistant_message": line.text}
    )


def _event(document: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def _tool_call(call: Call, functions: Sequence[Mapping[str, Any]], call_id: str) -> dict[str, Any]:
    function = _function_for(call.name, functions)
    arguments = dict(call.arguments)
    schema = (function or {}).get("parameters") or {}
    intent = schema.get("properties", {}).get(INTENT_FIELD)
    if intent is not None and INTENT_FIELD not in arguments:
        arguments[INTENT_FIELD] = _fitting_intent(intent.get("enum") or [])
    # An unknown tool is asked for all the same, as a model may do; its name is made legal.
    name = function["name"] if function else re.sub(r"[^a-zA-Z0-9_-]", "_", call.name)[:64]
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}


def _function_for(name: str, functions: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The offered function that stands for the tool ``name``; how names are mapped is not our affair."""
    offered = {_plain(str(function.get("name", ""))): function for function in functions}
    suffix = _plain(name.rpartition(":")[2])
    near = (function for plain, function in offered.items() if suffix in plain)
    return offered.get(_plain(name)) or next(near, None)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower())


def _fitting_intent(choices: Sequence[Any]) -> Any:
    """The scheduling intent where there is one, else the first that is offered."""
    named = [choice for choice in choices if isinstance(choice, str)]
    return next((name for name in named if "schedul" in name), named[0] if named else None)


def _usage(messages: Sequence[Any], line: Line) -> dict[str, int]:
    """Word counts in place of tokens: the stand-in has no tokeniser."""
    prompt = len(json.dumps(messages).split())
    answer = len(line.text.split()) + sum(1 + len(call.arguments) for call in line.calls)
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}
