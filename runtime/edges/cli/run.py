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
    from runtime import AgentRuntime, ExecutionContext, Workflow
    from runtime.core.model import SessionStatus
    from runtime.engine.handle import SessionHandle

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

    workflow, ctx, options_ = read_workflow(file)
    with open_runtime(workspace, make_database=True) as runtime:
        handle = _start(runtime, workflow, ctx, options_)
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


def _start(
    runtime: AgentRuntime, workflow: Workflow, ctx: ExecutionContext, given: dict[str, int]
) -> SessionHandle:
    from runtime import start_governed_agent_workflow

    return start_governed_agent_workflow(runtime=runtime, workflow=workflow, ctx=ctx, **given)


# --- the file -------------------------------------------------------------------------------------


def read_workflow(path: Path) -> tuple[Workflow, ExecutionContext, dict[str, int]]:
    """Read a workflow file.

    Returns:
        The graph, the context, and ``max_turns_per_invocation`` if the file says it.

    Raises:
        InvalidInput: If it cannot be read or is wrong; all problems are told with their lines.
    """
    from pydantic import ValidationError

    from runtime.core.model import ExecutionContext, Workflow
    from runtime.errors import InvalidInput
    from runtime.workspace_yaml import Problem, read_yaml

    try:
        document = read_yaml(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read ({error.strerror}); name a workflow file") from None
    except UnicodeDecodeError:
        raise InvalidInput(f"{path} is not UTF-8; save the file as UTF-8") from None
    _refuse(path, document.problems)
    content = document.value
    if not isinstance(content, dict):
        raise InvalidInput(f"{path} holds no workflow; write session_id and nodes as keys with values")
    session_id = content.get("session_id", _fresh_id())
    context = {
        "run_id": str(session_id),
        "task_id": "run",
        **{key: value for key, value in content.items() if key not in ("nodes", "max_turns")},
        "session_id": session_id,
    }
    problems: list[Problem] = []
    try:
        ctx = ExecutionContext.model_validate(context)
    except ValidationError as error:
        problems += [_problem(document, item) for item in error.errors(include_url=False)]
    try:
        graph = {"session_id": str(session_id), **({"nodes": content["nodes"]} if "nodes" in content else {})}
        workflow = Workflow.model_validate(graph)
    except ValidationError as error:
        problems += [_problem(document, item) for item in error.errors(include_url=False)]
    given = content.get("max_turns")
    if given is not None and (isinstance(given, bool) or not isinstance(given, int) or given < 1):
        place = ("max_turns",)
        problems.append(Problem(document.line(place), place, f"is {given!r} — write a number above 0"))
    _refuse(path, problems)
    return workflow, ctx, {} if given is None else {"max_turns_per_invocation": given}


def _fresh_id() -> str:
    return f"run-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def _problem(document: Any, item: Any) -> Any:
    from runtime.workspace_yaml import Problem

    place = tuple(item["loc"])
    fix = {
        "missing": "is missing — add it",
        "extra_forbidden": "is no key of a workflow file — see 'agent-runtime run --help', or remove it",
    }.get(item["type"], f"{str(item['msg'])[:1].lower()}{str(item['msg'])[1:]} — change the value")
    return Problem(document.line(place), place, fix)


def _refuse(path: Path, problems: list[Any]) -> None:
    from runtime.errors import InvalidInput

    if problems:
        texts = [problem.at(path.name) for problem in sorted(problems, key=lambda each: each.line or 0)]
        raise InvalidInput("\n".join(texts), details={"problems": texts})


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
