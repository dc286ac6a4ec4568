"""The task that moves a session on."""

from __future__ import annotations

from typing import Any

from tasks.arguments import taking_ids
from tasks.worker import never_raising, runtime_of


@taking_ids("session_id")
def advance(self: Any, *, session_id: str) -> None:
    """Promote what waits in a session, and settle it when nothing of it can move."""
    with never_raising(self, f"advance of session {session_id!r}"):
        runtime_of(self).executor().advance(session_id)
