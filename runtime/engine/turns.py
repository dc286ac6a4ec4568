"""What a turn step does: prepare the model call, make it, read its outcome."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from runtime.core.model import ExecutionContext, ToolFailure, ToolOutput
from runtime.core.profile import ResolvedProfile, resolve_profile
from runtime.core.turn import (
    CatalogIntent,
    CatalogTool,
    ProviderRequest,
    TurnInput,
    TurnLimits,
    check_limits,
    validate_turn_input,
)
from runtime.core.turn_output import Snapshot, TurnOutput
from runtime.engine.outcome import CallResult, Outcome, RequestedCall
from runtime.engine.parts import Parts
from runtime.engine.transcript import read_message
from runtime.errors import AgentRuntimeError
from runtime.kernel.tool_host import ToolHost
from runtime.providers.errors import ProviderError


@dataclass(frozen=True, slots=True)
class PreparedTurn:
    """A turn that is ready to be decided and made, or the reason why it cannot be.

    Attributes:
        manifest: What evidence keeps as the input: digests and counts, not a copy of the history.
        request: What goes to the provider.
        profile: Where it goes; ``None`` when the profile could not be resolved.
        failure: Why the turn cannot be made.
    """

    manifest: Any
    request: ProviderRequest | None
    profile: ResolvedProfile | None
    failure: ToolFailure | None = None

    @property
    def network(self) -> tuple[str, ...]:
        """Addresses that the turn needs."""
        return self.profile.network_allowlist if self.profile else ()


def prepare_host_turn(
    parts: Parts, value: Any, ctx: ExecutionContext, counters: tuple[int, int]
) -> PreparedTurn:
    """Prepare a turn from a caller's input; the input itself is the evidence."""
    try:
        turn = validate_turn_input(value, default_model=parts.host.workspace.default_model)
        limits = _limits(parts.host, turn)
        failure = check_limits(
            limits, input_bytes=turn.size_bytes(), turn_index=counters[0], tool_call_count=counters[1]
        )
        if failure is not None:
            return PreparedTurn(value, None, None, failure)
        profile = _profile(parts, turn)
        request = _request(parts.host, turn, ctx)
    except AgentRuntimeError as error:
        return PreparedTurn(value, None, None, _failure(error))
    return PreparedTurn(value, request, profile)


def prepare_node_turn(
    parts: Parts,
    definition: str,
    transcript: list[str],
    ctx: ExecutionContext,
    *,
    transcript_digest: str,
    transcript_bytes: int,
    turn_index: int,
) -> PreparedTurn:
    """Prepare a turn from a node's definition and its transcript so far."""
    template: dict[str, Any] = json.loads(definition)["turn"]
    manifest = {
        **template,
        "turn_index": turn_index,
        "transcript": {
            "digest": transcript_digest,
            "messages": len(transcript),
            "bytes": transcript_bytes,
        },
    }
    try:
        stub = [{"role": "user", "content": ""}]
        turn = validate_turn_input(
            {**template, "messages": stub}, default_model=parts.host.workspace.default_model
        )
        limits = _limits(parts.host, turn)
        failure = check_limits(
            TurnLimits(max_input_bytes=limits.max_input_bytes),
            input_bytes=turn.size_bytes() + transcript_bytes,
            turn_index=None,
            tool_call_count=None,
        )
        if failure is not None:
            return PreparedTurn(manifest, None, None, failure)
        profile = _profile(parts, turn)
        request = _request(parts.host, turn, ctx)
    except AgentRuntimeError as error:
        return PreparedTurn(manifest, None, None, _failure(error))
    messages = tuple(read_message(text) for text in transcript)
    return PreparedTurn(
        manifest, ProviderRequest(messages, request.tools, request.intents, request.stream), profile
    )


def _failure(error: AgentRuntimeError) -> ToolFailure:
    return ToolFailure(code=str(error.code), message=str(error), details=error.details)


def _profile(parts: Parts, turn: TurnInput) -> ResolvedProfile:
    models = parts.host.workspace.models
    return resolve_profile(models, turn.model_profile, parts.environ, url=turn.url)


