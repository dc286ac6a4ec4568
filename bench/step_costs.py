"""What one step of each kind costs: SQL statements and commits at the driver, Redis round trips.

Steps run in this process on the private PostgreSQL; their hints go to the private Valkey as a worker's do,
but on queues of their own, which nobody consumes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bench.figure import Figure, Line, Spread
from bench.lab import Lab
from bench.linear import start_session
from runtime.core.model import ExecutionContext, StepKind
from runtime.engine.executor import Executor
from runtime.live.celery_settings import QUEUES
from runtime.live.hints import Hint, Publisher, StepHint
from runtime.live.publisher import CeleryPublisher
from tests.harness.counting import Counts, counting

CALLS = 3


class Kept:
    """Publishes hints and keeps them, so that this process can do what a worker would."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self.hints: list[Hint] = []

    def publish(self, hints: Sequence[Hint]) -> bool:
        """Publish hints; return whether all were handed to the broker."""
        self.hints.extend(hints)
        return self._publisher.publish(hints)


def measure(lab: Lab, quick: bool) -> list[Line]:
    """Run one linear session and one host-driven call in this process, and count each step."""
    del quick  # it takes a moment
    parts = lab.runtime.parts
    workers, parts.publisher = parts.publisher, Kept(CeleryPublisher(lab.producer, "unattended-"))
    try:
        costs = _session(lab, parts.publisher) | _host_call(lab)
    finally:
        parts.publisher = workers
    return [line for kind, cost in costs.items() for line in _lines(kind, cost)]


def _session(lab: Lab, kept: Kept) -> dict[str, Counts]:
    executor, database = lab.runtime.executor(), lab.runtime.parts.database
    # A first session opens the connections.
    for session_id in (lab.run_id("counted"), lab.run_id("counted")):
        costs: dict[str, Counts] = {}
        turns = 0
        start_session(lab, session_id, CALLS)
        while kept.hints:
            hint = kept.hints.pop(0)
            kind = _kind(hint, turns)
            turns += isinstance(hint, StepHint) and hint.kind is StepKind.TURN
            lab.runtime.parts.live.flush()
            with counting(database) as cost:
                _running(executor, hint)()
            costs[kind] = cost.counts
    return costs


def _running(executor: Executor, hint: Hint) -> Callable[[], None]:
    if isinstance(hint, StepHint):
        return lambda: executor.run_step(hint.step_id, QUEUES)
    return lambda: executor.advance(hint.session_id)


def _kind(hint: Hint, turns: int) -> str:
    if not isinstance(hint, StepHint):
        return "advance and settle"
    if hint.kind is StepKind.TOOL_CALL:
        return "tool call"
    return {0: "first turn", CALLS: "last turn"}.get(turns, "turn")


def _host_call(lab: Lab) -> dict[str, Counts]:
    ctx = ExecutionContext(
        run_id="bench",
        task_id="bench",
        session_id=lab.run_id("host"),
        metadata={"agent_intent": "measuring"},
    )
    lab.runtime.execute_tool("bench:noop", {"n": 0}, ctx).unwrap()
    with counting(lab.runtime.parts.database) as cost:
        lab.runtime.execute_tool("bench:noop", {"n": 1}, ctx).unwrap()
    return {"host-driven call": cost.counts}


def _lines(kind: str, cost: Counts) -> list[Line]:
    def line(unit: str, count: int) -> Line:
        return Line(kind, unit, Spread(count, count, count))

    return [
        line("SQL statements", cost.statements),
        line("commits", cost.commits),
        line("Redis round trips", cost.redis),
        line("pool pings", cost.pings),
    ]


FIGURE = Figure("costs", "what one step costs, PostgreSQL", measure)
