"""The ``messages_compatible`` protocol: messages made of content blocks, whole or streamed.

Rule numbers are those of the provider protocol notes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from httpx_sse import ServerSentEvent

from runtime.core.model import Json
from runtime.core.profile import ModelProfile
from runtime.core.turn import CatalogTool, ProviderRequest, trimmed
from runtime.providers.bodies import joined, object_of, parse_object, text_of
from runtime.providers.errors import malformed, reported
from runtime.providers.history import AnsweredCall, Called, Said
from runtime.providers.instructions import native_instruction, prompt_instruction
from runtime.providers.reply import ModelReply, NativeCall, read_usage
from runtime.providers.wire import NativeTables, in_words, is_reference_form, merge_body

API_VERSION = "2023-06-01"
DEFAULT_MAX_TOKENS = 4096
_CACHE_COUNTS = ("cache_creation_input_tokens", "cache_read_input_tokens")
_REASONING = ("thinking", "redacted_thinking")
_EMPTY = "(empty)"
_DELTAS = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "signature"}


class Messages:
    """Requests and answers of ``POST {base_url}/v1/messages``."""

    def headers(self, profile: ModelProfile, key: str) -> dict[str, str]:
        """``x-api-key`` and the protocol version, and a bearer token where the profile says so."""
        headers = {"x-api-key": key, "anthropic-version": API_VERSION}
        if profile.send_bearer:
            headers["authorization"] = f"Bearer {key}"
        return headers

    def body(self, profile: ModelProfile, request: ProviderRequest, table: NativeTables) -> dict[str, Any]:
        """The JSON body of a request, in the profile's tool mode."""
        required: dict[str, Any] = {"model": profile.model}
        if profile.tool_mode == "prompt":
            required |= _prompt_parts(profile, request)
        else:
            required |= _native_parts(request, table)
        if profile.max_tokens is not None or not is_reference_form(profile):
            required["max_tokens"] = profile.max_tokens or DEFAULT_MAX_TOKENS
        if request.stream:
            required["stream"] = True
        return merge_body(profile, required, {}, tools="tools" in required)

    def decode(self, body: dict[str, Any], profile: ModelProfile) -> ModelReply:
        """Read the content blocks.

        Raises:
            ProviderError: If it is no message, or the body is an error under HTTP 200.
        """
        if profile.tool_mode == "native" and body.get("type") == "error":
            raise reported(body)
        if body.get("type") != "message":
            raise malformed('the answer\'s type must be "message"')
        content = body.get("content")
        if not isinstance(content, list) or (not content and profile.tool_mode == "prompt"):
            raise malformed("the answer's content must be a non-empty list of blocks")
        return _reply(
            [block for block in content if isinstance(block, dict)],
            profile.tool_mode == "prompt",
            model=text_of(body.get("model")),
            stop_reason=text_of(body.get("stop_reason")),
            usage=object_of(body.get("usage")),
        )

    def reader(self, profile: ModelProfile) -> MessageStream:
        """A reader of message events."""
        return MessageStream(prompt=profile.tool_mode == "prompt")


# --- requests -------------------------------------------------------------------------------------


def _prompt_parts(profile: ModelProfile, request: ProviderRequest) -> dict[str, Any]:
    instruction = prompt_instruction(request.tools, request.intents)
    if is_reference_form(profile):
        return {"system": instruction, "messages": [message.to_json() for message in request.messages]}
    told = [in_words(message) for message in request.messages]
    turns = [(role, [_text_block(text)]) for role, text in told if role != "system"]
    return {"system": _joined(instruction, told), "messages": _alternating(turns)}


def _native_parts(request: ProviderRequest, table: NativeTables) -> dict[str, Any]:
    turns: list[tuple[str, list[dict[str, Any]]]] = []
    spoken: list[tuple[str, str]] = []
    for item in table.history:
        if isinstance(item, Called):
            turns.append(("assistant", _asking(item, table)))
            turns.append(("user", [_result(answer) for answer in item.calls]))
        elif item.message.role == "system":
            spoken.append(("system", item.message.content))
        elif item.message.role == "user" or trimmed(item.message.content) or item.message.reasoning:
            turns.append((item.message.role, _saying(item)))
    parts: dict[str, Any] = {"messages": _alternating(turns)}
    system = _joined(native_instruction(request.intents), spoken)
    if system:
        parts["system"] = system
    if request.tools:
        parts["tools"] = [_declared(tool, table) for tool in request.tools]
    return parts


def _joined(instruction: str | None, told: Iterable[tuple[str, str]]) -> str:
    """Rule 3: the system text is top-level; that of the transcript follows our own."""
    texts = [text for role, text in told if role == "system"]
    return "\n\n".join([instruction, *texts] if instruction else texts)


def _alternating(turns: list[tuple[str, list[dict[str, Any]]]]) -> list[dict[str, Any]]:
    """Messages of alternating roles, the user's first; results stay first in their content (rule 3)."""
    messages: list[dict[str, Any]] = []
    for role, blocks in turns:
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += blocks
        else:
            messages.append({"role": role, "content": list(blocks)})
    if not messages or messages[0]["role"] != "user":
        messages.insert(0, {"role": "user", "content": [_text_block("")]})
    return messages


def _text_block(text: str) -> dict[str, Any]:
    # The API refuses text blocks without visible text.
    return {"type": "text", "text": text if trimmed(text) else _EMPTY}


