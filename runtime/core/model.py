"""The nouns that every layer shares: scopes, contexts, outputs, states and graph definitions.

Plain frozen values, no I/O. Pydantic is used where dicts of the documents are accepted as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from runtime.core.durations import Duration
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
    """The outcome of one governed call: data, or an error.

    Attributes:
        success: Whether the call ran and returned a valid output.
        data: Plain JSON; ``None`` on failure.
        error: Code, message and details on failure; beside a success a warning, where a tool gives one.
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


def _several(value: Any) -> Any:
    """One value where a list is expected stands for a list of one."""
    return [value] if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], Field(min_length=1, strict=False), BeforeValidator(_several)]
"""One name, or a list of them."""

NodeEnd = Literal["completed", "error", "skipped"]


class When(Frozen):
    """A condition on how an upstream node ended; a node whose condition is false is skipped.

    Attributes:
        node: An id out of ``depends_on``.
        status: How that node may have ended; ``completed`` unless given. Asking for ``error`` handles it: the
            failure does not fail the session.
        intent: What that node's last turn may have said it was about; any, unless given.
    """

    node: Annotated[str, Field(min_length=1)]
    status: Annotated[tuple[NodeEnd, ...], Field(min_length=1, strict=False), BeforeValidator(_several)] = (
        "completed",
    )
    intent: Names | None = None


class ForEach(Frozen):
    """Where a node's instances come from: a list in the structured output of an upstream node.

    Attributes:
        node: An id out of ``depends_on``. Its last message is read as JSON.
        path: Keys and indexes that lead to the list, from the top.
    """

    node: Annotated[str, Field(min_length=1)]
    path: tuple[str | int, ...] = Field(default=(), strict=False)


class RetryPolicy(Frozen):
    """How often a failed call is made again, and after which delays.

    The delay before attempt n + 1 is ``first_delay * 2**(n - 1)``, at most ``longest_delay``, shortened by a
    random share of up to ``jitter``. A delay is a due time in the journal: nobody waits for it.

    Attributes:
        attempts: Calls in all.
        first_delay: Before the second attempt.
        longest_delay: Upper bound of each delay.
        jitter: Share of the delay that chance may take away, 0 to 1.
        retry_on: Error codes that are worth another attempt; ``None`` means what the failure says of itself.
        within: Attempts end so long after the first one started.
    """

    attempts: Annotated[int, Field(ge=1, le=100)] = 6
    first_delay: Duration = timedelta(milliseconds=500)
    longest_delay: Duration = timedelta(seconds=60)
    jitter: Annotated[float, Field(ge=0, le=1, strict=False)] = 0.2
    retry_on: Names | None = None
    within: Duration | None = None


class WorkflowNode(Frozen):
    """One agent loop of a workflow.

    Attributes:
        id: Name within the workflow.
        execute_turn_input: Input of ``agent:execute-turn`` for the node's first turn.
        depends_on: Ids of nodes that must have ended first.
        wake_at: RFC 3339 instant before which the node does not start.
        wake_after: Time to wait after the last dependency ended, or after the start.
        context_from: Ids of upstream nodes whose results are put before this node's messages.
        max_turns: Turn budget per invocation; exceeding it suspends the node.
        on_error: What the node's failure means: ``fail`` ends the session in error once nothing else can
            move, ``continue`` lets its dependants run.
        when: Conditions on nodes out of ``depends_on``; the node is skipped unless all of them hold.
        for_each: A list, or where to find one; the node runs once for each item and is complete when all of
            its instances, ``id[0]`` to ``id[n-1]``, are.
        retry: How often and when a failed turn is made again.
        deadline: The node ends in error so long after its first turn became due.
    """

    id: Annotated[str, Field(min_length=1, max_length=200)]
    execute_turn_input: dict[str, Any]
    depends_on: tuple[str, ...] = Field(default=(), strict=False)
    wake_at: str | None = None
    wake_after: Duration | None = None
    context_from: tuple[str, ...] = Field(default=(), strict=False)
    max_turns: Annotated[int, Field(gt=0)] | None = None
    on_error: Literal["fail", "continue"] = "fail"
    when: tuple[When, ...] = Field(default=(), strict=False)
    for_each: ForEach | tuple[Any, ...] | None = None
    retry: RetryPolicy | None = None
    deadline: Duration | None = None

    @field_validator("when", mode="before")
    @classmethod
    def _one_condition(cls, value: Any) -> Any:
        return (value,) if isinstance(value, dict | When) else value

    @field_validator("for_each", mode="before")
    @classmethod
    def _items(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @property
    def plain(self) -> bool:
        """Whether nothing but the end of its dependencies decides when the node starts."""
        timed = self.wake_at is not None or self.wake_after is not None
        return not timed and not self.when and self.for_each is None

    @property
    def single_turn(self) -> bool:
        """Whether the node's first turn ends it: it has no tools, or no turn after the first."""
        return self.max_turns == 1 or self.execute_turn_input.get("tool_catalog") == []


class Workflow(Frozen):
    """A session's graph of nodes, as the application defines it."""

    session_id: str
    nodes: tuple[WorkflowNode, ...] = Field(strict=False)
