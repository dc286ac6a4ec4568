"""From the definition of nodes to rows: at a start, for the instances of a ``for_each``, and in a fork."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from runtime.core.canonical import canonical_json
from runtime.core.canvas import NodePlan, plan_instance
from runtime.core.chain import extend_transcript
from runtime.core.durations import milliseconds
from runtime.core.model import TURN_TOOL, NodeStatus, StepKind, StepStatus, WorkflowNode
from runtime.core.turn import TranscriptMessage, validate_turn_input
from runtime.engine.publishing import REPUBLISH_MS
from runtime.engine.transcript import item_message, stored_message
from runtime.errors import InvalidInput
from runtime.store.ids import node_uid, step_id
from runtime.store.rows import continuation_row, edge_row, message_row, node_row, step_row
from runtime.store.tables import ContinuationRow, EdgeRow, MessageRow, NodeRow, StepRow
from runtime.store.write import Change

GROUP = "group"
"""Mode of a node that runs once for each item of a list: it has instances instead of steps."""


_WAITING = (NodeStatus.PENDING, NodeStatus.SUSPENDED)
"""States of a node whose first turn somebody else has to make ready."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Turn budgets of a session: what nodes get that bring none, and the bound on all of them.

    A session may be started with none at all: its nodes are suspended until a resume brings one.
    """

    default: int
    ceiling: int | None = None

    def of(self, node: WorkflowNode) -> tuple[int, int]:
        """A node's turns per invocation, and its budget for the first one."""
        turns = node.max_turns or self.default
        return turns, turns if self.ceiling is None else min(turns, self.ceiling)


SOME_MODEL = "the workspace's default"
"""Stands for the profile of an input that names none, where only its shape is looked at."""


def check_turn(node: WorkflowNode, session_id: str) -> Sequence[TranscriptMessage]:
    """Validate what a node's first turn is given.

    Returns:
        Its messages.

    Raises:
        InvalidInput: If the input is malformed or names another session.
    """
    given = {"session_id": session_id, **node.execute_turn_input}
    if given["session_id"] != session_id:
        raise InvalidInput(
            f"node {node.id!r}: execute_turn_input.session_id is {given['session_id']!r}, "
            f"but the session is {session_id!r}; leave it out or make them the same"
        )
    try:
        return validate_turn_input(given, default_model=SOME_MODEL).messages
    except InvalidInput as error:
        raise InvalidInput(f"node {node.id!r}: execute_turn_input: {error}") from None


