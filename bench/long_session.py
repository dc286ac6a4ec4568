"""A late turn of a long session beside an early one: bytes written and time.

Steps run in this process, on queues that nobody consumes. Bytes are those of PostgreSQL's write-ahead log.
The time is that of the two commits with all that is prepared for them, and of publishing; reading the history
and serialising it for the model is left out, and printed beside.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from bench.figure import Figure, Line, Spread, ratios
from bench.lab import Lab
from bench.linear import start_session
from bench.step_costs import Kept
from runtime.core.model import StepKind
from runtime.core.turn_output import TurnOutput
from runtime.live.celery_settings import QUEUES
from runtime.live.hints import StepHint
from runtime.live.publisher import CeleryPublisher
from runtime.providers.client import ProviderClient
from runtime.store.crashpoints import CrashPoints

SAYS = 2000
"""Characters that the model says in each turn."""

EARLY = 10
AROUND = 5
"""A turn's value is the median of so many turns before it, and itself."""

_WRITTEN = "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')"


@dataclass(frozen=True, slots=True)
class _Turn:
    written: float
    seconds: float
    whole: float


@dataclass
class _Watch(CrashPoints):
    """Notes when the points at commits are reached; nothing dies."""

    at: dict[str, float] = field(default_factory=dict)

    def reach(self, point: str) -> None:
        """Note the instant."""
        self.at[point] = time.perf_counter()


class _Timed(ProviderClient):
    """The provider, with the instant of its last answer."""

    def __init__(self, provider: ProviderClient) -> None:
        super().__init__()
        self._provider = provider
        self.answered = 0.0

    def execute(self, *arguments: Any, **options: Any) -> TurnOutput:
        """Make one model call."""
        answer = self._provider.execute(*arguments, **options)
        self.answered = time.perf_counter()
        return answer


def measure(lab: Lab, quick: bool) -> list[Line]:
    """Run long sessions, one a round."""
    late, rounds = (40, 1) if quick else (500, 3)
    parts = lab.runtime.parts
    before = parts.publisher, parts.provider, parts.database.crash
    lab.runtime.activate_workspace()
    parts.publisher, parts.provider = (
        Kept(CeleryPublisher(lab.producer, "unattended-")),
        _Timed(parts.provider),
    )
    parts.database.crash = _Watch()
    try:
        _session(lab, EARLY)
        sessions = [_session(lab, late) for _ in range(rounds)]
    finally:
        parts.publisher, parts.provider, parts.database.crash = before
    lines = []
    for name, unit, limit, scale in (
        ("written", "kB", 1.1, 1e-3),
        ("seconds", "ms", 1.2, 1e3),
        ("whole", "ms", None, 1e3),
    ):
        first = [_value(turns, EARLY, name) * scale for turns in sessions]
        last = [_value(turns, late, name) * scale for turns in sessions]
        title = {"written": "bytes written", "seconds": "time", "whole": "time with the model's history"}[
            name
        ]
        lines += [
            Line(f"turn {EARLY}: {title}", unit, Spread.of(first)),
            Line(f"turn {late}: {title}", unit, Spread.of(last)),
            Line(f"{title}: turn {late} / turn {EARLY}", "×", ratios(last, first), at_most=limit),
        ]
    return lines


def _value(turns: list[_Turn], number: int, name: str) -> float:
    return median(float(getattr(turn, name)) for turn in turns[number - AROUND : number])


def _session(lab: Lab, turns: int) -> list[_Turn]:
    """Run a session of so many turns, each but the last with one call, in this process."""
    parts, executor = lab.runtime.parts, lab.runtime.executor()
    kept: Any = parts.publisher
    done: list[_Turn] = []
    start_session(lab, lab.run_id("long"), turns - 1, says=SAYS)
    while kept.hints:
        hint = kept.hints.pop(0)
        if not isinstance(hint, StepHint):
            executor.advance(hint.session_id)
            continue
        before, begun = _written(lab), time.perf_counter()
        executor.run_step(hint.step_id, QUEUES)
        ended = time.perf_counter()
        if hint.kind is StepKind.TURN:
            at, answered = parts.database.crash.at, parts.provider.answered  # type: ignore[attr-defined]
            seconds = at["start.after_commit"] - at["start.begin"] + ended - answered
            done.append(_Turn(_written(lab) - before, seconds, ended - begun))
    return done


def _written(lab: Lab) -> float:
    return float(lab.rows(_WRITTEN)[0][0])


FIGURE = Figure("long", "a late turn of a session beside an early one, PostgreSQL", measure)
