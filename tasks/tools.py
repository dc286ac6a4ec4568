"""The task that runs one tool call."""

from __future__ import annotations

from typing import Any

from tasks.arguments import taking_ids
from tasks.worker import carried, consumed_queues, never_raising, runtime_of


@taking_ids("step_id", "session_id", "node_id")
def execute_tool_call(self: Any, *, step_id: str, session_id: str, node_id: str) -> None:
    """Run one governed tool call.

    Session and node ids are for people who watch; the step's row says what is to be done.
    """
    with never_raising(self, f"tool call {step_id!r}"):
        runtime_of(self).executor().run_step(step_id, consumed_queues(self), carried(self))
