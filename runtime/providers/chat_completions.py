"""The ``openai_compatible`` protocol: chat completions, whole or streamed.

Rule numbers are those of the provider protocol notes.
"""

from __future__ import annotations

from typing import Any

from httpx_sse import ServerSentEvent

from runtime.core.model import Json
from runtime.core.profile import ModelProfile
from runtime.core.turn import CatalogTool, ProviderRequest, compact_json
from runtime.providers.bodies import joined, list_of, object_of, parse_object, text_of
from runtime.providers.errors import malformed, quoted, reported
from runtime.providers.history import Called, Said
from runtime.providers.instructions import native_instruction, prompt_instruction
from runtime.providers.reply import ModelReply, NativeCall, read_usage
from runtime.providers.wire import NativeTables, in_words, is_reference_form, merge_body


class ChatCompletions:
    """Requests and answers of ``POST {base_url}/chat/completions``."""

    def headers(self, profile: ModelProfile, key: str) -> dict[str, str]:
        """Bearer authentication."""
        return {"authorization": f"Bearer {key}"}

    def body(self, profile: ModelProfile, request: ProviderRequest, table: NativeTables) -> dict[str, Any]:
        """The JSON body of a request, in the profile's tool mode."""
        required: dict[str, Any] = {"model": profile.model}
        optional: dict[str, Any] = {}
        if profile.tool_mode == "prompt":
            required["messages"] = _prompt_messages(profile, request)
            optional["response_format"] = {"type": "json_object"}
        else:
            required["messages"] = _native_messages(request, table)
            if request.tools:
                required["tools"] = [_function(tool, table) for tool in request.tools]
        if profile.max_tokens is not None:
            optional[profile.max_tokens_field] = profile.max_tokens
        if request.stream:
            required["stream"] = True
            if not is_reference_form(profile):
                optional["stream_options"] = {"include_usage": True}
        return merge_body(profile, required, optional, tools="tools" in required)

    def decode(self, body: dict[str, Any], profile: ModelProfile) -> ModelReply:
        """Read ``choices[0].message``.

        Raises:
            ProviderError: If there is none, or the body is an error under HTTP 200.
        """
        choice = object_of(next(iter(list_of(body.get("choices"))), None))
        message = choice.get("message")
        if not isinstance(message, dict):
            if body.get("error") and profile.tool_mode == "native":
                raise reported(body)
            raise malformed("the answer has no object at choices[0].message")
        return ModelReply(
            text=_content(message.get("content"), profile),
            calls=tuple(_call(call) for call in list_of(message.get("tool_calls"))),
            model=text_of(body.get("model")),
            finish_reason=text_of(choice.get("finish_reason")),
            usage=read_usage(body.get("usage")),
            refusal=text_of(message.get("refusal")),
        )

    def reader(self, profile: ModelProfile) -> ChatStream:
        """A reader of ``chat.completion.chunk`` events."""
        return ChatStream(strict=profile.tool_mode == "prompt")


# --- requests -------------------------------------------------------------------------------------


def _prompt_messages(profile: ModelProfile, request: ProviderRequest) -> list[dict[str, Any]]:
    system = {"role": "system", "content": prompt_instruction(request.tools, request.intents)}
    if is_reference_form(profile):
        return [system, *(message.to_json() for message in request.messages)]
    told = (in_words(message) for message in request.messages)
    return [system, *({"role": role, "content": text} for role, text in told)]


def _native_messages(request: ProviderRequest, table: NativeTables) -> list[dict[str, Any]]:
    instruction = native_instruction(request.intents)
    messages: list[dict[str, Any]] = [{"role": "system", "content": instruction}] if instruction else []
    for item in table.history:
        if isinstance(item, Said):
            messages.append({"role": item.message.role, "content": item.message.content})
        else:
            messages.extend(_called(item, table))
    return messages


def _called(item: Called, table: NativeTables) -> list[dict[str, Any]]:
    calls = [
        {
            "id": answer.id,
            "type": "function",
            "function": {
                "name": table.names.to_wire(answer.call.name),
                "arguments": compact_json(answer.call.input).decode(),
            },
        }
        for answer in item.calls
    ]
    results = [
        {"role": "tool", "tool_call_id": answer.id, "content": answer.content} for answer in item.calls
    ]
    return [{"role": "assistant", "content": item.content or None, "tool_calls": calls}, *results]


def _function(tool: CatalogTool, table: NativeTables) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {
            "name": table.names.to_wire(tool.name),
            "description": tool.description,
            "parameters": table.intent_fields.schema(tool),
        },
    }


# --- answers --------------------------------------------------------------------------------------


def _content(content: Json, profile: ModelProfile) -> str:
    if isinstance(content, str):
        return content
    parts = [object_of(part) for part in list_of(content)]
    if profile.tool_mode == "prompt":
        return "\n".join(filter(None, (text_of(part.get("text")) for part in parts)))
    # Rule 15: some servers put reasoning among the parts, under another type.
    said = (part.get("text") for part in parts if part.get("type", "text") in {"text", "output_text"})
    return "".join(text for text in said if isinstance(text, str))


def _call(call: Json) -> NativeCall:
    function = object_of(object_of(call).get("function"))
    return NativeCall(function.get("name"), function.get("arguments"), text_of(object_of(call).get("id")))


