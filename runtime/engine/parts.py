"""What the engine works with: one of each, wired by the composition root."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from runtime.core.model import ToolOutput
from runtime.engine.leases import Leases
from runtime.kernel.tool_host import ToolHost
from runtime.live.hints import Publisher
from runtime.live.redis_live import Live
from runtime.providers.client import ProviderClient
from runtime.settings import Settings
from runtime.store.engine import Database
from runtime.tools.declare import ToolDefinition
from runtime.tools.reconcile import Reconciliation

Progress = Callable[[Any], None]


class ToolRunner(Protocol):
    """Runs one tool call: in this process, or in a process of its own."""

    def run(
        self,
        tool: ToolDefinition,
        input_json: Any,
        context: Mapping[str, Any],
        *,
        deadline_s: float,
        on_progress: Progress,
    ) -> ToolOutput:
        """Run the tool.

        Raises:
            ToolCrashed: If its process died in mid-call.
            ToolTimedOut: If it did not end in time.
        """
        ...

    def reconcile(self, tool: ToolDefinition, idempotency_key: str, *, deadline_s: float) -> Reconciliation:
        """Ask a tool what became of a call that was cut off. Never raises."""
        ...


@dataclass(slots=True)
class Parts:
    """The parts of one process.

    Attributes:
        settings: Leases, heartbeats and limits on crashes.
        database: The system of record.
        live: Evidence streams and approval waits.
        publisher: Sends hints.
        host: The kernel.
        provider: Calls models.
        runner: Runs tools.
        leases: Claims of this process.
        environ: Where keys are read.
    """

    settings: Settings
    database: Database
    live: Live
    publisher: Publisher
    host: ToolHost
    provider: ProviderClient
    runner: ToolRunner
    leases: Leases
    environ: Mapping[str, str]

    @property
    def lease_ms(self) -> int:
        """How long a claim lasts without a heartbeat."""
        return round(self.settings.lease_seconds * 1000)


def worker_name() -> str:
    """This process, as receipts name it: host and process id."""
    return f"{socket.gethostname()}:{os.getpid()}"
