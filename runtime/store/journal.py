"""Reads and guarded changes of one step: load, start, record."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, text

from runtime.core.chain import Content, Receipt
from runtime.core.lifecycle import STEP_ENDED, StepEvent, steps_that_accept
from runtime.core.model import Effect, NodeStatus, StepKind, StepStatus
from runtime.store.crashpoints import Transition
from runtime.store.engine import Database
from runtime.store.sql import run
from runtime.store.tables import BlobRow, EvidenceRow
from runtime.store.write import Change, GuardFailed

_LOAD = """
SELECT s.id, s.session_id, s.node_uid, s.node_id, s.kind, s.turn_index, s.call_index, s.tool_name,
       s.queue, s.driver, s.status, s.due_at, s.lease_until, s.fence, s.attempts, s.crashes, s.cites,
       s.head, s.started_at,
       COALESCE(s.input, b.content) AS input, s.call_id, s.calls_before, s.messages_before,
       s.transcript_digest, s.transcript_bytes, s.siblings, s.inbox AS taken, s.intent, s.approval_id,
       n.mode, n.definition, n.plan, n.rules IS NOT NULL AS ruled, n.status AS node_status, n.turn_budget,
       n.inbox, n.dependencies, n.wake_at, n.deadline_at, n.priority,
       e.run_id, e.task_id, e.principal, e.context, e.cancelled_at, e.paused_at, e.ended_status,
       a.status AS approval_status, a.digest AS approval_digest, a.expires_at AS approval_expires_at,
       a.consumed_by AS approval_consumed_by, a.resolved_by AS approval_resolved_by,
       {now} AS now,
       CASE WHEN s.kind = 'turn' AND s.status <> 'pending' THEN ({transcript}) END AS transcript,
       EXISTS (SELECT 1 FROM workspace_version w WHERE w.hash = :workspace AND w.active) AS workspace_active
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
    sql = _load_sql(database.now_sql, database.dialect)
    row = run(connection, sql, named).mappings().one_or_none()
    if row is None:
        return None
    flags = {"workspace_active": bool(row["workspace_active"]), "ruled": bool(row["ruled"])}
    return LoadedStep(**{**row, **flags})


@lru_cache(maxsize=64)
def _load_sql(now_sql: str, dialect: str) -> str:
    return _LOAD.format(now=now_sql, transcript=_JOINED[dialect])


def load_transcript(database: Database, node_uid: str, before: int) -> list[str]:
    """Read a node's messages below a number, each as canonical JSON, in order."""
    with database.reading() as connection:
        rows = run(connection, _TRANSCRIPT, {"node": node_uid, "before": before})
        return [row[0] for row in rows]


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


def add_evidence(
    change: Change, session_id: str, receipts: Sequence[Receipt], contents: Sequence[Content] = ()
) -> None:
    """Add receipts and the blobs they cite; blobs go in hash order, so that writers cannot deadlock."""
    blobs = {content.hash: content.text for content in contents if not content.inline}
    change.insert(
        BlobRow,
        [{"session_id": session_id, "hash": name, "content": blobs[name]} for name in sorted(blobs)],
        once=True,
    )
    change.insert(
        EvidenceRow,
        [
            {
                "session_id": session_id,
                "step_id": receipt.step_id,
                "fence": receipt.fence,
                "n": receipt.n,
                "kind": receipt.kind,
                "body": receipt.body,
                "hash": receipt.hash,
            }
            for receipt in receipts
        ],
    )


def load_results(database: Database, session_id: str, node_ids: Sequence[str]) -> dict[str, Any]:
    """Read the results of nodes by id; nodes without one are left out."""
    places, named = _in_list("n", node_ids)
    with database.reading() as connection:
        rows = connection.execute(
            text(
                f"SELECT node_id, result FROM node WHERE session_id = :id AND node_id IN ({places}) "
                "AND result IS NOT NULL"
            ),
            {"id": session_id, **named},
        )
        return {row.node_id: json.loads(row.result) for row in rows}


@dataclass(frozen=True, slots=True)
class Claim:
    """Who starts a step, for how long, and what the decision rested on."""

    worker: str
    lease_ms: int
    queues: tuple[str, ...]
    workspace_hash: str


