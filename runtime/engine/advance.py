"""Moves a session on: promotes what waits, and settles what can move no more.

A record leaves its step *unpropagated* when others may follow from it. An advance runs in a later
transaction, so it sees everything that was committed before it; two branches that end together cannot
both miss the join. It takes the session's lock, which steps never touch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from sqlalchemy import Connection, text

from runtime.core.lifecycle import NODE_ENDED, StepEvent, steps_that_accept
from runtime.core.model import NodeStatus, SessionStatus, StepKind, StepStatus
from runtime.engine.record import REPUBLISH_MS, extend_transcript
from runtime.live.hints import Hint, StepHint
from runtime.store.engine import Database
from runtime.store.rows import continuation_row
from runtime.store.sessions import (
    StoredSession,
    add_control_receipt,
    find_session,
    number_continuations,
)
from runtime.store.tables import ContinuationRow, NodeRow, StepRow
from runtime.store.write import Change, update_rows


@dataclass(slots=True)
class _Advance:
    """One advance: what it read, and the rows that it will write at once."""

    connection: Connection
    session: StoredSession
    steps: list[dict[str, Any]] = field(default_factory=list)
    nodes: list[dict[str, Any]] = field(default_factory=list)
    continuations: list[dict[str, Any]] = field(default_factory=list)
    hints: list[Hint] = field(default_factory=list)

    @property
    def now(self) -> int:
        return self.session.now

    def rows(self, sql: str, **values: Any) -> Sequence[Any]:
        return self.connection.execute(text(sql), values).all()

    def promote(self, step_id: str, node_id: str, *, due: int | None = None, **values: Any) -> None:
        """Make a pending step ready; one that is due later is published when it is due."""
        later = due is not None and due > self.now
        self.steps.append(
            {
                "id": step_id,
                "status": "ready",
                "due_at": due if later else self.now,
                "publish_at": due if later else self.now + REPUBLISH_MS,
                "cites": None,
                "transcript_digest": None,
                "transcript_bytes": None,
                "propagated": None,
                **values,
            }
        )
        if not later:
            self.hints.append(StepHint(step_id, self.session.id, node_id, StepKind.TURN, "turns"))

    def propagated(self, step_ids: Iterable[str]) -> None:
        """Note that nothing more follows from these steps."""
        nothing = dict.fromkeys(
            ("status", "due_at", "publish_at", "cites", "transcript_digest", "transcript_bytes")
        )
        self.steps.extend({"id": step_id, **nothing, "propagated": True} for step_id in step_ids)

    def move(self, node_uid: str, status: NodeStatus, reason: str | None = None) -> None:
        self.nodes.append({"uid": node_uid, "status": status, "reason": reason})

    def note(self, kind: str, node_id: str | None) -> None:
        self.continuations.append(continuation_row(self.session.id, kind, self.now, node_id))

    def write(self) -> None:
        update_rows(self.connection, StepRow, "id", self.steps)
        update_rows(self.connection, NodeRow, "uid", self.nodes)
        change = Change()
        change.insert(ContinuationRow, self.continuations)
        change.apply(self.connection)


def advance(database: Database, session_id: str) -> list[Hint]:
    """Promote and settle one session; harmless to repeat.

    Returns:
        Hints for the steps that became ready.
    """
    with database.writing() as connection:
        session = find_session(database, connection, session_id, lock=True)
        if session is None or session.ended_status is not None:
            return []
        if session.cancelled_at is not None:
            cancel_waiting(connection, session_id, session.now)
        work = _Advance(connection, session)
        ended = _unpropagated(work)
        _promote_turns(work, {(row.node_uid, row.turn_index) for row in ended if row.kind == "tool_call"})
        _promote_dependants(work, {row.node_uid for row in ended if row.node_status in NODE_ENDED})
        work.propagated(row.id for row in ended)
        work.write()
        if not work.hints:
            _settle(work)
    return work.hints


def _unpropagated(work: _Advance) -> Sequence[Any]:
    return work.rows(
        "SELECT s.id, s.node_uid, s.turn_index, s.kind, n.status AS node_status FROM step s "
        "JOIN node n ON n.uid = s.node_uid WHERE s.session_id = :id AND NOT s.propagated",
        id=work.session.id,
    )


def _named(values: Iterable[str]) -> tuple[str, dict[str, str]]:
    named = {f"v{k}": value for k, value in enumerate(sorted(values))}
    return ", ".join(f":{name}" for name in named), named


# --- the turn after several calls -----------------------------------------------------------------

_SIBLINGS = """
SELECT s.node_uid, s.turn_index, s.head, m.content, t.id AS turn_id, t.transcript_digest,
       t.transcript_bytes, t.status AS turn_status, n.turn_budget, n.node_id
  FROM step s
  JOIN step t ON t.node_uid = s.node_uid AND t.turn_index = s.turn_index + 1 AND t.kind = 'turn'
  JOIN node n ON n.uid = s.node_uid
  LEFT JOIN message m ON m.node_uid = s.node_uid AND m.number = s.messages_before + s.call_index - 1
 WHERE s.node_uid IN ({places}) AND s.kind = 'tool_call' AND t.status = 'pending'
 ORDER BY s.node_uid, s.turn_index, s.call_index
