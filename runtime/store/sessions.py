"""Sessions and their nodes: creating, reading, deriving the status, the control chain."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

from runtime.core.chain import CONTROL_STEP, Chain, Content, Receipt
from runtime.core.lifecycle import NODE_ENDED
from runtime.core.model import NodeStatus, SessionStatus
from runtime.core.text import is_name
from runtime.store.engine import Database
from runtime.store.journal import add_evidence
from runtime.store.write import Change


@dataclass(frozen=True, slots=True)
class StoredSession:
    """A session's row, and the database's clock when it was read."""

    id: str
    kind: str
    run_id: str
    task_id: str
    principal: str | None
    context: str
    definition_digest: str
    created_at: int
    cancelled_at: int | None
    paused_at: int | None
    ended_status: str | None
    ended_at: int | None
    end_error: str | None
    continuations: int
    control_n: int
    control_head: str | None
    now: int


_COLUMNS = ", ".join(name for name in StoredSession.__dataclass_fields__ if name != "now")


@dataclass(frozen=True, slots=True)
class StoredNode:
    """A node as readers see it; turns and tool calls count what the journal holds."""

    uid: str
    id: str
    status: NodeStatus
    reason: str | None
    wake_at: int | None
    turns: int
    tool_calls: int
    result: Any
    error: Any
    depends_on: tuple[str, ...]
    pending_request_id: str | None


def find_session(
    database: Database, connection: Connection, session_id: str, *, lock: bool = False
) -> StoredSession | None:
    """Read a session, optionally under its lock.

    The lock is ``FOR NO KEY UPDATE``, so that branches, which never touch the row, do not wait for it.
    SQLite's writers are serialised as they are. An id that no session can have names none.
    """
    if not is_name(session_id):
        return None
    suffix = " FOR NO KEY UPDATE" if lock and connection.dialect.name == "postgresql" else ""
    row = (
        connection.execute(
            text(f"SELECT {_COLUMNS}, {database.now_sql} AS now FROM session WHERE id = :id{suffix}"),
            {"id": session_id},
        )
        .mappings()
        .one_or_none()
    )
    return StoredSession(**row) if row else None


def lock_session_of(database: Database, connection: Connection, request_id: str) -> StoredSession | None:
    """Read the session of an approval request under its lock; see `find_session`."""
    suffix = " FOR NO KEY UPDATE" if connection.dialect.name == "postgresql" else ""
    row = (
        connection.execute(
            text(
                f"SELECT {_COLUMNS}, {database.now_sql} AS now FROM session "
                f"WHERE id = (SELECT session_id FROM approval WHERE id = :id){suffix}"
            ),
            {"id": request_id},
        )
        .mappings()
        .one_or_none()
    )
    return StoredSession(**row) if row else None


def derive_status(
    session: StoredSession, node_statuses: Mapping[str, int], running_steps: int
) -> SessionStatus:
    """The status of a session: its stored end, else the first of these that holds.

    Args:
        session: The session's row.
        node_statuses: How many nodes are in each status.
        running_steps: How many steps a worker holds.
    """
    if session.ended_status is not None:
        return SessionStatus(session.ended_status)
    moving = node_statuses.get(NodeStatus.READY, 0) + node_statuses.get(NodeStatus.RUNNING, 0)
    if running_steps or (moving and session.paused_at is None):
        return SessionStatus.ACTIVE
    if session.paused_at is not None:
        return SessionStatus.PAUSED
    for status in (NodeStatus.WAITING_APPROVAL, NodeStatus.SUSPENDED, NodeStatus.SCHEDULED):
        if node_statuses.get(status):
            return SessionStatus(status.value)
    return SessionStatus.ACTIVE


def read_status(database: Database, session_id: str) -> tuple[StoredSession, SessionStatus] | None:
    """Read a session and derive its status; host-driven steps and nodes do not count."""
    with database.reading() as connection:
        session = find_session(database, connection, session_id)
        if session is None:
            return None
        if session.ended_status is not None:
            return session, SessionStatus(session.ended_status)
        rows = connection.execute(
            text(
                "SELECT status, count(*) FROM node WHERE session_id = :id AND mode <> 'host' GROUP BY status"
            ),
            {"id": session_id},
        ).all()
        running = session.paused_at is not None and connection.execute(text(_RUNNING), {"id": session_id})
        held = running.scalar_one() if running else 0
    return session, derive_status(session, {row[0]: int(row[1]) for row in rows}, int(held))


# The range on the lease makes this the index of what runs now, which no history enters.
_RUNNING = """
SELECT count(*) FROM step WHERE status = 'running' AND lease_until > 0 AND session_id = :id
   AND driver <> 'host'
