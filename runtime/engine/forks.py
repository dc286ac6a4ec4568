"""Forking: a new session that keeps a finished part of another one and runs the rest again.

What is kept is closed under dependencies: a node is kept only if all that it depends on is. Each kept node
comes with a receipt in the new session that holds its result and names the receipt it rests on in the source,
so that what follows cites evidence of its own session. The source is named in the session's row; retention
must keep what is cited.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError

from runtime.core.canonical import canonical_json, digest
from runtime.core.canvas import plan_graph, shapes
from runtime.core.chain import CONTROL_STEP, Chain, Content, Receipt
from runtime.core.frontier import due_time
from runtime.core.graph import in_order, upstream
from runtime.core.model import Effect, ExecutionContext, NodeStatus, WorkflowNode
from runtime.engine.control import locked_session
from runtime.engine.definition import Budget, GraphRows, check_turn
from runtime.engine.frontier import promote_dependants
from runtime.engine.parts import Parts
from runtime.engine.promotion import Promotion
from runtime.engine.publishing import hints_of
from runtime.engine.sessions import Definition, check_session_id, context_json
from runtime.errors import InvalidInput, SessionConflict
from runtime.live.hints import AdvanceHint, Hint
from runtime.store.crashpoints import Transition
from runtime.store.ids import node_uid
from runtime.store.journal import add_evidence
from runtime.store.rows import continuation_row, edge_row, node_row
from runtime.store.sessions import StoredSession, add_control_receipt, find_session
from runtime.store.tables import SessionRow
from runtime.store.write import Change

SHOWN = 5
"""How many calls a refusal names."""

_KEPT_COLUMNS = (
    "status", "position", "mode", "reason", "plan", "rules", "item", "handled", "wake_at", "dependencies",
    "max_turns", "turn_budget", "turns", "tool_calls", "priority", "result", "error",
)  # fmt: skip

_NODES = f"""
SELECT uid, node_id, definition, head, {", ".join(_KEPT_COLUMNS)} FROM node
 WHERE session_id = :id AND mode <> 'host' ORDER BY position, length(node_id), node_id
"""

# A call that was started at least once ran, or may have run.
_CALLS = """
SELECT s.node_id, n.position, s.tool_name, s.status FROM step s JOIN node n ON n.uid = s.node_uid
 WHERE s.session_id = :id AND s.kind = 'tool_call' AND s.driver = 'worker' AND s.started_at IS NOT NULL
 ORDER BY n.position, s.node_id, s.turn_index, s.call_index
"""

_MESSAGES = """
INSERT INTO message (node_uid, number, role, content)
SELECT t.uid, m.number, m.role, m.content
  FROM node t
  JOIN node s ON s.session_id = :source AND s.node_id = t.node_id
  JOIN message m ON m.node_uid = s.uid
 WHERE t.session_id = :id AND t.status IN ('completed', 'error')
