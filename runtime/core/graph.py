"""A workflow's graph: validation before anything is saved."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from runtime.core.model import WorkflowNode
from runtime.errors import InvalidInput


def validate_graph(nodes: Sequence[WorkflowNode]) -> None:
    """Refuse graphs that could never run.

    Raises:
        InvalidInput: On an empty graph, duplicate ids, unknown dependencies, or a cycle; the message
            names the id or the cycle.
    """
    if not nodes:
        raise InvalidInput("workflow.nodes is empty; define at least one node")
    known: set[str] = set()
    for node in nodes:
        if node.id in known:
            raise InvalidInput(f"node id {node.id!r} is used twice; ids must be unique in a workflow")
        known.add(node.id)
    for node in nodes:
        for name in (*node.depends_on, *node.context_from):
            if name not in known:
                raise InvalidInput(
                    f"node {node.id!r} depends on {name!r}, which is not a node; known: {sorted(known)}"
                )
        if len(set(node.depends_on)) != len(node.depends_on):
            raise InvalidInput(f"node {node.id!r} names a dependency twice: {list(node.depends_on)}")
        if node.wake_at is not None:
            wake_time(node.id, node.wake_at)
    cycle = find_cycle(nodes)
    if cycle:
        raise InvalidInput(f"the graph has a cycle: {' -> '.join(cycle)}; remove one of these edges")


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
        parsed = datetime.fromisoformat(text)
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
