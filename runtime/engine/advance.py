"""Moves a session on: promotes what waits, and settles what can move no more.

A record leaves its step *unpropagated* when others may follow from it. An advance runs in a later
transaction, so it sees everything that was committed before it; two branches that end together cannot
both miss the join. It takes the session's lock, which steps never touch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

from runtime.core.canonical import canonical_json
from runtime.core.lifecycle import NODE_ENDED
from runtime.core.model import NodeStatus, SessionStatus, StepKind
from runtime.engine.record import REPUBLISH_MS, extend_transcript
from runtime.live.hints import Hint, StepHint
from runtime.store.engine import Database
from runtime.store.rows import continuation_row, message_row
from runtime.store.sessions import (
    StoredSession,
    add_control_receipt,
    find_session,
    number_continuations,
)
from runtime.store.tables import ContinuationRow, MessageRow
from runtime.store.write import Change


@dataclass(slots=True)
class _Advance:
    connection: Connection
    session: StoredSession
    now: int
    hints: list[Hint]


def advance(database: Database, session_id: str) -> list[Hint]:
    """Promote and settle one session; harmless to repeat.

    Returns:
        Hints for the steps that became ready.
    """
    with database.writing() as connection:
        session = find_session(connection, session_id, lock=True)
        if session is None or session.ended_status is not None:
            return []
        now = int(connection.execute(text(f"SELECT {database.now_sql}")).scalar_one())
        work = _Advance(connection, session, now, [])
        ended = _unpropagated(work)
        for node_uid, turn_index in {
            (row.node_uid, row.turn_index) for row in ended if row.kind == StepKind.TOOL_CALL
        }:
            _promote_turn(work, node_uid, turn_index)
        nodes = [row.node_uid for row in ended if row.node_status in NODE_ENDED]
        if nodes:
            _promote_dependants(work, sorted(set(nodes)))
        if ended:
            _mark_propagated(work, [row.id for row in ended])
        _settle(work)
    return work.hints


def _unpropagated(work: _Advance) -> list[Any]:
    return list(
        work.connection.execute(
            text(
                "SELECT s.id, s.node_uid, s.turn_index, s.kind, n.status AS node_status FROM step s "
                "JOIN node n ON n.uid = s.node_uid WHERE s.session_id = :id AND NOT s.propagated"
            ),
            {"id": work.session.id},
        )
    )


def _mark_propagated(work: _Advance, ids: list[str]) -> None:
    named = {f"i{k}": value for k, value in enumerate(ids)}
    places = ", ".join(f":{name}" for name in named)
    work.connection.execute(
        text(f"UPDATE step SET propagated = :yes WHERE id IN ({places})"), {"yes": True, **named}
    )


# --- the turn after several calls -----------------------------------------------------------------

_SIBLINGS = """
SELECT s.status, s.head, m.content, t.id AS turn_id, t.transcript_digest, t.transcript_bytes,
       t.status AS turn_status, n.turn_budget, n.node_id
  FROM step s
  JOIN step t ON t.node_uid = s.node_uid AND t.turn_index = s.turn_index + 1 AND t.kind = 'turn'
  JOIN node n ON n.uid = s.node_uid
  LEFT JOIN message m ON m.node_uid = s.node_uid AND m.number = s.messages_before + s.call_index - 1
 WHERE s.node_uid = :node AND s.turn_index = :turn AND s.kind = 'tool_call'
 ORDER BY s.call_index
"""


def _promote_turn(work: _Advance, node_uid: str, turn_index: int) -> None:
    rows = work.connection.execute(text(_SIBLINGS), {"node": node_uid, "turn": turn_index}).all()
    if not rows or rows[0].turn_status != "pending" or any(row.content is None for row in rows):
        return
    digest, size = rows[0].transcript_digest, rows[0].transcript_bytes
    for row in rows:
        digest, size = extend_transcript(digest, size, row.content)
    suspends = turn_index + 1 >= rows[0].turn_budget
    work.connection.execute(
        text(
            "UPDATE step SET status = :status, cites = :cites, transcript_digest = :digest, "
            "transcript_bytes = :size, due_at = :now, publish_at = :publish "
            "WHERE id = :id AND status = 'pending'"
        ),
        {
            "status": "pending" if suspends else "ready",
            "cites": json.dumps([row.head for row in rows]),
            "digest": digest,
            "size": size,
            "now": work.now,
            "publish": work.now + REPUBLISH_MS,
            "id": rows[0].turn_id,
        },
    )
    work.connection.execute(
        text("UPDATE node SET status = :status, reason = :reason WHERE uid = :uid"),
        {
            "uid": node_uid,
            "status": NodeStatus.SUSPENDED if suspends else NodeStatus.RUNNING,
            "reason": "max_turns" if suspends else None,
        },
    )
    if suspends:
        _continue(work, "suspended", rows[0].node_id)
    else:
        work.hints.append(StepHint(rows[0].turn_id, work.session.id, rows[0].node_id, StepKind.TURN, "turns"))


# --- dependants of ended nodes --------------------------------------------------------------------

_DEPENDANTS = """
SELECT n.uid, n.node_id, n.wake_at, n.definition, n.dependencies, s.id AS step_id, s.transcript_digest
  FROM node n JOIN step s ON s.node_uid = n.uid AND s.turn_index = 0 AND s.call_index = 0
 WHERE n.status = 'pending' AND s.status = 'pending'
   AND n.uid IN (SELECT e.node_uid FROM edge e WHERE e.depends_on_uid IN ({places}))
   AND NOT EXISTS (SELECT 1 FROM edge o WHERE o.node_uid = n.uid AND NOT o.satisfied)