"""


def kept_nodes(
    nodes: Sequence[WorkflowNode],
    statuses: Mapping[str, str],
    node_id: str,
    handled: Container[str] = (),
) -> frozenset[str]:
    """The nodes that a fork keeps: over, not downstream of where it forks, and so is all they depend on.

    Args:
        nodes: A valid graph.
        statuses: The state of each of its nodes.
        node_id: Where it forks; that node runs again.
        handled: Nodes whose error the graph handles: they are finished as well.
    """
    above, by_id = upstream(nodes), {node.id: node for node in nodes}
    kept: set[str] = set()
    for name in in_order({node.id: node.depends_on for node in nodes}):
        status = statuses.get(name)
        over = status in (NodeStatus.COMPLETED, NodeStatus.SKIPPED)
        over = over or (status == NodeStatus.ERROR and name in handled)
        again = name == node_id or node_id in above[name]
        if over and not again and kept.issuperset(by_id[name].depends_on):
            kept.add(name)
    return frozenset(kept)


def fork_session(
    parts: Parts,
    session_id: str,
    node_id: str,
    *,
    new_session_id: str,
    principal: str | None,
    allow_effects: bool = False,
    messages: Sequence[Any] | None = None,
) -> None:
    """Start a session that keeps what another one finished, and runs one of its nodes and the rest again.

    Args:
        parts: The parts of this process.
        session_id: The source, in any state.
        node_id: A node of its definition that runs again, with all that follows from it.
        new_session_id: The new session; a repeat with the same arguments changes nothing.
        principal: Who forks; must be who started the source, and the new session's principal.
        allow_effects: Whether ``once`` calls that were made may be made again.
        messages: What the node is told instead.

    Raises:
        SessionNotFound: If there is no such source.
        SessionConflict: If the source belongs to another principal or has no definition, if the new id is
            taken, or if a ``once`` call would be made again.
        InvalidInput: On a bad id, an unknown node or malformed messages.
    """
    check_session_id(new_session_id)
    try:
        with parts.database.writing(Transition.FORK) as connection:
            source = locked_session(parts, connection, session_id)
            forking = _Forking.of(parts, connection, source, node_id, new_session_id, principal, messages)
            if forking.exists():
                return
            if not allow_effects:
                _refuse_effects(parts, forking)
            receipts, hints = forking.write(parts)
            cited = forking.tell_source()
    except IntegrityError:
        raise SessionConflict(f"session {new_session_id!r} exists by now; use another session id") from None
    parts.live.announce(session_id, "", [cited])
    parts.live.announce(new_session_id, "", receipts)
    parts.publisher.publish([*hints, AdvanceHint(new_session_id)])


def _refuse_effects(parts: Parts, forking: _Forking) -> None:
    """Refuse to make ``once`` calls again; a tool that this process does not know counts as one."""

    def once(name: str) -> bool:
        tool = parts.host.registry.get(name)
        return tool is None or tool.effect is Effect.ONCE

    again = [
        f"{row.tool_name} in node {row.node_id!r} ({row.status})"
        for row in forking.connection.execute(text(_CALLS), {"id": forking.source.id})
        if once(row.tool_name) and forking.definition.nodes[row.position].id not in forking.kept
    ]
    if again:
        more = f" and {len(again) - SHOWN} more" if len(again) > SHOWN else ""
        raise SessionConflict(
            f"a fork of session {forking.source.id!r} from node {forking.node_id!r} would repeat calls that "
            f"must happen once and were made: {', '.join(again[:SHOWN])}{more}; fork from a later node, or "
            "give allow_effects=True if they may be made again",
            details={"calls": again},
        )


@dataclass(frozen=True, slots=True)
class _Forking:
    """One fork, under the lock of its source."""

    connection: Connection
    source: StoredSession
    node_id: str
    definition: Definition
    nodes: Sequence[Any]
    kept: frozenset[str]

    @staticmethod
    def of(
        parts: Parts,
        connection: Connection,
        source: StoredSession,
        node_id: str,
        new_session_id: str,
        principal: str | None,
        messages: Sequence[Any] | None,
    ) -> _Forking:
        """Read the source and decide what is kept."""
        if source.principal != principal:
            raise SessionConflict(f"session {source.id!r} belongs to another principal")
        stored = connection.execute(
            text("SELECT definition FROM session WHERE id = :id"), {"id": source.id}
        ).scalar_one()
        if stored is None:
            raise SessionConflict(
                f"session {source.id!r} holds host-driven calls only, so there is nothing to fork"
            )
        definition = forked_definition(source, json.loads(stored), node_id, new_session_id, messages)
        nodes = connection.execute(text(_NODES), {"id": source.id}).all()
        statuses = {row.node_id: row.status for row in nodes if row.item is None}
        handled = {row.node_id for row in nodes if row.handled}
        handled |= {node.id for node in definition.nodes if node.on_error == "continue"}
        kept = kept_nodes(definition.nodes, statuses, node_id, handled)
        return _Forking(connection, source, node_id, definition, nodes, kept)

    @property
    def id(self) -> str:
        """The new session."""
        return self.definition.ctx.session_id

    @property
    def digest(self) -> str:
        """Tells this fork from any other one, and from a start with the same definition."""
        return digest(["fork", self.definition.to_json(), self.source.id, self.node_id])

    def exists(self) -> bool:
        """Whether this very fork was made before.

        Raises:
            SessionConflict: If the new id stands for another session.
        """
        found = self.connection.execute(
            text("SELECT definition_digest FROM session WHERE id = :id"), {"id": self.id}
        ).one_or_none()
        if found is not None and found.definition_digest != self.digest:
            raise SessionConflict(
                f"session {self.id!r} exists, and is not this fork of {self.source.id!r} from "
                f"{self.node_id!r}; use another session id"
            )
        return found is not None

    def write(self, parts: Parts) -> tuple[list[Receipt], list[Hint]]:
        """Write the new session; return its first receipts and the hints for what is ready."""
        connection, now, change = self.connection, self.source.now, Change()
        copied = [row for row in self.nodes if self.definition.nodes[row.position].id in self.kept]
        chain, contents = Chain(CONTROL_STEP, 0, [], common={"session_id": self.id}), list[Content]()
        receipts = [chain.add("session_forked", self._origin(copied, contents))]
        rows, ready = self._new_rows(now, parts.host.workspace.limits.max_turns_per_session)
        for row in copied:
            head = None
            if row.head is not None:
                receipts.append(chain.add("node_copied", _copy_fields(row, contents, now)))
                head = receipts[-1].hash
            rows.nodes.append(_copied_node(self.id, row, head))
            if row.item is not None:
                rows.edges.append(self._instance_edge(row))
        change.insert(SessionRow, [self._session_row(now, chain)])
        rows.write(change)
        add_evidence(change, self.id, receipts, contents)
        change.apply(connection)
        connection.execute(text(_MESSAGES), {"id": self.id, "source": self.source.id})
        session = find_session(parts.database, connection, self.id, lock=True)
        assert session is not None
        work = Promotion(connection, session)
        promote_dependants(work, {node_uid(self.id, name) for name in self.kept})
        work.write()
        return receipts, [*ready, *work.hints]

    def tell_source(self) -> Receipt:
        """Note in the source's evidence that it was forked."""
        change = Change()
        fields = {"node_id": self.node_id, "into": self.id, "at": self.source.now}
        receipt = add_control_receipt(change, self.source, "forked", fields)
        change.apply(self.connection)
        return receipt

    def _origin(self, copied: Iterable[Any], contents: list[Content]) -> dict[str, Any]:
        """Where the new session comes from; the source's receipts are named as data."""
        content = Content.of([{"node_id": row.node_id, "head": row.head} for row in copied])
        contents.append(content)
        return {
            "source": self.source.id,
            "source_control_head": self.source.control_head,
            "node_id": self.node_id,
            "at": self.source.now,
            **content.cited_as("copied"),
        }

    def _new_rows(self, now: int, ceiling: int | None) -> tuple[GraphRows, list[Hint]]:
        """Rows of the nodes that run again, and hints for those that wait for nothing.

        Those behind kept nodes wait until they are promoted.
        """
        definition = self.definition
        rows = GraphRows(
            self.id,
            now,
            Budget(definition.max_turns, ceiling),
            mode="turn" if definition.kind == "turn" else "loop",
            priority=definition.priority,
        )
        rows.continuations.append(continuation_row(self.id, "created", now))
        rows.continuations.append(continuation_row(self.id, "forked", now, self.node_id))
        plans = dict(plan_graph(definition.nodes))
        handled = {each.node for node in definition.nodes for each in node.when if "error" in each.status}
        for position, node in enumerate(definition.nodes):
            rows.add_edges(node, plans)
            if node.id in self.kept:
                continue
            status = NodeStatus.PENDING if node.depends_on else NodeStatus.READY
            due = due_time(node, now) if status is NodeStatus.READY or node.wake_at else None
            if status is NodeStatus.READY and isinstance(node.for_each, tuple):
                status = NodeStatus.RUNNING
                plans |= rows.add_instances(node, node.for_each, position, due=due)
            rows.add_node(node, plans[node.id], position, status=status, due=due, handled=node.id in handled)
        over = {node_uid(self.id, name) for name in self.kept}
        for edge in rows.edges:
            edge["satisfied"] = edge["depends_on_uid"] in over
        return rows, hints_of(self.id, shapes(rows.ready, plans), rows.priority)

    def _instance_edge(self, row: Any) -> dict[str, Any]:
        group = node_uid(self.id, self.definition.nodes[row.position].id)
        edge = edge_row(self.id, group, node_uid(self.id, row.node_id), on_end=True)
        return {**edge, "satisfied": True}

    def _session_row(self, now: int, chain: Chain) -> dict[str, Any]:
        ctx = self.definition.ctx
        return {
            "id": self.id,
            "kind": self.definition.kind,
            "run_id": ctx.run_id,
            "task_id": ctx.task_id,
            "principal": ctx.principal,
            "context": canonical_json(context_json(ctx)),
            "definition": canonical_json(self.definition.to_json()),
            "definition_digest": self.digest,
            "forked_from": self.source.id,
            "created_at": now,
            "continuations": 0,
            "control_n": chain.n,
            "control_head": chain.head,
        }


