"""Pages for people who look: sessions, steps, continuations, votes.

Every page is found by its key, so that it costs the same whatever was before it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, String, bindparam, text

from runtime.core.model import SessionStatus
from runtime.store.engine import Database
from runtime.store.sessions import StoredSession, derive_status


@dataclass(frozen=True, slots=True)
class ListedSession:
    """A session with its derived status.

    Attributes:
        session: Its row.
        status: Its state at the time of reading.
        nodes: How many worker-driven nodes it has.
    """

    session: StoredSession
    status: SessionStatus
    nodes: int


@dataclass(frozen=True, slots=True)
class ListedStep:
    """One step of the journal, without its input and output.

    Attributes:
        error: Code, message and details, if it failed.
        usage: Tokens, as the provider counted them.
        due_at: Milliseconds since the epoch; so are the other instants.
    """

    id: str
    node_id: str
    kind: str
    turn_index: int
    call_index: int
    tool_name: str
    driver: str
    queue: str
    status: str
    reason: str | None
    attempts: int
    crashes: int
    worker: str | None
    approval_id: str | None
    error: Any
    usage: Any
    due_at: int
    started_at: int | None
    finished_at: int | None


@dataclass(frozen=True, slots=True)
class Vote:
    """One answer to an approval request.

    Attributes:
        at: Milliseconds since the epoch.
        answer: ``approve``, ``deny``, ``edit`` or ``respond``.
        digest: What exactly was approved.
        content: The edited input, or the response.
    """

    principal: str
    established_by: str
    approved: bool
    reason: str | None
    at: int
    answer: str | None
    digest: str | None
    content: Any


_SESSION = ", ".join(f"s.{name}" for name in StoredSession.__dataclass_fields__ if name != "now")
_STEP = ", ".join(ListedStep.__dataclass_fields__)
# The range on the lease makes this the index of what runs now, which no history enters.
_HELD = text(
    "SELECT DISTINCT session_id FROM step WHERE status = 'running' AND lease_until > 0 AND driver <> 'host'"
)
_NODES = text(
    "SELECT session_id, status, count(*) FROM node WHERE mode <> 'host' AND session_id IN :ids "
    "GROUP BY session_id, status"
).bindparams(bindparam("ids", expanding=True, type_=String()))


def list_sessions(database: Database, *, before: str | None = None, limit: int = 50) -> list[ListedSession]:
    """Read a page of sessions, the newest first.

    Args:
        database: Where they are.
        before: Id of the last session of the page before.
        limit: Sessions on the page.
    """
    older = (
        ""
        if before is None
        else "WHERE (s.created_at, s.id) < (SELECT created_at, id FROM session WHERE id = :before)"
    )
    sql = (
        f"SELECT {_SESSION}, {database.now_sql} AS now FROM session s {older} "
        "ORDER BY s.created_at DESC, s.id DESC LIMIT :limit"
    )
    named = {"limit": limit} if before is None else {"limit": limit, "before": before}
    with database.reading() as connection:
        sessions = [StoredSession(**row) for row in connection.execute(text(sql), named).mappings()]
        held = {row[0] for row in connection.execute(_HELD)}
        counts: dict[str, dict[str, int]] = {session.id: {} for session in sessions}
        for session_id, status, count in connection.execute(_NODES, {"ids": list(counts)}):
            counts[session_id][status] = int(count)
    return [
        ListedSession(
            session,
            derive_status(session, counts[session.id], int(session.id in held)),
            sum(counts[session.id].values()),
        )
        for session in sessions
    ]


def list_steps(
    database: Database, session_id: str, *, after: str | None = None, limit: int = 100
) -> list[ListedStep]:
    """Read a page of a session's steps: node by node, each in the order of its turns and calls.

    Args:
        database: Where they are.
        session_id: The session.
        after: Id of the last step of the page before; an id of another session begins at the first.
        limit: Steps on the page.
    """
    with database.reading() as connection:
        nodes = [
            row.uid
            for row in connection.execute(
                text("SELECT uid FROM node WHERE session_id = :id ORDER BY position, uid"), {"id": session_id}
            )
        ]
        place = _place(connection, session_id, after)
        if place is not None and place["node"] in nodes:
            nodes = nodes[nodes.index(place["node"]) :]
        steps: list[ListedStep] = []
        for uid in nodes:
            steps += _steps_of(connection, uid, place, limit - len(steps))
            if len(steps) >= limit:
                break
    return steps


def _place(connection: Connection, session_id: str, step_id: str | None) -> dict[str, Any] | None:
    if step_id is None:
        return None
    row = connection.execute(
        text(
            "SELECT node_uid AS node, turn_index AS turn, call_index AS call, id AS step FROM step "
            "WHERE id = :step AND session_id = :id"
        ),
        {"step": step_id, "id": session_id},
    )
    found = row.mappings().one_or_none()
    return None if found is None else dict(found)


def _steps_of(
    connection: Connection, node_uid: str, place: Mapping[str, Any] | None, limit: int
) -> list[ListedStep]:
    named: dict[str, Any] = {"node": node_uid, "limit": limit}
    later = ""
    if place is not None and place["node"] == node_uid:
        later = "AND (turn_index, call_index, id) > (:turn, :call, :step)"
        named |= place
    sql = (
        f"SELECT {_STEP} FROM step WHERE node_uid = :node {later} "
        "ORDER BY turn_index, call_index, id LIMIT :limit"
    )
    return [_listed(dict(row)) for row in connection.execute(text(sql), named).mappings()]


def _listed(row: Mapping[str, Any]) -> ListedStep:
    parsed = {name: None if row[name] is None else json.loads(row[name]) for name in ("error", "usage")}
    return ListedStep(**{**row, **parsed})


def last_continuations(database: Database, session_id: str, limit: int = 20) -> list[dict[str, Any]]:
    """Read why a session moved of late, oldest first: ``sequence kind node_id request_id at``.

    What is not numbered yet comes last, without a number.
    """
    columns = "number AS sequence, kind, node_id, request_id, at"
    with database.reading() as connection:
        rows = [
            row
            for condition, order in (("number IS NULL", "id"), ("number IS NOT NULL", "number"))
            for row in connection.execute(
                text(
                    f"SELECT {columns} FROM continuation WHERE session_id = :id AND {condition} "
                    f"ORDER BY {order} DESC LIMIT :limit"
                ),
                {"id": session_id, "limit": limit},
            ).mappings()
        ]
    return [{key: value for key, value in row.items() if value is not None} for row in reversed(rows[:limit])]


def list_votes(database: Database, request_id: str) -> list[Vote]:
    """Read who answered an approval request, the first answer first."""
    with database.reading() as connection:
        rows = connection.execute(
            text(
                "SELECT principal, established_by, approved, reason, at, answer, digest, content "
                "FROM approval_vote "
                "WHERE approval_id = :id ORDER BY at, principal"
            ),
            {"id": request_id},
        ).all()
    return [
        Vote(
            row.principal,
            row.established_by,
            bool(row.approved),
            None if row.reason is None else json.loads(row.reason),
            row.at,
            row.answer,
            row.digest,
            None if row.content is None else json.loads(row.content),
        )
        for row in rows
    ]
