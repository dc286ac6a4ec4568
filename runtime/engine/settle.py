"""Ends a session in which nothing can move or is running; nothing else does."""

from __future__ import annotations

from typing import Any

from sqlalchemy import text

from runtime.core.canonical import canonical_json
from runtime.core.lifecycle import NODE_ENDED
from runtime.core.model import NodeStatus, SessionStatus
from runtime.engine.promotion import Promotion
from runtime.errors import ErrorCode
from runtime.store.rows import continuation_row
from runtime.store.sessions import add_control_receipt, number_continuations
from runtime.store.tables import MOVING_NODES, UNPROPAGATED, ContinuationRow
from runtime.store.write import Change

# One statement, hence one snapshot: a record that commits after the advance looked is seen here whole, its
# node's end together with the step that is not propagated yet.
_OPEN = f"""
SELECT EXISTS (SELECT 1 FROM node WHERE session_id = :id AND {MOVING_NODES} AND mode <> 'host') AS moving,
       EXISTS (SELECT 1 FROM step s WHERE s.session_id = :id AND {{unpropagated}}) AS unpropagated,
       EXISTS (SELECT 1 FROM node WHERE session_id = :id AND mode <> 'host') AS any_node
"""

_COUNTS = """
SELECT status, handled, count(*) AS nodes FROM node WHERE session_id = :id AND mode <> 'host'
 GROUP BY status, handled
"""


def settle(work: Promotion) -> bool:
    """End the session if nothing of it can move or is running; number its continuations.

    Returns:
        Whether it has ended.
    """
    unpropagated = UNPROPAGATED[work.connection.dialect.name]
    found = work.rows(_OPEN.format(unpropagated=unpropagated), id=work.session.id)[0]
    if found.unpropagated:
        return False  # a record committed since this advance looked; its own advance goes on from there
    if found.moving or not found.any_node:
        _number(work)
        return False
    rows = work.rows(_COUNTS, id=work.session.id)
    statuses = {row.status for row in rows}
    assert statuses <= {*NODE_ENDED, NodeStatus.PENDING}
    failed = any(row.status == NodeStatus.ERROR and not row.handled for row in rows)
    if work.session.cancelled_at is not None:
        _end(work, SessionStatus.CANCELLED)
    elif failed:
        _end(work, SessionStatus.ERROR)
    elif NodeStatus.PENDING in statuses:
        work.note("error", "workflow")
        _end(work, SessionStatus.ERROR, _STALLED)
    else:
        _end(work, SessionStatus.COMPLETED)
    return True


_STALLED = {
    "code": ErrorCode.WORKFLOW_STALLED,
    "message": "nodes wait for others that ended without setting them off; handle that end with when, "
    "or let the failed node say on_error: continue",
    "details": {"node_id": "workflow"},
}


def _number(work: Promotion) -> None:
    numbered = number_continuations(work.connection, work.session)
    if numbered != work.session.continuations:
        work.connection.execute(
            text("UPDATE session SET continuations = :n WHERE id = :id"),
            {"n": numbered, "id": work.session.id},
        )


def _end(work: Promotion, status: SessionStatus, error: dict[str, Any] | None = None) -> None:
    """Write the end: the last continuation, all numbers, and a settle record that cites every head."""
    session, connection = work.session, work.connection
    heads = work.rows(
        "SELECT head FROM node WHERE session_id = :id AND head IS NOT NULL ORDER BY uid", id=session.id
    )
    change = Change()
    change.insert(ContinuationRow, work.continuations)
    if status is not SessionStatus.ERROR:  # the node that failed has recorded its own
        change.insert(ContinuationRow, [continuation_row(session.id, status, work.now)])
    add_control_receipt(
        change,
        session,
        "session_settled",
        {"status": status, "at": work.now},
        cites=[row.head for row in heads],
    )
    change.apply(connection)
    connection.execute(
        text(
            "UPDATE session SET ended_status = :status, ended_at = CAST(:now AS BIGINT), "
            "end_error = :error, continuations = :numbered WHERE id = :id"
        ),
        {
            "status": status,
            "error": None if error is None else canonical_json(error),
            "now": work.now,
            "numbered": number_continuations(connection, session),
            "id": session.id,
        },
    )
