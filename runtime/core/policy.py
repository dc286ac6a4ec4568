"""Policy: ordered layers of rules that decide one call, and may only tighten unless they opt in.

Layers are taken in the order workspace, lane, pack, task; how defaults and rules move the decision is in
`runtime.core.policy_machine`. This is the strict reading of the reference documents
(``strict_decision`` of the conformance vectors).

`compile_policy` files the rules by tool and by what a call must hold, so that a decision looks only at those
that it may match. Nothing is cached from one decision to the next.

A condition that is neither true nor false of a call fails closed: an allow rule does not match, a deny or
approval rule does, and can tighten only.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from runtime.core.conditions import When
from runtime.core.model import Decision, Frozen, PolicyDecision
from runtime.core.policy_index import Entry, Program, RuleFile
from runtime.core.policy_machine import (
    DEFAULT_MOVES,
    FIRST_DEFAULT_MOVES,
    LOOSENESS,
    NO_MOVES,
    OUTCOMES,
    RULE_MOVES,
    START,
)
from runtime.core.predicates import UNKNOWN_ARGUMENTS
from runtime.core.predicates import PolicyContext as PolicyContext  # what callers of this module pass in
from runtime.core.value_conditions import Environment

ON_TOOL_REQUEST: Final = "on_tool_request"
"""Trigger of the decision on a tool call."""

Level = Literal["workspace", "lane", "pack", "task"]
LEVELS: Final[tuple[Level, ...]] = ("workspace", "lane", "pack", "task")
"""The levels of layers, in the order in which they are taken."""


class PolicyRule(Frozen):
    """One rule: what to decide when its trigger and condition hold.

    Attributes:
        id: Name that receipts and errors show.
        trigger: Event the rule is about.
        decision: ``allow``, ``deny`` or ``approval_required``.
        reason: Shown to who is refused or asked.
        when: Condition on the call; ``None`` holds always.
        mode: ``log_only`` records that the rule matched, and changes nothing.
    """

    id: Annotated[str, Field(min_length=1)]
    trigger: str = ON_TOOL_REQUEST
    decision: Annotated[Decision, Field(strict=False)]
    reason: str | None = None
    when: When | None = None
    mode: Literal["enforce", "log_only"] = "enforce"

    def record(self, doubt: str | None = None) -> PolicyDecision:
        """How receipts show that the rule matched.

        Args:
            doubt: Why its condition was neither true nor false, where it was so.
        """
        record = PolicyDecision(policy_id=self.id, decision=self.decision.value)
        if self.reason is not None:
            record["reason"] = self.reason
        if doubt is not None:
            said = f"{self.reason}; " if self.reason is not None else ""
            record["reason"] = f"{said}it could not be told whether the rule applies: {doubt}"
        if self.mode == "log_only":
            return LoggedDecision(**record, mode="log_only")
        return record


class LoggedDecision(PolicyDecision):
    """How receipts show that a rule matched which is only logged."""

    mode: Literal["log_only"]


def enforced(decisions: Iterable[PolicyDecision]) -> tuple[PolicyDecision, ...]:
    """The matched rules without those that are only logged."""
    return tuple(each for each in decisions if "mode" not in each)


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
        doubts: Allow rules that were left out because their condition was neither true nor false, and why.
    """

    decision: Decision
    decisions: tuple[PolicyDecision, ...]
    warnings_count: int
    doubts: tuple[str, ...] = ()


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
        return max(self.decisions, key=LOOSENESS.__getitem__)


class CompiledPolicy:
    """Layers, ready to decide; made by `compile_policy`, immutable to those who ask it."""

    def __init__(self, layers: Iterable[PolicyLayer]) -> None:
        self.layers: Final = tuple(sorted(layers, key=lambda layer: LEVELS.index(layer.level)))
        triggers = {rule.trigger for layer in self.layers for rule in layer.rules}
        self._files: Final[Mapping[str, RuleFile]] = {
            trigger: RuleFile(entries(self.layers, trigger)) for trigger in triggers
        }
        self._without_rules: Final = RuleFile(entries(self.layers, None))

    @property
    def environment_names(self) -> frozenset[str]:
        """Names of the environment variables that rules ask about."""
        whens = [rule.when for layer in self.layers for rule in layer.rules if rule.when is not None]
        parts = (part for when in whens for part in when.walk())
        return frozenset(part.comparison.name for part in parts if isinstance(part, Environment))

    @property
    def tool_names(self) -> frozenset[str]:
        """The tools that rules name."""
        return frozenset(name for file in self._files.values() for name in file.names)

    def file(self, trigger: str) -> RuleFile:
        """All that is looked at for a trigger."""
        return self._files.get(trigger, self._without_rules)

    def program(self, trigger: str, tool_name: str | None) -> Program:
        """What is looked at for a trigger and a tool."""
        return self.file(trigger).program(tool_name)

    def likeness(self, trigger: str, tool_name: str) -> Hashable:
        """What is the same for tools that every rule treats alike."""
        return self.file(trigger).likeness(tool_name)

    def evaluate(self, context: PolicyContext) -> PolicyResult:
        """Decide one call.

        Args:
            context: The call. For arguments that are not known yet see `evaluate_unknown_arguments`.
        """
        state, warnings = START, 0
        decisions: list[PolicyDecision] = []
        doubts: tuple[str, ...] = ()
        for entry in self.program(context.trigger, context.tool_name).candidates(context):
            test = entry.test
            truth = True if test is None else test(context)
            if truth is False:
                continue
            _, _, moves, unsure, rule, _ = entry
            doubt = None
            if truth is None:
                doubt = doubt_of(rule, context)
                if unsure is None:
                    doubts += (f"{rule.id if rule else 'a default'}: {doubt}",)
                    continue
                moves = unsure
            if rule is not None:
                decisions.append(rule.record(doubt))
            state, _effect, warns = moves[state]
            warnings += warns
        return PolicyResult(OUTCOMES[state], tuple(decisions), warnings, doubts)

    def evaluate_unknown_arguments(self, context: PolicyContext) -> PolicyForecast:
        """Say what may be decided of a call whose arguments are not known.

        The forecast never leaves out a decision that some input leads to, nor one that an unknown value of
        the metadata, the time or a budget leads to. It is exact unless conditions other than ``argument`` and
        ``argument_equals`` are open, or those tell more than 32 kinds of input apart.

        Args:
            context: The call; its arguments are ignored.
        """
        return self.outlook(context).forecast(context.tool_name)

    def outlook(self, context: PolicyContext) -> Outlook:
        """What lies ahead of all tools in one context; see `evaluate_unknown_arguments`.

        Args:
            context: As far as it is known; its tool and arguments are ignored.
        """
        return Outlook(self, context)


