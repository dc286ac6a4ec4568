"""The canvas plan: which Celery primitive carries which part of a graph. Pure, and only ever a hint.

The rules are those of "canvas is a hint, the start transaction decides":

- nodes that lead to one join alone, become ready together and end in one turn are the header of a chord; its
  body is the join's first turn, or an advance where more than the end of the header decides about the join;
- a node that ends in one turn and has a sole successor with no other dependency is a chain with it;
- everything else is a plain task, and its end asks the coordinator for an advance.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from runtime.core.model import WorkflowNode

MAX_PROMOTED = 32
"""How many dependants a record makes ready itself; more are left to an advance, so that steps stay small."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How the first turns of nodes that became ready together are published.

    Attributes:
        nodes: One node; with ``joins`` or ``then`` also several.
        then: The sole successor that a chain goes on with.
        joins: Whether ``nodes`` are the header of a chord.
        body: The join that the chord's body starts; ``None`` means that its body is an advance.
    """

    nodes: tuple[str, ...]
    then: str | None = None
    joins: bool = False
    body: str | None = None


@dataclass(frozen=True, slots=True)
class NodePlan:
    """What the end of one node sets off.

    Attributes:
        promotes: Plain nodes that depend on this one only; its record makes them ready.
        sets_off: How these are published.
        more: Whether anything beyond `promotes` may follow from its end, so that an advance must look.
        join: The node that this one leads to alone, together with others.
        width: How many nodes lead to the join.
        join_is_plain: Whether the end of those nodes alone decides that the join starts.
        single_turn: Whether this node's first turn ends it.
        continues: Whether its dependants run although it failed.
    """

    promotes: tuple[str, ...] = ()
    sets_off: tuple[Shape, ...] = ()
    more: bool = True
    join: str | None = None
    width: int = 0
    join_is_plain: bool = False
    single_turn: bool = False
    continues: bool = False

    def to_json(self) -> dict[str, Any]:
        """The plan as the journal keeps it."""
        plain = {name: getattr(self, name) for name in self.__slots__ if name not in ("sets_off", "promotes")}
        return {**plain, "sets_off": [[s.nodes, s.then, s.joins, s.body] for s in self.sets_off]}

    @staticmethod
    def of(data: Mapping[str, Any]) -> NodePlan:
        """The plan that `to_json` wrote; what is missing has its default."""
        shapes = tuple(Shape(tuple(nodes), *rest) for nodes, *rest in data.get("sets_off", ()))
        promotes = tuple(name for shape in shapes for name in shape.nodes)
        return NodePlan(**{**data, "sets_off": shapes, "promotes": promotes})


def plan_graph(nodes: Sequence[WorkflowNode]) -> dict[str, NodePlan]:
    """Plan what follows from the end of each node of a valid graph."""
    by_id = {node.id: node for node in nodes}
    dependants: dict[str, list[str]] = defaultdict(list)
    for node in nodes:
        for needed in node.depends_on:
            dependants[needed].append(node.id)
    plans = {node.id: _plan(node, by_id, dependants) for node in nodes}
    return {
        name: replace(plan, sets_off=tuple(shapes(plan.promotes, plans))) if plan.promotes else plan
        for name, plan in plans.items()
    }


def _plan(
    node: WorkflowNode, by_id: Mapping[str, WorkflowNode], dependants: Mapping[str, Sequence[str]]
) -> NodePlan:
    followers = dependants.get(node.id, ())
    promotes = tuple(name for name in followers if by_id[name].plain and len(by_id[name].depends_on) == 1)
    if len(promotes) > MAX_PROMOTED or node.for_each is not None:
        promotes = ()
    join, width, join_is_plain = None, 0, False
    if len(followers) == 1 and len(by_id[followers[0]].depends_on) > 1:
        candidate = by_id[followers[0]]
        if all(
            len(dependants[needed]) == 1 and by_id[needed].for_each is None for needed in candidate.depends_on
        ):
            join, width, join_is_plain = candidate.id, len(candidate.depends_on), candidate.plain
    return NodePlan(
        promotes=promotes,
        more=len(promotes) < max(len(followers), 1),
        join=join,
        width=width,
        join_is_plain=join_is_plain,
        single_turn=node.single_turn and node.for_each is None,
        continues=node.on_error == "continue",
    )


def plan_instance(group: WorkflowNode, width: int) -> NodePlan:
    """The plan of one instance of a ``for_each``: all of them lead to their group alone."""
    return NodePlan(
        join=group.id, width=width, single_turn=group.single_turn, continues=group.on_error == "continue"
    )


def shapes(ready: Iterable[str], plans: Mapping[str, NodePlan]) -> list[Shape]:
    """How to publish nodes that became ready at one moment; each of them appears exactly once."""
    names = list(dict.fromkeys(ready))
    leading: dict[str, list[str]] = defaultdict(list)
    for name in names:
        plan = plans[name]
        if plan.join is not None and plan.single_turn:
            leading[plan.join].append(name)
    found: list[Shape] = []
    for name in names:
        plan = plans[name]
        header = leading.get(plan.join or "", [])
        if plan.join is not None and plan.single_turn and len(header) == plan.width > 1:
            if header[0] == name:
                body = plan.join if plan.join_is_plain else None
                found.append(Shape(tuple(header), joins=True, body=body))
        elif plan.single_turn and len(plan.promotes) == 1 and not plan.more:
            found.append(Shape((name,), then=plan.promotes[0]))
        else:
            found.append(Shape((name,)))
    return found
