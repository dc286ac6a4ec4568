"""Starting sessions: from a definition to rows, in one transaction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from runtime.core.canonical import canonical_json, digest
from runtime.core.canvas import plan_graph, shapes
from runtime.core.frontier import due_time
from runtime.core.graph import validate_graph
from runtime.core.model import ExecutionContext, NodeStatus, WorkflowNode
from runtime.core.text import check_name
from runtime.engine.definition import Budget, GraphRows, check_turn
from runtime.engine.publishing import hints_of
from runtime.errors import InvalidInput, SessionConflict
from runtime.live.hints import Hint
from runtime.store.crashpoints import Transition
from runtime.store.engine import Database
from runtime.store.rows import continuation_row
from runtime.store.sessions import StoredSession, find_session
from runtime.store.tables import SessionRow
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
        return digest(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """The definition as given, as plain JSON."""
        return {
            "kind": self.kind,
            "nodes": [node.model_dump(mode="json") for node in self.nodes],
            "context": context_json(self.ctx),
            "max_turns": self.max_turns,
        }

    def require_models(self) -> None:
        """See that each node names a model, where there is no default.

        Raises:
            InvalidInput: If one does not.
        """
        for node in self.nodes:
            if "model_profile" not in node.execute_turn_input:
                raise InvalidInput(
                    f"node {node.id!r} names no model: give execute_turn_input.model_profile, or set "
                    "agent_runtime.default_model in the workspace file"
                )


def check_session_id(session_id: str) -> None:
    """Refuse ids that could not be stored or shown.

    Raises:
        InvalidInput: Unless it has 1-200 characters, none of them a control character or a surrogate.
    """
    check_name("session_id", session_id, most=SESSION_ID_CHARACTERS)


def check_context(ctx: ExecutionContext) -> None:
    """Refuse a context with a name that could not be stored or shown.

    Raises:
        InvalidInput: Naming the field.
    """
    check_session_id(ctx.session_id)
    check_name("run_id", ctx.run_id)
    check_name("task_id", ctx.task_id)
    for field, value in (("principal", ctx.principal), ("lane_id", ctx.lane_id)):
        if value:
            check_name(field, value)


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
        InvalidInput: On a bad name, graph or turn input; nothing is saved.
        SessionConflict: If the session exists with another definition or principal.
    """
    session_id = definition.ctx.session_id
    check_context(definition.ctx)
    for node in definition.nodes:
        check_name("node id", node.id)
    validate_graph(definition.nodes)
    for node in definition.nodes:
        check_turn(node, session_id)
    try:
        with database.writing(Transition.SESSION_START) as connection:
            found = find_session(database, connection, session_id, lock=True)
            if found is not None and found.kind != "host":
                _ensure_same(found, definition)
                return []
            if found is not None:
                _ensure_principal(found, definition)
            now = int(connection.execute(text(f"SELECT {database.now_sql}")).scalar_one())
            change = Change()
            _add_session(change, definition, now, adopt=found)
            hints = add_graph(change, definition, now, max_turns_limit)
            change.apply(connection)
            return hints
    except IntegrityError:
        with database.reading() as connection:
            found = find_session(database, connection, session_id)
        if found is None:
            raise
        _ensure_same(found, definition)
        return []


def _ensure_principal(found: StoredSession, definition: Definition) -> None:
    if found.principal != definition.ctx.principal:
        raise SessionConflict(f"session {found.id!r} belongs to another principal; use another session id")


def _ensure_same(found: StoredSession, definition: Definition) -> None:
    _ensure_principal(found, definition)
    if found.definition_digest != definition.digest:
        raise SessionConflict(
            f"session {found.id!r} exists with another definition; resume it, or use another session id"
        )


def _add_session(change: Change, definition: Definition, now: int, adopt: StoredSession | None) -> None:
    ctx = definition.ctx
    values = {
        "kind": definition.kind,
        "run_id": ctx.run_id,
        "task_id": ctx.task_id,
        "principal": ctx.principal,
        "context": canonical_json(context_json(ctx)),
        "definition": canonical_json(definition.to_json()),
        "definition_digest": definition.digest,
    }
    if adopt is not None:
        sets = ", ".join(f"{name} = :{name}" for name in values)
        change.guard(f"UPDATE session SET {sets} WHERE id = :id AND kind = 'host'", id=adopt.id, **values)
        return
    change.insert(
        SessionRow,
        [{"id": ctx.session_id, **values, "created_at": now, "continuations": 0, "control_n": 0}],
    )


def add_graph(change: Change, definition: Definition, now: int, max_turns_limit: int | None) -> list[Hint]:
    """Add the rows of a graph whose nodes have yet to run.

    Returns:
        Hints for the first turns that are ready.
    """
    rows = GraphRows(
        definition.ctx.session_id,
        now,
        Budget(definition.max_turns, max_turns_limit),
        mode="turn" if definition.kind == "turn" else "loop",
        priority=definition.priority,
    )
    rows.continuations.append(continuation_row(rows.session_id, "created", now))
    plans = dict(plan_graph(definition.nodes))
    handled = {
        condition.node for node in definition.nodes for condition in node.when if "error" in condition.status
    }
    for position, node in enumerate(definition.nodes):
        status = NodeStatus.PENDING if node.depends_on else NodeStatus.READY
        due = due_time(node, now) if status is NodeStatus.READY or node.wake_at else None
        if status is NodeStatus.READY and isinstance(node.for_each, tuple):
            status = NodeStatus.RUNNING
            plans |= rows.add_instances(node, node.for_each, position, due=due)
        rows.add_node(node, plans[node.id], position, status=status, due=due, handled=node.id in handled)
        rows.add_edges(node, plans)
    rows.write(change)
    return hints_of(rows.session_id, shapes(rows.ready, plans), definition.priority)