@dataclass(slots=True)
class GraphRows:
    """Rows of nodes under construction.

    Attributes:
        session_id: Whose nodes.
        now: Milliseconds since the epoch.
        budget: Turn budgets.
        mode: ``loop``, or ``turn`` where the tools that a turn asks for are not run.
        priority: 0 (first) to 9.
        ready: Ids of the nodes whose first turn may run now.
    """

    session_id: str
    now: int
    budget: Budget
    mode: str = "loop"
    priority: int = 0
    ready: list[str] = field(default_factory=list)
    nodes: list[dict[str, Any]] = field(default_factory=list)
    edges: list[dict[str, Any]] = field(default_factory=list)
    messages: list[dict[str, Any]] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    continuations: list[dict[str, Any]] = field(default_factory=list)

    def write(self, change: Change) -> None:
        """Add all rows to a change."""
        change.insert(NodeRow, self.nodes)
        change.insert(EdgeRow, self.edges)
        change.insert(MessageRow, self.messages)
        change.insert(StepRow, self.steps)
        change.insert(ContinuationRow, self.continuations)

    def add_edges(self, node: WorkflowNode, plans: Mapping[str, NodePlan]) -> None:
        """Add what a node waits for."""
        judged = {condition.node for condition in node.when}
        self.edges.extend(
            edge_row(
                self.session_id,
                node_uid(self.session_id, node.id),
                node_uid(self.session_id, needed),
                on_end=needed in judged,
                sole=node.id in plans[needed].promotes,
            )
            for needed in node.depends_on
        )

    def add_node(
        self,
        node: WorkflowNode,
        plan: NodePlan,
        position: int,
        *,
        status: NodeStatus,
        due: int | None = None,
        handled: bool = False,
    ) -> None:
        """Add a node with its first turn; one that is due later is scheduled."""
        if status is NodeStatus.READY and due is not None and due > self.now:
            status = NodeStatus.SCHEDULED
        if status is NodeStatus.READY and self.budget.of(node)[1] == 0:
            status = NodeStatus.SUSPENDED
        mode = self.mode if node.for_each is None else GROUP
        self._add_node(node, plan, position, mode, status, due=due, handled=handled)
        if mode != GROUP:
            self._add_first_turn(node, node.id, status, due, cites=(), item=None)

    def add_instances(
        self,
        group: WorkflowNode,
        items: Sequence[Any],
        position: int,
        *,
        due: int | None = None,
        cites: Sequence[str] = (),
    ) -> dict[str, NodePlan]:
        """Add one instance for each item, and the edges by which the group waits for them.

        Returns:
            The instances' plans.
        """
        later = due is not None and due > self.now
        status = NodeStatus.SCHEDULED if later else NodeStatus.READY
        plan = plan_instance(group, len(items))
        names = [f"{group.id}[{number}]" for number in range(len(items))]
        for number, (name, item) in enumerate(zip(names, items, strict=True)):
            instance = group.model_copy(update={"id": name})
            self._add_node(instance, plan, position, self.mode, status, due=due, item=canonical_json(item))
            told = canonical_json(item_message(item, number, len(items)))
            self._add_first_turn(group, name, status, due, cites=cites, item=told)
            self.edges.append(
                edge_row(
                    self.session_id,
                    node_uid(self.session_id, group.id),
                    node_uid(self.session_id, name),
                    on_end=True,
                )
            )
        return dict.fromkeys(names, plan)

    def _add_node(
        self,
        node: WorkflowNode,
        plan: NodePlan,
        position: int,
        mode: str,
        status: NodeStatus,
        *,
        due: int | None,
        handled: bool = False,
        item: str | None = None,
    ) -> None:
        turns, budget = self.budget.of(node)
        judged = not node.plain and item is None
        self.nodes.append(
            node_row(
                uid=node_uid(self.session_id, node.id),
                session_id=self.session_id,
                node_id=node.id,
                status=status,
                reason="max_turns" if status is NodeStatus.SUSPENDED else None,
                position=position,
                mode=mode,
                definition=canonical_json(
                    {
                        "turn": turn_template(node, self.session_id),
                        "context_from": node.context_from,
                        "retry": None if node.retry is None else node.retry.model_dump(mode="json"),
                        "deadline": None if node.deadline is None else milliseconds(node.deadline),
                    }
                ),
                plan=canonical_json(plan.to_json()),
                rules=canonical_json(node.model_dump(mode="json")) if judged else None,
                item=item,
                handled=handled or plan.continues,
                wake_at=due,
                dependencies=len(node.depends_on),
                max_turns=turns,
                turn_budget=budget,
                priority=self.priority,
            )
        )
        if status in (NodeStatus.SCHEDULED, NodeStatus.SUSPENDED):
            self.continuations.append(continuation_row(self.session_id, status, self.now, node.id))
        elif status is NodeStatus.READY:
            self.ready.append(node.id)

    def _add_first_turn(
        self,
        node: WorkflowNode,
        node_id: str,
        status: NodeStatus,
        due: int | None,
        *,
        cites: Sequence[str],
        item: str | None,
    ) -> None:
        uid = node_uid(self.session_id, node_id)
        # Number 0 is kept for the results of other nodes, which are known when the node starts.
        first = 1 if node.context_from else 0
        texts = [canonical_json(stored_message(each)) for each in check_turn(node, self.session_id)]
        texts[:0] = [item] if item is not None else []
        digest, size = "", 0
        for body in texts:
            digest, size = extend_transcript(digest, size, body)
        self.messages.extend(
            message_row(uid, first + k, json.loads(body)["role"], body) for k, body in enumerate(texts)
        )
        later = due is not None and due > self.now
        self.steps.append(
            step_row(
                id=step_id(uid, 0, 0),
                session_id=self.session_id,
                node_uid=uid,
                node_id=node_id,
                kind=StepKind.TURN,
                turn_index=0,
                call_index=0,
                tool_name=TURN_TOOL,
                queue="turns",
                status=StepStatus.PENDING if status in _WAITING else StepStatus.READY,
                due_at=due if later else self.now,
                publish_at=due if later else self.now + REPUBLISH_MS,
                cites=json.dumps(list(cites)),
                messages_before=first + len(texts),
                transcript_digest=digest,
                transcript_bytes=size,
            )
        )


def turn_template(node: WorkflowNode, session_id: str) -> dict[str, Any]:
    """A node's turn input without its messages, which are rows of their own."""
    given = {"session_id": session_id, **node.execute_turn_input}
    return {key: value for key, value in given.items() if key != "messages"}
