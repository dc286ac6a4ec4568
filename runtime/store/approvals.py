"""Approval requests: parking, reading, answering."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, RowMapping, text

from runtime.core.quorum import Requirement, Vote
from runtime.core.text import check_name
from runtime.store.engine import Database


@dataclass(frozen=True, slots=True)
class Approval:
    """A question to people about one exact call.

    Attributes:
        request_id: Its id; also the id of the approval message.
        kind: ``call`` asks whether to run a call; ``in_doubt`` whether to run one again that was cut off.
        status: ``pending approved denied answered expired cancelled``; ``answered`` with a response instead.
        digest: What exactly a grant would allow.
        requested_at: Milliseconds since the epoch; so are the other instants.
        requirement: Who may answer, and how many have to.
        standing: Whether standing grants are still to be asked.
        escalate_at: When more people may answer; ``None`` for never, or once they may.
        escalated_at: Since when they may.
        votes: How many people have answered.
    """

    request_id: str
    kind: str
    session_id: str
    node_uid: str
    node_id: str
    step_id: str
    tool_name: str
    digest: str
    input: Any
    policy_decisions: Any
    message: str
    principal: str | None
    status: str
    requested_at: int
    expires_at: int
    resolved_at: int | None
    resolved_by: str | None
    reason: str | None
    consumed_by: str | None
    requirement: Requirement
    standing: bool
    escalate_at: int | None
    escalated_at: int | None
    votes: int


_SELECT = """SELECT id AS request_id, kind, session_id, node_uid, node_id, step_id, tool_name, digest, input,
    policy_decisions, message, principal, status, requested_at, expires_at, resolved_at, resolved_by, reason,
    consumed_by, rule, standing, escalate_at, escalated_at,
    (SELECT count(*) FROM approval_vote v WHERE v.approval_id = approval.id) AS votes FROM approval"""


def _approval(row: RowMapping) -> Approval:
    fields = dict(row)
    parsed = {
        "requirement": Requirement.from_text(fields.pop("rule")),
        "standing": bool(row["standing"]),
        "input": json.loads(row["input"]),
        "policy_decisions": json.loads(row["policy_decisions"]),
        "message": json.loads(row["message"]),
        "reason": None if row["reason"] is None else json.loads(row["reason"]),
    }
    return Approval(**{**fields, **parsed})


def find_approval(connection: Connection, request_id: str) -> Approval | None:
    """Read one request.

    Raises:
        InvalidInput: If nothing can have this id.
    """
    check_name("request_id", request_id)
    row = connection.execute(text(f"{_SELECT} WHERE id = :id"), {"id": request_id}).mappings().one_or_none()
    return _approval(row) if row else None


def read_votes(connection: Connection, request_id: str) -> tuple[Vote, ...]:
    """Read what was said to a request so far."""
    rows = connection.execute(
        text("SELECT principal, established_by, approved, digest FROM approval_vote WHERE approval_id = :id"),
        {"id": request_id},
    )
    return tuple(Vote(row.principal, row.established_by, bool(row.approved), row.digest) for row in rows)


def list_approvals(
    database: Database, *, session_id: str | None = None, status: str | None = "pending", limit: int = 100
) -> list[Approval]:
    """Read requests, those that expire first first.

    Raises:
        InvalidInput: If nothing can have this session id or status.
    """
    for field, asked in (("session_id", session_id), ("status", status)):
        if asked is not None:
            check_name(field, asked)
    wheres: list[str] = ["1 = 1"]
    named: dict[str, Any] = {"limit": limit}
    if session_id is not None:
        wheres.append("session_id = :session")
        named |= {"session": session_id}
    if status is not None:
        wheres.append("status = :status")
        named |= {"status": status}
    sql = f"{_SELECT} WHERE {' AND '.join(wheres)} ORDER BY expires_at, id LIMIT :limit"
    with database.reading() as connection:
        return [_approval(row) for row in connection.execute(text(sql), named).mappings()]