"""


def _promote_turns(work: _Advance, groups: set[tuple[str, int]]) -> None:
    """Promote the turn that follows several calls, once each of them has answered."""
    if not groups:
        return
    places, named = _named({node_uid for node_uid, _ in groups})
    rows = work.rows(_SIBLINGS.format(places=places), **named)
    for group, calls in groupby(rows, key=lambda row: (row.node_uid, row.turn_index)):
        siblings = list(calls)
        if group in groups and all(row.content is not None for row in siblings):
            _promote_turn(work, siblings)


def _promote_turn(work: _Advance, siblings: Sequence[Any]) -> None:
    first = siblings[0]
    digest, size = first.transcript_digest, first.transcript_bytes
    for row in siblings:
        digest, size = extend_transcript(digest, size, row.content)
    values = {
        "cites": json.dumps([row.head for row in siblings]),
        "transcript_digest": digest,
        "transcript_bytes": size,
    }
    if first.turn_index + 1 < first.turn_budget:
        work.promote(first.turn_id, first.node_id, **values)
        return
    work.steps.append(
        {
            "id": first.turn_id,
            "status": None,
            "due_at": None,
            "publish_at": None,
            **values,
            "propagated": None,
        }
    )
    work.move(first.node_uid, NodeStatus.SUSPENDED, "max_turns")
    work.note("suspended", first.node_id)


# --- dependants of ended nodes --------------------------------------------------------------------

_DEPENDANTS = """
SELECT n.uid, n.node_id, n.wake_at, s.id AS step_id, d.head
  FROM node n
  JOIN step s ON s.node_uid = n.uid AND s.turn_index = 0 AND s.call_index = 0
  JOIN edge e ON e.node_uid = n.uid
  JOIN node d ON d.uid = e.depends_on_uid
 WHERE n.status = 'pending' AND s.status = 'pending'
   AND n.uid IN (SELECT x.node_uid FROM edge x WHERE x.depends_on_uid IN ({places}))
   AND NOT EXISTS (SELECT 1 FROM edge o WHERE o.node_uid = n.uid AND NOT o.satisfied)
 ORDER BY n.position, d.position
"""


def _promote_dependants(work: _Advance, ended: set[str]) -> None:
    """Promote the nodes all of whose dependencies are satisfied."""
    if not ended:
        return
    places, named = _named(ended)
    rows = work.rows(_DEPENDANTS.format(places=places), **named)
    for _, upstream in groupby(rows, key=lambda row: row.uid):
        dependencies = list(upstream)
        node = dependencies[0]
        scheduled = node.wake_at is not None and node.wake_at > work.now
        cites = json.dumps([row.head for row in dependencies if row.head])
        work.promote(node.step_id, node.node_id, due=node.wake_at, cites=cites)
        work.move(node.uid, NodeStatus.SCHEDULED if scheduled else NodeStatus.READY)
        if scheduled:
            work.note("scheduled", node.node_id)


# --- cancelling -----------------------------------------------------------------------------------

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


# --- settling -------------------------------------------------------------------------------------


# One statement, hence one snapshot: a record that commits after `_unpropagated` looked is seen here whole,
# its node's end together with the step that is not propagated yet.
_COUNTS = """
SELECT status, count(*) AS nodes,
       (SELECT count(*) FROM step s WHERE s.session_id = :id AND NOT s.propagated) AS unpropagated
  FROM node WHERE session_id = :id AND mode <> 'host' GROUP BY status
"""


def _settle(work: _Advance) -> None:
    """End the session if nothing of it can move or is running; number its continuations."""
    rows = work.rows(_COUNTS, id=work.session.id)
    counts = {row.status: int(row.nodes) for row in rows}
    if any(row.unpropagated for row in rows):
        return  # a record committed since this advance looked; its own advance goes on from there
    still_open = sum(
        nodes for status, nodes in counts.items() if status not in NODE_ENDED and status != NodeStatus.PENDING
    )
    if still_open or not counts:
        _number(work)
    elif work.session.cancelled_at is not None:
        _end(work, SessionStatus.CANCELLED)
    elif counts.get(NodeStatus.ERROR) or counts.get(NodeStatus.PENDING):
        _end(work, SessionStatus.ERROR)
    else:
        _end(work, SessionStatus.COMPLETED)


def _number(work: _Advance) -> None:
    numbered = number_continuations(work.connection, work.session)
    if numbered != work.session.continuations:
        work.connection.execute(
            text("UPDATE session SET continuations = :n WHERE id = :id"),
            {"n": numbered, "id": work.session.id},
        )


def _end(work: _Advance, status: SessionStatus) -> None:
    """Write the end: the last continuation, all numbers, and a settle record that cites every head."""
    session, connection = work.session, work.connection
    heads = work.rows(
        "SELECT head FROM node WHERE session_id = :id AND head IS NOT NULL ORDER BY uid", id=session.id
    )
    change = Change()
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
            "continuations = :numbered WHERE id = :id"
        ),
        {
            "status": status,
            "now": work.now,
            "numbered": number_continuations(connection, session),
            "id": session.id,
        },
    )
