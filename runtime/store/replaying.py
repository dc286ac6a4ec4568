"""Recorded tool calls in pages, with what a policy needs to decide them again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text

from runtime.store.engine import Database

_PAGE = 200


@dataclass(frozen=True, slots=True)
class RecordedCall:
    """A tool call as the journal has it.

    Attributes:
        at: Milliseconds since the epoch at which it started, or became due.
        input: Its input; ``None`` too where retention has removed it.
        input_known: Whether the input is still there.
        intent: As the started receipt has it, which every decision leaves.
        approval_id: The approval request that it waited for, if any.
        error_code: Why it did not succeed, if so.
        context: The session's context, plain JSON; of a host-driven call it is that of the session's first.
    """

    step_id: str
    session_id: str
    node_id: str
    call_id: str
    tool_name: str
    turn_index: int
    calls_before: int
    intent: str | None
    status: str
    at: int
    input: Any
    input_known: bool
    approval_id: str | None
    error_code: str | None
    context: dict[str, Any]


_CALLS = text(
    "SELECT p.id, p.session_id, p.node_id, p.call_id, p.tool_name, p.turn_index, p.calls_before, p.intent, "
    "p.status, COALESCE(p.started_at, p.due_at) AS at, COALESCE(p.input, b.content) AS input, p.approval_id, "
    "p.error, s.context, s.run_id, s.task_id, "
    "(SELECT e.body FROM evidence e WHERE e.session_id = p.session_id AND e.step_id = p.id "
    "AND e.kind = 'tool_call_started' ORDER BY e.fence DESC, e.n DESC LIMIT 1) AS receipt "
    "FROM step p JOIN session s ON s.id = p.session_id "
    "LEFT JOIN blob b ON b.session_id = p.session_id AND b.hash = p.input_hash "
    "WHERE p.kind = 'tool_call' AND p.id > :after AND COALESCE(p.started_at, p.due_at) >= :since "
    "ORDER BY p.id LIMIT :limit"
)


def recorded_calls(database: Database, since: int) -> Iterator[RecordedCall]:
    """Read the tool calls that started at or after an instant, page by page.

    Args:
        database: Where they are.
        since: Milliseconds since the epoch.
    """
    after = ""
    while True:
        with database.reading() as connection:
            rows = connection.execute(_CALLS, {"after": after, "since": since, "limit": _PAGE}).all()
        yield from map(_call, rows)
        if len(rows) < _PAGE:
            return
        after = rows[-1].id


def _call(row: Any) -> RecordedCall:
    error = json.loads(row.error) if row.error else None
    receipt = json.loads(row.receipt) if row.receipt else {}
    return RecordedCall(
        step_id=row.id,
        session_id=row.session_id,
        node_id=row.node_id,
        call_id=row.call_id or row.id,
        tool_name=row.tool_name,
        turn_index=row.turn_index,
        calls_before=row.calls_before,
        intent=receipt.get("agent_intent", row.intent),
        status=row.status,
        at=int(row.at),
        input=json.loads(row.input) if row.input is not None else None,
        input_known=row.input is not None,
        approval_id=row.approval_id,
        error_code=error.get("code") if isinstance(error, dict) else None,
        context={
            **json.loads(row.context or "{}"),
            "run_id": row.run_id,
            "task_id": row.task_id,
            "session_id": row.session_id,
        },
    )
