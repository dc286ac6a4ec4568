"""From steps that became ready to the hints that are sent for them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from runtime.core.canvas import Shape
from runtime.core.model import StepKind
from runtime.live.hints import AdvanceHint, ChainHint, ChordHint, Hint, StepHint
from runtime.store.ids import node_uid, step_id
from runtime.store.steps import LoadedStep

REPUBLISH_MS = 5_000
"""How long after a commit the sweep waits for the writer's own hint to be acted on."""


def first_turn_hint(session_id: str, node_id: str, priority: int = 0) -> StepHint:
    """The hint for a node's first turn."""
    uid = node_uid(session_id, node_id)
    return StepHint(step_id(uid, 0, 0), session_id, node_id, StepKind.TURN, "turns", priority)


def hint_of(row: dict[str, Any], priority: int = 0) -> StepHint:
    """The hint for a step's row."""
    return StepHint(
        step_id=row["id"],
        session_id=row["session_id"],
        node_id=row["node_id"],
        kind=StepKind(row["kind"]),
        queue=row["queue"],
        priority=priority,
    )


def step_hint(step: LoadedStep) -> StepHint:
    """The hint for a step that was loaded."""
    return StepHint(step.id, step.session_id, step.node_id, StepKind(step.kind), step.queue, step.priority)


def hints_of(session_id: str, shapes: Iterable[Shape], priority: int = 0) -> list[Hint]:
    """The hints for nodes whose first turns became ready, in the shapes that were planned."""
    return [_hint_of(session_id, shape, priority) for shape in shapes]


def _hint_of(session_id: str, shape: Shape, priority: int) -> Hint:
    turns = tuple(first_turn_hint(session_id, name, priority) for name in shape.nodes)
    if shape.joins:
        body = first_turn_hint(session_id, shape.body, priority) if shape.body else AdvanceHint(session_id)
        return ChordHint(turns, body)
    if shape.then is not None:
        return ChainHint(turns[0], first_turn_hint(session_id, shape.then, priority))
    return turns[0]
