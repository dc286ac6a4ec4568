"""Policy: ordered layers of rules that decide one call, and may only tighten unless they opt in.

Layers are taken in the order workspace, lane, pack, task. The effective decision starts unset,
which compares as ``deny``; the first declared default sets it. Later defaults and all rules take
effect only if they are not looser than it, or if their layer says ``allow_loosening``. A deny rule
is final. An approval rule that took effect is final against ``allow``. This is the strict reading
of the reference documents (``strict_decision`` of the conformance vectors).

The algorithm is a small machine whose transitions are tables; `compile_policy` turns layers into one
short program per tool, so that a decision looks only at rules that can apply to the called tool.
Nothing is cached from one decision to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Annotated, Final, Literal, NamedTuple

from pydantic import Field

from runtime.core.conditions import (
    UNKNOWN_ARGUMENTS,
    Test,
    ToolNameEquals,
    When,
    representative_inputs,
)
from runtime.core.conditions import (
    PolicyContext as PolicyContext,  # what callers of this module pass in
)
from runtime.core.model import Decision, Frozen, Json, PolicyDecision

ON_TOOL_REQUEST: Final = "on_tool_request"
"""Trigger of the decision on a tool call."""

Level = Literal["workspace", "lane", "pack", "task"]
_LEVELS: Final[tuple[Level, ...]] = ("workspace", "lane", "pack", "task")
_LOOSENESS: Final = {Decision.DENY: 0, Decision.APPROVAL_REQUIRED: 1, Decision.ALLOW: 2}


class PolicyRule(Frozen):
    """One rule: what to decide when its trigger and condition hold.

    Attributes:
        id: Name that receipts and errors show.
        trigger: Event the rule is about.
        decision: ``allow``, ``deny`` or ``approval_required``.
        reason: Shown to who is refused or asked.
        when: Condition on the call; ``None`` holds always.
    """

    id: Annotated[str, Field(min_length=1)]
    trigger: str = ON_TOOL_REQUEST
    decision: Annotated[Decision, Field(strict=False)]
    reason: str | None = None
    when: When | None = None


class PolicyLayer(Frozen):
    """Rules that come from one place.

    Attributes:
        level: Where the layer comes from, hence its position.
        default_decision: What holds where no rule says more.
        allow_loosening: Whether this layer may loosen what earlier layers decided.
        rules: In order.
    """

    level: Level
    default_decision: Annotated[Decision | None, Field(strict=False)] = None
    allow_loosening: bool = False
    rules: Annotated[tuple[PolicyRule, ...], Field(strict=False)] = ()


@dataclass(frozen=True, slots=True)
class PolicyResult:
    """The decision on one call.

    Attributes:
        decision: What holds.
        decisions: Every rule that matched, in order, whether it took effect or not.
        warnings_count: How often an ``allow`` had no effect under a ``deny`` for want of
            ``allow_loosening``, as the reference counts.
    """

    decision: Decision
    decisions: tuple[PolicyDecision, ...]
    warnings_count: int


@dataclass(frozen=True, slots=True)
class PolicyForecast:
    """What policy may decide of a tool whose input is not known yet.

    Attributes:
        decisions: Every decision that some input may lead to.
    """

    decisions: frozenset[Decision]

    @property
    def listed(self) -> bool:
        """Whether the tool is worth listing: it is not denied for every input."""
        return self.decisions != {Decision.DENY}

    @property
    def depends_on_input(self) -> bool:
        """Whether the decision can vary with the input."""
        return len(self.decisions) > 1

    @property
    def decision(self) -> Decision:
        """The loosest of the decisions; `depends_on_input` says that it is not certain."""
        return max(self.decisions, key=_LOOSENESS.__getitem__)


@dataclass(frozen=True, slots=True)
class DeadRule:
    """A rule that can never take effect, as `find_dead_rules` reports it.

    Attributes:
        level: Level of the rule's layer.
        rule: The rule.
        severity: ``error`` for an allow rule, ``warning`` for an approval rule.
        problem: What is wrong and how to mend it.
    """

    level: Level
    rule: PolicyRule
    severity: Literal["error", "warning"]
    problem: str


# --- the machine ----------------------------------------------------------------------------------


class _State(NamedTuple):
    """How far a decision has come.

    ``lenient`` is the effective decision as the reference keeps it, which compares with ``deny``
    alone; it only serves to count warnings as the reference does.
    """

    effective: Decision
    declared: bool
    denied: bool
    approved: bool
    lenient: Decision


_STATES: Final = tuple(
    _State(*values) for values in product(Decision, (False, True), (False, True), (False, True), Decision)
)
_NUMBER: Final = {state: number for number, state in enumerate(_STATES)}
_START: Final = _NUMBER[_State(Decision.DENY, False, False, False, lenient=Decision.DENY)]


class _Move(NamedTuple):
    """Where a default or rule leads from a state; whether it took effect, and whether that warns."""

    state: int
    took_effect: bool
    warns: bool


def _not_looser(decision: Decision, state: _State) -> bool:
    return _LOOSENESS[decision] <= _LOOSENESS[state.effective]


def _after_first_default(state: _State, decision: Decision, loosens: bool) -> _Move:
    return _Move(_NUMBER[state._replace(effective=decision, declared=True, lenient=decision)], True, False)


def _after_default(state: _State, decision: Decision, loosens: bool) -> _Move:
    warns = decision is Decision.ALLOW and state.lenient is Decision.DENY and not loosens
    took_effect = loosens or not state.declared or _not_looser(decision, state)
    after = state._replace(
        effective=decision if took_effect else state.effective,
        declared=True,
        lenient=state.lenient if warns else decision,
    )
    return _Move(_NUMBER[after], took_effect, warns)


def _after_rule(state: _State, decision: Decision, loosens: bool) -> _Move:
    kept = decision is not Decision.DENY and state.lenient is Decision.DENY and not loosens
    took_effect = loosens or _not_looser(decision, state)
    after = state._replace(lenient=state.lenient if kept else decision)
    if took_effect:
        after = after._replace(
            effective=decision,
            denied=state.denied or decision is Decision.DENY,
            approved=state.approved or decision is Decision.APPROVAL_REQUIRED,
        )
    overruled = state.denied or (state.approved and decision is Decision.ALLOW)
    return _Move(_NUMBER[after], took_effect and not overruled, kept and decision is Decision.ALLOW)


def _outcome(state: _State) -> Decision:
    if state.denied or state.effective is Decision.DENY:
        return Decision.DENY
    return Decision.APPROVAL_REQUIRED if state.approved else state.effective


_Moves = tuple[_Move, ...]
_Transition = Callable[[_State, Decision, bool], _Move]


def _table(transition: _Transition) -> dict[tuple[Decision, bool], _Moves]:
    return {
        (decision, loosens): tuple(transition(state, decision, loosens) for state in _STATES)
        for decision, loosens in product(Decision, (False, True))
    }


_FIRST_DEFAULT_MOVES: Final = _table(_after_first_default)
_DEFAULT_MOVES: Final = _table(_after_default)
_RULE_MOVES: Final = _table(_after_rule)
_OUTCOMES: Final = tuple(_outcome(state) for state in _STATES)


# --- programs -------------------------------------------------------------------------------------


class _Step(NamedTuple):
    test: Test | None
    record: PolicyDecision | None
    moves: _Moves
    origin: tuple[int, int] | None


class _Program(NamedTuple):
    """Steps for one trigger and tool, and inputs that stand for all (``None``: too many)."""

    steps: tuple[_Step, ...]
    inputs: tuple[Json, ...] | None


_MAX_INPUTS: Final = 32


def _compile(layers: Sequence[PolicyLayer], trigger: str | None, tool_name: str | None) -> _Program:
    steps: list[_Step] = []
    conditions: list[When] = []
    for at, layer in enumerate(layers):
        if layer.default_decision is not None:
            table = _DEFAULT_MOVES if at else _FIRST_DEFAULT_MOVES
            moves = table[layer.default_decision, layer.allow_loosening]
            steps.append(_Step(None, None, moves, None))
        for position, rule in enumerate(layer.rules):
            test = True if rule.when is None else rule.when.bind(tool_name)
            if rule.trigger == trigger and test is not False:
                conditions += [rule.when] if rule.when is not None else []
                moves = _RULE_MOVES[rule.decision, layer.allow_loosening]
                steps.append(_Step(None if test is True else test, _record(rule), moves, (at, position)))
    return _Program(tuple(steps), representative_inputs(conditions, _MAX_INPUTS))


def _record(rule: PolicyRule) -> PolicyDecision:
    record = PolicyDecision(policy_id=rule.id, decision=rule.decision.value)
    if rule.reason is not None:
        record["reason"] = rule.reason
    return record


class CompiledPolicy:
    """Layers, ready to decide; made by `compile_policy`, immutable."""

    def __init__(self, layers: Iterable[PolicyLayer]) -> None:
        self.layers: Final = tuple(sorted(layers, key=lambda layer: _LEVELS.index(layer.level)))
        rules = [rule for layer in self.layers for rule in layer.rules]
        parts = [part for rule in rules if rule.when is not None for part in rule.when.walk()]
        tools = {part.tool_name for part in parts if isinstance(part, ToolNameEquals)}
        self._programs: Final[Mapping[str, Mapping[str | None, _Program]]] = {
            trigger: {tool: _compile(self.layers, trigger, tool) for tool in (None, *tools)}
            for trigger in {rule.trigger for rule in rules}
        }
        self._without_rules: Final = _compile(self.layers, None, None)

    def evaluate(self, context: PolicyContext) -> PolicyResult:
        """Decide one call.

        Args:
            context: The call. For arguments that are not known yet see `evaluate_unknown_arguments`.
        """
        state, warnings = _START, 0
        decisions: list[PolicyDecision] = []
        for test, record, moves, _ in self._program(context).steps:
            if test is None or test(context):
                if record is not None:
                    decisions.append(record.copy())
                state, _effect, warns = moves[state]
                warnings += warns
        return PolicyResult(_OUTCOMES[state], tuple(decisions), warnings)

    def evaluate_unknown_arguments(self, context: PolicyContext) -> PolicyForecast:
        """Say what may be decided of a call whose arguments are not known.

        The forecast never leaves out a decision that some input leads to. It is exact unless the
        rules for the tool tell more than 32 kinds of input apart; then rules count as independent.

        Args:
            context: The call; its arguments are ignored.
        """
        inputs = self._program(context).inputs
        if inputs is not None:
            results = (self.evaluate(replace(context, tool_arguments=input)) for input in inputs)
            return PolicyForecast(frozenset(result.decision for result in results))
        context = replace(context, tool_arguments=UNKNOWN_ARGUMENTS)
        states = {_START}
        for test, _, moves, _ in self._program(context).steps:
            truth = True if test is None else test(context)
            if truth is False:
                continue
            moved = {moves[state].state for state in states}
            states = moved if truth else states | moved
        return PolicyForecast(frozenset(_OUTCOMES[state] for state in states))

    def _program(self, context: PolicyContext) -> _Program:
        by_tool = self._programs.get(context.trigger)
        if by_tool is None:
            return self._without_rules
        return by_tool.get(context.tool_name, by_tool[None])

    def _effective_rules(self) -> set[tuple[int, int]]:
        """Rules (layer, position) that take effect for some tool and some outcome of the conditions."""
        alive: set[tuple[int, int]] = set()
        for program in (program for by_tool in self._programs.values() for program in by_tool.values()):
            states = {_START}
            for test, _, moves, origin in program.steps:
                if origin is not None and any(moves[state].took_effect for state in states):
                    alive.add(origin)
                moved = {moves[state].state for state in states}
                states = moved if test is None else states | moved
        return alive


def compile_policy(layers: Iterable[PolicyLayer]) -> CompiledPolicy:
    """Prepare layers for deciding.

    Args:
        layers: In any order; layers of the same level keep theirs.
    """
    return CompiledPolicy(layers)


def find_dead_rules(policy: CompiledPolicy) -> tuple[DeadRule, ...]:
    """Find allow rules (errors) and approval rules (warnings) that can never take effect.

    Conditions count as open, except those on the tool's name; a rule that is reported has no effect on
    any call.
    """
    alive = policy._effective_rules()
    return tuple(
        _dead_rule(layer, rule)
        for at, layer in enumerate(policy.layers)
        for position, rule in enumerate(layer.rules)
        if rule.decision is not Decision.DENY and (at, position) not in alive
    )


def _dead_rule(layer: PolicyLayer, rule: PolicyRule) -> DeadRule:
    what = f"rule {rule.id!r} of the {layer.level} layer ({rule.decision}) can never take effect: "
    if layer.allow_loosening:
        problem = what + "its condition never holds, or a rule before it is final; remove one of the two"
    else:
        problem = what + (
            "what is decided before it is stricter, and the layer may not loosen it; "
            f"set allow_loosening: true on the {layer.level} layer, or remove the rule"
        )
    severity: Literal["error", "warning"] = "error" if rule.decision is Decision.ALLOW else "warning"
    return DeadRule(layer.level, rule, severity, problem)
