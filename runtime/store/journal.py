"""Guarded changes of one step: start, record, heartbeat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text

from runtime.core.chain import Content, Receipt
from runtime.core.lifecycle import STEP_ENDED, StepEvent, steps_that_accept
from runtime.core.model import Effect, StepStatus
from runtime.store.crashpoints import Transition
from runtime.store.engine import Database
from runtime.store.sql import in_list
from runtime.store.steps import LoadedStep
from runtime.store.tables import BlobRow, EvidenceRow
from runtime.store.write import Change, GuardFailed


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
    queues, named = in_list("q", claim.queues)
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
    states, named = in_list("s", accepted)
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
