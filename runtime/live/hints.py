"""Messages that say which row has work. SQL decides; a hint only saves waiting for the sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from runtime.core.model import StepKind


@dataclass(frozen=True, slots=True)
class StepHint:
    """A step that may be claimable now."""

    step_id: str
    session_id: str
    node_id: str
    kind: StepKind
    queue: str
    priority: int = 0


@dataclass(frozen=True, slots=True)
class AdvanceHint:
    """A session in which something ended, so that something else may start."""

    session_id: str


@dataclass(frozen=True, slots=True)
class ChainHint:
    """A step, and the one to hint at when its task has returned."""

    first: StepHint
    then: StepHint


@dataclass(frozen=True, slots=True)
class ChordHint:
    """Steps that may run at once, and what to hint at when the tasks of all of them have returned."""

    header: tuple[StepHint, ...]
    body: StepHint | AdvanceHint


Hint = StepHint | AdvanceHint | ChainHint | ChordHint


class Carrier(StrEnum):
    """What a delivery brings along, beside its step: the hint that follows from the task's return."""

    CHAIN = "chain"
    CHORD = "chord"


class Publisher(Protocol):
    """Sends hints; may lose, repeat or reorder them."""

    def publish(self, hints: Sequence[Hint]) -> bool:
        """Send hints; return whether all were handed to the broker. Never raises."""
        ...
