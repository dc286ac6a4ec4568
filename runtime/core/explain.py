"""Why policy decides as it does: every layer, default and rule of one decision, in order.

It walks the rules one by one, without the index that decisions use, under the same machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from runtime.core.condition import Condition
from runtime.core.conditions import AllOf, AnyOf, Not
from runtime.core.model import Decision
from runtime.core.policy import (
    CompiledPolicy,
    Level,
    PolicyContext,
    PolicyLayer,
    PolicyRule,
    doubt_of,
    entries,
)
from runtime.core.policy_index import Entry
from runtime.core.policy_machine import OUTCOMES, START, STATES, Move


@dataclass(frozen=True, slots=True)
class Reason:
    """One elementary condition of a rule, as it is written, and whether it holds of the call.

    Attributes:
        condition: The condition, as in a workspace file.
        holds: ``None`` where it is neither true nor false.
    """

    condition: str
    holds: bool | None


@dataclass(frozen=True, slots=True)
class RuleTrace:
    """What became of a default or a rule.

    Attributes:
        id: The rule's id; ``None`` for a layer's default.
        decision: What it says.
        reason: The rule's own words.
        mode: Whether it is enforced or only logged.
        matched: Whether it applied: true, false, or ``None`` where that could not be told.
        took_effect: Whether it had a say in the decision.
        why: In words, why it did or did not.
        conditions: What it asked of the call.
        effective: What held after it.
    """

    id: str | None
    decision: Decision
    reason: str | None
    mode: Literal["enforce", "log_only"]
    matched: bool | None
    took_effect: bool
    why: str
    conditions: tuple[Reason, ...]
    effective: Decision


@dataclass(frozen=True, slots=True)
class LayerTrace:
    """One layer and what became of its default and rules.

    Attributes:
        level: Where the layer comes from.
        allow_loosening: Whether it may loosen what was decided before it.
        rules: Its default, if it declares one, and its rules.
    """

    level: Level
    allow_loosening: bool
    rules: tuple[RuleTrace, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """A decision with all that led to it."""

    decision: Decision
    layers: tuple[LayerTrace, ...]


def explain(policy: CompiledPolicy, context: PolicyContext) -> Explanation:
    """Decide one call and say why.

    Args:
        policy: Its decision is that of `CompiledPolicy.evaluate`.
        context: The call.
    """
    traces: list[list[RuleTrace]] = [[] for _ in policy.layers]
    state = START
    for entry, when in entries(policy.layers, context.trigger):
        truth = _truth(when, context)
        move = _move(entry, truth, state)
        traces[entry.at].append(_trace(policy.layers[entry.at], entry, truth, context, state, move))
        state = move.state if move is not None else state
    layers = zip(policy.layers, traces, strict=True)
    return Explanation(
        OUTCOMES[state],
        tuple(LayerTrace(layer.level, layer.allow_loosening, tuple(found)) for layer, found in layers),
    )


def _truth(when: Condition | None, context: PolicyContext) -> bool | None:
    bound = True if when is None else when.bind(context.tool_name)
    return bound if isinstance(bound, bool) else bound.test(context)


def _move(entry: Entry, truth: bool | None, state: int) -> Move | None:
    """Where an entry leads; ``None`` where it does not apply."""
    if truth:
        return entry.moves[state]
    return None if truth is False or entry.unsure is None else entry.unsure[state]


def _trace(
    layer: PolicyLayer,
    entry: Entry,
    truth: bool | None,
    context: PolicyContext,
    state: int,
    move: Move | None,
) -> RuleTrace:
    rule = entry.rule
    decision = rule.decision if rule is not None else layer.default_decision
    assert decision is not None, "an entry without a rule is a declared default"
    enforced = rule is None or rule.mode == "enforce"
    took_effect = enforced and move is not None and move.took_effect
    return RuleTrace(
        id=None if rule is None else rule.id,
        decision=decision,
        reason=None if rule is None else rule.reason,
        mode="enforce" if rule is None else rule.mode,
        matched=truth,
        took_effect=took_effect,
        why=_why(rule, layer, decision, truth, context, state, took_effect),
        conditions=tuple(_reasons(rule.when, context)) if rule is not None and rule.when is not None else (),
        effective=OUTCOMES[state if move is None else move.state],
    )


def _why(
    rule: PolicyRule | None,
    layer: PolicyLayer,
    decision: Decision,
    truth: bool | None,
    context: PolicyContext,
    state: int,
    took_effect: bool,
) -> str:
    if truth is False:
        return "its condition does not hold"
    if rule is not None and rule.mode == "log_only":
        return "it matches, and is only logged"
    doubt = "" if truth else f"it cannot be told whether it applies ({doubt_of(rule, context)}): "
    if truth is None and decision is Decision.ALLOW:
        return doubt + "an allow rule then does not"
    what = "the layer's default" if rule is None else "it matches"
    if took_effect:
        final = {Decision.DENY: ", which is final", Decision.APPROVAL_REQUIRED: ", which no allow rule lifts"}
        return doubt + what + (final.get(decision, "") if rule is not None else "")
    return doubt + f"{what}, without effect: " + _without_effect(layer, decision, state)


def _without_effect(layer: PolicyLayer, decision: Decision, state: int) -> str:
    before = STATES[state]
    if before.denied:
        return "a deny rule before it is final"
    if before.approved and decision is Decision.ALLOW:
        return "an approval rule before it is final against allow"
    return (
        f"{decision} is looser than {before.effective}, which holds already, and the {layer.level} layer "
        "does not say allow_loosening"
    )


def _reasons(when: Condition, context: PolicyContext) -> Iterator[Reason]:
    """The elementary conditions in the order in which they are written."""
    for part in when.walk():
        if not isinstance(part, AllOf | AnyOf | Not):
            yield Reason(part.model_dump_json(by_alias=True, exclude_unset=True), _truth(part, context))
