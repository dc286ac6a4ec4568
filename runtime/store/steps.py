"""Reads of one step: all that a worker decides on, in one query, and what a turn is assembled from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, text

from runtime.core.lifecycle import STEP_ENDED
from runtime.core.model import NodeStatus, StepKind, StepStatus
from runtime.store.engine import Database
from runtime.store.sql import in_list, read

_LOAD = """
SELECT {columns}
  FROM step s
  JOIN node n ON n.uid = s.node_uid
  JOIN session e ON e.id = s.session_id
  LEFT JOIN approval a ON a.id = s.approval_id
  LEFT JOIN blob b ON s.input IS NULL AND b.session_id = s.session_id AND b.hash = s.input_hash
 WHERE s.id = :id
"""

_TRANSCRIPT = """
SELECT content FROM message WHERE node_uid = :node AND number < :before ORDER BY number
"""

# Canonical JSON has no line feeds of its own, so they can separate messages. SQLite keeps a subquery's order
# for group_concat: rule 16 of its query flattener (sqlite.org/optoverview.html) is there for that.
_JOINED = {
    "postgresql": "SELECT string_agg(m.content, chr(10) ORDER BY m.number) FROM message m "
    "WHERE m.node_uid = s.node_uid AND m.number < s.messages_before",
    "sqlite": "SELECT group_concat(content, char(10)) FROM (SELECT m.content FROM message m "
    "WHERE m.node_uid = s.node_uid AND m.number < s.messages_before ORDER BY m.number)",
}


@dataclass(frozen=True, slots=True)
class LoadedStep:
    """A step with what its node, session and approval say, read in one statement.

    Instants are database milliseconds; ``now`` is the database's clock at the read. ``taken`` counts the
    messages of the node's inbox that this turn and those before it took in, ``inbox`` all of them; ``ruled``
    says that more than its dependencies decides when the node starts. ``transcript`` holds the messages
    before a turn, a line of canonical JSON each; that of a pending turn may still grow, so it is left out.
    ``standing`` says whether there may be a standing grant for a call that parks.
    """

    id: str
    session_id: str
    node_uid: str
    node_id: str
    kind: str
    tool_name: str
    driver: str
    status: str
    fence: int
    run_id: str
    task_id: str
    principal: str | None
    now: int
    turn_index: int = 0
    call_index: int = 0
    queue: str = "host"
    due_at: int = 0
    lease_until: int | None = None
    attempts: int = 0
    started_at: int | None = None
    crashes: int = 0
    cites: str = "[]"
    head: str | None = None
    input: str | None = None
    call_id: str | None = None
    calls_before: int = 0
    messages_before: int = 0
    transcript_digest: str = ""
    transcript_bytes: int = 0
    siblings: int = 1
    taken: int = 0
    intent: str | None = None
    approval_id: str | None = None
    mode: str = "host"
    definition: str = "{}"
    plan: str = "{}"
    ruled: bool = False
    node_status: str = NodeStatus.RUNNING
    turn_budget: int = 0
    inbox: int = 0
    dependencies: int = 0
    wake_at: int | None = None
    deadline_at: int | None = None
    priority: int = 0
    context: str = "{}"
    cancelled_at: int | None = None
    paused_at: int | None = None
    ended_status: str | None = None
    approval_status: str | None = None
    approval_digest: str | None = None
    approval_expires_at: int | None = None
    approval_consumed_by: str | None = None
    approval_resolved_by: str | None = None
    workspace_active: bool = False
    transcript: str | None = None
    standing: bool = False

    @property
    def lease_expired(self) -> bool:
        """Whether a holder started this step and lost its lease."""
        return (
            self.status == StepStatus.RUNNING and self.lease_until is not None and self.lease_until < self.now
        )

    @property
    def claimable(self) -> bool:
        """Whether a start may be tried; the start's own guard decides."""
        if self.cancelled_at is not None or self.paused_at is not None or self.ended_status is not None:
            return False
        return (self.status == StepStatus.READY and self.due_at <= self.now) or self.lease_expired

    @property
    def perhaps_open(self) -> bool:
        """Whether this is a pending turn that may start as soon as nothing it waits for is open."""
        if self.cancelled_at is not None or self.paused_at is not None or self.ended_status is not None:
            return False
        waits = self.status == StepStatus.PENDING and self.turn_index < self.turn_budget
        return waits and (self.turn_index > 0 or not self.ruled)

    @property
    def is_turn(self) -> bool:
        """Whether this step is a model call."""
        return self.kind == StepKind.TURN

    @property
    def chain_cites(self) -> list[str]:
        """What the first receipt of the next fence cites.

        A takeover, retry or approved run cites the head that it saw; a first attempt cites the steps
        that this one follows.
        """
        if self.head is not None:
            return [self.head]
        cited: list[str] = json.loads(self.cites)
        return cited


def load_step(database: Database, step_id: str, workspace_hash: str) -> LoadedStep | None:
    """Read a step, or ``None`` when no step has that id."""
    with database.reading() as connection:
        return load_step_in(connection, database, step_id, workspace_hash)


