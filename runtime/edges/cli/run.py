"""``agent-runtime run FILE``: start the workflow that a YAML file defines, and wait for its end."""

from __future__ import annotations

import secrets
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from runtime.edges.cli import options

if TYPE_CHECKING:
    from runtime import AgentRuntime
    from runtime.core.model import SessionStatus
    from runtime.engine.handle import SessionHandle
    from runtime.workspace_workflow import WorkflowFile

REFRESH_SECONDS = 0.5
SETTLED = frozenset({"completed", "error", "cancelled", "suspended"})
"""A suspended session goes on only when somebody resumes it, so there is nothing to wait for."""


def run(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A workflow: session_id, run_id, nodes, ...")],
    watch: Annotated[bool, typer.Option("--watch", help="Show the nodes while they run.")] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the end.")] = True,
    timeout: Annotated[
        float | None, typer.Option(min=0, help="Seconds to wait; the session goes on after them.")
    ] = None,
    workspace: options.Workspace = None,
    as_json: options.Json = False,
) -> None:
    """Start the workflow that FILE defines on the workers; a repeat finds the session that exists.

    The file says nodes, as applications do (id, execute_turn_input, depends_on, context_from, wake_at,
    max_turns), and if wanted session_id, run_id, task_id, principal, lane_id, allowed_scopes,
    allowed_intents, metadata and max_turns. Exit 0 if the session completed.
    """
    from runtime.edges.cli.console import note
    from runtime.edges.cli.opening import open_runtime
    from runtime.workspace_workflow import read_workflow

    defined = read_workflow(file, defaults={"session_id": _fresh_id(), "task_id": "run"})
    with open_runtime(workspace, make_database=True) as runtime:
        handle = _start(runtime, defined)
        if not wait and not watch:
            _print_result(handle, handle.status(), as_json)
            return
        try:
            status = _follow(runtime, handle, watch, as_json, timeout)
        except KeyboardInterrupt:
            note(f"session {handle.session_id!r} goes on; see 'agent-runtime sessions show'")
            raise typer.Exit(130) from None
        _print_result(handle, status, as_json)
    if status != "completed":
        raise typer.Exit(1)


def _start(runtime: AgentRuntime, defined: WorkflowFile) -> SessionHandle:
    from runtime import start_governed_agent_workflow

    given = {} if defined.max_turns is None else {"max_turns_per_invocation": defined.max_turns}
    return start_governed_agent_workflow(runtime=runtime, workflow=defined.workflow, ctx=defined.ctx, **given)


def _fresh_id() -> str:
    return f"run-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


# --- the session ----------------------------------------------------------------------------------


def _follow(
    runtime: AgentRuntime, handle: SessionHandle, watch: bool, as_json: bool, timeout: float | None
) -> SessionStatus:
    """Wait until nothing moves any more; tell of each approval that is waited for, once."""
    from contextlib import ExitStack

    from rich.console import Console
    from rich.live import Live

    from runtime.edges.cli.console import note
    from runtime.edges.cli.graph import draw
    from runtime.errors import WaitTimeout
    from runtime.store.sessions import read_nodes

    deadline = None if timeout is None else time.monotonic() + timeout
    told: set[str] = set()
    with ExitStack() as stack:
        live = (
            stack.enter_context(Live(console=Console(stderr=as_json), auto_refresh=False)) if watch else None
        )
        while True:
            status = _glance(handle)
            if live is not None:
                live.update(draw(read_nodes(runtime.parts.database, handle.session_id)), refresh=True)
            if status in SETTLED:
                return status
            for request in runtime.approvals(handle.session_id):
                if request.request_id not in told:
                    told.add(request.request_id)
                    note(f"{request.tool_name} waits: agent-runtime approvals show {request.request_id}")
            if deadline is not None and time.monotonic() > deadline:
                raise WaitTimeout(
                    f"session {handle.session_id!r} is {status} after {timeout:g} s and goes on; "
                    "see with 'agent-runtime doctor' that workers run",
                    details={"session_id": handle.session_id, "status": status},
                )


def _glance(handle: SessionHandle) -> SessionStatus:
    """Wait a moment for the end."""
    from runtime.errors import WaitTimeout

    try:
        return handle.wait(until=SETTLED, timeout=REFRESH_SECONDS)
    except WaitTimeout:
        return handle.status()


def _print_result(handle: SessionHandle, status: SessionStatus, as_json: bool) -> None:
    from runtime.edges.cli.console import write_json
    from runtime.edges.cli.show import one_line, print_lines, print_table, rfc3339

    nodes = handle.nodes()
    if as_json:
        documents = [
            {
                "id": node.id,
                "status": node.status.value,
                "reason": node.reason,
                "turns": node.turn_count,
                "tool_calls": node.tool_call_count,
                "wake_at": rfc3339(node.wake_at),
                "pending_request_id": node.pending_request_id,
                "result": node.result,
                "error": node.error,
            }
            for node in nodes
        ]
        write_json({"session_id": handle.session_id, "status": status.value, "nodes": documents})
        return
    print_table(
        ("node", "status", "turns", "calls", "result"),
        (
            (
                node.id,
                node.status.value,
                node.turn_count,
                node.tool_call_count,
                one_line(node.error or _gist(node.result), 120),
            )
            for node in nodes
        ),
    )
    print_lines(f"session {handle.session_id}: {status.value}")


def _gist(result: Any) -> Any:
    return result.get("assistant_message", result) if isinstance(result, dict) else result
