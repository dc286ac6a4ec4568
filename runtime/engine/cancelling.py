"""Cancels what has not started yet."""

from __future__ import annotations

from sqlalchemy import Connection, text

from runtime.core.lifecycle import StepEvent, steps_that_accept
from runtime.core.model import StepStatus

_CANCELLABLE = ", ".join(
    f"'{status}'" for status in steps_that_accept(StepEvent.CANCEL) if status is not StepStatus.RUNNING
)


def cancel_waiting(connection: Connection, session_id: str, now: int) -> list[str]:
    """Cancel all that has not started in a cancelled session; what runs may finish, and is asked again.

    Returns:
        The approval requests that nobody needs to answer any more.
    """
    requests = connection.execute(
        text(
            "UPDATE approval SET status = 'cancelled', resolved_at = CAST(:now AS BIGINT) "
            "WHERE session_id = :id AND status = 'pending' RETURNING id"
        ),
        {"id": session_id, "now": now},
    ).all()
    connection.execute(
        text(
            "UPDATE step SET status = 'cancelled', reason = 'cancelled', propagated = :yes "
            f"WHERE session_id = :id AND status IN ({_CANCELLABLE})"
        ),
        {"id": session_id, "yes": True},
    )
    connection.execute(
        text(
            "UPDATE node SET status = 'cancelled' WHERE session_id = :id AND mode <> 'host' "
            "AND status NOT IN ('completed', 'error', 'skipped') AND NOT EXISTS "
            "(SELECT 1 FROM step s WHERE s.node_uid = node.uid AND s.status = 'running')"
        ),
        {"id": session_id},
    )
    return [row.id for row in requests]