def _limits(host: ToolHost, turn: TurnInput) -> TurnLimits:
    """The bounds of the workspace file; what the call brings can only lower them."""
    ceiling, own = host.workspace.limits, turn.limits or TurnLimits()

    def lower(name: str) -> int | None:
        bounds = [x for x in (getattr(ceiling, name), getattr(own, name)) if x is not None]
        return min(bounds, default=None)

    return TurnLimits(
        max_turns_per_session=lower("max_turns_per_session"),
        max_tool_calls_per_session=lower("max_tool_calls_per_session"),
        max_input_bytes=lower("max_input_bytes"),
    )


def _request(host: ToolHost, turn: TurnInput, ctx: ExecutionContext) -> ProviderRequest:
    """The provider request; absent catalogues become the governed listing and the configured intents."""
    tools = turn.tool_catalog
    if tools is None:
        tools = tuple(
            CatalogTool(tool.capability.name, tool.capability.description, tool.capability.input_schema)
            for tool in host.list_governed_tools(ctx)
        )
    else:
        tools = tuple(_with_schema(host, tool) for tool in tools)
    intents = turn.intent_catalog
    if intents is None:
        intents = tuple(
            CatalogIntent(name, intent.description)
            for name, intent in host.workspace.intents.items()
            if ctx.allowed_intents is None or name in ctx.allowed_intents
        )
    return ProviderRequest(turn.messages, tools, intents, bool(turn.stream))


def _with_schema(host: ToolHost, tool: CatalogTool) -> CatalogTool:
    """A catalogue entry without a schema gets the registered tool's."""
    if tool.input_schema is not None:
        return tool
    known = host.registry.get(tool.name)
    return CatalogTool(tool.name, tool.description, known.input_schema) if known else tool


def make_turn(
    parts: Parts,
    prepared: PreparedTurn,
    *,
    on_snapshot: Callable[[dict[str, Any]], None],
    deadline_s: float | None = None,
    retry_in: Callable[[ProviderError], int | None] = lambda _: None,
) -> Outcome:
    """Make the model call and read its outcome.

    Args:
        parts: The parts of this process.
        prepared: The turn.
        on_snapshot: Gets the partial answers of a streamed call.
        deadline_s: Seconds that the call may take in all.
        retry_in: Says after how many milliseconds a failed call is to be made again, if at all.
    """
    assert prepared.request is not None
    assert prepared.profile is not None
    started = time.monotonic()
    progress: list[dict[str, Any]] = []

    def snapshot(taken: Snapshot) -> None:
        data = taken.to_json()
        progress.append(data)
        on_snapshot(data)

    try:
        output = parts.provider.execute(
            prepared.profile, prepared.request, on_snapshot=snapshot, deadline_s=deadline_s
        )
    except ProviderError as error:
        failure = ToolOutput(success=False, error=_failure(error))
        return Outcome(
            failure,
            CallResult.FAILURE,
            duration_ms=_elapsed(started),
            retry_in_ms=retry_in(error),
        )
    return _read(output, tuple(progress), _elapsed(started))


def _read(output: TurnOutput, progress: tuple[dict[str, Any], ...], duration_ms: int) -> Outcome:
    message: dict[str, Any] = {"role": "assistant", "content": output.assistant_message}
    if output.reasoning:
        message["reasoning"] = list(output.reasoning)
    calls = tuple(
        RequestedCall(call.name, call.input, call.provider_call_id) for call in output.requested_tools
    )
    return Outcome(
        ToolOutput(success=True, data=output.to_json(), metadata={"provider_call_count": 1}),
        CallResult.SUCCESS,
        progress=progress,
        duration_ms=duration_ms,
        calls=calls if output.status == "tool_request" else (),
        assistant_message=message,
        intent=output.intent,
        usage=dict(output.usage) or None,
    )


def _elapsed(started: float) -> int:
    return round((time.monotonic() - started) * 1000)
