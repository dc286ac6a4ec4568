"""Two ways to run a tool call: in this process, or in a tool process of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from runtime.core.model import Json, ToolOutput
from runtime.tools.context import ToolContext
from runtime.tools.declare import ToolDefinition
from runtime.tools.pool import ToolProcessPool
from runtime.tools.process import ToolSetup
from runtime.tools.reconcile import Reconciliation, call_reconcile
from runtime.tools.run import call_tool


class InProcessRunner:
    """Runs a tool in the caller's thread, as host-driven calls do.

    The time limit is told to the tool as its deadline, but nothing can cut the call off.
    """

    def run(
        self,
        tool: ToolDefinition,
        input_json: Json,
        context: Mapping[str, Json],
        *,
        deadline_s: float,
        on_progress: Callable[[Any], None],
    ) -> ToolOutput:
        """Run one call here and now."""
        ctx = ToolContext.from_json(context, deadline=time.monotonic() + deadline_s, on_progress=on_progress)
        return call_tool(tool, input_json, ctx)

    def reconcile(
        self,
        tool: ToolDefinition,
        idempotency_key: str,
        *,
        deadline_s: float,
    ) -> Reconciliation:
        """Ask here and now."""
        return call_reconcile(tool, idempotency_key)

    def close(self) -> None:
        """Nothing is held."""


class ProcessRunner:
    """Runs each tool in a process apart, which can be killed without harm to the worker.

    Args:
        setup: The modules and the environment of the processes.
    """

    def __init__(self, setup: ToolSetup) -> None:
        self._pool = ToolProcessPool(setup)

    def run(
        self,
        tool: ToolDefinition,
        input_json: Json,
        context: Mapping[str, Json],
        *,
        deadline_s: float,
        on_progress: Callable[[Any], None],
    ) -> ToolOutput:
        """Run one call in a tool process.

        Raises:
            ToolCrashed: If the process died in mid-call.
            ToolTimedOut: If the call did not end in time; the process was killed.
        """
        return self._pool.run(tool.name, input_json, context, deadline_s=deadline_s, on_progress=on_progress)

    def reconcile(self, tool: ToolDefinition, idempotency_key: str, *, deadline_s: float) -> Reconciliation:
        """Ask in a tool process; one that dies or takes too long does not know."""
        return self._pool.reconcile(tool.name, idempotency_key, deadline_s=deadline_s)

    def close(self) -> None:
        """End the idle processes."""
        self._pool.close()
