"""Which state may follow which: the transition tables of steps and nodes.

Legality lives here and nowhere else. The store guards every change with the states that the table
names, and `docs/reference/states.md` is drawn from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

from runtime.core.model import NodeStatus, StepStatus


class StepEvent(StrEnum):
    """What can happen to a step."""

    PROMOTE = "promote"
    START = "start"
    TAKE_OVER = "take_over"
    SUCCEED = "succeed"
    FAIL = "fail"
    DENY = "deny"
    PARK = "park"
    RETRY = "retry"
    LOSE = "lose"
    QUARANTINE = "quarantine"
    APPROVE = "approve"
    ANSWER = "answer"
    RELEASE = "release"
    CANCEL = "cancel"
    RESUME = "resume"


_S = StepStatus
_E = StepEvent

STEP_TRANSITIONS: Mapping[tuple[StepStatus, StepEvent], StepStatus] = MappingProxyType(
    {
        (_S.PENDING, _E.PROMOTE): _S.READY,
        (_S.PENDING, _E.CANCEL): _S.CANCELLED,
        (_S.READY, _E.START): _S.RUNNING,
        (_S.READY, _E.DENY): _S.DENIED,
        (_S.READY, _E.FAIL): _S.FAILED,
        (_S.READY, _E.PARK): _S.WAITING_APPROVAL,
        (_S.READY, _E.CANCEL): _S.CANCELLED,
        (_S.RUNNING, _E.TAKE_OVER): _S.RUNNING,
        (_S.RUNNING, _E.SUCCEED): _S.SUCCEEDED,
        (_S.RUNNING, _E.FAIL): _S.FAILED,
        (_S.RUNNING, _E.RETRY): _S.READY,
        (_S.RUNNING, _E.RELEASE): _S.READY,
        (_S.RUNNING, _E.DENY): _S.DENIED,
        (_S.RUNNING, _E.PARK): _S.WAITING_APPROVAL,
        (_S.RUNNING, _E.LOSE): _S.IN_DOUBT,
        (_S.RUNNING, _E.QUARANTINE): _S.QUARANTINED,
        (_S.RUNNING, _E.CANCEL): _S.CANCELLED,
        (_S.WAITING_APPROVAL, _E.APPROVE): _S.READY,
        (_S.WAITING_APPROVAL, _E.ANSWER): _S.SUCCEEDED,
        (_S.WAITING_APPROVAL, _E.DENY): _S.DENIED,
        (_S.WAITING_APPROVAL, _E.CANCEL): _S.CANCELLED,
        (_S.IN_DOUBT, _E.SUCCEED): _S.SUCCEEDED,
        (_S.IN_DOUBT, _E.ANSWER): _S.SUCCEEDED,
        (_S.IN_DOUBT, _E.FAIL): _S.FAILED,
        (_S.IN_DOUBT, _E.PARK): _S.WAITING_APPROVAL,
        (_S.IN_DOUBT, _E.RELEASE): _S.READY,
        (_S.IN_DOUBT, _E.CANCEL): _S.CANCELLED,
        (_S.FAILED, _E.RESUME): _S.READY,
        (_S.DENIED, _E.RESUME): _S.READY,
        (_S.QUARANTINED, _E.RESUME): _S.READY,
        (_S.QUARANTINED, _E.CANCEL): _S.CANCELLED,
    }
)
"""Every legal move of a step; what is not here is refused."""

STEP_ENDED = frozenset({_S.SUCCEEDED, _S.FAILED, _S.DENIED, _S.CANCELLED})
"""States in which a step is over; only the resume of a failed node leaves them."""

NODE_ENDED = frozenset({NodeStatus.COMPLETED, NodeStatus.ERROR, NodeStatus.SKIPPED, NodeStatus.CANCELLED})
"""Node states that count as finished for settling a session."""

NODE_MOVING = frozenset({NodeStatus.READY, NodeStatus.RUNNING})
"""Node states in which a worker will act without anybody's answer."""


def step_after(status: StepStatus, event: StepEvent) -> StepStatus | None:
    """Return the state that follows, or ``None`` when the move is refused."""
    return STEP_TRANSITIONS.get((status, event))


def steps_that_accept(event: StepEvent) -> tuple[StepStatus, ...]:
    """Return the states in which ``event`` is legal, for guards in SQL."""
    return tuple(status for (status, named) in STEP_TRANSITIONS if named == event)
