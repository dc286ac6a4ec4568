"""Making one call of a tool, and telling followers how far it is, whoever drives the step."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from runtime.core.chain import Chain
from runtime.core.model import Effect, ExecutionContext, Frozen, Json, ToolOutput
from runtime.engine.outcome import CallResult, Outcome
from runtime.engine.parts import Parts
from runtime.errors import ConfigurationError, ErrorCode, InvalidInput
from runtime.kernel.verdict import Call, Verdict
from runtime.tools.declare import ToolDefinition
from runtime.tools.process import ToolCrashed, ToolTimedOut
from runtime.tools.redact import redact

_log = logging.getLogger(__name__)


def live_progress(parts: Parts, session_id: str, node_id: str, chain: Chain) -> Callable[[Any], None]:
    """Where an attempt's snapshots go while it runs; they enter the chain with its finish."""
    n = chain.n

    def progress(snapshot: Any) -> None:
        nonlocal n
        parts.live.progress(session_id, node_id, chain.step_id, chain.fence, n, snapshot)
        n += 1

    return progress


def call_tool(
    parts: Parts,
    call: Call,
    verdict: Verdict,
    *,
    idempotency_key: str,
    on_progress: Callable[[Any], None],
    deadline_s: float | None = None,
) -> Outcome:
    """Run a tool that the kernel let through.

    Returns:
        The outcome; in doubt when a ``once`` call was cut off, so that its effect is unknown.
    """
    tool = parts.host.registry.get(call.tool_name)
    assert tool is not None
    started = time.monotonic()
    snapshots: list[dict[str, Any]] = []

    def progress(data: Any) -> None:
        snapshot = {"sequence": len(snapshots), "state": "partial", "data": data}
        snapshots.append(snapshot)
        on_progress(snapshot)

    result = CallResult.FAILURE
    try:
        output = parts.runner.run(
            tool,
            json.loads(verdict.input.text),
            tool_context(
                call, call.ctx, verdict, idempotency_key, str(parts.host.workspace.base_dir.absolute())
            ),
            deadline_s=tool.time_limit if deadline_s is None else deadline_s,
            on_progress=progress,
        )
    except (ConfigurationError, InvalidInput) as error:
        output = ToolOutput.failed(error.code, str(error), error.details)  # nothing ran
    except (ToolCrashed, ToolTimedOut) as error:
        output = _cut_off(tool, error)
        if tool.effect is Effect.ONCE:
            result = CallResult.IN_DOUBT
    if output.error is not None and output.error.code == ErrorCode.SCOPE_DENIED:
        result = CallResult.DENIED  # the tool was about to touch what its scopes do not name
    return Outcome(
        output,
        CallResult.SUCCESS if output.success else result,
        progress=(*snapshots, *reported_progress(output)),
        duration_ms=round((time.monotonic() - started) * 1000),
    )


class _Snapshot(Frozen):
    sequence: Annotated[int, Field(ge=0)]
    state: Literal["partial", "final"]
    data: Json


_SNAPSHOTS: TypeAdapter[list[_Snapshot]] = TypeAdapter(list[_Snapshot])


def reported_progress(output: ToolOutput) -> list[dict[str, Any]]:
    """Snapshots that a tool hands over at its end, as ``tool_progress_snapshots`` of its output's metadata.

    Returns:
        ``sequence``, ``state`` (``partial`` or ``final``) and ``data`` of each; none if one is malformed.
    """
    reported = output.metadata.get("tool_progress_snapshots", [])
    try:
        return [each.model_dump() for each in _SNAPSHOTS.validate_python(reported)]
    except ValidationError:
        _log.warning("the progress snapshots of a tool's output are malformed and are left out")
        return []


def _cut_off(tool: ToolDefinition, error: ToolCrashed | ToolTimedOut) -> ToolOutput:
    """A call whose process died or whose time ran out: a failure, unless only a person can say so."""
    cause = "timeout" if isinstance(error, ToolTimedOut) else "crashed"
    details: dict[str, Any] = {"reason": cause}
    if tool.effect is Effect.ONCE:
        details = {"reason": "in_doubt", "cause": cause, **error.details}
    return ToolOutput.failed(ErrorCode.TOOL_EXECUTION_FAILED, redact(str(error)), details)


def tool_context(
    call: Call, ctx: ExecutionContext, verdict: Verdict, idempotency_key: str, root: str
) -> dict[str, Any]:
    """What a tool is told of its call; ``root`` is the folder that path scopes are relative to."""
    return {
        "session_id": call.session_id,
        "node_id": call.node_id,
        "run_id": ctx.run_id,
        "task_id": ctx.task_id,
        "call_id": call.call_id,
        "idempotency_key": idempotency_key,
        "principal": ctx.principal,
        "metadata": ctx.metadata,
        "scopes": [scope.model_dump(mode="json", exclude_none=True) for scope in verdict.granted],
        "root": root,
    }
