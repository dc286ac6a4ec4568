"""What one advance has read and will write: all of it at once, so that its cost does not grow with width."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import Connection, text

from runtime.core.chain import Content
from runtime.core.model import NodeStatus
from runtime.engine.publishing import REPUBLISH_MS
from runtime.live.hints import Hint
from runtime.store.rows import continuation_row
from runtime.store.sessions import StoredSession, add_control_receipt
from runtime.store.tables import ContinuationRow, NodeRow, StepRow
from runtime.store.write import Change, update_rows

_STEP_COLUMNS = ("status", "due_at", "publish_at", "cites", "transcript_digest", "transcript_bytes")
_NODE_COLUMNS = ("reason", "wake_at", "result", "error", "head")

_STILL_PENDING = "(r.status IS NULL OR step.status = 'pending')"
"""A step that somebody started from `pending` meanwhile is left alone."""


_STILL_WAITING = "(r.status NOT IN ('ready', 'scheduled') OR node.status = 'pending')"
"""So is its node."""


def named(values: Iterable[str]) -> tuple[str, dict[str, str]]:
    """Placeholders and parameters of an ``IN`` list."""
    found = {f"v{k}": value for k, value in enumerate(sorted(values))}
    return ", ".join(f":{name}" for name in found), found


@dataclass(slots=True)
class Promotion:
    """Rows to write under the session's lock, and the hints that follow from them."""

    connection: Connection
    session: StoredSession
    steps: list[dict[str, Any]] = field(default_factory=list)
    nodes: list[dict[str, Any]] = field(default_factory=list)
    continuations: list[dict[str, Any]] = field(default_factory=list)
    hints: list[Hint] = field(default_factory=list)

    @property
    def now(self) -> int:
        """The database's clock, in milliseconds since the epoch."""
        return self.session.now

    def rows(self, sql: str, **values: Any) -> Sequence[Any]:
        """Read under the lock."""
        return self.connection.execute(text(sql), values).all()

    def promote(self, step_id: str, *, due: int | None = None, **values: Any) -> None:
        """Make a pending step ready; one that is due later is published when it is due."""
        later = due is not None and due > self.now
        self._step(
            step_id,
            status="ready",
            due_at=due if later else self.now,
            publish_at=due if later else self.now + REPUBLISH_MS,
            **values,
        )

    def keep_pending(self, step_id: str, **values: Any) -> None:
        """Fill in a pending step that has to wait for a resume."""
        self._step(step_id, **values)

    def skip(self, step_id: str) -> None:
        """Note that a pending step will never run."""
        self._step(step_id, status="cancelled")

    def propagated(self, step_ids: Iterable[str]) -> None:
        """Note that nothing more follows from these steps."""
        for step_id in step_ids:
            self._step(step_id, propagated=True)

    def _step(self, step_id: str, **values: Any) -> None:
        row: dict[str, Any] = {"id": step_id, **dict.fromkeys((*_STEP_COLUMNS, "propagated"))}
        self.steps.append(row | values)

    def move(self, node_uid: str, status: NodeStatus, reason: str | None = None, **values: Any) -> None:
        """Put a node into another state."""
        row: dict[str, Any] = {"uid": node_uid, "status": status, **dict.fromkeys(_NODE_COLUMNS)}
        self.nodes.append(row | {"reason": reason} | values)

    def note(self, kind: str, node_id: str | None) -> None:
        """Note why the session moved."""
        self.continuations.append(continuation_row(self.session.id, kind, self.now, node_id))

    def control(
        self, kind: str, fields: Mapping[str, Any], cites: Sequence[str], contents: Sequence[Content] = ()
    ) -> str:
        """Write one receipt into the session's control chain at once; return its hash."""
        change = Change()
        receipt = add_control_receipt(change, self.session, kind, fields, cites=cites, contents=contents)
        change.apply(self.connection)
        self.session = replace(self.session, control_n=self.session.control_n + 1, control_head=receipt.hash)
        return receipt.hash

    def write(self) -> None:
        """Write what was gathered so far."""
        update_rows(self.connection, StepRow, "id", self.steps, _STILL_PENDING)
        update_rows(self.connection, NodeRow, "uid", self.nodes, _STILL_WAITING)
        change = Change()
        change.insert(ContinuationRow, self.continuations)
        change.apply(self.connection)
        self.steps, self.nodes, self.continuations = [], [], []
