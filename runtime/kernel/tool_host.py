"""The kernel: decides every governed call, in one fixed order.

Look up, scopes, policy, grant, limits, input. The decision is made where the call runs, every time, from the
workspace file that this process loaded; what the caller, a message or the model says can only narrow it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from runtime.core.chain import Content, call_digest
from runtime.core.intents import intent_layer
from runtime.core.model import (
    TURN_TOOL,
    Decision,
    Effect,
    ExecutionContext,
    NetworkScope,
    PolicyDecision,
    Scope,
    ToolOutput,
)
from runtime.core.policy import (
    CompiledPolicy,
    PolicyContext,
    PolicyResult,
    compile_policy,
    enforced,
)
from runtime.core.predicates import intent_of
from runtime.core.scope_grant import ScopeGrant, ScopeRule, compile_grant
from runtime.core.scopes import intersect
from runtime.core.value_conditions import Environment
from runtime.errors import ConfigurationError, ErrorCode, InvalidInput
from runtime.kernel.listing import Capability, Forecasts, GovernedTool
from runtime.kernel.listing import policy_context as policy_context  # what policy is shown of a call
from runtime.kernel.policy_hooks import PolicyHooks
from runtime.kernel.verdict import Call, Grant, Verdict, VerdictKind, reasons
from runtime.store.ids import new_id
from runtime.tools.declare import ToolDefinition
from runtime.tools.registry import ToolRegistry
from runtime.workspace import Workspace

TURN_DESCRIPTION = "Make one governed model call and return its normalised output."


class ToolHost:
    """Decides calls under one workspace file and one set of tools.

    Args:
        workspace: The ceiling.
        registry: The tools that can be called.
    """

    def __init__(self, workspace: Workspace, registry: ToolRegistry) -> None:
        self.workspace = workspace
        self.registry = registry
        self._policies: dict[str | None, CompiledPolicy] = {}
        self._hooks = PolicyHooks.load(workspace.file.policies.entry_points, workspace.base_dir)

    @cached_property
    def _intents(self) -> Any:
        return self.workspace.intents

    def queue_of(self, tool_name: str) -> str:
        """The queue on which calls of a tool run; unknown tools are refused on ``tools``."""
        tool = self.registry.get(tool_name)
        return tool.queue if tool else "tools"

    # --- deciding ---------------------------------------------------------------------------------

    def decide(self, call: Call) -> Verdict:
        """Decide one call; every outcome is a value, so that it leaves a receipt."""
        try:
            content = Content.of(call.input)
        except InvalidInput as error:
            return _refuse(Content.of(None), Effect.ONCE, ErrorCode.INVALID_INPUT, str(error))
        is_turn = call.tool_name == TURN_TOOL
        tool = None if is_turn else self.registry.get(call.tool_name)
        if tool is None and not is_turn:
            return _refuse(
                content,
                Effect.READ,
                ErrorCode.TOOL_NOT_FOUND,
                f"tool {call.tool_name!r} is not registered; tools.modules of the workspace file names "
                "what is loaded",
                denied=True,
            )
        if call.catalog is not None and tool is not None and call.tool_name not in call.catalog:
            return _refuse(
                content,
                tool.effect,
                ErrorCode.TOOL_NOT_FOUND,
                f"tool {call.tool_name!r} is not in the turn's tool_catalog; use one of those, or answer",
                denied=True,
            )
        required = tool.scopes if tool else _turn_scopes(call.network)
        try:
            scopes = self._grant(call.ctx, tool, required)
        except ConfigurationError as error:
            return _refuse(content, Effect.READ, ErrorCode.SCOPE_DENIED, str(error), denied=True)
        effect = tool.effect if tool else Effect.READ
        return _Decision(self, call, content, tool, effect, tuple(required), scopes).verdict()

    def _grant(self, ctx: ExecutionContext, tool: ToolDefinition | None, required: Any) -> ScopeGrant:
        if tool is None:
            # The task's scopes bound tools; a turn is bounded by its profile's hosts.
            return compile_grant(self.workspace.allowed_scopes, self._lane_scopes(ctx), required).under(None)
        key = (ctx.lane_id, tool.name)
        rule = self._scope_rules.get(key)
        if rule is None:
            lane = self._lane_scopes(ctx)
            rule = compile_grant(self.workspace.allowed_scopes, lane, required, tool.scopes_mode)
            self._scope_rules[key] = rule
        return rule.under(ctx.allowed_scopes)

    @cached_property
    def _scope_rules(self) -> dict[tuple[str | None, str], ScopeRule]:
        """By lane and tool, which both come from the workspace file and are few."""
        return {}

    def _lane_scopes(self, ctx: ExecutionContext) -> tuple[Scope, ...] | None:
        return None if ctx.lane_id is None else self.workspace.lane(ctx.lane_id).allowed_scopes

    def common_scopes(self, ctx: ExecutionContext, required: tuple[Scope, ...]) -> tuple[Scope, ...]:
        """What every layer of a context has in common with what a tool requires, reserved or not."""
        narrowing = [each for each in (self._lane_scopes(ctx), ctx.allowed_scopes) if each is not None]
        return intersect(self.workspace.allowed_scopes, *narrowing, required).scopes

    def policy(self, lane_id: str | None) -> CompiledPolicy:
        """The compiled layers that apply in a lane."""
        compiled = self._policies.get(lane_id)
        if compiled is None:
            layers = [*self.workspace.policy_layers(lane_id)]
            layers.append(
                intent_layer(self._intents, sticky_approvals=self.workspace.approvals.sticky_approvals)
            )
            compiled = self._policies[lane_id] = compile_policy(layers)
        return compiled

    @cached_property
    def _environment(self) -> Mapping[str, str]:
        """The variables that rules ask about, as this process had them first; never those of secrets."""
        lanes = [lane.policies for lane in self.workspace.file.lanes if lane.policies is not None]
        rules = [rule for part in (self.workspace.file.policies, *lanes) for rule in part.rules]
        parts = [part for rule in rules if rule.when is not None for part in rule.when.walk()]
        names = {part.comparison.name for part in parts if isinstance(part, Environment)}
        names -= self.workspace.secret_variables
        return {name: os.environ[name] for name in names if name in os.environ}

    def judge(self, call: Call) -> PolicyResult:
        """What policy decides of a call: the rules first, then the workspace's own functions."""
        context = self.policy_context(call)
        result = self.policy(call.ctx.lane_id).evaluate(context)
        return self._hooks.tighten(result, context) if self._hooks.functions else result

    def policy_context(self, call: Call) -> PolicyContext:
        """What policy is shown of a call: the intent and the counters are the journal's, not the caller's."""
        metadata = {
            **call.ctx.metadata,
            "agent_intent": intent_of({"agent_intent": call.intent}),
            "agent_turn_index": call.turn_index,
            "agent_tool_call_count": call.tool_calls,
        }
        return policy_context(
            call.ctx,
            call.tool_name,
            call.input,
            metadata,
            now=datetime.fromtimestamp(call.now / 1000, UTC),
            environment=self._environment,
            budget={"turns": call.turn_index, "tool_calls": call.tool_calls},
        )

    def digest_of(self, call: Call, request_id: str) -> str:
        """The digest of one exact call, to which a grant is bound."""
        tool = self.registry.get(call.tool_name)
        return call_digest(
            request_id=request_id,
            session_id=call.session_id,
            node_id=call.node_id,
            call_id=call.call_id,
            tool_name=call.tool_name,
            tool_digest=tool.digest if tool else call.tool_name,
            principal=call.ctx.principal,
            input_text=Content.of(call.input).text,
        )

    # --- discovery --------------------------------------------------------------------------------

    def list_governed_tools(self, ctx: ExecutionContext) -> list[GovernedTool]:
        """List the tools that some input could call in a context, in the order of registration.

        Tools whose scopes do not fit, and tools that policy denies whatever their input, are left out. What
        is listed without ``depends_on_input`` is decided so at every call. A context that states an intent is
        listed under it, as its calls are decided, even if it is blank or unknown; where it states none and
        intents are configured, every listed tool depends on the one that the model chooses.
        """
        return list(self._listing(ctx))

    def _listing(self, ctx: ExecutionContext) -> Iterator[GovernedTool]:
        policy = self.policy(ctx.lane_id)
        forecasts = Forecasts(
            policy, ctx, self._intents, self._environment, hooked=bool(self._hooks.functions)
        )
        for tool in self.registry:
            scopes = self._grant(ctx, tool, tool.scopes)
            if scopes.denied:
                continue
            found = forecasts.of(tool.name)
            if found.listed:
                yield GovernedTool(
                    Capability(tool.name, tool.description, tool.input_schema),
                    found.decision,
                    found.depends_on_input,
                    scopes.granted,
                )


