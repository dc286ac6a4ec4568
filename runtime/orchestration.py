"""The orchestration helpers of the documents, as functions over an open runtime."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from runtime.agent_runtime import AgentRuntime, as_context
from runtime.core.model import ExecutionContext, Workflow, WorkflowNode
from runtime.engine.handle import SessionHandle
from runtime.engine.loop import LoopResult, run_loop
from runtime.engine.sessions import DEFAULT_MAX_TURNS, Definition
from runtime.errors import InvalidInput

LINEAR_NODE = "session"
"""Id of the only node of a linear session."""

Context = ExecutionContext | Mapping[str, Any]


def run_governed_agent_loop(
    *,
    runtime: AgentRuntime,
    execute_turn_input: Mapping[str, Any],
    ctx: Context,
    max_turns: int = DEFAULT_MAX_TURNS,
) -> LoopResult:
    """Make turns and tool calls in this process until the model is done, a call waits, or turns run out.

    Args:
        runtime: An open runtime.
        execute_turn_input: Input of the first turn; its messages begin the conversation.
        ctx: On whose behalf.
        max_turns: Turns after which the loop ends with an error.
    """
    return run_loop(runtime.parts, execute_turn_input, as_context(ctx), max_turns)


def start_governed_agent_session(
    *,
    runtime: AgentRuntime,
    execute_turn_input: Mapping[str, Any],
    ctx: Context,
    max_turns: int = DEFAULT_MAX_TURNS,
) -> SessionHandle:
    """Start a linear session on the workers; return at once.

    A repeat with the same session id and definition returns the same session.

    Args:
        runtime: An open runtime.
        execute_turn_input: Input of the first turn.
        ctx: On whose behalf; names the session.
        max_turns: Turns after which the session is suspended until it is resumed.

    Raises:
        InvalidInput: On a malformed input; nothing is saved.
        SessionConflict: If the session exists with another definition or principal.
    """
    context = as_context(ctx)
    node = WorkflowNode(id=LINEAR_NODE, execute_turn_input=dict(execute_turn_input))
    runtime.start(Definition("session", (node,), context, max_turns=max_turns))
    return SessionHandle(runtime.parts, context.session_id)


def resume_governed_agent_session(
    *,
    runtime: AgentRuntime,
    session_id: str,
    messages: Iterable[Mapping[str, Any]] | None = None,
    principal: str | None = None,
    idempotency_key: str | None = None,
    max_turns_per_invocation: int | None = None,
) -> SessionHandle:
    """Go on with a linear session: say something more, or continue what was suspended or failed.

    Args:
        runtime: An open runtime.
        session_id: The session.
        messages: What is said next; without any, what was suspended or failed goes on.
        principal: Who resumes; must be the principal for whom the session was started.
        idempotency_key: A repeat with the same key changes nothing.
        max_turns_per_invocation: Turns until the session is suspended again; default: as it was started.

    Raises:
        SessionNotFound: If there is no such session.
        SessionConflict: If it was cancelled, is paused, belongs to another principal, or is in the middle of
            a turn.
    """
    return runtime.resume(
        session_id,
        principal=principal,
        messages=messages,
        idempotency_key=idempotency_key,
        max_turns_per_invocation=max_turns_per_invocation,
    )


def start_governed_agent_workflow(
    *,
    runtime: AgentRuntime,
    workflow: Workflow | Mapping[str, Any],
    ctx: Context,
    max_turns_per_invocation: int = DEFAULT_MAX_TURNS,
) -> SessionHandle:
    """Start a workflow on the workers; return at once.

    Raises:
        InvalidInput: On a malformed definition; nothing is saved.
        SessionConflict: If the session exists with another definition or principal.
    """
    defined = _workflow(workflow)
    context = as_context(ctx)
    if defined.session_id != context.session_id:
        raise InvalidInput(
            f"workflow.session_id is {defined.session_id!r} and ctx.session_id {context.session_id!r}; "
            "make them the same"
        )
    runtime.start(Definition("workflow", defined.nodes, context, max_turns=max_turns_per_invocation))
    return SessionHandle(runtime.parts, context.session_id)


def resume_governed_agent_workflow(
    *,
    runtime: AgentRuntime,
    session_id: str,
    principal: str | None = None,
    idempotency_key: str | None = None,
    max_turns_per_invocation: int | None = None,
) -> SessionHandle:
    """Go on with a workflow: wake what is due, retry what failed, continue what was suspended.

    On a workflow that has completed this changes nothing but the record.

    Args:
        runtime: An open runtime.
        session_id: The session.
        principal: Who resumes; must be the principal for whom the session was started.
        idempotency_key: A repeat with the same key changes nothing.
        max_turns_per_invocation: Turn budget of the nodes that go on; default: each node's own.

    Raises:
        SessionNotFound: If there is no such session.
        SessionConflict: If it was cancelled, is paused, or belongs to another principal.
    """
    return runtime.resume(
        session_id,
        principal=principal,
        idempotency_key=idempotency_key,
        max_turns_per_invocation=max_turns_per_invocation,
    )


async def arun_governed_agent_loop(**arguments: Any) -> LoopResult:
    """`run_governed_agent_loop` without blocking the event loop."""
    return await asyncio.to_thread(lambda: run_governed_agent_loop(**arguments))


async def astart_governed_agent_session(**arguments: Any) -> SessionHandle:
    """`start_governed_agent_session` without blocking the event loop."""
    return await asyncio.to_thread(lambda: start_governed_agent_session(**arguments))


async def astart_governed_agent_workflow(**arguments: Any) -> SessionHandle:
    """`start_governed_agent_workflow` without blocking the event loop."""
    return await asyncio.to_thread(lambda: start_governed_agent_workflow(**arguments))


def _workflow(given: Workflow | Mapping[str, Any]) -> Workflow:
    if isinstance(given, Workflow):
        return given
    try:
        return Workflow.model_validate(dict(given))
    except ValidationError as error:
        raise InvalidInput(f"workflow is malformed: {error}") from None
