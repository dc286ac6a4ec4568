"""Runs the product on records of turn_input.jsonl and provider_normalise.jsonl, over a stub transport."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import httpx
from pydantic import SecretStr

from runtime.core.profile import ModelProfile, ResolvedProfile, resolve_profile
from runtime.core.turn import ProviderRequest, TurnLimits, check_limits, claimed_count, validate_turn_input
from runtime.core.turn_output import Snapshot
from runtime.core.urls import host_and_port
from runtime.errors import AgentRuntimeError, GovernedCallFailed
from runtime.providers.client import ProviderClient
from runtime.providers.errors import ProviderError

_REFERENCE = {"tool_mode": "prompt", "endpoint": "exact", "send_bearer": True}
_SAID = json.dumps({"status": "reply", "intent": "demo", "assistant_message": "ok"})
_VALID = {
    "openai_compatible": {"choices": [{"message": {"content": _SAID}}]},
    "messages_compatible": {"type": "message", "content": [{"type": "text", "text": _SAID}]},
}


def turn_input(given: dict[str, Any]) -> dict[str, Any]:
    """Validate, bound, resolve and call, as the turn tool does."""
    sent: list[httpx.Request] = []
    try:
        return {"ok": True, **_turn(given, sent)}
    except AgentRuntimeError as error:
        return {**_failed(error), "provider_calls": len(sent)}


def _turn(given: dict[str, Any], sent: list[httpx.Request]) -> dict[str, Any]:
    turn = validate_turn_input(given["input"], require_url=True)
    metadata = given.get("execution_metadata") or {}
    exceeded = check_limits(
        turn.limits or TurnLimits(),
        input_bytes=turn.size_bytes(),
        turn_index=claimed_count(metadata, "agent_turn_index"),
        tool_call_count=claimed_count(metadata, "agent_tool_call_count"),
    )
    if exceeded is not None:
        details = {"input_bytes": turn.size_bytes()} if exceeded.details["limit"] == "max_input_bytes" else {}
        raise GovernedCallFailed(exceeded.message, code=exceeded.code, details=details)
    models = (given.get("pack_config") or {}).get("models", {})
    found = resolve_profile(models, turn.model_profile, given["env"], url=turn.url)
    resolved = replace(found, profile=found.profile.model_copy(update=_REFERENCE))

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        return httpx.Response(200, json=_VALID[resolved.profile.provider])

    request = ProviderRequest(
        turn.messages, turn.tool_catalog or (), turn.intent_catalog or (), bool(turn.stream)
    )
    output = _client(answer).execute(resolved, request)
    assert output.exchange is not None
    body = json.loads(sent[0].content)
    return {
        "provider_calls": len(sent),
        "provider_kind": output.provider_kind,
        "provider_model": body["model"],
        "request_url": output.exchange.request_url,
        "bearer_token": sent[0].headers["authorization"].removeprefix("Bearer "),
        "required_env": list(resolved.required_env),
        "network_allowlist": list(resolved.network_allowlist),
        "stream": body.get("stream", False),
    }


def provider_normalise(given: dict[str, Any]) -> dict[str, Any]:
    """Make one call against the stubbed answer."""
    asked, sent = given["request"], []
    resolved = _reference_profile(asked["kind"], asked["model"], asked["url"])
    turn = validate_turn_input(
        {
            "session_id": "vector",
            "model_profile": "vector",
            **{name: asked[name] for name in ("messages", "tool_catalog", "intent_catalog") if name in asked},
        }
    )
    request = ProviderRequest(
        turn.messages, turn.tool_catalog or (), turn.intent_catalog or (), bool(asked.get("stream"))
    )
    snapshots: list[Snapshot] = []

    def answer(http_request: httpx.Request) -> httpx.Response:
        sent.append(http_request)
        return _stubbed(given["response"])

    try:
        output = _client(answer).execute(resolved, request, on_snapshot=snapshots.append)
    except ProviderError as error:
        return {**_failed(error), **_exchanged(error.exchange)}
    result: dict[str, Any] = {"ok": True, "output": output.to_json(), **_exchanged(output.exchange)}
    if snapshots:
        result["stream_snapshots"] = [snapshot.to_json() for snapshot in snapshots]
    return {**result, "request": _sent(sent[0], asked)}


def _reference_profile(kind: str, model: str, url: str) -> ResolvedProfile:
    # The unknown kinds of some records would not pass the validation of the workspace file.
    profile = ModelProfile.model_construct(
        provider=kind, model=model, api_key_env="KEY", base_url=url, **_REFERENCE
    )
    return ResolvedProfile("vector", profile, url, SecretStr("test-key"), ("KEY",), (host_and_port(url),))


def _client(answer: Callable[[httpx.Request], httpx.Response]) -> ProviderClient:
    return ProviderClient(httpx.MockTransport(answer))


def _stubbed(response: dict[str, Any]) -> httpx.Response:
    if "transport_error" in response:
        raise httpx.ConnectError(response["transport_error"])
    status = response.get("status", 200)
    if "sse_chunks" in response:
        return httpx.Response(
            status, headers={"content-type": "text/event-stream"}, content=_chunks(response)
        )
    if "json" in response:
        headers = {"content-type": "application/json"}
        return httpx.Response(status, headers=headers, content=json.dumps(response["json"]).encode())
    return httpx.Response(status, content=response.get("text", "").encode())


def _chunks(response: dict[str, Any]) -> Iterator[bytes]:
    yield from (chunk.encode() for chunk in response["sse_chunks"])
    if "sse_error_after_chunks" in response:
        raise httpx.ReadError(str(response["sse_error_after_chunks"]))


def _exchanged(exchange: Any) -> dict[str, Any]:
    if exchange is None:
        return {}
    status = {} if exchange.response_status is None else {"response_status": exchange.response_status}
    return {"response_mode": exchange.response_mode, **status}


def _failed(error: AgentRuntimeError) -> dict[str, Any]:
    details = dict(error.details)
    size = {"input_bytes": details.pop("input_bytes")} if "input_bytes" in details else {}
    failure = {"ok": False, "code": str(error.code), "message": str(error), **size}
    return {**failure, "details": details} if details else failure


def _sent(request: httpx.Request, asked: dict[str, Any]) -> dict[str, Any]:
    body = json.loads(request.content)
    first = asked["kind"] == "openai_compatible"
    system = body["messages"][0]["content"] if first else body["system"]
    listed = [*asked.get("tool_catalog", ()), *asked.get("intent_catalog", ())]
    words = [value for entry in listed for value in entry.values() if isinstance(value, str)]
    return {
        "url": str(request.url),
        "method": request.method,
        "authorization": request.headers["authorization"],
        "content_type": request.headers["content-type"],
        "model": body["model"],
        "stream": body.get("stream"),
        "response_format_type": body.get("response_format", {}).get("type"),
        "system_location": "first_message" if first else "top_level_system",
        "system_mentions": [word for word in words if word in system],
        "messages": body["messages"][1:] if first else body["messages"],
        "body_keys": sorted(body),
    }
