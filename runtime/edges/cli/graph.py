"""Draws a session's graph as text: one row per node, in layers, each with what it follows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from runtime.edges.cli.show import local, printable

if TYPE_CHECKING:
    from rich.console import RenderableType

    from runtime.store.sessions import StoredNode

COLOURS = {
    "completed": "green",
    "running": "cyan",
    "ready": "cyan",
    "error": "red",
    "cancelled": "red",
    "waiting_approval": "yellow",
    "suspended": "yellow",
    "scheduled": "blue",
}


def layers(nodes: Sequence[StoredNode]) -> list[list[StoredNode]]:
    """Nodes by the length of the longest way to them; each follows nodes of earlier layers only."""
    depth: dict[str, int] = {}
    left = list(nodes)
    while left:
        met = [node for node in left if all(name in depth for name in node.depends_on)] or left
        for node in met:
            depth[node.id] = max((depth.get(name, 0) + 1 for name in node.depends_on), default=0)
        left = [node for node in left if node.id not in depth]
    found: list[list[StoredNode]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    for node in nodes:
        found[depth[node.id]].append(node)
    return found


def draw(nodes: Sequence[StoredNode]) -> RenderableType:
    """The graph as a table without lines; a layer's nodes hang together and run side by side."""
    from rich.table import Table
    from rich.text import Text

    table = Table("", "node", "status", "turns", "calls", "follows", "", box=None, pad_edge=False)
    for sign, node in _signed(nodes):
        status = Text(node.status.value, style=COLOURS.get(node.status, ""))
        cells = (str(node.turns), str(node.tool_calls), ", ".join(node.depends_on), _remark(node))
        table.add_row(sign, Text(printable(node.id)), status, *(Text(printable(cell)) for cell in cells))
    return table


def mermaid(nodes: Sequence[StoredNode]) -> str:
    """The graph as a Mermaid flowchart (mermaid.js.org), for documents and issues.

    Boxes are named by number, since ids may hold what Mermaid reads as its own.
    """
    names = {node.id: f"n{number}" for number, node in enumerate(nodes)}
    lines = ["flowchart TD"]
    for node in nodes:
        label = f"{printable(node.id)}<br/>{node.status.value}".replace('"', "#quot;")
        lines.append(f'    {names[node.id]}["{label}"]:::{node.status.value}')
    lines += [
        f"    {names[needed]} --> {names[node.id]}"
        for node in nodes
        for needed in node.depends_on
        if needed in names
    ]
    lines += [f"    classDef {status} stroke:{colour}" for status, colour in COLOURS.items()]
    return "\n".join(lines)


def _signed(nodes: Sequence[StoredNode]) -> Iterator[tuple[str, StoredNode]]:
    for layer in layers(nodes):
        for index, node in enumerate(layer):
            first, last = index == 0, index == len(layer) - 1
            yield ("──" if first and last else "┬─" if first else "╰─" if last else "├─"), node


def _remark(node: StoredNode) -> str:
    if node.pending_request_id is not None:
        return f"approval {node.pending_request_id}"
    if node.error is not None:
        return f"{node.error.get('code')}: {node.error.get('message')}"
    if node.status == "scheduled" and node.wake_at is not None:
        return f"wakes {local(node.wake_at)}"
    return node.reason or ""
