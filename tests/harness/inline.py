"""Runs the engine's own steps in this process: real database, real model server, no Celery."""

from collections.abc import Sequence

from runtime.agent_runtime import AgentRuntime
from runtime.live.celery_settings import QUEUES
from runtime.live.hints import AdvanceHint, Hint, StepHint


class Inbox:
    """A publisher that keeps hints until somebody takes them."""

    def __init__(self) -> None:
        self.hints: list[Hint] = []

    def publish(self, hints: Sequence[Hint]) -> bool:
        self.hints.extend(hints)
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
        executor = self.runtime.executor()
        if isinstance(hint, StepHint):
            executor.run_step(hint.step_id, self.queues)
        else:
            assert isinstance(hint, AdvanceHint)
            executor.advance(hint.session_id)
        return hint

    def drain(self, limit: int = 500) -> None:
        """Run hints until there are none."""
        while self.inbox.hints:
            assert len(self.ran) < limit, "the session does not come to an end"
            self.next()