def forked_definition(
    source: StoredSession,
    stored: Mapping[str, Any],
    node_id: str,
    new_session_id: str,
    messages: Sequence[Any] | None,
) -> Definition:
    """The definition of a fork: that of its source under another session id.

    Args:
        source: The source.
        stored: Its definition, as `Definition.to_json` wrote it.
        node_id: Where it forks.
        new_session_id: The new session.
        messages: What that node is told instead.

    Raises:
        InvalidInput: If there is no such node, or the messages are malformed.
    """
    nodes = [WorkflowNode.model_validate(each) for each in stored["nodes"]]
    known = [node.id for node in nodes]
    if node_id not in known:
        raise InvalidInput(
            f"session {source.id!r} has no node {node_id!r} in its definition; known: {known[:20]} "
            "(to fork from an instance of a list, fork from its group)"
        )
    for place, node in enumerate(nodes):
        given = dict(node.execute_turn_input)
        if "session_id" in given:
            given["session_id"] = new_session_id
        if messages is not None and node.id == node_id:
            given["messages"] = list(messages)
        nodes[place] = node.model_copy(update={"execute_turn_input": given})
        check_turn(nodes[place], new_session_id)
    ctx = ExecutionContext.model_validate(
        {
            **stored["context"],
            "run_id": source.run_id,
            "task_id": source.task_id,
            "session_id": new_session_id,
            "principal": source.principal,
        }
    )
    return Definition(stored["kind"], tuple(nodes), ctx, max_turns=stored["max_turns"])


def _copy_fields(row: Any, contents: list[Content], now: int) -> dict[str, Any]:
    """What the receipt of a kept node says: how it ended, and on which receipt of the source that rests."""
    fields = {"node_id": row.node_id, "status": row.status, "source_head": row.head, "at": now}
    for name, stored in (("output", row.result), ("error", row.error)):
        if stored is not None:
            content = Content.of(json.loads(stored))
            contents.append(content)
            fields |= content.cited_as(name)
    return fields


def _copied_node(session_id: str, row: Any, head: str | None) -> dict[str, Any]:
    definition = json.loads(row.definition)
    definition["turn"]["session_id"] = session_id
    kept = {name: getattr(row, name) for name in _KEPT_COLUMNS}
    return node_row(
        uid=node_uid(session_id, row.node_id),
        session_id=session_id,
        node_id=row.node_id,
        definition=canonical_json(definition),
        head=head,
        **{**kept, "handled": bool(row.handled), "status": NodeStatus(row.status)},
    )
