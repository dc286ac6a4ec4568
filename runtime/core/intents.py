"""Intents: what the model says a turn is about decides which tools it may call.

Configured intents become the pack layer of policy. The layer opts in to loosening, so that an
intent's tools work under ``default_decision: deny``. It fails closed: where intents are configured, a
call whose intent is missing, blank, unknown or not allowed by the context is denied. The turn
tool itself is exempt, since a turn is what an intent comes from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Final

from pydantic import Field, StringConstraints, TypeAdapter, ValidationError

from runtime.core.conditions import (
    AllOf,
    AnyOf,
    IntentEquals,
    IntentReachable,
    Not,
    PolicyContext,
    ToolNameIn,
    When,
)
from runtime.core.model import TURN_TOOL, Decision, Frozen
from runtime.core.policy import CompiledPolicy, PolicyForecast, PolicyLayer, PolicyRule
from runtime.core.predicates import UNKNOWN, Mark
from runtime.errors import ConfigurationError

_ToolName = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
_ToolNames = Annotated[tuple[_ToolName, ...], Field(strict=False)]


class Intent(Frozen):
    """One entry of ``agent_runtime.intents``.

    Attributes:
        description: What the model is told about the intent.
        allow_tools: Tools that may be called under the intent; names are trimmed.
        approval_required_tools: Tools that may be called once a person has approved the call. They need
            not be in ``allow_tools``; a tool in both lists needs approval.
    """

    description: str = ""
    allow_tools: _ToolNames
    approval_required_tools: _ToolNames = ()


_INTENTS: Final = TypeAdapter(dict[str, Intent])


def parse_intents(configured: Any) -> dict[str, Intent]:
    """Read ``agent_runtime.intents``.

    Args:
        configured: The mapping of the workspace file; ``None`` configures none.

    Raises:
        ConfigurationError: Naming the key, what is wrong there, and the value.
    """
    if configured is None:
        return {}
    try:
        return _INTENTS.validate_python(configured)
    except ValidationError as problem:
        first = problem.errors(include_url=False)[0]
        key = ".".join(["agent_runtime.intents", *map(str, first["loc"])])
        raise ConfigurationError(f"{key}: {first['msg']}; found {first['input']!r}") from None


def intent_layer(intents: Mapping[str, Intent], *, sticky_approvals: bool = True) -> PolicyLayer:
    """The pack layer: the turn tool is allowed, and each intent opens its tools.

    Args:
        intents: By id; empty gates nothing.
        sticky_approvals: Keep an approval that any intent the context allows requires, whichever
            intent the model chose. False asks for it under the requiring intent only, as the
            reference does.
    """
    rules = [PolicyRule(id="agent-turn-allow", decision=Decision.ALLOW, when=_tools([TURN_TOOL]))]
    for name, intent in intents.items():
        rules += _intent_rules(name, intent, sticky_approvals)
    if intents:
        chosen = AnyOf(conditions=tuple(IntentEquals(intent=name) for name in intents))
        rules.append(
            PolicyRule(
                id="intent-deny",
                decision=Decision.DENY,
                reason="the call has no intent that is configured and allowed",
                when=AllOf(conditions=(Not(condition=_tools([TURN_TOOL])), Not(condition=chosen))),
            )
        )
    return PolicyLayer(level="pack", allow_loosening=True, rules=tuple(rules))


def _intent_rules(name: str, intent: Intent, sticky_approvals: bool) -> list[PolicyRule]:
    asked = [tool for tool in intent.approval_required_tools if tool != TURN_TOOL]
    chosen = IntentEquals(intent=name)
    asks = IntentReachable(intent=name) if sticky_approvals else chosen
    others = Not(condition=_tools([*intent.allow_tools, *asked, TURN_TOOL]))
    rows: list[tuple[str, Decision, str, tuple[When, ...]]] = [
        ("allow", Decision.ALLOW, f"intent {name!r} allows the tool", (chosen, _tools(intent.allow_tools))),
        ("approval", Decision.APPROVAL_REQUIRED, f"intent {name!r} requires approval", (asks, _tools(asked))),
        ("deny", Decision.DENY, f"intent {name!r} does not list the tool", (chosen, others)),
    ]
    return [
        PolicyRule(
            id=f"intent-{kind}:{name}", decision=decision, reason=reason, when=AllOf(conditions=conditions)
        )
        for kind, decision, reason, conditions in rows
        if kind == "deny" or (intent.allow_tools if kind == "allow" else asked)
    ]


def _tools(names: tuple[str, ...] | list[str]) -> ToolNameIn:
    return ToolNameIn(names=frozenset(names))


def reachable(intents: Mapping[str, Intent], allowed_intents: tuple[str, ...] | None) -> tuple[str, ...]:
    """Ids of the configured intents that the model may choose.

    Args:
        intents: By id.
        allowed_intents: The context's; ``None`` narrows nothing, unknown ids are ignored.
    """
    return tuple(name for name in intents if allowed_intents is None or name in allowed_intents)


def forecast(policy: CompiledPolicy, context: PolicyContext, intents: Mapping[str, Intent]) -> PolicyForecast:
    """What policy may decide of a tool before the model has chosen an intent and an input.

    A context that states an intent, be it blank or unknown, is taken at its word. Where none is stated and
    intents are configured, it is the union over those that the model may choose and a denial, which a call
    without one of them meets. Where none are configured, an intent is metadata like any other, and not
    known yet.

    Args:
        policy: Layers including `intent_layer`.
        context: The call as far as it is known; its arguments are ignored.
        intents: By id.
    """
    found: set[Decision] = set()
    for each in possibilities(context, intents):
        if each is None:
            found.add(Decision.DENY)
        elif len(found) < len(Decision):
            found |= policy.evaluate_unknown_arguments(each).decisions
    return PolicyForecast(frozenset(found))


def possibilities(context: PolicyContext, intents: Mapping[str, Intent]) -> tuple[PolicyContext | None, ...]:
    """The contexts that a call may be decided in, by intent; ``None`` stands for a denial of any call."""
    if context.execution_metadata.get("agent_intent") is not None:
        return (context,)
    if not intents:
        return (_choosing(context, UNKNOWN),)
    chosen = reachable(intents, context.allowed_intents)
    return (None, *(_choosing(context, name) for name in chosen))


def _choosing(context: PolicyContext, intent: str | Mark) -> PolicyContext:
    return replace(context, execution_metadata={**context.execution_metadata, "agent_intent": intent})
