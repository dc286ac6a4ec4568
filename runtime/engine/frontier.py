"""Moves the nodes that wait for others, once nothing they wait for is open.

Nodes that end without a step of their own, skipped ones and groups, may free others in turn; each round
looks at the dependants of what the round before it ended.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from sqlalchemy import text

from runtime.core.canvas import NodePlan, shapes
from runtime.core.chain import Content
from runtime.core.frontier import Expand, Fail, Finish, Move, Skip, Start, Upstream, next_move
from runtime.core.model import NodeStatus, WorkflowNode
from runtime.engine.definition import GROUP, Budget, GraphRows
from runtime.engine.promotion import Promotion, named
from runtime.engine.publishing import hints_of
from runtime.store.ids import step_id
from runtime.store.write import Change

# The results of what a node waited for are read only where its rules ask for them.
_WAITING = """
SELECT n.uid, n.node_id, n.mode, n.status, n.plan, n.rules, n.position, n.max_turns, n.turn_budget,
       n.priority, d.node_id AS up_id, d.status AS up_status, d.head AS up_head,
       d.item IS NOT NULL AS up_instance, CASE WHEN n.rules IS NOT NULL THEN d.result END AS up_result
  FROM node n
  JOIN edge e ON e.node_uid = n.uid
  JOIN node d ON d.uid = e.depends_on_uid
 WHERE (n.status = 'pending' OR (n.mode = 'group' AND n.status = 'running'))
   AND n.uid IN (SELECT x.node_uid FROM edge x WHERE x.depends_on_uid IN ({places}))
   AND NOT EXISTS (SELECT 1 FROM edge o WHERE o.node_uid = n.uid AND NOT o.satisfied)
 ORDER BY n.position, n.uid, d.position, length(d.node_id), d.node_id
"""


@dataclass(slots=True)
class _Round:
    """The nodes that one round ended, and those whose dependants may go on."""

    ended: set[str] = field(default_factory=set)
    freeing: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A node none of whose dependencies is open."""

    row: Any
    heads: tuple[str, ...]
    upstream: tuple[Upstream, ...]

    @property
    def definition(self) -> WorkflowNode | None:
        """Its definition, unless it is plain."""
        return WorkflowNode.model_validate(json.loads(self.row.rules)) if self.row.rules else None

    @property
    def plan(self) -> NodePlan:
        """What its end sets off."""
        return NodePlan.of(json.loads(self.row.plan))

    def move(self, now: int) -> Move:
        """What becomes of it."""
        expanded = self.row.mode == GROUP and self.row.status == NodeStatus.RUNNING
        return next_move(self.definition, self.upstream, expanded=expanded, now=now)


def promote_dependants(work: Promotion, ended: set[str]) -> None:
    """Move the nodes all of whose dependencies are satisfied, and those that follow from them."""
    ready: dict[str, NodePlan] = {}
    priority = 0
    while ended:
        this = _Round()
        for waiting in _waiting(work, ended):
            priority = int(waiting.row.priority)
            _apply(work, waiting, waiting.move(work.now), this, ready)
        _satisfy(work, this)
        ended = this.ended
    work.hints.extend(hints_of(work.session.id, shapes(ready, ready), priority))


def _waiting(work: Promotion, ended: set[str]) -> Iterable[_Waiting]:
    work.write()  # the statuses of the round before are read now
    places, values = named(ended)
    rows = work.rows(_WAITING.format(places=places), **values)
    for _, group in groupby(rows, key=lambda row: row.uid):
        upstream = list(group)
        yield _Waiting(
            upstream[0],
            tuple(row.up_head for row in upstream if row.up_head),
            tuple(
                Upstream(
                    row.up_id,
                    NodeStatus(row.up_status),
                    json.loads(row.up_result) if row.up_result else None,
                    bool(row.up_instance),
                )
                for row in upstream
            ),
        )


def _apply(work: Promotion, waiting: _Waiting, move: Move, this: _Round, ready: dict[str, NodePlan]) -> None:
    row = waiting.row
    first = step_id(row.uid, 0, 0)
    match move:
        case Start(due):
            scheduled = due is not None and due > work.now
            work.promote(first, due=due, cites=json.dumps(waiting.heads))
            work.move(row.uid, NodeStatus.SCHEDULED if scheduled else NodeStatus.READY, wake_at=due)
            if scheduled:
                work.note("scheduled", row.node_id)
            else:
                ready[row.node_id] = waiting.plan
        case Skip(reason):
            if row.mode != GROUP:
                work.skip(first)
            work.move(row.uid, NodeStatus.SKIPPED, reason)
            work.note("skipped", row.node_id)
            this.ended.add(row.uid)
            this.freeing.add(row.uid)
        case Expand(items, due):
            ready |= _expand(work, waiting, items, due)
        case Finish(result):
            content = Content.of(result)
            head = _joined(work, waiting, "output", content)
            work.move(row.uid, NodeStatus.COMPLETED, result=content.text, head=head)
            work.note("branch_completed", row.node_id)
            this.ended.add(row.uid)
            this.freeing.add(row.uid)
        case Fail(code, message):
            content = Content.of({"code": code, "message": message, "details": {"reason": "for_each"}})
            head = _joined(work, waiting, "error", content)
            work.move(row.uid, NodeStatus.ERROR, error=content.text, head=head)
            work.note("error", row.node_id)
            this.ended.add(row.uid)
            if waiting.plan.continues:
                this.freeing.add(row.uid)


def _joined(work: Promotion, waiting: _Waiting, name: str, content: Content) -> str:
    """Evidence of how a group ended and what it came from, for those that follow it to cite."""
    fields = {"node_id": waiting.row.node_id, "nodes": len(waiting.upstream), "at": work.now}
    return work.control("group_joined", fields | content.cited_as(name), waiting.heads, [content])


def _expand(
    work: Promotion, waiting: _Waiting, items: Sequence[Any], due: int | None
) -> Mapping[str, NodePlan]:
    """Insert the instances of a group; return the plans of those that may start now."""
    row, group = waiting.row, waiting.definition
    assert group is not None
    rows = GraphRows(
        work.session.id,
        work.now,
        Budget(int(row.max_turns), int(row.turn_budget)),
        priority=int(row.priority),
    )
    plans = rows.add_instances(group, items, int(row.position), due=due, cites=waiting.heads)
    change = Change()
    rows.write(change)
    change.apply(work.connection)
    work.move(row.uid, NodeStatus.RUNNING)
    return {name: plans[name] for name in rows.ready}


def _satisfy(work: Promotion, this: _Round) -> None:
    for uids, condition in ((this.freeing, ""), (this.ended - this.freeing, " AND on_end")):
        if uids:
            places, values = named(uids)
            work.connection.execute(
                text(f"UPDATE edge SET satisfied = :yes WHERE depends_on_uid IN ({places}){condition}"),
                {**values, "yes": True},
            )
