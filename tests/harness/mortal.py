"""A deployment in one process that dies at a named crash point and is replaced by another one.

Death is an exception that nothing of ours catches: whatever the process held in memory is gone with it, its
open transaction is rolled back, and so are, if the test wants that, the messages that it had not delivered.
What comes after runs on the same database with a clock that has moved on beyond every lease.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import text

from runtime.agent_runtime import AgentRuntime
from runtime.engine.handle import SessionHandle
from runtime.engine.sweep import sweep
from runtime.store.clock import Clock
from tests.harness.inline import Canvas

ROUND_MS = 61_000
"""How far the clock moves from sweep to sweep: beyond a lease and the longest wait to publish again."""

ROUNDS = 200

MOST = 12
"""Deaths of a deployment that dies again and again: so few that what comes after them can end."""


class Died(BaseException):
    """This process was killed."""


@dataclass
class Fate:
    """At which passes of which crash points the process dies.

    Attributes:
        deaths: Pass numbers by point; the first pass is 1.
        every: Die at each so many-th pass of any point besides, `MOST` times; a sweep by itself passes 18.
        passed: How often each point was passed.
        died_at: The points at which it died, in order.
    """

    deaths: Mapping[str, frozenset[int]] = field(default_factory=dict)
    every: int | None = None
    passed: Counter[str] = field(default_factory=Counter)
    died_at: list[str] = field(default_factory=list)
    planned: str | None = None

    def reach(self, point: str) -> None:
        """Pass a point, or die there."""
        if point.startswith("other."):
            return  # a test's own statements
        self.passed[point] += 1
        again = self.every is not None and self.passed.total() % self.every == 0 and len(self.died_at) < MOST
        if point == self.planned or again or self.passed[point] in self.deaths.get(point, ()):
            self.planned = None
            self.died_at.append(point)
            raise Died(point)


@dataclass(frozen=True)
class Finished:
    """A step that had succeeded, and all that must never change about it."""

    id: str
    fence: int
    head: str
    finished_at: int


class FinishedSteps:
    """The steps that had succeeded whenever somebody looked; none of them may ever change again."""

    def __init__(self) -> None:
        self._seen: dict[str, Finished] = {}

    def note(self, runtime: AgentRuntime) -> None:
        """Look, and compare with what was seen before."""
        rows = rows_of(runtime, "SELECT id, fence, head, finished_at FROM step WHERE status = 'succeeded'")
        found = {row.id: Finished(row.id, row.fence, row.head, row.finished_at) for row in rows}
        changed = [each for each in self._seen.values() if found.get(each.id) != each]
        assert changed == [], "a step that had been completed ran again"
        self._seen = found


def rows_of(runtime: AgentRuntime, sql: str, **values: Any) -> list[Any]:
    """The rows of a query."""
    with runtime.parts.database.reading() as connection:
        return list(connection.execute(text(sql), values).all())


class Deployment:
    """One runtime after the other on one database.

    Args:
        opening: Opens a runtime.
        fate: When it dies.
        loses_messages: Whether what the broker holds is lost with a process.
    """

    def __init__(
        self, opening: Callable[[], AgentRuntime], fate: Fate, *, loses_messages: bool = True
    ) -> None:
        self._opening = opening
        self._loses_messages = loses_messages
        self._finished = FinishedSteps()
        self.fate = fate
        self.now = round(time.time() * 1000)
        self.runtime = self._open()
        self.canvas = Canvas(self.runtime)

    def _open(self) -> AgentRuntime:
        while True:
            try:
                runtime = self._opening()
                break
            except Died:
                continue
        runtime.parts.database.clock = Clock(self.now)
        return runtime

    def close(self) -> None:
        """Close the runtime that is left."""
        self.runtime.close()

    def do(self, act: Callable[[AgentRuntime], Any]) -> Any:
        """Do something; a process that dies of it is replaced, and the new one is asked the same again."""
        while True:
            try:
                return act(self.runtime)
            except Died:
                self.replace()

    def attempt(self, act: Callable[[AgentRuntime], Any]) -> bool:
        """Do something once; return whether the process lived to see its end."""
        try:
            act(self.runtime)
        except Died:
            self.replace()
            return False
        return True

    def replace(self) -> None:
        """Let another process take the place of this one, which was just killed."""
        self.runtime.close()  # gives sockets back, which a killed process does too; it writes nothing
        self.runtime = self._open()
        self._finished.note(self.runtime)
        waiting = [] if self._loses_messages else self.canvas.waiting
        self.canvas = Canvas(self.runtime)
        self.canvas.waiting = waiting

    # --- time ---------------------------------------------------------------------------------

    def pass_time(self, ms: int) -> None:
        """Move the database's clock on."""
        self.now += ms
        self.runtime.parts.database.clock = Clock(self.now)

    def rest(self) -> None:
        """Deliver messages and sweep, until nothing is left that could move before its time."""
        for _ in range(ROUNDS):
            self.do(lambda _: self.canvas.drain())
            if not self._work_is_left():
                self._finished.note(self.runtime)
                return
            self.pass_time(ROUND_MS)
            self.do(lambda runtime: sweep(runtime.parts))
        raise AssertionError("the sweep does not bring the sessions to rest")

    def sweep(self) -> None:
        """One sweep, now."""
        self.do(lambda runtime: sweep(runtime.parts))

    def _work_is_left(self) -> bool:
        rows = self.read(
            "SELECT 1 FROM step s JOIN session e ON e.id = s.session_id WHERE s.status = 'running' "
            "OR (s.status = 'ready' AND s.due_at <= :now AND e.paused_at IS NULL AND s.driver = 'worker') "
            "OR NOT s.propagated LIMIT 1",
            now=self.now,
        )
        return bool(rows) or bool(self.canvas.waiting)

    # --- what must hold -----------------------------------------------------------------------

    def read(self, sql: str, **values: Any) -> list[Any]:
        """The rows of a query."""
        return rows_of(self.runtime, sql, **values)

    def handle(self, session_id: str) -> SessionHandle:
        """A session, as an operator sees it."""
        return SessionHandle(self.runtime.parts, session_id)

    def check(self) -> None:
        """Hold all that must be true of every session after any crash."""
        self._finished.note(self.runtime)
        for row in self.read("SELECT id FROM session ORDER BY id"):
            found = self.runtime.verify(row.id, principal=None)
            assert found.verified, (row.id, found.problem)
            numbers = [each.get("sequence") for each in self.handle(row.id).continuations()]
            assert numbers == list(range(len(numbers))), (row.id, numbers)


