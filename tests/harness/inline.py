"""Runs the engine's own steps in this process: real database, real model server, no Celery.

The publisher is the port that hints go through. Its forms here keep them and run the same task bodies.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from runtime.agent_runtime import AgentRuntime
from runtime.live.celery_settings import QUEUES
from runtime.live.hints import AdvanceHint, Carrier, ChainHint, ChordHint, Hint, StepHint


class Inbox:
    """A publisher that keeps hints until somebody takes them; it knows no canvas, as a broker without a
    result backend does not: the coordinator finds what a chain or a chord would have started."""

    def __init__(self) -> None:
        self.hints: list[StepHint | AdvanceHint] = []

    def publish(self, hints: Sequence[Hint]) -> bool:
        for hint in hints:
            match hint:
                case ChainHint(first, _):
                    self.hints.append(first)
                case ChordHint(header, _):
                    self.hints.extend(header)
                case _:
                    self.hints.append(hint)
        return True


class InlineWorkers:
    """Takes hints from an inbox and runs what they point at, as worker tasks do."""

    def __init__(self, runtime: AgentRuntime, queues: tuple[str, ...] = QUEUES) -> None:
        self.runtime = runtime
        self.inbox = Inbox()
        self.queues = queues
        runtime.parts.publisher = self.inbox
        self.ran: list[Hint] = []

    def next(self) -> Hint:
        """Run the oldest hint."""
        hint = self.inbox.hints.pop(0)
        self.ran.append(hint)
        run(self.runtime, hint, self.queues)
        return hint

    def drain(self, limit: int = 500) -> None:
        """Run hints until there are none."""
        while self.inbox.hints:
            assert len(self.ran) < limit, "the session does not come to an end"
            self.next()


def run(
    runtime: AgentRuntime,
    hint: StepHint | AdvanceHint,
    queues: tuple[str, ...] = QUEUES,
    carried: frozenset[Carrier] = frozenset(),
) -> None:
    """Run one task's body."""
    executor = runtime.executor()
    if isinstance(hint, StepHint):
        executor.run_step(hint.step_id, queues, carried)
    else:
        executor.advance(hint.session_id)


# --- with canvas ----------------------------------------------------------------------------------


@dataclass
class Delivery:
    """One message: a task, what it carries, and what Celery does when the task has returned."""

    hint: StepHint | AdvanceHint
    carried: frozenset[Carrier] = frozenset()
    returned: Callable[[], None] = lambda: None


class Canvas:
    """A publisher that keeps messages, and workers that run them, with chains and chords as Celery has them.

    Args:
        runtime: Whose engine.
        seed: Without one, messages come once and in order; with one they come in any order, one in six
            comes twice, and one in six is lost. What is lost is found by `sweep`.
    """

    def __init__(self, runtime: AgentRuntime, seed: int | None = None) -> None:
        self.runtime = runtime
        self.waiting: list[Delivery] = []
        self.published: list[Hint] = []
        self.ran: list[StepHint | AdvanceHint] = []
        self._random = None if seed is None else random.Random(seed)
        runtime.parts.publisher = self

    def publish(self, hints: Sequence[Hint]) -> bool:
        self.published.extend(hints)
        for hint in hints:
            self._add(hint)
        return True

    def _add(self, hint: Hint) -> None:
        match hint:
            case ChainHint(first, then):
                returned = partial(self.waiting.append, Delivery(then))
                self.waiting.append(Delivery(first, frozenset({Carrier.CHAIN}), returned))
            case ChordHint(header, body):
                counted = partial(self._count, [len(header)], body)
                chord = frozenset({Carrier.CHORD})
                self.waiting.extend(Delivery(step, chord, counted) for step in header)
            case _:
                self.waiting.append(Delivery(hint))

    def _count(self, left: list[int], body: StepHint | AdvanceHint) -> None:
        left[0] -= 1
        if left[0] == 0:
            self.waiting.append(Delivery(body))

    def next(self) -> None:
        """Deliver one message: the oldest, or with a seed any."""
        delivery = self.waiting.pop(0 if self._random is None else self._random.randrange(len(self.waiting)))
        if self._random is not None:
            chance = self._random.random()
            if chance < 1 / 6:
                return
            if chance < 2 / 6:
                self.waiting.append(delivery)
        self.ran.append(delivery.hint)
        run(self.runtime, delivery.hint, carried=delivery.carried)
        delivery.returned()

    def drain(self, limit: int = 5_000) -> None:
        """Deliver messages until there are none."""
        while self.waiting:
            assert len(self.ran) < limit, "the session does not come to an end"
            self.next()