_OPENED_FIRST = "NOT EXISTS (SELECT 1 FROM edge e WHERE e.node_uid = step.node_uid AND NOT e.satisfied)"

_ENDED = ", ".join(f"'{status}'" for status in sorted(STEP_ENDED))

_OPENED_LATER = (
    "NOT EXISTS (SELECT 1 FROM step c WHERE c.node_uid = step.node_uid AND c.kind = 'tool_call' "
    f"AND c.turn_index = step.turn_index - 1 AND c.status NOT IN ({_ENDED}))"
)


def guard_start(change: Change, step: LoadedStep, claim: Claim, head: str, now_sql: str) -> None:
    """Claim a step: take the lease and raise the fence, if all that was read still holds.

    A pending turn is claimed if nothing it waits for is open by now; what it cites and its transcript, which
    a promotion would have fixed, are fixed here.
    """
    queues, named = _in_list("q", claim.queues)
    fixes, fixed = _fixes(step)
    named |= fixed
    opened = ""
    if step.status == StepStatus.PENDING:
        opened = f"OR (status = 'pending' AND {_OPENED_LATER if step.turn_index else _OPENED_FIRST})"
    grant = ""
    if step.approval_id is not None:
        grant = (
            "AND EXISTS (SELECT 1 FROM approval a WHERE a.id = :approval AND a.status = 'approved' "
            f"AND a.digest = :digest AND (a.consumed_by = :id "
            f"OR (a.consumed_by IS NULL AND a.expires_at > {now_sql})))"
        )
        named |= {"approval": step.approval_id, "digest": step.approval_digest}
    change.guard(
        f"""UPDATE step SET status = 'running', fence = fence + 1, attempts = attempts + 1,
            crashes = crashes + CASE WHEN status = 'running' THEN 1 ELSE 0 END,
            lease_until = {now_sql} + :lease, started_at = COALESCE(started_at, {now_sql}),
            worker = :worker, head = :head{fixes}
        WHERE id = :id AND fence = :fence AND queue IN ({queues})
          AND ((status = 'ready' AND due_at <= {now_sql}) OR (status = 'running' AND lease_until < {now_sql})
               {opened})
          AND EXISTS (SELECT 1 FROM session e WHERE e.id = step.session_id AND e.cancelled_at IS NULL
                      AND e.paused_at IS NULL AND e.ended_status IS NULL)
          AND EXISTS (SELECT 1 FROM workspace_version w WHERE w.hash = :workspace AND w.active)
          {grant}""",
        id=step.id,
        fence=step.fence,
        lease=claim.lease_ms,
        worker=claim.worker,
        head=head,
        workspace=claim.workspace_hash,
        **named,
    )
    if step.approval_id is not None:
        change.update(
            "UPDATE approval SET consumed_by = :step WHERE id = :approval AND consumed_by IS NULL",
            step=step.id,
            approval=step.approval_id,
        )


def _fixes(step: LoadedStep) -> tuple[str, dict[str, Any]]:
    """SQL and parameters that fix what a turn cites and its transcript, as they were assembled."""
    if not step.is_turn:
        return "", {}
    sets = (
        ", cites = :cites, transcript_digest = :transcript, transcript_bytes = :bytes, "
        "messages_before = :before, inbox = :taken"
    )
    return sets, {
        "cites": step.cites,
        "transcript": step.transcript_digest,
        "bytes": step.transcript_bytes,
        "before": step.messages_before,
        "taken": step.taken,
    }


def mark_followed(change: Change, step: LoadedStep) -> None:
    """Note that what a pending turn waited for is followed by this turn, and by nothing else."""
    if step.turn_index > 0:
        change.update(
            "UPDATE step SET propagated = :yes WHERE node_uid = :node AND turn_index = :turn "
            "AND NOT propagated",
            yes=True,
            node=step.node_uid,
            turn=step.turn_index - 1,
        )
        return
    change.update(
        "UPDATE step SET propagated = :yes WHERE NOT propagated AND node_uid IN "
        "(SELECT e.depends_on_uid FROM edge e WHERE e.node_uid = :node)",
        yes=True,
        node=step.node_uid,
    )


