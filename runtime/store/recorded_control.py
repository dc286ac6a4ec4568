"""Reads a session's row, its approvals and the uses of grants beside the control chain, for verification."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from sqlalchemy import Connection, bindparam, text

from runtime.core.approval_check import RecordedApproval, RecordedVote, Said, approval_problem
from runtime.core.canonical import canonical_json
from runtime.core.chain import CONTROL_STEP, Problem, Receipt
from runtime.core.control_check import (
    ControlNotes,
    EndCheck,
    Granted,
    RecordedSession,
    body_of,
    grant_problem,
    session_problem,
)

PAGE = 50

_SESSION = text(
    "SELECT ended_status, cancelled_at, control_n, control_head, continuations, "
    "(SELECT count(number) FROM continuation WHERE session_id = :id) AS numbered, "
    "(SELECT min(number) FROM continuation WHERE session_id = :id) AS first, "
    "(SELECT max(number) FROM continuation WHERE session_id = :id) AS last "
    "FROM session WHERE id = :id"
)

_NODES = text(
    "SELECT uid, node_id, mode, status, head FROM node WHERE session_id = :id AND uid > :after "
    "ORDER BY uid LIMIT :limit"
)

_APPROVALS = text(
    "SELECT a.id, a.step_id, a.tool_name, a.digest, CAST(a.input AS TEXT) AS input, s.input_hash, a.status, "
    "a.resolved_by, a.reason, a.consumed_by, a.rule, a.escalated_at IS NOT NULL AS escalated, "
    "e.principal AS asked_for FROM approval a LEFT JOIN session e ON e.id = a.session_id "
    "LEFT JOIN step s ON s.id = a.step_id AND s.session_id = a.session_id "
    "WHERE a.session_id = :id AND a.id > :after ORDER BY a.id LIMIT :limit"
)

_VOTES = text(
    "SELECT approval_id, principal, established_by, approved, reason, answer, digest, "
    "CAST(content AS TEXT) AS content FROM approval_vote "
    "WHERE approval_id IN :ids ORDER BY approval_id, principal"
).bindparams(bindparam("ids", expanding=True))

_UNASKED = text(
    "SELECT s.id, s.approval_id FROM step s LEFT JOIN approval a ON a.id = s.approval_id "
    "AND a.session_id = s.session_id WHERE s.session_id = :id AND s.approval_id IS NOT NULL AND a.id IS NULL "
    "ORDER BY s.id LIMIT 1"
)

_RECEIPTS = text(
    "SELECT step_id, fence, n, kind, CAST(body AS TEXT) AS body, hash FROM evidence WHERE session_id = :id "
    "AND step_id = :step AND fence = :fence AND n IN :numbers"
).bindparams(bindparam("numbers", expanding=True))

_BLOB = text("SELECT CAST(content AS TEXT) FROM blob WHERE session_id = :id AND hash = :hash")

_CONSUMED = text("SELECT consumed_by FROM approval WHERE id = :request AND session_id = :id")


def control_problems(connection: Connection, session_id: str, notes: ControlNotes) -> Iterator[Problem]:
    """Compare a session's row, nodes, approvals and grants with its control chain, in one snapshot.

    Args:
        connection: In the snapshot in which the receipts were read.
        session_id: The session.
        notes: What its receipts say; only whole once they all were read.
    """
    row = connection.execute(_SESSION, {"id": session_id}).one_or_none()
    if row is None:
        return
    session = RecordedSession(
        ended_status=row.ended_status,
        cancelled=row.cancelled_at is not None,
        control_n=row.control_n,
        control_head=row.control_head,
        continuations=row.continuations,
        numbered=row.numbered,
        first=row.first,
        last=row.last,
    )
    settled = (
        None if notes.settled is None else _control(connection, session_id, [notes.settled])[notes.settled]
    )
    if problem := session_problem(session, notes, settled):
        yield problem
    yield from _end_problems(connection, session_id, notes, settled if session.ended_status else None)
    yield from _approval_problems(connection, session_id, notes)
    yield from _grant_problems(connection, session_id, notes)


def _end_problems(
    connection: Connection, session_id: str, notes: ControlNotes, settled: Receipt | None
) -> Iterator[Problem]:
    check = EndCheck(notes.cancelled, settled)
    after = ""
    while rows := connection.execute(_NODES, {"id": session_id, "after": after, "limit": PAGE}).all():
        for row in rows:
            if problem := check.node(row.node_id, row.mode, row.status, row.head):
                yield problem
        after = rows[-1].uid
    if problem := check.end():
        yield problem


def _approval_problems(connection: Connection, session_id: str, notes: ControlNotes) -> Iterator[Problem]:
    unseen = dict(notes.answers)
    after = ""
    while rows := connection.execute(_APPROVALS, {"id": session_id, "after": after, "limit": PAGE}).all():
        votes = _votes(connection, [row.id for row in rows])
        numbers = {row.id: unseen.pop(row.id) for row in rows if row.id in unseen}
        voted = {row.id: notes.votes.get(row.id, []) for row in rows}
        receipts = _control(connection, session_id, [*numbers.values(), *chain(*voted.values())])
        for row in rows:
            fields = {**row._mapping, "escalated": bool(row.escalated), "votes": votes.get(row.id, ())}
            said = Said(
                answer=receipts.get(numbers.get(row.id, -1)),
                votes=[receipts[number] for number in voted[row.id] if number in receipts],
                rule=notes.rules.get(row.id),
                escalated=row.id in notes.escalated,
            )
            if problem := approval_problem(RecordedApproval(**fields), said, cancelled=notes.cancelled):
                yield problem
        after = rows[-1].id
    for request_id in unseen:
        yield Problem(f"approval {request_id}", "a receipt answers it, but its row is missing")
    if notes.again is not None:
        yield Problem(f"approval {notes.again}", "two receipts answer it")
    for row in connection.execute(_UNASKED, {"id": session_id}):
        yield Problem(f"approval {row.approval_id}", f"step {row.id} names it, but its row is missing")


def _votes(connection: Connection, request_ids: Sequence[str]) -> dict[str, list[RecordedVote]]:
    found: dict[str, list[RecordedVote]] = {}
    for row in connection.execute(_VOTES, {"ids": request_ids}):
        vote = RecordedVote(
            row.principal,
            row.established_by,
            bool(row.approved),
            row.reason,
            row.answer,
            row.digest,
            row.content,
        )
        found.setdefault(row.approval_id, []).append(vote)
    return found


def _grant_problems(connection: Connection, session_id: str, notes: ControlNotes) -> Iterator[Problem]:
    for start in range(0, len(notes.grants), PAGE):
        grants = notes.grants[start : start + PAGE]
        asked = [notes.answers[each.request_id] for each in grants if each.request_id in notes.answers]
        answers = _control(connection, session_id, asked)
        for granted in grants:
            answer = answers.get(notes.answers.get(granted.request_id, -1))
            if problem := _grant_problem(connection, session_id, granted, answer):
                yield problem


def _grant_problem(
    connection: Connection, session_id: str, granted: Granted, answer: Receipt | None
) -> Problem | None:
    started = _read(connection, session_id, granted.step_id, granted.fence, [granted.n])[granted.n]
    body = body_of(started)
    if "input" in body:
        given: str | None = canonical_json(body["input"])
    else:
        named = {"id": session_id, "hash": body.get("input_hash")}
        given = connection.execute(_BLOB, named).scalar_one_or_none()
    consumed = connection.execute(
        _CONSUMED, {"id": session_id, "request": granted.request_id}
    ).scalar_one_or_none()
    return grant_problem(granted, started, given, answer, consumed)


def _control(connection: Connection, session_id: str, numbers: Sequence[int]) -> dict[int, Receipt]:
    """Receipts of the control chain, by their number."""
    return _read(connection, session_id, CONTROL_STEP, 0, numbers)


def _read(
    connection: Connection, session_id: str, step_id: str, fence: int, numbers: Sequence[int]
) -> dict[int, Receipt]:
    named: dict[str, Any] = {"id": session_id, "step": step_id, "fence": fence, "numbers": numbers}
    return {row.n: Receipt(*row) for row in connection.execute(_RECEIPTS, named)}
