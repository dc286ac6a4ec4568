"""Starting sessions: from a definition to rows, in one transaction."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from runtime.core.canonical import canonical_json, digest
from runtime.core.graph import validate_graph, wake_time
from runtime.core.model import (
    TURN_TOOL,
    ExecutionContext,
    NodeStatus,
    StepKind,
    StepStatus,
    WorkflowNode,
)
from runtime.core.turn import TranscriptMessage, validate_turn_input
from runtime.engine.record import REPUBLISH_MS, extend_transcript, hint_of
from runtime.engine.transcript import stored_message
from runtime.errors import InvalidInput, SessionConflict
from runtime.live.hints import Hint
from runtime.store.engine import Database
from runtime.store.ids import new_id, step_id
from runtime.store.rows import continuation_row, message_row, step_row
from runtime.store.sessions import StoredSession, find_session
from runtime.store.tables import ContinuationRow, EdgeRow, MessageRow, NodeRow, SessionRow, StepRow
from runtime.store.write import Change

DEFAULT_MAX_TURNS = 12
"""Turn budget of a node per invocation, as in the reference."""

SESSION_ID_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Definition:
    """What a session is started with.

    Attributes:
        kind: ``workflow``, ``session`` (linear) or ``turn`` (one turn, tools not run).
        nodes: The graph.
        ctx: On whose behalf, and what narrows it.
        max_turns: Turn budget of nodes that bring none.
        priority: 0 (first) to 9.
    """

    kind: str
    nodes: tuple[WorkflowNode, ...]
    ctx: ExecutionContext
    max_turns: int = DEFAULT_MAX_TURNS
    priority: int = 0

    @property
    def digest(self) -> str:
        """Digest of the definition as given; a repeated start must match it."""
        return digest(
            {
                "kind": self.kind,
                "nodes": [node.model_dump(mode="json") for node in self.nodes],
                "context": context_json(self.ctx),
                "max_turns": self.max_turns,
            }
        )


def check_session_id(session_id: str) -> None:
    """Refuse ids that could not be stored or shown.

    Raises:
        InvalidInput: Unless it has 1-200 characters, none of them a control character or a surrogate.
    """
    fits = 1 <= len(session_id) <= SESSION_ID_CHARACTERS
    if not fits or any(ord(c) < 32 or 127 <= ord(c) < 160 or 0xD800 <= ord(c) < 0xE000 for c in session_id):
        shown = repr(session_id[:40])
        raise InvalidInput(
            f"session_id {shown} cannot be used; give 1-{SESSION_ID_CHARACTERS} characters "
            "without control characters"
        )


def context_json(ctx: ExecutionContext) -> dict[str, Any]:
    """What a session keeps of its context."""
    return ctx.model_dump(mode="json", include={"allowed_scopes", "allowed_intents", "lane_id", "metadata"})


def start_session(
    database: Database, definition: Definition, *, max_turns_limit: int | None = None
) -> list[Hint]:
    """Insert a session with its graph and first steps, or find it already there.

    Args:
        database: Where to.
        definition: What to start.
        max_turns_limit: Bound on every node's turn budget.

    Returns:
        Hints for the steps that are ready; empty when the session existed.

    Raises:
        InvalidInput: On a bad id, graph or turn input; nothing is saved.
        SessionConflict: If the session exists with another definition or principal.
    """
    check_session_id(definition.ctx.session_id)
    validate_graph(definition.nodes)
    plan = _Plan(definition, max_turns_limit)
    try:
        with database.writing() as connection:
            found = find_session(database, connection, definition.ctx.session_id, lock=True)
            if found is not None and found.kind != "host":
                _ensure_same(found, definition)
                return []
            now = int(connection.execute(text(f"SELECT {database.now_sql}")).scalar_one())
            change, hints = plan.rows(now, adopt=found)
            change.apply(connection)
            return hints
    except IntegrityError:
        with database.reading() as connection:
            found = find_session(database, connection, definition.ctx.session_id)
        if found is None:
            raise
        _ensure_same(found, definition)
        return []


def _ensure_same(found: StoredSession, definition: Definition) -> None:
    if found.principal != definition.ctx.principal:
        raise SessionConflict(f"session {found.id!r} belongs to another principal; use another session id")
    if found.definition_digest != definition.digest:
        raise SessionConflict(
            f"session {found.id!r} exists with another definition; resume it, or use another session id"
        )


class _Plan:
    """Turns a definition into rows; everything is validated before anything is saved."""

    def __init__(self, definition: Definition, max_turns_limit: int | None) -> None:
        self.definition = definition
        self.max_turns_limit = max_turns_limit
        self.session_id = definition.ctx.session_id
        self.uids = {node.id: new_id("nod") for node in definition.nodes}
        self.turns = {node.id: self._turn(node) for node in definition.nodes}

    def _turn(self, node: WorkflowNode) -> tuple[dict[str, Any], Sequence[TranscriptMessage]]:
        given = {"session_id": self.session_id, **node.execute_turn_input}
        if given["session_id"] != self.session_id:
            raise InvalidInput(
                f"node {node.id!r}: execute_turn_input.session_id is {given['session_id']!r}, "
                f"but the session is {self.session_id!r}; leave it out or make them the same"
            )
        try:
            messages = validate_turn_input(given).messages
        except InvalidInput as error:
            raise InvalidInput(f"node {node.id!r}: execute_turn_input: {error}") from None
        return {key: value for key, value in given.items() if key != "messages"}, messages

    def rows(self, now: int, adopt: StoredSession | None) -> tuple[Change, list[Hint]]:
        """All rows of the session, and hints for the steps that are ready."""
        change = Change()
        hints: list[Hint] = []
        self._session(change, now, adopt)
        nodes: list[dict[str, Any]] = []
        edges: list[dict[str, Any]] = []
        messages: list[dict[str, Any]] = []
        steps: list[dict[str, Any]] = []
        for position, node in enumerate(self.definition.nodes):
            status = self._first_status(node, now)
            nodes.append(self._node(node, position, status))
            edges.extend(
                {
                    "node_uid": self.uids[node.id],
                    "depends_on_uid": self.uids[needed],
                    "session_id": self.session_id,
                    "satisfied": False,
                }
                for needed in node.depends_on
            )
            rows, step = self._first_turn(node, status, now)
            messages.extend(rows)
            steps.append(step)
            if status is NodeStatus.READY:
                hints.append(hint_of(step))
        change.insert(NodeRow, nodes)
        change.insert(EdgeRow, edges)
        change.insert(MessageRow, messages)
        change.insert(StepRow, steps)
        change.insert(ContinuationRow, [continuation_row(self.session_id, "created", now)])
        return change, hints

    def _session(self, change: Change, now: int, adopt: StoredSession | None) -> None:
        ctx = self.definition.ctx
        values = {
            "kind": self.definition.kind,
            "run_id": ctx.run_id,
            "task_id": ctx.task_id,
            "principal": ctx.principal,
            "context": canonical_json(context_json(ctx)),
            "definition_digest": self.definition.digest,
        }
        if adopt is not None:
            sets = ", ".join(f"{name} = :{name}" for name in values)
            change.guard(f"UPDATE session SET {sets} WHERE id = :id AND kind = 'host'", id=adopt.id, **values)
            return
        change.insert(
            SessionRow,
            [{"id": self.session_id, **values, "created_at": now, "continuations": 0, "control_n": 0}],
        )

    def _first_status(self, node: WorkflowNode, now: int) -> NodeStatus:
        if node.depends_on:
            return NodeStatus.PENDING
        wakes = wake_time(node.id, node.wake_at) if node.wake_at else 0
        return NodeStatus.SCHEDULED if wakes > now else NodeStatus.READY

    def _node(self, node: WorkflowNode, position: int, status: NodeStatus) -> dict[str, Any]:
        turn, _ = self.turns[node.id]
        budget = node.max_turns or self.definition.max_turns
        return {
            "uid": self.uids[node.id],
            "session_id": self.session_id,
            "node_id": node.id,
            "position": position,
            "mode": "turn" if self.definition.kind == "turn" else "loop",
            "definition": canonical_json({"turn": turn, "context_from": node.context_from}),
            "status": status,
            "wake_at": wake_time(node.id, node.wake_at) if node.wake_at else None,
            "dependencies": len(node.depends_on),
            "max_turns": budget,
            "turn_budget": budget if self.max_turns_limit is None else min(budget, self.max_turns_limit),
            "turns": 0,
            "tool_calls": 0,
            "inbox": 0,
            "priority": self.definition.priority,
        }

    def _first_turn(
        self, node: WorkflowNode, status: NodeStatus, now: int
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        uid = self.uids[node.id]
        # Number 0 is kept for the results of other nodes, which are known at promotion.
        first = 1 if node.context_from else 0
        texts = [canonical_json(stored_message(message)) for message in self.turns[node.id][1]]
        transcript_digest, size = "", 0
        for body in texts:
            transcript_digest, size = extend_transcript(transcript_digest, size, body)
        rows = [message_row(uid, first + k, json.loads(body)["role"], body) for k, body in enumerate(texts)]
        due = wake_time(node.id, node.wake_at) if status is NodeStatus.SCHEDULED and node.wake_at else now
        step = step_row(
            id=step_id(uid, 0, 0),
            session_id=self.session_id,
            node_uid=uid,
            node_id=node.id,
            kind=StepKind.TURN,
            turn_index=0,
            call_index=0,
            tool_name=TURN_TOOL,
            queue="turns",
            status=StepStatus.PENDING if status is NodeStatus.PENDING else StepStatus.READY,
            due_at=due,
            publish_at=due if due > now else now + REPUBLISH_MS,
            messages_before=first + len(texts),
            transcript_digest=transcript_digest,
            transcript_bytes=size,
        )
        return rows, step
