"""What a context may call: forecasts of the decisions on tools before any call is made.

What is known only when a call is made is open: its input, the turn, the time, what was used up, and the
intent where the context states none. A forecast holds every decision that some call may meet.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from runtime.core.intents import Intent, possibilities
from runtime.core.model import Decision, ExecutionContext, Scope
from runtime.core.policy import ON_TOOL_REQUEST, CompiledPolicy, PolicyContext, PolicyForecast
from runtime.core.predicates import UNKNOWN, intent_of


@dataclass(frozen=True, slots=True)
class Capability:
    """What a listing says of a tool itself."""

    name: str
    description: str
    input_schema: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class GovernedTool:
    """One entry of a governed listing.

    Attributes:
        capability: Name, description and input schema.
        decision: The loosest decision that some input may lead to.
        depends_on_input: Whether the decision can vary with what is known only when the call is made: its
            input, the intent where the context states none, the turn, the time, what was used up.
        scopes: What a call would be granted.
    """

    capability: Capability
    decision: Decision
    depends_on_input: bool
    scopes: tuple[Scope, ...]


class Forecasts:
    """Forecasts for the tools of one listing; nothing is kept for the next.

    Args:
        policy: The compiled layers.
        ctx: The context that is listed for.
        intents: By id.
        environment: The variables that rules ask about.
        hooked: Whether functions of the workspace's own may tighten the decisions.
    """

    def __init__(
        self,
        policy: CompiledPolicy,
        ctx: ExecutionContext,
        intents: Mapping[str, Intent],
        environment: Mapping[str, str],
        *,
        hooked: bool,
    ) -> None:
        metadata = {
            **ctx.metadata,
            "agent_intent": intent_of(ctx.metadata),
            "agent_turn_index": UNKNOWN,
            "agent_tool_call_count": UNKNOWN,
        }
        context = policy_context(ctx, "", None, metadata, environment=environment)
        stated = ctx.metadata.get("agent_intent") is not None
        contexts = (context,) if stated else possibilities(context, intents)
        self._policy = policy
        self._hooked = hooked
        self._certain = {Decision.DENY} if None in contexts else set()
        self._asked = [_forecasts(policy, each) for each in contexts if each is not None]
        self._known: dict[Hashable, PolicyForecast] = {}

    def of(self, tool_name: str) -> PolicyForecast:
        """What may be decided of a tool; tools that every rule treats alike are asked about once."""
        like: Hashable = tool_name
        if isinstance(self._policy, CompiledPolicy):
            like = self._policy.likeness(ON_TOOL_REQUEST, tool_name)
        found = self._known.get(like)
        if found is None:
            found = self._known[like] = self._forecast(tool_name)
        return found

    def _forecast(self, tool_name: str) -> PolicyForecast:
        found = set(self._certain)
        for forecast in self._asked:
            if len(found) < len(Decision):
                found |= forecast(tool_name).decisions
        if self._hooked and found != {Decision.DENY}:
            found |= {Decision.DENY, Decision.APPROVAL_REQUIRED}
        return PolicyForecast(frozenset(found))


def _forecasts(policy: CompiledPolicy, context: PolicyContext) -> Callable[[str], PolicyForecast]:
    """What a policy forecasts of tools in one context; a policy of another kind is asked tool by tool."""
    if isinstance(policy, CompiledPolicy):
        return policy.outlook(context).forecast
    return lambda name: policy.evaluate_unknown_arguments(replace(context, tool_name=name))


def policy_context(
    ctx: ExecutionContext,
    tool_name: str,
    arguments: Any,
    metadata: dict[str, Any],
    *,
    now: datetime | None = None,
    environment: Mapping[str, str] | None = None,
    budget: Mapping[str, float] | None = None,
) -> PolicyContext:
    """What policy is shown of a call.

    Args:
        ctx: On whose behalf it is made.
        tool_name: The tool.
        arguments: Its input.
        metadata: The context's, with the intent and the counters of the call.
        now: The instant of the decision; ``None`` where it is not known.
        environment: The variables that rules ask about.
        budget: What the node has used up, by name; what is absent is not known.
    """
    return PolicyContext(
        trigger=ON_TOOL_REQUEST,
        run_id=ctx.run_id,
        task_id=ctx.task_id,
        tool_name=tool_name,
        tool_arguments=arguments,
        execution_metadata=metadata,
        allowed_intents=ctx.allowed_intents,
        now=now,
        environment=environment or {},
        budget=budget or {},
    )