def _turn_scopes(network: tuple[str, ...]) -> tuple[Scope, ...]:
    if not network:
        return ()
    return (NetworkScope(posture="allowlist", allowlist_entries=network),)


def _refuse(
    content: Content,
    effect: Effect,
    code: str,
    message: str,
    *,
    denied: bool = False,
    details: dict[str, Any] | None = None,
    **values: Any,
) -> Verdict:
    return Verdict(
        kind=VerdictKind.REFUSE,
        input=content,
        effect=effect,
        output=ToolOutput.failed(code, message, details),
        denied=denied,
        **values,
    )


@dataclass(slots=True)
class _Decision:
    """One decision in progress: the checks after look-up, in order."""

    host: ToolHost
    call: Call
    content: Content
    tool: ToolDefinition | None
    effect: Effect
    required: tuple[Scope, ...]
    scopes: ScopeGrant
    decisions: tuple[PolicyDecision, ...] = ()

    def verdict(self) -> Verdict:
        """Run the checks; the first refusal stands."""
        return self._scope_refusal() or self._policy_verdict()

    def _no(self, code: str, message: str, details: dict[str, Any] | None = None, **values: Any) -> Verdict:
        values = {"denied": True, "granted": self.scopes.granted, **values}
        return _refuse(
            self.content, self.effect, code, message, details=details,
            requested=self.required, decisions=self.decisions,
            tool_digest=self.tool.digest if self.tool else None, **values,
        )  # fmt: skip

    def _scope_refusal(self) -> Verdict | None:
        if not self.scopes.denied:
            return None
        if self.scopes.reserved:
            return self._reserved_refusal()
        self.decisions = ({"policy_id": "kernel.scope.boundary", "decision": "deny"},)
        missing = "; ".join(
            f"{each.layer or 'the tool'} does not allow {_shown(each.scope)}" for each in self.scopes.missing
        )
        return self._no(
            ErrorCode.SCOPE_DENIED,
            f"{self.call.tool_name} needs scopes that it does not get: {missing or 'none is left'}; "
            "allow them in security.allowed_scopes, the lane and the context, or leave the tool out",
            {
                "scope_requested": [scope.model_dump(exclude_none=True) for scope in self.required],
                "scope_allowed": [scope.model_dump(exclude_none=True) for scope in self.scopes.granted],
            },
        )

    def _reserved_refusal(self) -> Verdict:
        """No layer can allow this; the receipt says what they have in common all the same."""
        self.decisions = ({"policy_id": "kernel.scope.reserved-path", "decision": "deny"},)
        return self._no(
            ErrorCode.SCOPE_DENIED,
            f"{self.call.tool_name} needs scopes that no call gets: "
            f"{'; '.join(f'{_shown(scope)} is reserved' for scope in self.scopes.reserved)}; "
            "let the tool write elsewhere",
            {"reserved_scopes": [scope.pattern for scope in self.scopes.reserved]},
            granted=self.host.common_scopes(self.call.ctx, self.required),
        )

    def _policy_verdict(self) -> Verdict:
        call = self.call
        result = self.host.judge(call)
        self.decisions = result.decisions
        if result.decision is Decision.DENY:
            why = reasons(enforced(result.decisions), "deny") or _unallowed(result.doubts)
            return self._no(
                ErrorCode.POLICY_DENIED,
                f"{call.tool_name} is denied under intent {call.intent!r}: {why}",
                {"policy_decisions": list(result.decisions), "agent_intent": call.intent},
            )
        asked = result.decision is Decision.APPROVAL_REQUIRED or (
            call.grant is not None and call.grant.binding
        )
        return (
            self._limit_refusal()
            or (self._grant_refusal_or_park() if asked else None)
            or self._input_refusal()
            or self._run(call.grant if asked else None)
        )

    def _limit_refusal(self) -> Verdict | None:
        deadline = self.call.deadline_at
        if deadline is not None and deadline <= self.call.now:
            return self._no(
                ErrorCode.LIMIT_EXCEEDED,
                f"the deadline of node {self.call.node_id!r} has passed; give it a longer one, or less to do",
                {"limit": "deadline", "maximum": deadline},
            )
        limit = self.host.workspace.limits.max_tool_calls_per_session
        if self.tool is None or limit is None or self.call.tool_calls < limit:
            return None
        return self._no(
            ErrorCode.LIMIT_EXCEEDED,
            f"limits.max_tool_calls_per_session is {limit}, and {self.call.tool_calls} tool calls were "
            "made before this one; answer with what is known, or raise the limit",
            {"limit": "max_tool_calls_per_session", "maximum": limit},
        )

    def _input_refusal(self) -> Verdict | None:
        if self.tool is None:
            return None
        try:
            self.tool.parse(self.call.input)
        except InvalidInput as error:
            return self._no(ErrorCode.INVALID_INPUT, str(error), error.details, denied=False)
        return None

    def _grant_refusal_or_park(self) -> Verdict | None:
        """``None`` says that the call's grant fits it, is unused and holds."""
        grant, call = self.call.grant, self.call
        if grant is None:
            return self._park()
        if grant.consumed_by not in (None, call.step_id):
            return self._grant_refused("already_consumed", "the approval was used by another call")
        if grant.status != "approved":
            return self._grant_refused(grant.status, f"the approval request is {grant.status}")
        if grant.consumed_by is None and grant.expires_at <= call.now:
            return self._grant_refused("expired", "the approval has expired")
        if self.host.digest_of(call, grant.request_id) != grant.digest:
            return self._grant_refused(
                "action_digest_mismatch", "the call, its tool or its principal is not what was approved"
            )
        return None

    def _grant_refused(self, reason: str, message: str) -> Verdict:
        request_id = self.call.grant.request_id if self.call.grant else None
        return self._no(
            ErrorCode.POLICY_DENIED,
            f"{self.call.tool_name} may not run under approval {request_id}: {message}; ask for a new one",
            {"reason": reason, "request_id": request_id, "policy_decisions": list(self.decisions)},
        )

    def _park(self) -> Verdict:
        call = self.call
        request_id = new_id("apr")
        asked = [item for item in enforced(self.decisions) if item["decision"] == "approval_required"]
        why = reasons(asked, "approval_required") or "policy requires it by default"
        return Verdict(
            kind=VerdictKind.PARK,
            input=self.content,
            effect=self.effect,
            output=ToolOutput.failed(
                ErrorCode.APPROVAL_REQUIRED,
                f"{call.tool_name} needs approval: {why}",
                {
                    "request_id": request_id,
                    "tool_name": call.tool_name,
                    "task_id": call.ctx.task_id,
                    "run_id": call.ctx.run_id,
                    "policy_decisions": asked,
                },
            ),
            denied=True,
            requested=self.required,
            granted=self.scopes.granted,
            decisions=self.decisions,
            tool_digest=self.tool.digest if self.tool else None,
            request_id=request_id,
            digest=self.host.digest_of(self.call, request_id),
        )

    def _run(self, grant: Grant | None) -> Verdict:
        return Verdict(
            kind=VerdictKind.RUN,
            input=self.content,
            effect=self.effect,
            requested=self.required,
            granted=self.scopes.granted,
            decisions=self.decisions,
            tool_digest=self.tool.digest if self.tool else None,
            request_id=grant.request_id if grant else None,
            digest=grant.digest if grant else None,
        )


def _unallowed(doubts: tuple[str, ...]) -> str:
    """What to say of a denial that no rule made."""
    text = "no rule and no intent allows it; add the tool to an intent's allow_tools, or write an allow rule"
    return f"{text} (left out for doubt: {'; '.join(doubts)})" if doubts else text


def _shown(scope: Scope) -> str:
    if isinstance(scope, NetworkScope):
        return f"network {', '.join(scope.allowlist_entries or (scope.posture,))}"
    return f"{scope.access} {scope.pattern}"