@dataclass(frozen=True, slots=True)
class StepEnd:
    """What a record writes into the step's own row."""

    event: StepEvent
    status: StepStatus
    head: str | None
    output: str | None = None
    error: str | None = None
    usage: str | None = None
    reason: str | None = None
    due_in_ms: int = 0
    propagated: bool = True
    approval_id: str | None = None


def guard_record(
    change: Change, step: LoadedStep, fence: int, end: StepEnd, now_sql: str, *, held: bool
) -> None:
    """Move a step on, if its fence is still what the writer rests on.

    Args:
        change: What to add to.
        step: The step as it was loaded.
        fence: The fence under which the record is written.
        end: What to write.
        now_sql: SQL of the database's clock.
        held: Whether this writer started the step and holds the fence. A refused or parked step was never
            started; its record takes the fence as well, from the state in which the step was read.
    """
    accepted = steps_that_accept(end.event) if held else (StepStatus(step.status),)
    states, named = _in_list("s", accepted)
    fixes, fixed = ("", {}) if held else _fixes(step)
    named |= fixed
    change.guard(
        f"""UPDATE step SET status = :status, fence = :fence{fixes}, head = :head, output = :output,
            error = :error, usage = :usage, reason = :reason, lease_until = NULL,
            due_at = {now_sql} + CAST(:due AS BIGINT), publish_at = {now_sql} + CAST(:due AS BIGINT),
            propagated = :propagated, approval_id = COALESCE(CAST(:approval AS TEXT), approval_id),
            finished_at = {now_sql}
        WHERE id = :id AND fence = :seen AND status IN ({states})""",
        id=step.id,
        seen=fence if held else step.fence,
        fence=fence,
        status=end.status,
        head=end.head,
        output=end.output,
        error=end.error,
        usage=end.usage,
        reason=end.reason,
        due=end.due_in_ms,
        propagated=end.propagated,
        approval=end.approval_id,
        **named,
    )


def extend_leases(database: Database, held: Sequence[tuple[str, int]], lease_ms: int) -> set[str]:
    """Heartbeat: extend the leases of all (step, fence) pairs that this process holds.

    Returns:
        The ids of the steps that are still held.
    """
    pairs = " OR ".join(f"(id = :i{k} AND fence = :f{k})" for k in range(len(held)))
    named: dict[str, Any] = {"lease": lease_ms}
    for k, (step_id, fence) in enumerate(held):
        named |= {f"i{k}": step_id, f"f{k}": fence}
    with database.writing(Transition.HEARTBEAT) as connection:
        rows = connection.execute(
            text(
                f"UPDATE step SET lease_until = {database.now_sql} + :lease "
                f"WHERE status = 'running' AND ({pairs}) RETURNING id"
            ),
            named,
        )
        return {row[0] for row in rows}


def _in_list(prefix: str, values: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Placeholders and parameters of an ``IN`` list; an empty list matches nothing."""
    names = {f"{prefix}{k}": value for k, value in enumerate(values)}
    return ", ".join(f":{name}" for name in names) or "NULL", names


def apply(database: Database, change: Change, transition: Transition = Transition.OTHER) -> bool:
    """Commit a change, or leave everything as it was when a guard did not hold."""
    try:
        if database.dialect == "postgresql":  # one statement is a transaction of its own
            begin, before, after = transition.points
            database.crash.reach(begin)
            database.crash.reach(before)
            with database.reading() as connection:
                change.apply_at_once(connection)
            database.crash.reach(after)
            return True
        with database.writing(transition) as connection:
            if not change.apply(connection):
                raise GuardFailed
    except GuardFailed:
        return False
    return True


def effect_of_crash(effect: Effect, crashes: int, limit: int) -> StepEvent:
    """What an expired lease means: run again, give up, or in doubt."""
    if effect is Effect.ONCE:
        return StepEvent.LOSE
    return StepEvent.QUARANTINE if crashes >= limit else StepEvent.TAKE_OVER
