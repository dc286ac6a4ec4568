"""The model of the measured sessions: an HTTP transport that answers at once, without a network.

A session's first message says how many tool calls it makes: ``calls=25``. The stub asks for one call a turn
until so many results are in the history, then it ends. It looks at the request's bytes only, so that its
own cost hardly grows with the history.
"""

from __future__ import annotations

import json
import re

import httpx

from runtime.providers.client import ProviderClient

_CALLS = re.compile(rb"calls=(\d+)")
_RESULT = b'"role":"tool"'
_HEADERS = {"content-type": "application/json"}
_USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}


def prompt(calls: int) -> str:
    """The first message of a session that makes so many tool calls, one a turn."""
    return f"calls={calls}"


def stub_provider() -> ProviderClient:
    """A provider client whose calls all reach the stub; everything above the transport is the product's."""
    return ProviderClient(httpx.MockTransport(_answer))


def _answer(request: httpx.Request) -> httpx.Response:
    found = _CALLS.search(request.content)
    made = request.content.count(_RESULT)
    message = _call(made) if found and made < int(found[1]) else {"role": "assistant", "content": "Done."}
    choice = {
        "index": 0,
        "message": message,
        "finish_reason": "tool_calls" if "tool_calls" in message else "stop",
    }
    body = {"id": "stub", "object": "chat.completion", "model": "stub", "choices": [choice], "usage": _USAGE}
    return httpx.Response(200, headers=_HEADERS, content=json.dumps(body).encode())


def _call(number: int) -> dict[str, object]:
    # "bench:noop" as function names allow it.
    function = {"name": "bench_noop", "arguments": json.dumps({"n": number, "agent_intent": "measuring"})}
    call = {"id": f"call_{number}", "type": "function", "function": function}
    return {"role": "assistant", "content": None, "tool_calls": [call]}
