"""Messages that say which row has work. SQL decides; a hint only saves waiting for the sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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


Hint = StepHint | AdvanceHint


class Publisher(Protocol):
    """Sends hints; may lose, repeat or reorder them."""

    def publish(self, hints: Sequence[Hint]) -> bool:
        """Send hints; return whether all were handed to the broker. Never raises."""
        ...
