"""Profiles, stub answers and shorthand of the provider tests."""

import json

import httpx
from pydantic import SecretStr

from runtime.core.profile import ModelProfile, ResolvedProfile
from runtime.core.turn import CatalogIntent, CatalogTool, ProviderRequest, TranscriptMessage
from runtime.providers.client import ProviderClient

CHAT, MESSAGES = "openai_compatible", "messages_compatible"
TOOL = CatalogTool(
    "calendar:create-event",
    "Create an event",
    {"type": "object", "properties": {"title": {"type": "string"}}, "required": ["title"]},
)
INTENT = CatalogIntent("scheduling", "Plan work")
USER = TranscriptMessage("user", "hello")


def resolved(kind, url="http://provider.test/v1", **profile):
    made = ModelProfile(provider=kind, model="asked-model", api_key_env="K", base_url=url, **profile)
    return ResolvedProfile("ops", made, url, SecretStr("secret-key"), ("K",), ("provider.test:80",))


def request(*messages, tools=(TOOL,), intents=(), stream=False):
    return ProviderRequest(messages or (USER,), tuple(tools), tuple(intents), stream)


def exchange(kind, answer, asked=None, *, seen=None, snapshots=None, **profile):
    """Make one call against a canned answer: a JSON value, or bytes of an event stream."""

    def respond(sent):
        if seen is not None:
            seen.append(sent)
        if isinstance(answer, bytes):
            return httpx.Response(200, headers={"content-type": "text/event-stream"}, content=answer)
        headers = {"content-type": "application/json"}
        return httpx.Response(200, headers=headers, content=json.dumps(answer).encode())

    client = ProviderClient(httpx.MockTransport(respond))
    hear = snapshots.append if snapshots is not None else None
    return client.execute(resolved(kind, **profile), asked or request(), on_snapshot=hear)


def sent_body(kind, asked=None, **profile):
    seen = []
    exchange(kind, chat() if kind == CHAT else message(text("ok")), asked, seen=seen, **profile)
    return json.loads(seen[0].content)


def chat(content="ok", finish="stop", calls=None, **rest):
    said = {"role": "assistant", "content": content}
    if calls is not None:
        said["tool_calls"] = calls
    return {"model": "served", "choices": [{"message": said | rest, "finish_reason": finish}]}


def call(name="calendar_create-event", arguments='{"title":"x"}', call_id="c1"):
    function = {"name": name} if arguments is None else {"name": name, "arguments": arguments}
    return {"id": call_id, "type": "function", "function": function}


def message(*blocks, stop="end_turn", **rest):
    return {"type": "message", "model": "served", "content": list(blocks), "stop_reason": stop} | rest


def text(value):
    return {"type": "text", "text": value}


def use(name="calendar_create-event", given=None, call_id="u1"):
    return {
        "type": "tool_use",
        "id": call_id,
        "name": name,
        "input": {"title": "x"} if given is None else given,
    }


def chunks(*events, done=True):
    lines = [f"data: {json.dumps(event)}\n\n" for event in events]
    return "".join([*lines, *(["data: [DONE]\n\n"] if done else [])]).encode()


def delta(finish=None, **fields):
    return {"model": "served", "choices": [{"index": 0, "delta": fields, "finish_reason": finish}]}


def named(*events):
    return "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events).encode()