def _saying(item: Said) -> list[dict[str, Any]]:
    return [*_thought(item.message.reasoning), _text_block(item.message.content)]


def _asking(item: Called, table: NativeTables) -> list[dict[str, Any]]:
    said = [_text_block(item.content)] if trimmed(item.content) else []
    calls = [
        {
            "type": "tool_use",
            "id": answer.id,
            "name": table.names.to_wire(answer.call.name),
            "input": answer.call.input,
        }
        for answer in item.calls
    ]
    return [*_thought(item.reasoning), *said, *calls]


def _thought(reasoning: Iterable[Any]) -> list[dict[str, Any]]:
    return [block for block in reasoning if isinstance(block, dict) and block.get("type") in _REASONING]


def _result(answer: AnsweredCall) -> dict[str, Any]:
    block = {"type": "tool_result", "tool_use_id": answer.id, "content": answer.content}
    return {**block, "is_error": True} if answer.failed else block


def _declared(tool: CatalogTool, table: NativeTables) -> dict[str, Any]:
    return {
        "name": table.names.to_wire(tool.name),
        "description": tool.description,
        "input_schema": table.intent_fields.schema(tool),
    }


# --- answers --------------------------------------------------------------------------------------


def _reply(
    blocks: list[dict[str, Any]],
    prompt: bool,
    *,
    model: str | None,
    stop_reason: str | None,
    usage: dict[str, Any],
) -> ModelReply:
    texts = [_string(block.get("text")) for block in blocks if block.get("type") == "text"]
    uses = [block for block in blocks if block.get("type") == "tool_use"]
    calls = tuple(NativeCall(use.get("name"), use.get("input"), text_of(use.get("id"))) for use in uses)
    return ModelReply(
        text="".join(trimmed(text) if prompt else text for text in texts),
        # The reference takes the last block only.
        calls=calls[-1:] if prompt else calls,
        model=model,
        finish_reason=stop_reason,
        usage=read_usage(usage, () if prompt else _CACHE_COUNTS),
        reasoning=tuple(block for block in blocks if block.get("type") in _REASONING),
    )


def _string(value: Json) -> str:
    return value if isinstance(value, str) else ""


class MessageStream:
    """Puts the events of one streamed message together."""

    def __init__(self, *, prompt: bool) -> None:
        self._prompt = prompt
        self._blocks: dict[int, dict[str, Any]] = {}
        self._inputs: dict[int, str] = {}
        self._stop_reason: str | None = None
        self._usage: dict[str, Any] = {}
        self.model: str | None = None
        self._stopped = False

    @property
    def text(self) -> str:
        """What the model has said so far."""
        return "".join(_string(block.get("text")) for block in self._ordered() if block.get("type") == "text")

    @property
    def ended(self) -> bool:
        """Whether ``message_stop`` was seen."""
        return self._stopped

    def feed(self, event: ServerSentEvent) -> bool:
        """Take in an event; return whether it added text. Unknown events are legal (rule 8).

        Raises:
            ProviderError: If it is malformed, or reports an error (rule 10).
        """
        data = parse_object(event.data)
        found = object_of(data)
        if event.event == "error" or found.get("type") == "error" or found.get("error"):
            raise reported(data if found.get("error") else {"error": data or event.data})
        if data is None:
            raise malformed("a stream event is not a JSON object")
        kind = data.get("type")
        if kind == "content_block_delta":
            return self._delta(data)
        if kind == "message_start":
            message = object_of(data.get("message"))
            self.model = text_of(message.get("model"))
            self._merge_usage(message.get("usage"))
        elif kind == "content_block_start":
            self._blocks[self._index(data)] = dict(object_of(data.get("content_block")))
        elif kind == "message_delta":
            self._stop_reason = text_of(object_of(data.get("delta")).get("stop_reason")) or self._stop_reason
            self._merge_usage(data.get("usage"))
        elif kind == "message_stop":
            self._stopped = True
        return False

    def _delta(self, data: dict[str, Any]) -> bool:
        delta, index = object_of(data.get("delta")), self._index(data)
        if index not in self._blocks:
            raise malformed(f"content_block_delta for block {index}, which was not started")
        block, kind = self._blocks[index], delta.get("type")
        field = _DELTAS.get(str(kind))
        if field is not None:
            piece = _string(delta.get(field))
            block[field] = joined((_string(block.get(field)), piece))
            return field == "text" and block.get("type") == "text" and bool(piece)
        if kind == "input_json_delta":
            self._inputs[index] = self._inputs.get(index, "") + _string(delta.get("partial_json"))
        return False

    def _index(self, data: dict[str, Any]) -> int:
        index = data.get("index")
        return index if type(index) is int else 0

    def _merge_usage(self, usage: Any) -> None:
        # Rule 16: counts are cumulative, so a later one replaces an earlier one.
        self._usage |= {name: value for name, value in object_of(usage).items() if value is not None}

    def _ordered(self) -> list[dict[str, Any]]:
        return [self._blocks[index] for index in sorted(self._blocks)]

    def finish(self) -> ModelReply:
        """The whole answer.

        Raises:
            ProviderError: If ``message_stop`` did not come (rule 9).
        """
        if not self._stopped:
            raise malformed("no whole JSON message: the stream ended without message_stop", retryable=True)
        for index, text in self._inputs.items():
            if trimmed(text):
                self._blocks[index]["input"] = text
        return _reply(
            self._ordered(),
            self._prompt,
            model=self.model,
            stop_reason=self._stop_reason,
            usage=self._usage,
        )
