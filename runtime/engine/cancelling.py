"""Cancels what has not started yet."""

from __future__ import annotations

from sqlalchemy import Connection, text

from runtime.core.lifecycle import StepEvent, steps_that_accept
from runtime.core.model import StepStatus
from runtime.engine.publishing import REPUBLISH_MS

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
            # Unpropagated: should no advance follow, the sweep sends one, and the session ends.
            "UPDATE step SET status = 'cancelled', reason = 'cancelled', propagated = :no, "
            "finished_at = CAST(:now AS BIGINT), publish_at = CAST(:now AS BIGINT) "
            f"WHERE session_id = :id AND status IN ({_CANCELLABLE})"
        ),
        {"id": session_id, "no": False, "now": now},
    )
    connection.execute(
        text(
            "UPDATE node SET status = 'cancelled', deadline_at = NULL WHERE session_id = :id "
            "AND mode <> 'host' AND status NOT IN ('completed', 'error', 'skipped') AND NOT EXISTS "
            "(SELECT 1 FROM step s WHERE s.node_uid = node.uid AND s.status = 'running')"
        ),
        {"id": session_id},
    )
    return [row.id for row in requests]


def look_again(connection: Connection, session_id: str, now: int) -> None:
    """Leave something for the sweep in a cancelled session that cannot end yet.

    A record that commits beside the cancellation may see nothing of it, and then asks for no advance, since
    it believes that what depends on its node goes on. That has been cancelled: so there is a step to leave.
    """
    connection.execute(
        text(
            "UPDATE step SET propagated = :no, finished_at = COALESCE(finished_at, CAST(:now AS BIGINT)), "
            "publish_at = CASE WHEN publish_at > CAST(:now AS BIGINT) THEN publish_at "
            "ELSE CAST(:later AS BIGINT) END "
            "WHERE id = (SELECT min(id) FROM step WHERE session_id = :id AND status = 'cancelled')"
        ),
        {"id": session_id, "no": False, "now": now, "later": now + REPUBLISH_MS},
    )
