"""The machine that decides: how defaults and rules move a decision, as tables over all its states.

The effective decision starts unset, which compares as ``deny``; the first declared default sets it. Later
defaults and all rules take effect only if they are not looser than it, or if their layer says
``allow_loosening``. A deny rule is final. An approval rule that took effect is final against ``allow``.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Final, NamedTuple

from runtime.core.model import Decision

LOOSENESS: Final = {Decision.DENY: 0, Decision.APPROVAL_REQUIRED: 1, Decision.ALLOW: 2}


class State(NamedTuple):
    """How far a decision has come.

    ``lenient`` is the effective decision as the reference keeps it, which compares with ``deny``
    alone; it only serves to count warnings as the reference does.
    """

    effective: Decision
    declared: bool
    denied: bool
    approved: bool
    lenient: Decision


STATES: Final = tuple(
    State(*values) for values in product(Decision, (False, True), (False, True), (False, True), Decision)
)
_NUMBER: Final = {state: number for number, state in enumerate(STATES)}
START: Final = _NUMBER[State(Decision.DENY, False, False, False, lenient=Decision.DENY)]


class Move(NamedTuple):
    """Where a default or rule leads from a state; whether it took effect, and whether that warns."""

    state: int
    took_effect: bool
    warns: bool


Moves = tuple[Move, ...]
"""A move for each state, by its number."""


def _not_looser(decision: Decision, state: State) -> bool:
    return LOOSENESS[decision] <= LOOSENESS[state.effective]


def _after_first_default(state: State, decision: Decision, loosens: bool) -> Move:
    return Move(_NUMBER[state._replace(effective=decision, declared=True, lenient=decision)], True, False)


def _after_default(state: State, decision: Decision, loosens: bool) -> Move:
    warns = decision is Decision.ALLOW and state.lenient is Decision.DENY and not loosens
    took_effect = loosens or not state.declared or _not_looser(decision, state)
    after = state._replace(
        effective=decision if took_effect else state.effective,
        declared=True,
        lenient=state.lenient if warns else decision,
    )
    return Move(_NUMBER[after], took_effect, warns)


def _after_rule(state: State, decision: Decision, loosens: bool) -> Move:
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
    return Move(_NUMBER[after], took_effect and not overruled, kept and decision is Decision.ALLOW)


def _outcome(state: State) -> Decision:
    if state.denied or state.effective is Decision.DENY:
        return Decision.DENY
    return Decision.APPROVAL_REQUIRED if state.approved else state.effective


_Transition = Callable[[State, Decision, bool], Move]


def _table(transition: _Transition) -> dict[tuple[Decision, bool], Moves]:
    return {
        (decision, loosens): tuple(transition(state, decision, loosens) for state in STATES)
        for decision, loosens in product(Decision, (False, True))
    }


FIRST_DEFAULT_MOVES: Final = _table(_after_first_default)
"""Moves of the first layer's default, by decision and whether the layer loosens."""
DEFAULT_MOVES: Final = _table(_after_default)
"""Moves of a later layer's default."""
RULE_MOVES: Final = _table(_after_rule)
"""Moves of a rule that matches."""
NO_MOVES: Final[Moves] = tuple(Move(number, False, False) for number in range(len(STATES)))
"""Moves of a rule that is only logged."""
OUTCOMES: Final = tuple(_outcome(state) for state in STATES)
"""What is decided in a state, by its number."""


def matters(move: Move, before: int) -> bool:
    """Whether a move from a state took effect, or changed what later moves can lead to."""
    if STATES[before].denied:
        return False
    return move.took_effect or STATES[move.state][:4] != STATES[before][:4]
