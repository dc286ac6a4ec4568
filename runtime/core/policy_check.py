"""What can be said of a policy before any call: rules that never match or matter, tools that never run.

A finding is certain: a rule that is reported changes no decision. Conditions on time, patterns and CEL
expressions count as open, and where conditions tell too many kinds of call apart to try them all, nothing
is said.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations, product
from typing import Any, Final, Literal

from runtime.core.condition import Condition
from runtime.core.conditions import (
    AllOf,
    AnyOf,
    Cel,
    IntentEquals,
    IntentReachable,
    Not,
    Time,
    ToolNameStartsWith,
)
from runtime.core.intents import Intent
from runtime.core.model import Decision
from runtime.core.period import Period
from runtime.core.policy import CompiledPolicy, Level, PolicyContext, PolicyLayer, PolicyRule
from runtime.core.policy_index import tool_names
from runtime.core.policy_machine import START, matters
from runtime.core.predicates import UNKNOWN, Bound, Field
from runtime.core.representatives import questions, representatives
from runtime.core.value_conditions import AsksValue

Severity = Literal["error", "warning"]

_MAX_KINDS: Final = 2000
"""How many kinds of call a check tries."""


@dataclass(frozen=True, slots=True)
class DeadRule:
    """A rule that never matches, or never takes effect.

    Attributes:
        level: Level of the rule's layer.
        rule: The rule.
        severity: ``error`` for an allow rule, and for a condition that contradicts itself; else ``warning``.
        problem: What is wrong and how to mend it.
    """

    level: Level
    rule: PolicyRule
    severity: Severity
    problem: str


def find_dead_rules(policy: CompiledPolicy) -> tuple[DeadRule, ...]:
    """Find rules that can never match, that an earlier one always overrides, or that never take effect."""
    alive = _effective_rules(policy)
    return tuple(_found(policy, alive))


def find_closed_tools(
    policy: CompiledPolicy, tools: Iterable[str], intents: Mapping[str, Intent], trigger: str
) -> tuple[str, ...]:
    """Names of the tools that no rule and no intent lets run, whatever the input and the metadata.

    Args:
        policy: Layers including the intents'.
        tools: Names of all tools.
        intents: By id.
        trigger: Event that tools run under.
    """
    anything = _Anything({"": UNKNOWN})
    chosen = [_Anything({"": UNKNOWN, "agent_intent": name}) for name in intents or (UNKNOWN,)]
    return tuple(
        name
        for name in tools
        if not any(
            policy.evaluate_unknown_arguments(
                PolicyContext(trigger, "", "", name, execution_metadata=metadata, environment=anything)
            ).listed
            for metadata in chosen
        )
    )


class _Anything(dict[str, Any]):
    """Metadata, or an environment, of which nothing is known but what is in it."""

    def get(self, key: str, default: Any = None) -> Any:
        """The value; unknown where there is none."""
        return super().get(key, UNKNOWN)


def _found(policy: CompiledPolicy, alive: set[int]) -> Iterator[DeadRule]:
    before: list[tuple[PolicyLayer, PolicyRule]] = []
    for order, layer, rule in _rules(policy):
        if rule.mode == "log_only":
            continue
        if rule.when is not None and not _satisfiable(rule.when):
            yield _never_matches(layer, rule)
            continue
        witness = None if rule.when is None else _witness(rule.when)
        cover = next((each for each in before if _covers(each[1], rule, witness)), None)
        if cover is not None:
            yield _shadowed(layer, rule, *cover)
        elif rule.decision is not Decision.DENY and order not in alive:
            yield _without_effect(layer, rule)
        if rule.decision is Decision.DENY:
            before.append((layer, rule))


def _rules(policy: CompiledPolicy) -> Iterator[tuple[int, PolicyLayer, PolicyRule]]:
    """The rules with their order, counted as the compiled policy counts."""
    order = 0
    for layer in policy.layers:
        order += 1
        for rule in layer.rules:
            yield order, layer, rule
            order += 1


# --- what is wrong --------------------------------------------------------------------------------


def _named(layer: PolicyLayer, rule: PolicyRule) -> str:
    return f"rule {rule.id!r} of the {layer.level} layer ({rule.decision})"


def _never_matches(layer: PolicyLayer, rule: PolicyRule) -> DeadRule:
    problem = (
        f"{_named(layer, rule)} can never match: what its condition asks for contradicts itself; "
        "correct the condition, or remove the rule"
    )
    return DeadRule(layer.level, rule, "error", problem)


def _shadowed(layer: PolicyLayer, rule: PolicyRule, cover_layer: PolicyLayer, cover: PolicyRule) -> DeadRule:
    other = "take its tools out of the intent" if layer.level == "pack" else "remove this one"
    problem = (
        f"{_named(layer, rule)} can never take effect: wherever it matches, "
        f"{_named(cover_layer, cover)} has denied the call before, which is final; narrow that rule, "
        f"or {other}"
    )
    return DeadRule(layer.level, rule, _severity(rule), problem)


def _without_effect(layer: PolicyLayer, rule: PolicyRule) -> DeadRule:
    what = f"{_named(layer, rule)} can never take effect: "
    if layer.allow_loosening:
        problem = what + "its condition never holds, or a rule before it is final; remove one of the two"
    else:
        problem = what + (
            "what is decided before it is stricter, and the layer may not loosen it; "
            f"set allow_loosening: true on the {layer.level} layer, or remove the rule"
        )
    return DeadRule(layer.level, rule, _severity(rule), problem)


def _severity(rule: PolicyRule) -> Severity:
    return "error" if rule.decision is Decision.ALLOW else "warning"


# --- how it is found ------------------------------------------------------------------------------


def _effective_rules(policy: CompiledPolicy) -> set[int]:
    """Orders of the rules that take effect for some tool and some outcome of the conditions."""
    alive: set[int] = set()
    for trigger, tool in product({rule.trigger for _, _, rule in _rules(policy)}, (None, *policy.tool_names)):
        states = {START}
        for entry in policy.program(trigger, tool).everything():
            if any(matters(entry.moves[state], state) for state in states):
                alive.add(entry.order)
            moved = {entry.moves[state].state for state in states}
            states = moved if entry.test is None else states | moved
    return alive


@dataclass(frozen=True, slots=True)
class _Witness:
    """A call that may meet a condition: the tool it is bound to, and the call."""

    tool: str | None
    call: PolicyContext


def _covers(earlier: PolicyRule, later: PolicyRule, witness: _Witness | None) -> bool:
    """Whether the earlier rule matches wherever the later one does.

    Args:
        earlier: One rule.
        later: The other.
        witness: A call that may meet the later rule; most pairs are told apart by it.
    """
    if earlier.trigger != later.trigger:
        return False
    if earlier.when is None:
        return True
    if witness is not None and _truth(_opened(earlier.when).bind(witness.tool), witness.call) is not True:
        return False
    outside = Not(condition=earlier.when)
    return not _satisfiable(outside if later.when is None else AllOf(conditions=(later.when, outside)))


def _opened(when: Condition) -> Condition:
    """The condition with its expressions and patterns open, as times are: of what they hold is not known."""
    if isinstance(when, Cel) or (isinstance(when, AsksValue) and "matches" in when.asks.asked):
        return Time(period=Period())
    if isinstance(when, Not):
        return when.model_copy(update={"condition": _opened(when.condition)})
    if isinstance(when, AllOf | AnyOf):
        return when.model_copy(update={"conditions": tuple(_opened(part) for part in when.conditions)})
    return when


def _satisfiable(when: Condition) -> bool:
    """Whether some call may meet a condition; True where that cannot be said."""
    return _kinds_of_calls(when) is None or _witness(when) is not None


def _witness(when: Condition) -> _Witness | None:
    """A call that may meet a condition, if one is found among the kinds that there are."""
    when = _opened(when)
    tools = (None, *tool_names(when))
    bound = [(tool, when.bind(tool)) for tool in tools]
    prefixes = [part.prefix for part in when.walk() if isinstance(part, ToolNameStartsWith)]
    for call in _kinds_of_calls(when) or [PolicyContext("", "", open_input=True)]:
        for tool, test in bound:
            if _truth(test, call) is not False:
                return _Witness(tool, call)
        for prefix in prefixes:
            named = replace(call, tool_name=prefix + "\0")
            if _truth(bound[0][1], named) is not False:
                return _Witness(None, named)
    return None


def _truth(bound: Bound, call: PolicyContext) -> bool | None:
    return bound if isinstance(bound, bool) else bound.test(call)


def _kinds_of_calls(when: Condition) -> list[PolicyContext] | None:
    """Calls that stand for all; ``None`` where there are too many."""
    parts: dict[Field, list[dict[str, Any]]] = {}
    places: tuple[Field, ...] = ("tool_arguments", "execution_metadata", "environment", "budget")
    count = 1
    for place in places:
        found = representatives(questions([when], place), _MAX_KINDS // count)
        if found is None:
            return None
        parts[place] = list(found)
        count *= max(1, len(parts[place]))
    intents = sorted(
        {part.intent for part in when.walk() if isinstance(part, IntentEquals | IntentReachable)}
    )
    narrowing = any(isinstance(part, IntentReachable) for part in when.walk())
    allowed = list(_allowed(intents)) if narrowing else [None]
    if count * len(allowed) * (len(intents) + 1) > _MAX_KINDS:
        return None
    blank = PolicyContext("", "")
    calls = [
        replace(
            blank,
            tool_arguments=arguments,
            execution_metadata=metadata,
            environment=environment,
            budget=budget,
            open_input=True,
        )
        for arguments, metadata, environment, budget in product(*(parts[place] for place in places))
    ]
    return [
        _under(replace(call, allowed_intents=some), intent)
        for call in calls
        for some in allowed
        for intent in (None, *intents)
    ]


def _allowed(intents: list[str]) -> Iterator[tuple[str, ...] | None]:
    """What contexts may allow, as far as it matters: all, or any of the intents."""
    yield None
    for size in range(len(intents) + 1):
        yield from combinations(intents, size)


def _under(call: PolicyContext, intent: str | None) -> PolicyContext:
    if intent is None:
        return call
    return replace(call, execution_metadata={**call.execution_metadata, "agent_intent": intent})
