"""What a tool is told about the call it serves."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter

from runtime.core.canonical import canonical_json
from runtime.core.model import Json, Scope

_SCOPES: TypeAdapter[tuple[Scope, ...]] = TypeAdapter(tuple[Scope, ...])


def _unheard(data: Json) -> None:
    """Where progress goes when nobody listens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolContext:
    """The second argument of every tool.

    Attributes:
        session_id: The session that the call belongs to.
        node_id: The node of its graph.
        run_id: The application's run.
        task_id: The application's task within the run.
        call_id: Name of this call within its node.
        idempotency_key: The same for every run of this call; give it to the target, so that a repeat is the
            same effect.
        principal: Who asked.
        metadata: Plain JSON of the application.
        scopes: What the call may touch.
        deadline: Reading of `time.monotonic` after which the call is cut off; None for no limit.
    """

    session_id: str
    node_id: str
    run_id: str
    task_id: str
    call_id: str
    idempotency_key: str
    principal: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    scopes: tuple[Scope, ...] = ()
    deadline: float | None = None
    on_progress: Callable[[Json], None] = field(default=_unheard, repr=False, compare=False)

    def progress(self, data: Json) -> None:
        """Report how far the call has come.

        Args:
            data: Plain JSON.

        Raises:
            InvalidInput: If it is not plain, finite JSON.
        """
        canonical_json(data)
        self.on_progress(data)

    def seconds_left(self) -> float | None:
        """How long the call may still take; None for no limit."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def to_json(self) -> dict[str, Json]:
        """All but the deadline and the listener, as plain JSON for `from_json`."""
        return {
            "session_id": self.session_id,
            "node_id": self.node_id,
            "run_id": self.run_id,
            "task_id": self.task_id,
            "call_id": self.call_id,
            "idempotency_key": self.idempotency_key,
            "principal": self.principal,
            "metadata": dict(self.metadata),
            "scopes": [scope.model_dump(mode="json") for scope in self.scopes],
        }

    @staticmethod
    def from_json(
        content: Mapping[str, Json],
        *,
        deadline: float | None = None,
        on_progress: Callable[[Json], None] = _unheard,
    ) -> ToolContext:
        """The inverse of `to_json`."""
        scopes = _SCOPES.validate_python(content["scopes"])
        return ToolContext(**{**content, "scopes": scopes}, deadline=deadline, on_progress=on_progress)