"""

_UPSTREAM = """
SELECT d.node_id, d.head, d.result FROM edge e JOIN node d ON d.uid = e.depends_on_uid
 WHERE e.node_uid = :uid ORDER BY d.position
"""


def _promote_dependants(work: _Advance, ended: list[str]) -> None:
    named = {f"u{k}": value for k, value in enumerate(ended)}
    places = ", ".join(f":{name}" for name in named)
    for node in work.connection.execute(text(_DEPENDANTS.format(places=places)), named).all():
        upstream = work.connection.execute(text(_UPSTREAM), {"uid": node.uid}).all()
        _promote_node(work, node, upstream)


def _promote_node(work: _Advance, node: Any, upstream: Any) -> None:
    scheduled = node.wake_at is not None and node.wake_at > work.now
    due = node.wake_at if scheduled else work.now
    digest, size = _add_context(work, node)
    work.connection.execute(
        text(
            "UPDATE step SET status = 'ready', cites = :cites, due_at = :due, publish_at = :publish, "
            "transcript_digest = COALESCE(:digest, transcript_digest), "
            "transcript_bytes = transcript_bytes + :size "
            "WHERE id = :id AND status = 'pending'"
        ),
        {
            "cites": json.dumps([row.head for row in upstream if row.head]),
            "due": due,
            "publish": due if scheduled else work.now + REPUBLISH_MS,
            "digest": digest,
            "size": size,
            "id": node.step_id,
        },
    )
    work.connection.execute(
        text("UPDATE node SET status = :status WHERE uid = :uid AND status = 'pending'"),
        {"uid": node.uid, "status": NodeStatus.SCHEDULED if scheduled else NodeStatus.READY},
    )
    if node.dependencies > 1:
        _continue(work, "join_ready", node.node_id)
    if scheduled:
        _continue(work, "scheduled", node.node_id)
    else:
        work.hints.append(StepHint(node.step_id, work.session.id, node.node_id, StepKind.TURN, "turns"))


def _add_context(work: _Advance, node: Any) -> tuple[str | None, int]:
    """Put the results of the nodes named by ``context_from`` before the node's own messages."""
    names = json.loads(node.definition).get("context_from") or []
    if not names:
        return None, 0
    rows = work.connection.execute(
        text("SELECT node_id, result FROM node WHERE session_id = :id AND result IS NOT NULL"),
        {"id": work.session.id},
    ).all()
    results = {row.node_id: json.loads(row.result) for row in rows}
    message = {
        "role": "system",
        "content": "Results of earlier nodes:\n"
        + canonical_json({name: results.get(name) for name in names}),
    }
    body = canonical_json(message)
    change = Change()
    change.insert(MessageRow, [message_row(node.uid, 0, "system", body)])
    change.apply(work.connection)
    digest, added = extend_transcript("", 0, body)
    for (content,) in work.connection.execute(
        text("SELECT content FROM message WHERE node_uid = :uid AND number > 0 ORDER BY number"),
        {"uid": node.uid},
    ).all():
        digest, _ = extend_transcript(digest, 0, content)
    return digest, added


def _continue(work: _Advance, kind: str, node_id: str | None) -> None:
    change = Change()
    change.insert(ContinuationRow, [continuation_row(work.session.id, kind, work.now, node_id)])
    change.apply(work.connection)


# --- settling -------------------------------------------------------------------------------------


def _settle(work: _Advance) -> None:
    """End the session if nothing of it can move or is running; number its continuations."""
    session = work.session
    counts = {
        row[0]: int(row[1])
        for row in work.connection.execute(
            text(
                "SELECT status, count(*) FROM node WHERE session_id = :id AND mode <> 'host' GROUP BY status"
            ),
            {"id": session.id},
        )
    }
    open_nodes = sum(
        counts.get(status, 0)
        for status in NodeStatus
        if status not in NODE_ENDED and status is not NodeStatus.PENDING
    )
    if open_nodes or not counts:
        _store_numbers(work, number_continuations(work.connection, session))
        return
    failed = counts.get(NodeStatus.ERROR, 0) or counts.get(NodeStatus.PENDING, 0)
    if session.cancelled_at is not None:
        status = SessionStatus.CANCELLED
    else:
        status = SessionStatus.ERROR if failed else SessionStatus.COMPLETED
    _write_end(work, status)


def _write_end(work: _Advance, status: SessionStatus) -> None:
    session, connection = work.session, work.connection
    heads = [
        row[0]
        for row in connection.execute(
            text("SELECT head FROM node WHERE session_id = :id AND head IS NOT NULL ORDER BY uid"),
            {"id": session.id},
        )
    ]
    if status is not SessionStatus.ERROR:  # the node that failed has recorded its own
        _continue(work, status.value, None)
    numbered = number_continuations(connection, session)
    change = Change()
    add_control_receipt(change, session, "session_settled", {"status": status, "at": work.now}, cites=heads)
    change.apply(connection)
    connection.execute(
        text(
            "UPDATE session SET ended_status = :status, ended_at = :now, continuations = :numbered "
            "WHERE id = :id"
        ),
        {"status": status, "now": work.now, "numbered": numbered, "id": session.id},
    )


def _store_numbers(work: _Advance, numbered: int) -> None:
    if numbered != work.session.continuations:
        work.connection.execute(
            text("UPDATE session SET continuations = :n WHERE id = :id"),
            {"n": numbered, "id": work.session.id},
        )
