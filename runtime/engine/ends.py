"""What follows for a session when one of its nodes ends, or has used up its turns."""

from __future__ import annotations

import json
from typing import Any

from runtime.core.canonical import canonical_json
from runtime.core.model import NodeStatus
from runtime.engine.publishing import REPUBLISH_MS, hints_of
from runtime.engine.recording import Recording
from runtime.live.hints import AdvanceHint, Carrier
from runtime.store.rows import continuation_row
from runtime.store.tables import ContinuationRow


def suspend_node(recording: Recording, tool_calls: int) -> None:
    """Suspend a node whose turn budget is used up; its next turn stays pending until a resume."""
    step = recording.step
    recording.change.update(
        "UPDATE node SET status = :status, reason = 'max_turns', turns = :turns, tool_calls = :calls "
        "WHERE uid = :uid",
        uid=step.node_uid,
        status=NodeStatus.SUSPENDED,
        turns=step.turn_index + 1,
        calls=tool_calls,
    )
    recording.change.insert(
        ContinuationRow,
        [continuation_row(step.session_id, "suspended", recording.now, step.node_id)],
    )
    recording.hint(AdvanceHint(step.session_id))


def end_node(
    recording: Recording,
    status: NodeStatus,
    continuation: str,
    *,
    turns: int,
    tool_calls: int,
    result: Any = None,
    error: Any = None,
) -> None:
    """End the step's node, satisfy the edges that leave it, and ask for an advance."""
    step = recording.step
    recording.ends_node = status is NodeStatus.COMPLETED
    recording.change.guard(
        "UPDATE node SET status = :status, reason = NULL, result = :result, error = :error, turns = :turns, "
        "tool_calls = :calls, head = :head, deadline_at = NULL WHERE uid = :uid"
        + (" AND inbox = :taken" if recording.ends_node else ""),
        uid=step.node_uid,
        status=status,
        result=None if result is None else canonical_json(result),
        error=None if error is None else canonical_json(error),
        turns=turns,
        calls=tool_calls,
        head=recording.chain.head,
        **({"taken": step.taken} if recording.ends_node else {}),
    )
    plan = recording.plan
    goes_on = status is NodeStatus.COMPLETED or plan.continues
    recording.change.update(
        "UPDATE edge SET satisfied = :yes WHERE depends_on_uid = :uid" + ("" if goes_on else " AND on_end"),
        uid=step.node_uid,
        yes=True,
    )
    recording.change.insert(
        ContinuationRow,
        [continuation_row(step.session_id, continuation, recording.now, step.node_id)],
    )
    if goes_on and plan.promotes:
        _promote(recording)
    if plan.more or not goes_on:
        recording.hint(AdvanceHint(step.session_id), unless=Carrier.CHORD if plan.join and goes_on else None)


def _promote(recording: Recording) -> None:
    """Make ready what depends on this node alone."""
    step, plan = recording.step, recording.plan
    alone = "(SELECT e.node_uid FROM edge e WHERE e.depends_on_uid = :uid AND e.sole)"
    recording.change.update(
        "UPDATE step SET status = 'ready', cites = :cites, due_at = CAST(:now AS BIGINT), "
        "publish_at = CAST(:publish AS BIGINT) "
        f"WHERE status = 'pending' AND turn_index = 0 AND call_index = 0 AND node_uid IN {alone}",
        uid=step.node_uid,
        cites=json.dumps([recording.chain.head]),
        now=recording.now,
        publish=recording.now + REPUBLISH_MS,
    )
    recording.change.update(
        f"UPDATE node SET status = 'ready' WHERE status = 'pending' AND uid IN {alone}", uid=step.node_uid
    )
    chained = len(plan.promotes) == 1 and not plan.more
    for hint in hints_of(step.session_id, plan.sets_off, step.priority):
        recording.hint(hint, unless=Carrier.CHAIN if chained else None)