class ChatStream:
    """Puts the chunks of one streamed completion together.

    Args:
        strict: Read as the reference does: every event must have ``choices[0]`` (a chunk with nothing but the
            usage excepted), and a stream may end without a finish reason, since its text must be whole JSON.
    """

    def __init__(self, *, strict: bool) -> None:
        self._strict = strict
        self._text: list[str] = []
        self._refusal: list[str] = []
        self._calls = _CallFragments()
        self._finish_reason: str | None = None
        self._usage: dict[str, int] = {}
        self.model: str | None = None
        self._marked = False

    @property
    def text(self) -> str:
        """What the model has said so far."""
        return joined(self._text)

    @property
    def ended(self) -> bool:
        """Whether ``[DONE]`` was seen. The reference does not trust it, so neither does its reading."""
        return self._marked and not self._strict

    def feed(self, event: ServerSentEvent) -> bool:
        """Take in an event; return whether it added text.

        Raises:
            ProviderError: If it is malformed, or reports an error (rule 10).
        """
        if event.data.strip() == "[DONE]":
            self._marked = True
            return False
        chunk = parse_object(event.data)
        if chunk is None and event.event == "error":
            chunk = {"error": event.data}
        if chunk is None:
            raise malformed("a stream event is not a JSON object")
        choice = next(iter(list_of(chunk.get("choices"))), None)
        if event.event == "error" or chunk.get("error") or not isinstance(choice, dict):
            self._without_choice(chunk, is_error=event.event == "error" or bool(chunk.get("error")))
            choice = {}
        added = self._take(choice)
        self.model = text_of(chunk.get("model")) or self.model
        # Rule 16: counts are cumulative.
        self._usage = read_usage(chunk.get("usage")) or self._usage
        return added

    def _without_choice(self, chunk: dict[str, Any], *, is_error: bool) -> None:
        if is_error and not self._strict:
            raise reported(chunk if chunk.get("error") else {"error": chunk})
        if is_error or (self._strict and not isinstance(chunk.get("usage"), dict)):
            said = quoted(chunk).get("provider_message")
            raise malformed(
                f"a stream event has no object at choices[0]{'; the provider says: ' + said if said else ''}",
                retryable=is_error,
            )

    def _take(self, choice: dict[str, Any]) -> bool:
        delta = object_of(choice.get("delta"))
        content = delta.get("content")
        text = content if isinstance(content, str) else ""
        self._text.append(text)
        if isinstance(delta.get("refusal"), str):
            self._refusal.append(delta["refusal"])
        for fragment in list_of(delta.get("tool_calls")):
            self._calls.add(object_of(fragment))
        reason = text_of(choice.get("finish_reason"))
        self._finish_reason = reason or self._finish_reason
        return bool(text) and reason is None

    def finish(self) -> ModelReply:
        """The whole answer.

        Raises:
            ProviderError: If neither a finish reason nor ``[DONE]`` came (rule 9).
        """
        if not self._strict and self._finish_reason is None and not self._marked:
            raise malformed("the stream ended without a finish_reason or [DONE]", retryable=True)
        return ModelReply(
            text=self.text,
            calls=self._calls.whole(),
            model=self.model,
            finish_reason=self._finish_reason,
            usage=self._usage,
            refusal=text_of(joined(self._refusal)),
        )


class _CallFragments:
    """Merges fragments of tool calls by ``index`` (rule 12)."""

    def __init__(self) -> None:
        self._calls: dict[int, dict[str, Any]] = {}
        self._latest: dict[int, int] = {}  # where the fragments of an index go by now
        self._current: int | None = None

    def add(self, fragment: dict[str, Any]) -> None:
        call = self._calls[self._place(fragment)]
        function = object_of(fragment.get("function"))
        call["id"] = call["id"] or text_of(fragment.get("id"))
        call["name"] = call["name"] or text_of(function.get("name"))
        arguments = function.get("arguments")
        if isinstance(arguments, str) and isinstance(call["arguments"], str):
            call["arguments"] += arguments
        elif arguments is not None:
            call["arguments"] = arguments

    def _place(self, fragment: dict[str, Any]) -> int:
        given, call_id = fragment.get("index"), text_of(fragment.get("id"))
        index = given if type(given) is int else None
        ids = {call["id"]: place for place, call in self._calls.items() if call["id"]}
        place = ids.get(call_id, self._current) if index is None else self._latest.get(index)
        if place is None or _begins_another(self._calls[place], fragment):
            behind = max(self._calls, default=-1) + 1
            place = behind if index is None or index in self._calls else index
            self._calls[place] = {"id": None, "name": None, "arguments": ""}
        if index is not None:
            self._latest[index] = place
        self._current = place
        return place

    def whole(self) -> tuple[NativeCall, ...]:
        ordered = (self._calls[place] for place in sorted(self._calls))
        return tuple(NativeCall(call["name"], call["arguments"], call["id"]) for call in ordered)


def _begins_another(call: dict[str, Any], fragment: dict[str, Any]) -> bool:
    """Whether a fragment for a call's place is another call: some servers send no index, or 0 for every call.

    Only a fragment that names a tool can be one. It is, if its id or its name differs, or if it brings
    arguments although those of the call are whole.
    """
    function = object_of(fragment.get("function"))
    name, call_id = text_of(function.get("name")), text_of(fragment.get("id"))
    if name is None:
        return False
    if (call_id and call["id"] not in (None, call_id)) or call["name"] not in (None, name):
        return True
    brings = function.get("arguments") not in (None, "")
    return brings and (isinstance(call["arguments"], dict) or parse_object(call["arguments"]) is not None)
