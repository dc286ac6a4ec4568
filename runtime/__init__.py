"""Run governed LLM agents on Celery, Redis and SQL.

The public names are loaded when they are first used, so that a tool's process, which needs three of them,
does not pay for all.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.agent_runtime import AgentRuntime
    from runtime.core.messages import (
        build_governed_tool_catalog,
        create_approval_resolution_message,
        create_host_context_messages,
        create_tool_result_message,
    )
    from runtime.core.model import (
        ExecutionContext,
        ForEach,
        RetryPolicy,
        ToolOutput,
        When,
        Workflow,
        WorkflowNode,
    )
    from runtime.errors import AgentRuntimeError, ToolError
    from runtime.orchestration import (
        arun_governed_agent_loop,
        astart_governed_agent_session,
        astart_governed_agent_workflow,
        resume_governed_agent_session,
        resume_governed_agent_workflow,
        run_governed_agent_loop,
        start_governed_agent_session,
        start_governed_agent_workflow,
    )
    from runtime.tools.context import ToolContext
    from runtime.tools.declare import tool
    from runtime.tools.reconcile import Reconciliation

_HOMES = {
    "AgentRuntime": "runtime.agent_runtime",
    "build_governed_tool_catalog": "runtime.core.messages",
    "create_approval_resolution_message": "runtime.core.messages",
    "create_host_context_messages": "runtime.core.messages",
    "create_tool_result_message": "runtime.core.messages",
    "ExecutionContext": "runtime.core.model",
    "ForEach": "runtime.core.model",
    "RetryPolicy": "runtime.core.model",
    "ToolOutput": "runtime.core.model",
    "When": "runtime.core.model",
    "Workflow": "runtime.core.model",
    "WorkflowNode": "runtime.core.model",
    "AgentRuntimeError": "runtime.errors",
    "ToolError": "runtime.errors",
    "arun_governed_agent_loop": "runtime.orchestration",
    "astart_governed_agent_session": "runtime.orchestration",
    "astart_governed_agent_workflow": "runtime.orchestration",
    "resume_governed_agent_session": "runtime.orchestration",
    "resume_governed_agent_workflow": "runtime.orchestration",
    "run_governed_agent_loop": "runtime.orchestration",
    "start_governed_agent_session": "runtime.orchestration",
    "start_governed_agent_workflow": "runtime.orchestration",
    "ToolContext": "runtime.tools.context",
    "tool": "runtime.tools.declare",
    "Reconciliation": "runtime.tools.reconcile",
}

__all__ = [
    "AgentRuntime",
    "AgentRuntimeError",
    "ExecutionContext",
    "ForEach",
    "Reconciliation",
    "RetryPolicy",
    "ToolContext",
    "ToolError",
    "ToolOutput",
    "When",
    "Workflow",
    "WorkflowNode",
    "arun_governed_agent_loop",
    "astart_governed_agent_session",
    "astart_governed_agent_workflow",
    "build_governed_tool_catalog",
    "create_approval_resolution_message",
    "create_host_context_messages",
    "create_tool_result_message",
    "resume_governed_agent_session",
    "resume_governed_agent_workflow",
    "run_governed_agent_loop",
    "start_governed_agent_session",
    "start_governed_agent_workflow",
    "tool",
]


def __getattr__(name: str) -> object:
    """Load a public name from the module that it lives in."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'runtime' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
