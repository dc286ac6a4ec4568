"""The nouns that every layer shares: scopes, contexts, outputs, states and graph definitions.

Plain frozen values, no I/O. Pydantic is used where dicts of the documents are accepted as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from pydantic import BaseModel, ConfigDict, Field

from runtime.errors import GovernedCallFailed

Json = Any
"""Plain JSON: ``None``, ``bool``, ``int``, ``float``, ``str``, ``list`` or ``dict`` with string keys."""

TURN_TOOL = "agent:execute-turn"
"""Name of the tool that makes one governed model call."""


class Frozen(BaseModel):
    """Base of the validated, immutable values."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


# --- scopes -------------------------------------------------------------------------------------


class PathScope(Frozen):
    """May read or write the paths that a glob names, relative to the workspace root."""

    type: Literal["path"] = "path"
    pattern: Annotated[str, Field(min_length=1)]
    access: Literal["read", "write"]


class NetworkScope(Frozen):
    """May reach nothing (``off``), the listed ``host:port`` entries, or everything (``full``)."""

    type: Literal["network"] = "network"
    posture: Literal["off", "allowlist", "full"]
    allowlist_entries: tuple[str, ...] | None = Field(default=None, strict=False)


Scope = Annotated[PathScope | NetworkScope, Field(discriminator="type")]


# --- decisions, effects, states -----------------------------------------------------------------


class Decision(StrEnum):
    """What policy says of one call."""

    ALLOW = "allow"
    DENY = "deny"
    APPROVAL_REQUIRED = "approval_required"


class Effect(StrEnum):
    """What a tool changes outside our database, hence what a crash in mid-call means."""

    READ = "read"
    IDEMPOTENT = "idempotent"
    ONCE = "once"


class StepKind(StrEnum):
    """A step is one model call or one tool call."""

    TURN = "turn"
    TOOL_CALL = "tool_call"


class Driver(StrEnum):
    """Who runs a step: a Celery worker, or the application's own process."""

    WORKER = "worker"
    HOST = "host"


class StepStatus(StrEnum):
    """State of one step of the journal."""

    PENDING = "pending"
    READY = "ready"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    DENIED = "denied"
    WAITING_APPROVAL = "waiting_approval"
    IN_DOUBT = "in_doubt"
    QUARANTINED = "quarantined"
    CANCELLED = "cancelled"


class NodeStatus(StrEnum):
    """State of one node of a session's graph."""

    PENDING = "pending"
    READY = "ready"
    RUNNING = "running"
    SCHEDULED = "scheduled"
    WAITING_APPROVAL = "waiting_approval"
    SUSPENDED = "suspended"
    COMPLETED = "completed"
    ERROR = "error"
    SKIPPED = "skipped"
    CANCELLED = "cancelled"


class SessionStatus(StrEnum):
    """State of a session; only ``completed``, ``error`` and ``cancelled`` are stored."""

    ACTIVE = "active"
    PAUSED = "paused"
    WAITING_APPROVAL = "waiting_approval"
    SUSPENDED = "suspended"
    SCHEDULED = "scheduled"
    COMPLETED = "completed"
    ERROR = "error"
    CANCELLED = "cancelled"


# --- policy ---------------------------------------------------------------------------------------


class PolicyDecision(TypedDict):
    """One matched rule, as receipts and error details show it."""

    policy_id: str
    decision: str
    reason: NotRequired[str]


# --- context and outputs --------------------------------------------------------------------------


class ExecutionContext(Frozen):
    """On whose behalf a call runs and what narrows it.

    Attributes:
        run_id: The application's run; groups host-driven calls.
        task_id: The application's task within the run.
        session_id: 1-200 characters without control characters, otherwise opaque.
        allowed_scopes: ``None`` narrows nothing; ``[]`` allows no tool that requires a scope.
        allowed_intents: Intents the model may choose; ``None`` means all that are configured.
        lane_id: A lane of the workspace file whose scopes narrow this call.
        principal: Who asked; sessions remember it.
        metadata: Plain JSON of the application; ``agent_intent``, ``agent_turn_index``,
            ``agent_tool_call_count`` and ``approval_request_id`` have a meaning.
    """

    run_id: str
    task_id: str
    session_id: str
    allowed_scopes: tuple[Scope, ...] | None = Field(default=None, strict=False)
    allowed_intents: tuple[str, ...] | None = Field(default=None, strict=False)
    lane_id: str | None = None
    principal: str | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)


class ToolFailure(BaseModel):
    """Why a governed call did not succeed."""

    model_config = ConfigDict(frozen=True)

    code: str
    message: str
    details: dict[str, Any] = Field(default_factory=dict)


class ToolOutput(BaseModel):
    """The outcome of one governed call: data or an error, never both.

    Attributes:
        success: Whether the call ran and returned a valid output.
        data: Plain JSON; ``None`` on failure.
        error: Code, message and details on failure.
        metadata: What the runtime adds: step id, receipt hashes, provider call count.
    """

    model_config = ConfigDict(frozen=True)

    success: bool
    data: Any = None
    error: ToolFailure | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)

    def unwrap(self) -> Any:
        """Return ``data``, or raise the error.

        Raises:
            GovernedCallFailed: With the code, message and details of ``error``.
        """
        if self.success:
            return self.data
        failure = self.error or ToolFailure(code="UNKNOWN", message="the call failed without an error")
        raise GovernedCallFailed(
            f"{failure.code}: {failure.message}", code=failure.code, details=failure.details
        )

    @staticmethod
    def failed(code: str, message: str, details: Mapping[str, Any] | None = None) -> ToolOutput:
        """An unsuccessful output."""
        return ToolOutput(
            success=False,
            error=ToolFailure(code=str(code), message=message, details=dict(details or {})),
        )


# --- graph definitions ----------------------------------------------------------------------------


class WorkflowNode(Frozen):
    """One agent loop of a workflow.

    Attributes:
        id: Name within the workflow.
        execute_turn_input: Input of ``agent:execute-turn`` for the node's first turn.
        depends_on: Ids of nodes that must be complete first.
        wake_at: RFC 3339 instant before which the node does not start.
        context_from: Ids of nodes whose results are put before this node's messages.
        max_turns: Turn budget per invocation; exceeding it suspends the node.
    """

    id: Annotated[str, Field(min_length=1, max_length=200)]
    execute_turn_input: dict[str, Any]
    depends_on: tuple[str, ...] = Field(default=(), strict=False)
    wake_at: str | None = None
    context_from: tuple[str, ...] = Field(default=(), strict=False)
    max_turns: Annotated[int, Field(gt=0)] | None = None


class Workflow(Frozen):
    """A session's graph of nodes, as the application defines it."""

    session_id: str
    nodes: tuple[WorkflowNode, ...] = Field(strict=False)
