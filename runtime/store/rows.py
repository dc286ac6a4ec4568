"""Complete rows for the journal's inserts.

Inserts are set-based and bypass the object mapper, so every column that must not be null is named here.
"""

from __future__ import annotations

from typing import Any

from runtime.core.model import Driver, NodeStatus, StepKind, StepStatus

_STEP: dict[str, Any] = {
    "reason": None,
    "publish_at": None,
    "publishes": 0,
    "lease_until": None,
    "fence": 0,
    "attempts": 0,
    "crashes": 0,
    "cites": "[]",
    "head": None,
    "input": None,
    "input_hash": None,
    "call_id": None,
    "calls_before": 0,
    "messages_before": 0,
    "transcript_digest": "",
    "transcript_bytes": 0,
    "siblings": 1,
    "inbox": 0,
    "intent": None,
    "approval_id": None,
    "output": None,
    "error": None,
    "usage": None,
    "propagated": True,
    "worker": None,
    "started_at": None,
    "finished_at": None,
    "driver": Driver.WORKER,
    "status": StepStatus.READY,
}


def step_row(
    *, id: str, session_id: str, node_uid: str, node_id: str, kind: StepKind, **values: Any
) -> dict[str, Any]:
    """A row of ``step`` with every column, those not given at their initial value."""
    return {
        **_STEP,
        "id": id,
        "session_id": session_id,
        "node_uid": node_uid,
        "node_id": node_id,
        "kind": kind,
        **values,
    }


_NODE: dict[str, Any] = {
    "position": 0,
    "mode": "loop",
    "definition": "{}",
    "reason": None,
    "plan": "{}",
    "rules": None,
    "item": None,
    "handled": False,
    "wake_at": None,
    "deadline_at": None,
    "dependencies": 0,
    "max_turns": 0,
    "turn_budget": 0,
    "turns": 0,
    "tool_calls": 0,
    "inbox": 0,
    "priority": 0,
    "head": None,
    "result": None,
    "error": None,
}


def node_row(*, uid: str, session_id: str, node_id: str, status: NodeStatus, **values: Any) -> dict[str, Any]:
    """A row of ``node`` with every column, those not given at their initial value."""
    return {**_NODE, "uid": uid, "session_id": session_id, "node_id": node_id, "status": status, **values}


def edge_row(
    session_id: str, node_uid: str, depends_on_uid: str, *, on_end: bool = False, sole: bool = False
) -> dict[str, Any]:
    """A row of ``edge``.

    Args:
        session_id: The session.
        node_uid: The node that waits.
        depends_on_uid: The node that it waits for.
        on_end: Whether any end satisfies it; else only completion does.
        sole: Whether the record that satisfies it makes the waiting node ready.
    """
    return {
        "node_uid": node_uid,
        "depends_on_uid": depends_on_uid,
        "session_id": session_id,
        "satisfied": False,
        "on_end": on_end,
        "sole": sole,
    }


def message_row(node_uid: str, number: int, role: str, content: str) -> dict[str, Any]:
    """A row of ``message``; ``content`` is the canonical JSON of the whole message."""
    return {"node_uid": node_uid, "number": number, "role": role, "content": content}


def continuation_row(
    session_id: str,
    kind: str,
    at: int,
    node_id: str | None = None,
    request_id: str | None = None,
    idempotency_key: str | None = None,
) -> dict[str, Any]:
    """A row of ``continuation``, numbered later under the session's lock."""
    return {
        "session_id": session_id,
        "number": None,
        "kind": kind,
        "node_id": node_id,
        "request_id": request_id,
        "idempotency_key": idempotency_key,
        "at": at,
    }
