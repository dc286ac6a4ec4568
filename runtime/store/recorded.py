"""Reads the journal's own rows beside the receipts they rest on, in batches, for verification."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, text

from runtime.core.chain import CONTROL_STEP, Problem, Receipt
from runtime.core.journal_check import Manifest, NodeCheck, RecordedNode, RecordedStep, Transcript

STEPS_PAGE = 50
MESSAGES_PAGE = 50

_TEXTS = ("input", "output", "error", "usage")
_HEAD = ", ".join(f"h.{name} AS h_{name}" for name in ("step_id", "fence", "n", "kind", "body", "hash"))

_ORPHAN = text(
    "SELECT e.step_id FROM evidence e LEFT JOIN step s ON s.id = e.step_id AND s.session_id = e.session_id "
    "WHERE e.session_id = :id AND e.step_id <> :control AND s.id IS NULL LIMIT 1"
)

# A node that no step of its own ended has its head in the control chain.
_NODES = text(
    "SELECT n.uid, n.node_id, n.status, n.head, CAST(n.result AS TEXT) AS result, "
    "CAST(n.error AS TEXT) AS error, "
    f"{_HEAD} "
    "FROM node n LEFT JOIN step s ON s.node_uid = n.uid AND s.head = n.head "
    "LEFT JOIN evidence h ON h.session_id = n.session_id AND h.hash = n.head "
    f"AND h.step_id = COALESCE(s.id, '{CONTROL_STEP}') "
    "WHERE n.session_id = :id AND n.uid > :after ORDER BY n.uid LIMIT :limit"
)

_STEPS = text(
    "SELECT s.id, s.kind, s.turn_index, s.call_index, s.fence, s.status, s.head, s.input_hash, "
    f"{', '.join(f'CAST(s.{name} AS TEXT) AS {name}' for name in _TEXTS)}, "
    "s.messages_before, s.transcript_digest, "
    f"{_HEAD}, b.body AS started FROM step s "
    "LEFT JOIN evidence h ON h.session_id = s.session_id AND h.step_id = s.id AND h.hash = s.head "
    "LEFT JOIN evidence b ON b.session_id = s.session_id AND b.step_id = s.id AND b.fence = s.fence "
    "AND b.kind = 'tool_call_started' "
    "WHERE s.node_uid = :node AND (s.turn_index, s.call_index, s.id) > (:turn, :call, :step) "
    "ORDER BY s.turn_index, s.call_index, s.id LIMIT :limit"
)

_MESSAGES = text(
    "SELECT number, CAST(content AS TEXT) AS content FROM message "
    "WHERE node_uid = :node AND number > :after ORDER BY number LIMIT :limit"
)

_BLOBS = text("SELECT hash, content FROM blob WHERE session_id = :id AND hash IN :hashes").bindparams(
    bindparam("hashes", expanding=True)
)


def journal_problems(connection: Connection, session_id: str, edits: Mapping[str, str]) -> Iterator[Problem]:
    """Compare a session's steps, nodes and messages with its evidence, as one snapshot shows them.

    Args:
        connection: In the snapshot in which the receipts were read.
        session_id: The session.
        edits: Hash of the input that each step was given by an edited approval.
    """
    orphan = connection.execute(_ORPHAN, {"id": session_id, "control": CONTROL_STEP}).scalar_one_or_none()
    if orphan is not None:
        yield Problem(orphan, "it has receipts, but the journal has no such step")
    for node in _nodes(connection, session_id):
        check = NodeCheck(node, Transcript(node.node_id, _messages(connection, node.uid)))
        for page in _step_pages(connection, node.uid, edits):
            manifests = _manifests(connection, session_id, page)
            for step in page:
                if problem := check.step(step, manifests.get(step.id)):
                    yield problem
        if problem := check.end():
            yield problem


def _nodes(connection: Connection, session_id: str) -> Iterator[RecordedNode]:
    after = ""
    while rows := connection.execute(_NODES, {"id": session_id, "after": after, "limit": STEPS_PAGE}).all():
        for row in rows:
            yield RecordedNode(row.uid, row.node_id, row.status, row.head, row.result, row.error, _head(row))
        after = rows[-1].uid


def _step_pages(
    connection: Connection, node_uid: str, edits: Mapping[str, str]
) -> Iterator[list[RecordedStep]]:
    place = {"turn": -1, "call": 0, "step": ""}
    while rows := connection.execute(_STEPS, {"node": node_uid, "limit": STEPS_PAGE, **place}).all():
        yield [_step(row, edits.get(row.id)) for row in rows]
        place = {"turn": rows[-1].turn_index, "call": rows[-1].call_index, "step": rows[-1].id}


def _step(row: Any, edited: str | None) -> RecordedStep:
    return RecordedStep(
        id=row.id,
        kind=row.kind,
        turn_index=row.turn_index,
        call_index=row.call_index,
        fence=row.fence,
        status=row.status,
        head=row.head,
        input_hash=row.input_hash,
        texts={name: getattr(row, name) for name in _TEXTS},
        messages_before=row.messages_before,
        transcript_digest=row.transcript_digest,
        last=_head(row),
        started=row.started,
        edited=edited,
    )


def _head(row: Any) -> Receipt | None:
    if row.h_hash is None:
        return None
    return Receipt(row.h_step_id, row.h_fence, row.h_n, row.h_kind, row.h_body, row.h_hash)


def _messages(connection: Connection, node_uid: str) -> Iterator[tuple[int, str]]:
    after = -1
    while rows := connection.execute(
        _MESSAGES, {"node": node_uid, "after": after, "limit": MESSAGES_PAGE}
    ).all():
        yield from ((row.number, row.content) for row in rows)
        after = rows[-1].number


def _manifests(connection: Connection, session_id: str, steps: Sequence[RecordedStep]) -> dict[str, Manifest]:
    """The manifests of the turns among some steps, out of their started receipts or the blobs these cite."""
    inputs: dict[str, Any] = {}
    cited: dict[str, list[str]] = {}
    for step in steps:
        if step.kind != "turn" or step.started is None:
            continue
        body = json.loads(step.started)
        if "input" in body:
            inputs[step.id] = body["input"]
        elif isinstance(body.get("input_hash"), str):
            cited.setdefault(body["input_hash"], []).append(step.id)
    if cited:
        for row in connection.execute(_BLOBS, {"id": session_id, "hashes": list(cited)}):
            inputs |= dict.fromkeys(cited[row.hash], json.loads(row.content))
    found = {step_id: Manifest.of(value) for step_id, value in inputs.items()}
    return {step_id: manifest for step_id, manifest in found.items() if manifest is not None}
