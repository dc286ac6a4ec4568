"""Tool processes for a pool of threads: each call borrows one."""

from __future__ import annotations

import queue
from collections.abc import Callable, Mapping

from runtime.core.model import Json, ToolOutput
from runtime.tools.process import OnProgress, ToolProcess, ToolSetup
from runtime.tools.reconcile import Reconciliation


class ToolProcessPool:
    """Lends each call a `ToolProcess` of its own, so that threads can run tools side by side."""

    def __init__(self, setup: ToolSetup) -> None:
        self._setup = setup
        self._idle: queue.LifoQueue[ToolProcess] = queue.LifoQueue()
        self._closed = False

    def run(
        self,
        name: str,
        input_json: Json,
        ctx_json: Mapping[str, Json],
        *,
        deadline_s: float,
        on_progress: OnProgress | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> ToolOutput:
        """As `ToolProcess.run`, in an idle process or a new one."""
        process = self._take()
        try:
            return process.run(
                name,
                input_json,
                ctx_json,
                deadline_s=deadline_s,
                on_progress=on_progress,
                cancelled=cancelled,
            )
        finally:
            self._give_back(process)

    def reconcile(self, name: str, idempotency_key: str, *, deadline_s: float) -> Reconciliation:
        """As `ToolProcess.reconcile`."""
        process = self._take()
        try:
            return process.reconcile(name, idempotency_key, deadline_s=deadline_s)
        finally:
            self._give_back(process)

    def close(self) -> None:
        """End the idle processes now, and the others when their calls end."""
        self._closed = True
        self._close_idle()

    def _take(self) -> ToolProcess:
        try:
            return self._idle.get_nowait()
        except queue.Empty:
            return ToolProcess(self._setup)

    def _give_back(self, process: ToolProcess) -> None:
        self._idle.put(process)
        if self._closed:
            self._close_idle()

    def _close_idle(self) -> None:
        while True:
            try:
                self._idle.get_nowait().close()
            except queue.Empty:
                return
