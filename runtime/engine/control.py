"""Steering sessions from outside: cancel and resume, under the session's lock."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, text

from runtime.core.canonical import canonical_json
from runtime.core.model import TURN_TOOL, NodeStatus, SessionStatus, StepKind, StepStatus
from runtime.core.turn import validate_turn_input
from runtime.engine.advance import cancel_waiting
from runtime.engine.parts import Parts
from runtime.engine.record import REPUBLISH_MS, extend_transcript, hint_of
from runtime.engine.transcript import stored_message
from runtime.errors import ErrorCode, SessionConflict, SessionNotFound
from runtime.live.hints import AdvanceHint, Hint, StepHint
from runtime.store.ids import step_id
from runtime.store.rows import continuation_row, message_row, step_row
from runtime.store.sessions import StoredSession, add_control_receipt, find_session
from runtime.store.tables import ContinuationRow, MessageRow, StepRow
from runtime.store.write import Change


def _locked(parts: Parts, connection: Connection, session_id: str) -> StoredSession:
    session = find_session(parts.database, connection, session_id, lock=True)
    if session is None:
        raise SessionNotFound(f"no session {session_id!r}; start it first")
    return session


def cancel_session(parts: Parts, session_id: str, reason: str | None) -> None:
    """Cancel what has not started; running steps may finish. A session that has ended stays as it is.

    Raises:
        SessionNotFound: If there is no such session.
    """
    with parts.database.writing() as connection:
        session = _locked(parts, connection, session_id)
        if session.cancelled_at is not None or session.ended_status is not None:
            return
        now = session.now
        change = Change()
        change.guard(
            "UPDATE session SET cancelled_at = CAST(:now AS BIGINT) WHERE id = :id", now=now, id=session_id
        )
        change.apply(connection)
        change = Change()
        receipt = add_control_receipt(change, session, "session_cancelled", {"reason": reason, "at": now})
        change.apply(connection)
        requests = cancel_waiting(connection, session_id, now)
    parts.live.announce(session_id, "", [receipt], resolved=requests)
    parts.publisher.publish([AdvanceHint(session_id)])


def resume_session(
    parts: Parts, session_id: str, *, principal: str | None, messages: Sequence[Any] | None = None
) -> None:
    """Go on with a session: continue what its turn budget suspended, retry what failed, add messages.

    On a session that has ended well this changes nothing but the record.

    Args:
        parts: The parts of this process.
        session_id: The session.
        principal: Who resumes; must be who started it.
        messages: For linear sessions: what is said next, which starts another turn.

    Raises:
        SessionNotFound: If there is no such session.
        SessionConflict: If it was cancelled, belongs to another principal, or cannot take messages now.
        InvalidInput: On malformed messages.
    """
    with parts.database.writing() as connection:
        session = _locked(parts, connection, session_id)
        if session.principal != principal:
            raise SessionConflict(f"session {session_id!r} belongs to another principal")
        if session.cancelled_at is not None:
            raise SessionConflict(f"session {session_id!r} was cancelled; start another one")
        now = session.now
        change = Change()
        change.insert(ContinuationRow, [continuation_row(session_id, "resumed", now)])
        change.apply(connection)
        hints: list[Hint] = [AdvanceHint(session_id)]
        if messages:
            hints += _say(parts, connection, session, messages, now)
        else:
            hints += _continue_suspended(parts, connection, session, now)
            hints += _retry_failed(connection, session, now)
        if session.ended_status is not None and len(hints) > 1:
            connection.execute(
                text("UPDATE session SET ended_status = NULL, ended_at = NULL WHERE id = :id"),
                {"id": session_id},
            )
        elif session.ended_status == SessionStatus.COMPLETED:
            change = Change()
            change.insert(ContinuationRow, [continuation_row(session_id, "completed", now)])
            change.apply(connection)
    parts.publisher.publish(hints)


def _continue_suspended(parts: Parts, connection: Connection, session: StoredSession, now: int) -> list[Hint]:
    rows = connection.execute(
        text(
            "SELECT n.uid, n.node_id, n.max_turns, n.reason, s.id, s.turn_index, s.status, s.kind, s.queue "
            "FROM node n JOIN step s ON s.node_uid = n.uid AND s.status = "
            "CASE WHEN n.reason = 'quarantined' THEN 'quarantined' ELSE 'pending' END "
            "WHERE n.session_id = :id AND n.status = 'suspended'"
        ),
        {"id": session.id},
    ).all()
    ceiling = parts.host.workspace.limits.max_turns_per_session
    hints: list[Hint] = []
    for row in rows:
        if ceiling is not None and row.turn_index >= ceiling:
            raise SessionConflict(
                f"node {row.node_id!r} has made {row.turn_index} turns, and limits.max_turns_per_session is "
                f"{ceiling}; raise it in the workspace file to go on",
                code=ErrorCode.LIMIT_EXCEEDED,
            )
        budget = row.turn_index + row.max_turns
        named = {
            "uid": row.uid,
            "id": row.id,
            "now": now,
            "budget": budget if ceiling is None else min(budget, ceiling),
        }
        connection.execute(
            text("UPDATE node SET status = 'running', reason = NULL, turn_budget = :budget WHERE uid = :uid"),
            named,
        )
        _make_ready(connection, row.id, now)
        hints.append(StepHint(row.id, session.id, row.node_id, StepKind(row.kind), row.queue))
    return hints


def _make_ready(connection: Connection, step: str, now: int) -> None:
    connection.execute(
        text(
            "UPDATE step SET status = 'ready', crashes = 0, attempts = 0, reason = NULL, propagated = :yes, "
            "due_at = CAST(:now AS BIGINT), publish_at = CAST(:publish AS BIGINT) WHERE id = :id"
        ),
        {"id": step, "now": now, "publish": now + REPUBLISH_MS, "yes": True},
    )


def _retry_failed(connection: Connection, session: StoredSession, now: int) -> list[Hint]:
    rows = connection.execute(
        text(
            "SELECT n.uid, n.node_id, s.id, s.kind, s.queue FROM node n JOIN step s ON s.node_uid = n.uid "
            "AND s.kind = 'turn' AND s.status IN ('failed', 'denied') "
            "WHERE n.session_id = :id AND n.status = 'error'"
        ),
        {"id": session.id},
    ).all()
    hints: list[Hint] = []
    for row in rows:
        connection.execute(
            text("UPDATE node SET status = 'running', error = NULL WHERE uid = :uid"), {"uid": row.uid}
        )
        _make_ready(connection, row.id, now)
        hints.append(StepHint(row.id, session.id, row.node_id, StepKind(row.kind), row.queue))
    return hints


def _say(
    parts: Parts, connection: Connection, session: StoredSession, messages: Sequence[Any], now: int
) -> list[Hint]:
    """Append messages to a linear session that is not in the middle of something, and start a turn."""
    node = connection.execute(
        text(
            "SELECT uid, node_id, status, max_turns, head FROM node WHERE session_id = :id AND mode <> 'host'"
        ),
        {"id": session.id},
    ).all()
    if session.kind != "session" or len(node) != 1:
        raise SessionConflict(f"session {session.id!r} is a workflow; messages go to linear sessions only")
    row = node[0]
    if row.status != NodeStatus.COMPLETED:
        raise SessionConflict(
            f"session {session.id!r} is {row.status}; wait until its turn is over before saying more"
        )
    checked = validate_turn_input(
        {"session_id": session.id, "model_profile": "-", "messages": list(messages)}
    ).messages
    last = connection.execute(
        text(
            "SELECT turn_index, calls_before, messages_before, transcript_digest, transcript_bytes "
            "FROM step WHERE node_uid = :uid AND kind = 'turn' ORDER BY turn_index DESC LIMIT 1"
        ),
        {"uid": row.uid},
    ).one()
    answer = connection.execute(
        text("SELECT content FROM message WHERE node_uid = :uid AND number = :n"),
        {"uid": row.uid, "n": last.messages_before},
    ).scalar_one()
    digest, size = extend_transcript(last.transcript_digest, last.transcript_bytes, answer)
    number, rows = last.messages_before + 1, []
    for message in checked:
        body = canonical_json(stored_message(message))
        digest, size = extend_transcript(digest, size, body)
        rows.append(message_row(row.uid, number, message.role, body))
        number += 1
    turn = last.turn_index + 1
    ceiling = parts.host.workspace.limits.max_turns_per_session
    if ceiling is not None and turn >= ceiling:
        raise SessionConflict(
            f"session {session.id!r} has made {turn} turns, and limits.max_turns_per_session is {ceiling}",
            code=ErrorCode.LIMIT_EXCEEDED,
        )
    step = step_row(
        id=step_id(row.uid, turn, 0), session_id=session.id, node_uid=row.uid, node_id=row.node_id,
        kind=StepKind.TURN, turn_index=turn, call_index=0, tool_name=TURN_TOOL, queue="turns",
        status=StepStatus.READY, due_at=now, publish_at=now + REPUBLISH_MS, calls_before=last.calls_before,
        messages_before=number, transcript_digest=digest, transcript_bytes=size,
        cites=json.dumps([row.head] if row.head else []),
    )  # fmt: skip
    budget = turn + row.max_turns
    change = Change()
    change.guard(
        "UPDATE node SET status = 'ready', result = NULL, turn_budget = :budget WHERE uid = :uid",
        uid=row.uid,
        budget=budget if ceiling is None else min(budget, ceiling),
    )
    change.insert(MessageRow, rows)
    change.insert(StepRow, [step])
    change.apply(connection)
    return [hint_of(step)]
