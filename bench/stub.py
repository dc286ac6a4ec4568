"""The model of the measured sessions: an HTTP transport that answers at once, without a network.

A session's first message says how many tool calls it makes, of which tool, and how many characters the model
says beside each: ``calls=25 tool=noop says=0``. The stub asks for one call a turn until so many results are
in the history, then it ends. It looks at the request's bytes only, so that its own cost hardly grows with
the history.
"""

from __future__ import annotations

import json
import re

import httpx

from runtime.providers.client import ProviderClient

_SCRIPT = re.compile(rb"calls=(\d+) tool=(\w+) says=(\d+)")
_RESULT = b'"role":"tool"'
_HEADERS = {"content-type": "application/json"}
_USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}


def prompt(calls: int, tool: str = "noop", says: int = 0) -> str:
    """The first message of a session that makes so many calls of a tool, one a turn."""
    return f"calls={calls} tool={tool} says={says}"


def stub_provider() -> ProviderClient:
    """A provider client whose calls all reach the stub; everything above the transport is the product's."""
    return ProviderClient(httpx.MockTransport(_answer))


def _answer(request: httpx.Request) -> httpx.Response:
    found = _SCRIPT.search(request.content)
    made = request.content.count(_RESULT)
    message: dict[str, object] = {"role": "assistant", "content": "Done."}
    if found and made < int(found[1]):
        message = _call(made, found[2].decode(), int(found[3]))
    choice = {
        "index": 0,
        "message": message,
        "finish_reason": "tool_calls" if "tool_calls" in message else "stop",
    }
    body = {"id": "stub", "object": "chat.completion", "model": "stub", "choices": [choice], "usage": _USAGE}
    return httpx.Response(200, headers=_HEADERS, content=json.dumps(body).encode())


def _call(number: int, tool: str, says: int) -> dict[str, object]:
    # "bench:noop" as function names allow it.
    function = {"name": f"bench_{tool}", "arguments": json.dumps({"n": number, "agent_intent": "measuring"})}
    call = {"id": f"call_{number}", "type": "function", "function": function}
    return {"role": "assistant", "content": "x" * says or None, "tool_calls": [call]}
