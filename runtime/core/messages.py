"""Messages that the host and the runtime put before the model: context, results, answers, catalogue."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

from runtime.core.canonical import canonical_json
from runtime.core.model import TURN_TOOL, ToolOutput

APPROVAL_TOOL: Final = "kernel:approval"
"""Tool name of an approval's answer when the asking tool is not named."""


class Capability(Protocol):
    """Name and description of a tool, as listings show them."""

    @property
    def name(self) -> str:
        """The tool's registered name."""

    @property
    def description(self) -> str:
        """What the model is told about it."""


class GovernedTool(Protocol):
    """One entry of a governed listing."""

    @property
    def capability(self) -> Capability:
        """The tool."""


def create_host_context_messages(
    *,
    task_summary: str | None = None,
    memory_summary: str | None = None,
    additional_context: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """System messages with what the host knows, blanks left out.

    Args:
        task_summary: What the task is about.
        memory_summary: What is remembered of earlier work.
        additional_context: Notes, in order.
    """
    notes = [("Task context", task_summary), ("Memory context", memory_summary)]
    notes += [("Additional context", note) for note in additional_context or ()]
    return [
        {"role": "system", "content": f"{heading}:\n{note.strip()}"}
        for heading, note in notes
        if note is not None and note.strip()
    ]


def create_tool_result_message(
    *, tool_name: str, tool_call_id: str, output: ToolOutput | Mapping[str, Any]
) -> dict[str, Any]:
    """The ``tool`` message that tells the model how its call ended.

    Args:
        tool_name: The tool that was called.
        tool_call_id: The call's id in the transcript.
        output: The outcome: ``data`` on success, ``error`` otherwise.
    """
    outcome = _plain(output) if isinstance(output, ToolOutput) else output
    content: dict[str, Any] = {"success": outcome["success"] is True}
    if content["success"]:
        content["data"] = outcome.get("data")
    elif "error" in outcome:
        content["error"] = outcome["error"]
    return _tool_message(tool_name, tool_call_id, content)


def create_approval_resolution_message(
    *,
    request_id: str,
    approved: bool,
    approved_by: str,
    tool_name: str | None = None,
    reason: str | None = None,
) -> dict[str, Any]:
    """The ``tool`` message that tells the model how a person answered an approval request.

    Args:
        request_id: The approval request; also the message's ``tool_call_id``.
        approved: The answer.
        approved_by: Who answered.
        tool_name: The tool that was asked about, if known.
        reason: Why, in the answerer's words; left out when empty.
    """
    approval: dict[str, Any] = {"request_id": request_id, "approved": approved, "approved_by": approved_by}
    if reason:
        approval["reason"] = reason
    return _tool_message(tool_name or APPROVAL_TOOL, request_id, {"approval": approval})


def build_governed_tool_catalog(
    *, governed_tools: Iterable[GovernedTool], exclude_tool_names: Iterable[str] = (TURN_TOOL,)
) -> list[dict[str, Any]]:
    """The ``tool_catalog`` of a turn: name and description of what the context may use.

    Args:
        governed_tools: A governed listing; its order is kept.
        exclude_tool_names: Tools to leave out; a given list replaces the default.
    """
    excluded = frozenset(exclude_tool_names)
    return [
        {"name": tool.capability.name, "description": tool.capability.description}
        for tool in governed_tools
        if tool.capability.name not in excluded
    ]


def _tool_message(tool_name: str, tool_call_id: str, content: dict[str, Any]) -> dict[str, Any]:
    # Canonical text is what every reader parses alike, and never holds what cannot be encoded.
    text = canonical_json(content)
    return {"role": "tool", "tool_name": tool_name, "tool_call_id": tool_call_id, "content": text}


def _plain(output: ToolOutput) -> dict[str, Any]:
    plain: dict[str, Any] = {"success": output.success, "data": output.data}
    if output.error is not None:
        plain["error"] = {"code": output.error.code, "message": output.error.message}
        if output.error.details:
            plain["error"]["details"] = output.error.details
    return plain
