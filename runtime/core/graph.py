"""A workflow's graph: validation before anything is saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from graphlib import TopologicalSorter

from runtime.core.model import ForEach, WorkflowNode
from runtime.errors import InvalidInput

HOST_PREFIX = "host:"
"""Beginning of the ids of nodes that hold host-driven calls."""

MAX_INSTANCES = 10_000
"""Upper bound on the instances of one ``for_each``."""


def validate_graph(nodes: Sequence[WorkflowNode]) -> None:
    """Refuse graphs that could never run.

    Raises:
        InvalidInput: On an empty graph, duplicate ids, unknown dependencies, conditions on nodes that are not
            dependencies, bad wake times, or a cycle; the message names the id or the cycle.
    """
    if not nodes:
        raise InvalidInput("workflow.nodes is empty; define at least one node")
    known: set[str] = set()
    for node in nodes:
        if node.id.startswith(HOST_PREFIX):
            raise InvalidInput(
                f"node id {node.id!r} begins with {HOST_PREFIX!r}, the name of host-driven calls; use another"
            )
        if node.id in known:
            raise InvalidInput(f"node id {node.id!r} is used twice; ids must be unique in a workflow")
        known.add(node.id)
    _check_instances(nodes, known)
    for node in nodes:
        _check_node(node, known)
    cycle = find_cycle(nodes)
    if cycle:
        raise InvalidInput(f"the graph has a cycle: {' -> '.join(cycle)}; remove one of these edges")
    _check_context(nodes)


def _check_instances(nodes: Sequence[WorkflowNode], known: set[str]) -> None:
    for node in nodes:
        if node.for_each is None:
            continue
        prefix = f"{node.id}["
        if taken := sorted(name for name in known if name.startswith(prefix)):
            raise InvalidInput(
                f"node id {taken[0]!r} is what an instance of {node.id!r} is called; rename one of them"
            )
        if node.for_each == ():
            raise InvalidInput(f"for_each of node {node.id!r} is an empty list; leave the node out")
        if isinstance(node.for_each, tuple) and len(node.for_each) > MAX_INSTANCES:
            raise InvalidInput(
                f"for_each of node {node.id!r} has {len(node.for_each)} items; "
                f"at most {MAX_INSTANCES} run, so split the list"
            )


def _check_node(node: WorkflowNode, known: set[str]) -> None:
    for name in (*node.depends_on, *node.context_from):
        if name not in known:
            raise InvalidInput(
                f"node {node.id!r} depends on {name!r}, which is not a node; known: {sorted(known)}"
            )
    if len(set(node.depends_on)) != len(node.depends_on):
        raise InvalidInput(f"node {node.id!r} names a dependency twice: {list(node.depends_on)}")
    asked = [("when", condition.node) for condition in node.when]
    if isinstance(node.for_each, ForEach):
        asked.append(("for_each", node.for_each.node))
    for field, name in asked:
        if name not in node.depends_on:
            raise InvalidInput(
                f"{field} of node {node.id!r} names {name!r}, which is not in its depends_on "
                f"{list(node.depends_on)}; add it there"
            )
    if node.wake_at is not None:
        wake_time(node.id, node.wake_at)
        if node.wake_after is not None:
            raise InvalidInput(f"node {node.id!r} has both wake_at and wake_after; keep one of them")


def _check_context(nodes: Sequence[WorkflowNode]) -> None:
    """Results are read when a node starts, so they must come from what is over by then."""
    if not any(node.context_from for node in nodes):
        return
    above = upstream(nodes)
    for node in nodes:
        for name in node.context_from:
            if name not in above[node.id]:
                raise InvalidInput(
                    f"context_from of node {node.id!r} names {name!r}, which is not upstream of it; "
                    "add it to depends_on"
                )


def upstream(nodes: Sequence[WorkflowNode]) -> dict[str, frozenset[str]]:
    """All direct and indirect dependencies of each node of a graph without cycles."""
    depends = {node.id: node.depends_on for node in nodes}
    above: dict[str, frozenset[str]] = {}
    for name in in_order(depends):
        direct = depends[name]
        above[name] = frozenset(direct).union(*(above[each] for each in direct))
    return above


def in_order(depends: Mapping[str, Sequence[str]]) -> list[str]:
    """The ids of a graph without cycles, dependencies first."""
    return list(TopologicalSorter(depends).static_order())


def find_cycle(nodes: Sequence[WorkflowNode]) -> list[str] | None:
    """Return one cycle as a list of ids that ends where it starts, or ``None``."""
    depends = {node.id: node.depends_on for node in nodes}
    done: set[str] = set()
    for root in depends:
        path: list[str] = []
        on_path: set[str] = set()
        stack: list[tuple[str, bool]] = [(root, False)]
        while stack:
            name, leaving = stack.pop()
            if leaving:
                path.pop()
                on_path.discard(name)
                done.add(name)
            elif name in on_path:
                return [*path[path.index(name) :], name][::-1]
            elif name not in done:
                path.append(name)
                on_path.add(name)
                stack.append((name, True))
                stack.extend((needed, False) for needed in depends[name])
    return None


def wake_time(node_id: str, text: str) -> int:
    """Parse an RFC 3339 instant to milliseconds since the epoch.

    Raises:
        InvalidInput: If it is not an instant with a zone.
    """
    try:
        parsed = datetime.fromisoformat(text.upper())  # RFC 3339 lets T and Z be small
    except ValueError:
        parsed = None
    if parsed is None or parsed.tzinfo is None:
        raise InvalidInput(
            f"wake_at of node {node_id!r} is {text!r}; give an RFC 3339 instant with a zone, "
            "such as 2026-03-13T09:00:00Z"
        )
    try:
        return round(parsed.timestamp() * 1000)
    except (OverflowError, ValueError):
        raise InvalidInput(f"wake_at of node {node_id!r} is {text!r}, which is out of range") from None
