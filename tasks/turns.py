"""The task that runs one turn."""

from __future__ import annotations

from typing import Any

from tasks.arguments import taking_ids
from tasks.worker import carried, consumed_queues, never_raising, runtime_of


@taking_ids("step_id", "session_id", "node_id")
def execute_turn(self: Any, *, step_id: str, session_id: str, node_id: str) -> None:
    """Run one governed model call.

    Session and node ids are for people who watch; the step's row says what is to be done.
    """
    with never_raising(self, f"turn {step_id!r}"):
        runtime_of(self).executor().run_step(step_id, consumed_queues(self), carried(self))
