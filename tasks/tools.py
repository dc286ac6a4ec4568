"""The task that runs one tool call."""

from __future__ import annotations

from typing import Any

from tasks.worker import consumed_queues, never_raising, runtime_of


def execute_tool_call(self: Any, *, step_id: str, session_id: str, node_id: str) -> None:
    """Run one governed tool call.

    Session and node ids are for people who watch; the step's row says what is to be done.
    """
    with never_raising(self, f"tool call {step_id}"):
        runtime_of(self).executor().run_step(step_id, consumed_queues(self))
