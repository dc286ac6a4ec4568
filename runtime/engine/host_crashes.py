"""Finishes host-driven calls whose process was lost; nobody else would."""

from __future__ import annotations

from sqlalchemy import text

from runtime.core.chain import Chain
from runtime.core.lifecycle import StepEvent
from runtime.core.model import Effect, PolicyDecision, StepStatus, ToolFailure, ToolOutput
from runtime.engine.outcome import CallResult, Outcome
from runtime.engine.parts import Parts
from runtime.engine.recording import Recording, add_finish
from runtime.errors import ErrorCode
from runtime.store import journal
from runtime.store.crashpoints import Transition
from runtime.store.steps import load_step

BATCH = 100

AGAIN_MS = 30_000
"""When a call is looked at again that this process could not finish, since it does not know the tool."""

_NOT_AGAIN: PolicyDecision = {"policy_id": "kernel.crash", "decision": "deny"}
"""Nobody drives the call any more, so it is not run again, whatever its effect."""


def sweep_crashed(parts: Parts) -> int:
    """Finish host-driven calls whose process was lost: ``crashed``, or in doubt for ``once`` tools."""
    now = f"(SELECT {parts.database.now_sql})"
    locking = " FOR UPDATE SKIP LOCKED" if parts.database.dialect == "postgresql" else ""
    with parts.database.writing(Transition.CLAIM_HOST_CRASHED) as connection:
        rows = connection.execute(
            text(
                f"""UPDATE step SET publish_at = {now} + CAST(:again AS BIGINT)
                WHERE id IN (SELECT id FROM step WHERE status = 'running' AND lease_until < {now}
                               AND driver = 'host' AND (publish_at IS NULL OR publish_at <= {now})
                             ORDER BY lease_until LIMIT :batch{locking})
                RETURNING id, lease_until"""
            ),
            {"again": AGAIN_MS, "batch": BATCH},
        ).all()
    return sum(_finish_crashed(parts, row.id) for row in sorted(rows, key=lambda row: row.lease_until))


def _finish_crashed(parts: Parts, step_id: str) -> bool:
    step = load_step(parts.database, step_id, "")
    if step is None or not step.lease_expired:
        return False
    tool = parts.host.registry.get(step.tool_name)
    if tool is None and not step.is_turn:
        return False  # a process that knows the tool, hence its effect, will finish it
    effect = tool.effect if tool else Effect.READ
    doubtful = effect is Effect.ONCE
    failure = ToolFailure(
        code=ErrorCode.TOOL_EXECUTION_FAILED,
        message=f"the process that made this call of {step.tool_name} was lost",
        details={"reason": "in_doubt" if doubtful else "crashed", "cause": "worker_lost"},
    )
    outcome = Outcome(
        ToolOutput(success=False, error=failure),
        CallResult.IN_DOUBT if doubtful else CallResult.CRASHED,
    )
    chain = Chain(step.id, step.fence + 1, step.chain_cites, common={"session_id": step.session_id,
                  "node_id": step.node_id, "tool_name": step.tool_name})  # fmt: skip
    recording = Recording(step, chain, parts.database.now_sql, step.now, held=False)
    add_finish(recording, outcome, [_NOT_AGAIN])
    event, status = (StepEvent.LOSE, StepStatus.IN_DOUBT) if doubtful else (StepEvent.FAIL, StepStatus.FAILED)
    recording.end(event, status, outcome, reason="crashed")
    if not journal.apply(parts.database, recording.change, Transition.HOST_CRASH):
        return False
    parts.live.announce(step.session_id, step.node_id, recording.receipts)
    return True