"""


def read_nodes(database: Database, session_id: str) -> list[StoredNode]:
    """Read a session's nodes in the order of their definition."""
    with database.reading() as connection:
        rows = connection.execute(
            text(
                """SELECT n.uid, n.node_id, n.status, n.reason, n.wake_at, n.turns, n.tool_calls, n.result,
                    n.error, l.turn_index, l.kind AS last_kind, l.status AS last_status, l.calls_before,
                    (SELECT min(a.id) FROM approval a WHERE a.node_uid = n.uid AND a.session_id = n.session_id
                        AND a.status = 'pending') AS pending
                 FROM node n LEFT JOIN step l ON l.id = (
                        SELECT s.id FROM step s WHERE s.node_uid = n.uid
                         ORDER BY s.turn_index DESC, s.call_index DESC LIMIT 1)
                 WHERE n.session_id = :id AND n.mode <> 'host'
                 ORDER BY n.position, length(n.node_id), n.node_id"""
            ),
            {"id": session_id},
        ).all()
        edges = connection.execute(
            text(
                "SELECT e.node_uid, n.node_id FROM edge e JOIN node n ON n.uid = e.depends_on_uid "
                "WHERE e.session_id = :id ORDER BY n.position, length(n.node_id), n.node_id"
            ),
            {"id": session_id},
        ).all()
    depends: dict[str, list[str]] = {}
    for uid, name in edges:
        depends.setdefault(uid, []).append(name)
    return [_node(row, depends) for row in rows]


def _node(row: Any, depends: Mapping[str, Sequence[str]]) -> StoredNode:
    turns, calls = row.turns, row.tool_calls
    if row.turn_index is not None and NodeStatus(row.status) not in NODE_ENDED:
        waits = row.last_kind == "turn" and row.last_status in ("pending", "ready")
        turns = row.turn_index + (0 if waits else 1)
        calls = row.calls_before + (row.last_kind == "tool_call")
    return StoredNode(
        uid=row.uid,
        id=row.node_id,
        status=NodeStatus(row.status),
        reason=row.reason,
        wake_at=row.wake_at,
        turns=turns,
        tool_calls=calls,
        result=None if row.result is None else json.loads(row.result),
        error=None if row.error is None else json.loads(row.error),
        depends_on=tuple(depends.get(row.uid, ())),
        pending_request_id=row.pending,
    )


def read_continuations(database: Database, session_id: str) -> list[dict[str, Any]]:
    """Read why a session moved, in order; what is not numbered yet comes last, without a number."""
    with database.reading() as connection:
        rows = connection.execute(
            text(
                "SELECT number AS sequence, kind, node_id, request_id, at FROM continuation "
                "WHERE session_id = :id ORDER BY number IS NULL, number, id"
            ),
            {"id": session_id},
        ).mappings()
        return [{key: value for key, value in row.items() if value is not None} for row in rows]


_NUMBER = """
UPDATE continuation SET number = :first + r.rank - 1
  FROM (SELECT id, row_number() OVER (ORDER BY id) AS rank FROM continuation
         WHERE session_id = :session AND number IS NULL) AS r
 WHERE continuation.id = r.id
"""


def number_continuations(connection: Connection, session: StoredSession) -> int:
    """Number what is not numbered yet, in order. The caller holds the session's lock.

    Returns:
        The session's count of numbered continuations afterwards.
    """
    numbered = connection.execute(
        text(_NUMBER), {"session": session.id, "first": session.continuations}
    ).rowcount
    return session.continuations + numbered


def add_control_receipt(
    change: Change,
    session: StoredSession,
    kind: str,
    fields: Mapping[str, Any],
    cites: Sequence[str] = (),
    contents: Sequence[Content] = (),
) -> Receipt:
    """Add one receipt to the session's control chain, and the contents that it names.

    The caller holds the session's lock.
    """
    before = [session.control_head] if session.control_head else []
    chain = Chain(
        CONTROL_STEP, 0, before + list(cites), n=session.control_n, common={"session_id": session.id}
    )
    receipt = chain.add(kind, fields)
    change.guard(
        "UPDATE session SET control_n = control_n + 1, control_head = :head "
        "WHERE id = :id AND control_n = :n",
        id=session.id,
        head=receipt.hash,
        n=session.control_n,
    )
    add_evidence(change, session.id, [receipt], contents)
    return receipt