def load_step_in(
    connection: Connection, database: Database, step_id: str, workspace_hash: str
) -> LoadedStep | None:
    """Read a step on a connection that is already open, perhaps in a transaction."""
    named = {"id": step_id, "workspace": workspace_hash}
    rows = read(connection, _load_sql(database.now_sql, database.dialect), named)
    if not rows:
        return None
    fields = dict(zip(_FIELDS, rows[0], strict=True))
    flags = {
        name: bool(fields[name]) for name in ("workspace_active", "ruled", "standing")
    }  # SQLite has no booleans
    return LoadedStep(**{**fields, **flags})


_FIELDS = tuple(LoadedStep.__dataclass_fields__)

_NODE = (
    "mode",
    "definition",
    "plan",
    "turn_budget",
    "inbox",
    "dependencies",
    "wake_at",
    "deadline_at",
    "priority",
)
_SESSION = ("run_id", "task_id", "principal", "context", "cancelled_at", "paused_at", "ended_status")
_APPROVAL = ("status", "digest", "expires_at", "consumed_by", "resolved_by")


@lru_cache(maxsize=64)
def _load_sql(now_sql: str, dialect: str) -> str:
    """The query of `LoadedStep`, its columns in the order of the fields."""
    elsewhere = {
        **{name: f"n.{name}" for name in _NODE},
        **{name: f"e.{name}" for name in _SESSION},
        **{f"approval_{name}": f"a.{name}" for name in _APPROVAL},
        "node_status": "n.status",
        "ruled": "n.rules IS NOT NULL",
        "input": "COALESCE(s.input, b.content)",
        "taken": "s.inbox",
        "now": now_sql,
        # Standing grants are few and parks are rare: who parks asks them only if there are any.
        "standing": "s.kind = 'tool_call' AND EXISTS (SELECT 1 FROM standing_grant g "
        f"WHERE g.revoked_at IS NULL AND g.used < g.uses AND g.expires_at > {now_sql})",
        "transcript": f"CASE WHEN s.kind = 'turn' AND s.status <> 'pending' THEN ({_JOINED[dialect]}) END",
        "workspace_active": "EXISTS (SELECT 1 FROM workspace_version w "
        "WHERE w.hash = :workspace AND w.active)",
    }
    columns = ", ".join(f"{elsewhere.get(name, f's.{name}')} AS {name}" for name in _FIELDS)
    return _LOAD.format(columns=columns)


def load_transcript(database: Database, node_uid: str, before: int) -> list[str]:
    """Read a node's messages below a number, each as canonical JSON, in order."""
    with database.reading() as connection:
        return [row[0] for row in read(connection, _TRANSCRIPT, {"node": node_uid, "before": before})]


@dataclass(frozen=True, slots=True)
class Predecessors:
    """What a pending turn waited for, none of which is open any more.

    Attributes:
        heads: Their last receipts, in order.
        alone: Whether nothing but this turn follows from them.
    """

    heads: tuple[str, ...]
    alone: bool


_UPSTREAM = """
SELECT d.head, d.status, e.satisfied,
       (SELECT count(*) FROM edge x WHERE x.depends_on_uid = e.depends_on_uid) AS followers
  FROM edge e JOIN node d ON d.uid = e.depends_on_uid WHERE e.node_uid = :node ORDER BY d.position, d.uid
"""

_CALLS = """
SELECT head, status FROM step WHERE node_uid = :node AND turn_index = :turn AND kind = 'tool_call'
 ORDER BY call_index
"""


def load_predecessors(database: Database, step: LoadedStep) -> Predecessors | None:
    """Read what a pending turn waits for; ``None`` while any of it is open."""
    with database.reading() as connection:
        if step.turn_index == 0:
            rows = connection.execute(text(_UPSTREAM), {"node": step.node_uid}).all()
            if not all(row.satisfied for row in rows) or all(row.status == "skipped" for row in rows):
                return None
            alone = all(row.followers == 1 for row in rows)
        else:
            named = {"node": step.node_uid, "turn": step.turn_index - 1}
            rows = connection.execute(text(_CALLS), named).all()
            if not all(StepStatus(row.status) in STEP_ENDED for row in rows):
                return None
            alone = True
    return Predecessors(tuple(row.head for row in rows if row.head), alone)


def load_signals(database: Database, node_uid: str, taken: int, inbox: int) -> list[tuple[str, str]]:
    """Read the messages of a node's inbox that no turn has taken in, as role and canonical JSON, in order."""
    with database.reading() as connection:
        rows = connection.execute(
            text(
                "SELECT role, content FROM signal WHERE node_uid = :node AND number > :taken "
                "AND number <= :inbox ORDER BY number"
            ),
            {"node": node_uid, "taken": taken, "inbox": inbox},
        )
        return [(row.role, row.content) for row in rows]


def load_results(database: Database, session_id: str, node_ids: Sequence[str]) -> dict[str, Any]:
    """Read the results of nodes by id; nodes without one are left out."""
    places, named = in_list("n", node_ids)
    with database.reading() as connection:
        rows = connection.execute(
            text(
                f"SELECT node_id, result FROM node WHERE session_id = :id AND node_id IN ({places}) "
                "AND result IS NOT NULL"
            ),
            {"id": session_id, **named},
        )
        return {row.node_id: json.loads(row.result) for row in rows}