class Outlook:
    """Forecasts for many tools in one context; what rules that name no tool say is asked once."""

    def __init__(self, policy: CompiledPolicy, context: PolicyContext) -> None:
        self._file: Final = policy.file(context.trigger)
        self._context: Final = context
        self._shared: list[tuple[Entry, bool | None]] | None = None

    def forecast(self, tool_name: str | None) -> PolicyForecast:
        """What may be decided of a tool."""
        program = self._file.program(tool_name)
        bound = self._outcomes(program, tool_name, UNKNOWN_ARGUMENTS)
        inputs = program.inputs if len(bound) > 1 else None
        if inputs is None:
            return PolicyForecast(bound)
        found: frozenset[Decision] = frozenset()
        for each in inputs:
            found |= self._outcomes(program, tool_name, each)
            if len(found) == len(bound):
                break
        return PolicyForecast(found)

    def _outcomes(self, program: Program, tool_name: str | None, arguments: Any) -> frozenset[Decision]:
        """What may be decided under some arguments; open conditions count as independent."""
        context = self._context.with_input(tool_name, arguments)
        if arguments is not UNKNOWN_ARGUMENTS or self._file.reads_name:
            shared = sorted(program.shared.answers(context), key=_order)
        else:
            if self._shared is None:
                self._shared = sorted(program.shared.answers(context), key=_order)
            shared = self._shared
        own = program.own.answers(context)
        states = {START}
        for entry, truth in sorted(shared + own, key=_order) if own else shared:
            moved = {entry.moves[state].state for state in states}
            if truth is None:
                moved |= states
                if entry.unsure is not None and entry.unsure is not entry.moves:
                    moved |= {entry.unsure[state].state for state in states}
            states = moved
        return frozenset(OUTCOMES[state] for state in states)


def _order(answer: tuple[Entry, bool | None]) -> int:
    return answer[0].order


def entries(layers: Iterable[PolicyLayer], trigger: str | None) -> Iterator[tuple[Entry, When | None]]:
    """The defaults and the rules of a trigger, in the order in which they count, with their conditions."""
    order = 0
    for at, layer in enumerate(layers):
        if layer.default_decision is not None:
            table = DEFAULT_MOVES if at else FIRST_DEFAULT_MOVES
            moves = table[layer.default_decision, layer.allow_loosening]
            yield Entry(order, None, moves, None, None, at), None
        order += 1
        for rule in layer.rules:
            if rule.trigger == trigger:
                yield _entry(order, rule, layer, at), rule.when
            order += 1


def _entry(order: int, rule: PolicyRule, layer: PolicyLayer, at: int) -> Entry:
    if rule.mode == "log_only":
        return Entry(order, None, NO_MOVES, NO_MOVES, rule, at)
    moves = RULE_MOVES[rule.decision, layer.allow_loosening]
    unsure = None if rule.decision is Decision.ALLOW else RULE_MOVES[rule.decision, False]
    return Entry(order, None, moves, unsure, rule, at)


def doubt_of(rule: PolicyRule | None, context: PolicyContext) -> str:
    """Why a rule's condition is neither true nor false of a call."""
    parts = rule.when.walk() if rule is not None and rule.when is not None else iter(())
    return "; ".join(dict.fromkeys(why for part in parts if (why := part.doubt(context)) is not None))


def compile_policy(layers: Iterable[PolicyLayer]) -> CompiledPolicy:
    """Prepare layers for deciding.

    Args:
        layers: In any order; layers of the same level keep theirs.
    """
    return CompiledPolicy(layers)