def once_effects(runtime: AgentRuntime, effects: Counter[str]) -> OnceCalls:
    """Each ``once`` call took effect at most once, and where that is not known it was asked about.

    Args:
        runtime: Where the calls were made.
        effects: How often the effect of each idempotency key, hence of each step, took place.
    """
    rows = rows_of(
        runtime, "SELECT id, status FROM step WHERE tool_name IN ('ledger:pay', 'ledger:guarded', 'slow:pay')"
    )
    asked = {row.step_id for row in rows_of(runtime, "SELECT step_id FROM approval WHERE kind = 'in_doubt'")}
    assert {row.id: effects[row.id] for row in rows if effects[row.id] > 1} == {}
    for row in rows:
        if row.status == "succeeded":
            assert effects[row.id] == 1, f"{row.id} is said to have happened"
        elif effects[row.id]:
            assert row.id in asked or row.status == "cancelled", f"{row.id} happened, and nobody was asked"
    succeeded = sum(row.status == "succeeded" for row in rows)
    doubts = [row.id for row in rows if row.id in asked]
    return OnceCalls(len(rows), succeeded, len(doubts), sum(effects[each] for each in doubts))


@dataclass(frozen=True)
class OnceCalls:
    """How many ``once`` calls there were, succeeded, and were in doubt, and how many of these took effect."""

    calls: int
    recorded: int
    in_doubt: int
    in_doubt_and_done: int
