"""Plays the story on a stage and reports what came of it, as read back from the database."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from runtime import ExecutionContext, start_governed_agent_workflow
from runtime.edges.demo.calendar_tools import Event, contents
from runtime.edges.demo.stage import Stage
from runtime.edges.demo.story import workflow
from runtime.edges.embedded import stack_environment
from runtime.errors import AgentRuntimeError, WaitTimeout
from runtime.settings import Settings

ENDED = {"completed", "error", "cancelled", "suspended"}
VERIFY_TIMEOUT_SECONDS = 60
APPROVER = "demo operator"

_IMPORTED = time.monotonic()

Decide = Callable[[Any], bool]
"""Takes a pending approval request and says yes or no."""


@dataclass(frozen=True)
class NodeReport:
    """How one node ended."""

    id: str
    status: str
    turns: int
    tool_calls: int
    result: str


@dataclass(frozen=True)
class Outcome:
    """How the session ended, and which processes ran its steps."""

    status: str
    nodes: tuple[NodeReport, ...]
    receipts: int
    worker_pids: tuple[int, ...]


@dataclass(frozen=True)
class Report:
    """What the demo prints as JSON.

    Attributes:
        session_id: The session that was played.
        status: How it ended.
        nodes: How each node ended.
        receipts: How many receipts its evidence holds.
        verified: Whether a second process found the evidence whole.
        worker_pids: Processes that ran steps.
        seconds: The whole run: from the start of this process, before it had imported anything, until the
            stack was stopped and the evidence verified.
        calendar: What the calendar holds afterwards.
        model: Who played the model.
        state_dir: Where database, calendar and logs are kept.
    """

    session_id: str
    status: str
    nodes: tuple[NodeReport, ...]
    receipts: int
    verified: bool
    worker_pids: tuple[int, ...]
    seconds: float
    calendar: tuple[Event, ...]
    model: str
    state_dir: str

    def to_json(self) -> dict[str, Any]:
        """The JSON object of ``agent-runtime demo --json``."""
        plain = asdict(self)
        plain["calendar"] = [event.model_dump(mode="json") for event in self.calendar]
        return plain

    @property
    def good(self) -> bool:
        """Whether all went as it should."""
        return self.status == "completed" and self.verified


def play(
    stage: Stage, session_id: str, *, decide: Decide, show: Callable[[Any], None], timeout: float
) -> Outcome:
    """Start the story's session, answer its approvals, and follow it to its end.

    Args:
        stage: All that runs.
        session_id: Of the new session.
        decide: Asked once for each approval request; may wait for a person.
        show: Receives each receipt as it comes, from another thread.
        timeout: Seconds that the session may take, the wait for a person not counted.

    Raises:
        WaitTimeout: The session took longer.
        ChildFailed: A worker ended by itself.
    """
    ctx = ExecutionContext(run_id=session_id, task_id="demo", session_id=session_id)
    handle = start_governed_agent_workflow(runtime=stage.runtime, workflow=workflow(session_id), ctx=ctx)
    follower = threading.Thread(target=_follow, args=(handle, show), name="demo-evidence", daemon=True)
    follower.start()
    while (status := _next_status(stage, handle, timeout)) not in ENDED:
        for request in stage.runtime.approvals(session_id):
            if request.status == "pending":
                stage.runtime.resolve_approval(
                    request_id=request.request_id, approved=decide(request), approved_by=APPROVER
                )
    follower.join(timeout=5)
    return _outcome(handle, status)


def verify(settings: Settings, session_id: str) -> bool:
    """Have a second process recompute the session's evidence from the files on disk."""
    argv = [sys.executable, "-m", "runtime.edges.cli", "evidence", "verify", session_id, "--json"]
    done = subprocess.run(
        argv,
        env=stack_environment(settings),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=VERIFY_TIMEOUT_SECONDS,
        check=False,
    )
    try:
        return done.returncode == 0 and json.loads(done.stdout)["verified"] is True
    except (ValueError, KeyError, TypeError):
        return False


def report(settings: Settings, stage: Stage, session_id: str, outcome: Outcome) -> Report:
    """Have the evidence of a session verified whose stack has been stopped, and report on the whole run."""
    verified = verify(settings, session_id)
    return Report(
        session_id=session_id,
        status=outcome.status,
        nodes=outcome.nodes,
        receipts=outcome.receipts,
        verified=verified,
        worker_pids=outcome.worker_pids,
        seconds=round(process_age(), 2),
        calendar=tuple(contents(stage.calendar)),
        model=stage.model.name,
        state_dir=os.path.relpath(settings.state_dir),
    )


def process_age() -> float:
    """Seconds since this process was started; where the system does not tell, since this import."""
    if sys.platform == "linux":
        # The 22nd field of the line, of which the second, in parentheses, may hold anything.
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.monotonic() - _IMPORTED


def _next_status(stage: Stage, handle: Any, timeout: float) -> str:
    """Wait for an end or an approval, looking after the processes meanwhile."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            return str(handle.wait(until={*ENDED, "waiting_approval"}, timeout=1.0))
        except WaitTimeout:
            stage.check()
            if time.monotonic() > deadline:
                raise


def _follow(handle: Any, show: Callable[[Any], None]) -> None:
    with suppress(AgentRuntimeError):
        for event in handle.events():
            show(event)


def _outcome(handle: Any, status: str) -> Outcome:
    nodes = tuple(
        NodeReport(
            node.id, str(node.status), node.turn_count, node.tool_call_count, _result_text(node.result)
        )
        for node in handle.nodes()
    )
    receipts = [event for event in handle.events() if not event.live]
    workers = {str(event.body.get("worker", "")) for event in receipts}  # "host:pid"
    pids = sorted(int(pid) for pid in (worker.rpartition(":")[2] for worker in workers) if pid.isdigit())
    return Outcome(status, nodes, len(receipts), tuple(pids))


def _result_text(result: Any) -> str:
    return str(result.get("assistant_message", "")) if isinstance(result, dict) else str(result or "")
