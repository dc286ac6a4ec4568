"""Steering a whole session from outside: cancel, pause and unpause, under the session's lock."""

from __future__ import annotations

from sqlalchemy import Connection, text

from runtime.core.chain import Receipt
from runtime.core.model import StepKind
from runtime.engine.cancelling import cancel_waiting
from runtime.engine.parts import Parts
from runtime.errors import SessionConflict, SessionNotFound
from runtime.live.hints import AdvanceHint, StepHint
from runtime.store.crashpoints import Transition
from runtime.store.rows import continuation_row
from runtime.store.sessions import StoredSession, add_control_receipt, find_session
from runtime.store.tables import OPEN_STEPS, ContinuationRow
from runtime.store.write import Change

_DUE = f"""
UPDATE {{steps}} SET publish_at = CAST(:publish AS BIGINT), publishes = 0
 WHERE session_id = :id AND {OPEN_STEPS} AND status = 'ready' AND due_at <= :now AND driver = 'worker'
RETURNING id, node_id, kind, queue,
          (SELECT n.priority FROM node n WHERE n.uid = step.node_uid) AS priority
"""


def locked_session(parts: Parts, connection: Connection, session_id: str) -> StoredSession:
    """Take a session's lock and read it.

    Raises:
        SessionNotFound: If there is no such session.
    """
    session = find_session(parts.database, connection, session_id, lock=True)
    if session is None:
        raise SessionNotFound(f"no session {session_id!r}; start it first")
    return session


def refuse_ended(session: StoredSession, verb: str, instead: str) -> None:
    """Refuse what makes no sense once a session was cancelled or has ended.

    Args:
        session: The session.
        verb: What it cannot be any more, such as ``paused``.
        instead: What to do about a session that has ended.

    Raises:
        SessionConflict: If it was cancelled or has ended.
    """
    if session.cancelled_at is not None:
        raise SessionConflict(f"session {session.id!r} was cancelled and cannot be {verb}; start another one")
    if session.ended_status is not None:
        raise SessionConflict(
            f"session {session.id!r} has ended as {session.ended_status} and cannot be {verb}; {instead}"
        )


def open_steps(sql: str, connection: Connection) -> str:
    """Fill in ``{steps}``: the table, by its open rows. Unless told, SQLite reads the history too."""
    sqlite = connection.dialect.name == "sqlite"
    return sql.format(steps="step INDEXED BY ix_step_open" if sqlite else "step")


def publish_due(connection: Connection, session: StoredSession, *, again_in_ms: int) -> list[StepHint]:
    """The hints for all steps of a session that are ready and due; one statement, whatever their number.

    Args:
        connection: In a transaction that holds the session's lock.
        session: The session.
        again_in_ms: When the sweep publishes them, if nobody has started them by then.
    """
    values = {"id": session.id, "now": session.now, "publish": session.now + again_in_ms}
    return [
        StepHint(row.id, session.id, row.node_id, StepKind(row.kind), row.queue, int(row.priority or 0))
        for row in connection.execute(text(open_steps(_DUE, connection)), values)
    ]


def _note(
    connection: Connection, session: StoredSession, kind: str, reason: str | None, *, moved: str | None = None
) -> Receipt:
    """Write a receipt into the control chain, and why the session moved."""
    change = Change()
    receipt = add_control_receipt(change, session, kind, {"reason": reason, "at": session.now})
    if moved is not None:
        change.insert(ContinuationRow, [continuation_row(session.id, moved, session.now)])
    change.apply(connection)
    return receipt


def cancel_session(parts: Parts, session_id: str, reason: str | None) -> None:
    """Cancel what has not started; running steps may finish. A session that has ended stays as it is.

    Raises:
        SessionNotFound: If there is no such session.
    """
    with parts.database.writing(Transition.CANCEL) as connection:
        session = locked_session(parts, connection, session_id)
        if session.cancelled_at is not None or session.ended_status is not None:
            return
        connection.execute(
            text("UPDATE session SET cancelled_at = CAST(:now AS BIGINT) WHERE id = :id"),
            {"now": session.now, "id": session_id},
        )
        receipt = _note(connection, session, "session_cancelled", reason)
        requests = cancel_waiting(connection, session_id, session.now)
    parts.live.announce(session_id, "", [receipt], resolved=requests)
    parts.publisher.publish([AdvanceHint(session_id)])


def pause_session(parts: Parts, session_id: str, reason: str | None) -> None:
    """Let nothing start until `unpause_session`; running steps finish, and answers are kept.

    Harmless to repeat.

    Raises:
        SessionNotFound: If there is no such session.
        SessionConflict: If it was cancelled or has ended.
    """
    with parts.database.writing(Transition.PAUSE) as connection:
        session = locked_session(parts, connection, session_id)
        refuse_ended(session, "paused", "nothing of it runs any more")
        if session.paused_at is not None:
            return
        connection.execute(
            text("UPDATE session SET paused_at = CAST(:now AS BIGINT) WHERE id = :id"),
            {"now": session.now, "id": session_id},
        )
        receipt = _note(connection, session, "session_paused", reason, moved="paused")
    parts.live.announce(session_id, "", [receipt])
    parts.publisher.publish([AdvanceHint(session_id)])


def unpause_session(parts: Parts, session_id: str, reason: str | None = None) -> None:
    """Let a paused session go on, with all that became ready or was answered meanwhile.

    A session that is not paused stays as it is.

    Raises:
        SessionNotFound: If there is no such session.
        SessionConflict: If it was cancelled or has ended.
    """
    with parts.database.writing(Transition.UNPAUSE) as connection:
        session = locked_session(parts, connection, session_id)
        refuse_ended(session, "unpaused", "resume it to retry what failed")
        if session.paused_at is None:
            return
        connection.execute(text("UPDATE session SET paused_at = NULL WHERE id = :id"), {"id": session_id})
        receipt = _note(connection, session, "session_unpaused", reason, moved="unpaused")
        due = publish_due(connection, session, again_in_ms=0)
    parts.live.announce(session_id, "", [receipt])
    parts.publisher.publish([*due, AdvanceHint(session_id)])
