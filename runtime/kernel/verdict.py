"""What the kernel is asked and what it answers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from runtime.core.chain import Content
from runtime.core.model import Effect, ExecutionContext, PolicyDecision, Scope, ToolOutput


@dataclass(frozen=True, slots=True)
class Grant:
    """An answered approval that a call brings along.

    Attributes:
        request_id: The approval request.
        status: Its stored status.
        digest: The digest of the call that was approved.
        expires_at: Milliseconds since the epoch.
        consumed_by: The step that used it, if any.
        binding: Whether the call may run under this grant only, whatever policy says now: it was parked for
            it. A grant that a host merely mentions is used where policy asks for one.
    """

    request_id: str
    status: str
    digest: str
    expires_at: int
    consumed_by: str | None
    binding: bool


@dataclass(frozen=True, slots=True)
class Call:
    """One call to decide.

    Attributes:
        tool_name: As requested.
        input: Plain JSON.
        ctx: Context of the session or the host.
        session_id: Session of the call.
        node_id: Node of the call.
        step_id: Step of the call.
        call_id: Id under which the model, or the host, knows the call.
        intent: What the model said; ``None`` if nothing.
        turn_index: Turns before this call in its node.
        tool_calls: Tool calls before this call in its node.
        grant: An answered approval.
        now: Database milliseconds at which the call was loaded.
        deadline_at: Milliseconds at which the call's node may start nothing more; ``None`` for never.
        catalog: Names that the turn which asks for the call was given; ``None`` narrows nothing.
        network: Addresses a turn needs (``host:port``); they are granted to turns alone.
    """

    tool_name: str
    input: Any
    ctx: ExecutionContext
    session_id: str
    node_id: str
    step_id: str
    call_id: str
    intent: str | None
    turn_index: int
    tool_calls: int
    now: int
    grant: Grant | None = None
    deadline_at: int | None = None
    catalog: Collection[str] | None = None
    network: tuple[str, ...] = ()


class VerdictKind(StrEnum):
    """What is to happen with a call."""

    RUN = "run"
    REFUSE = "refuse"
    PARK = "park"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The kernel's decision on one call.

    Attributes:
        kind: Run it, refuse it, or park it until a person answers.
        input: The canonical input.
        effect: The tool's declared effect.
        output: For refusals and parks: what the caller is told.
        denied: For refusals: whether policy, scopes or a limit said no (else the input was wrong).
        requested: Scopes that the tool requires.
        granted: Scopes that the call gets.
        decisions: Every policy rule that matched.
        tool_digest: Digest of the tool's definition.
        request_id: For parks: the new approval request; for granted calls: the one that was answered.
        digest: Digest that a grant must fit.
    """

    kind: VerdictKind
    input: Content
    effect: Effect
    output: ToolOutput | None = None
    denied: bool = False
    requested: tuple[Scope, ...] = ()
    granted: tuple[Scope, ...] = ()
    decisions: tuple[PolicyDecision, ...] = ()
    tool_digest: str | None = None
    request_id: str | None = None
    digest: str | None = None

    def receipt_fields(self) -> dict[str, Any]:
        """What the started receipt says of the decision."""
        fields: dict[str, Any] = {
            **self.input.cited_as("input"),
            "effect": self.effect,
            "scope_requested": [scope.model_dump(exclude_none=True) for scope in self.requested],
            "scope_allowed": [scope.model_dump(exclude_none=True) for scope in self.granted],
            "scope_enforced": [scope.model_dump(exclude_none=True) for scope in self.granted],
            "enforcement": "advisory",
            "policy_decisions": list(self.decisions),
        }
        if self.tool_digest is not None:
            fields["tool_digest"] = self.tool_digest
        if self.kind is VerdictKind.RUN and self.request_id is not None:
            fields["grant"] = self.request_id
        return fields


def reasons(decisions: Sequence[Mapping[str, Any]], decision: str) -> str:
    """The reasons, else the ids, of the rules that decided so, joined for a message."""
    said = [
        str(item.get("reason") or item["policy_id"]) for item in decisions if item["decision"] == decision
    ]
    return "; ".join(said)
