"""Run governed LLM agents on Celery, Redis and SQL."""

from runtime.agent_runtime import AgentRuntime
from runtime.core.messages import (
    build_governed_tool_catalog,
    create_approval_resolution_message,
    create_host_context_messages,
    create_tool_result_message,
)
from runtime.core.model import ExecutionContext, ToolOutput, Workflow, WorkflowNode
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

__all__ = [
    "AgentRuntime",
    "AgentRuntimeError",
    "ExecutionContext",
    "Reconciliation",
    "ToolContext",
    "ToolError",
    "ToolOutput",
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
