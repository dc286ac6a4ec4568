"""Nodes that wait for an instant: how long after it they are published."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from itertools import count, islice
from statistics import median, quantiles

from bench.figure import BenchFailed, Figure, Line, Spread
from bench.lab import Lab
from bench.linear import context, run_sessions, turn_input, wait_completed
from bench.stub import prompt
from runtime.core.model import Workflow, WorkflowNode
from runtime.orchestration import start_governed_agent_workflow

NODES = 50
"""Nodes of one session, each with an instant of its own and nothing else to wait for."""

LEAD_SECONDS = 12.0
"""How long before the first instant sessions are started and workers asked; one more for each session."""


def measure(lab: Lab, quick: bool) -> list[Line]:
    """Let wake-ups fall due over some seconds, then all at one instant."""
    sessions, over_s, rounds = (1, 2.0, 1) if quick else (20, 10.0, 3)
    lab.start_workers()
    run_sessions(lab, 2, 2)
    middle, high, whole, held = [], [], [], []
    for _ in range(rounds):
        late, slots = _wake(lab, sessions, over_s)
        middle.append(median(late))
        high.append(quantiles(late, n=20)[-1])
        held.append(slots)
        late, slots = _wake(lab, sessions, 0)
        whole.append(max(late))
        held.append(slots)
    wakeups = sessions * NODES
    return [
        Line(f"{wakeups} over {over_s:g} s: due → published, p50", "s", Spread.of(middle), at_most=0.6),
        Line("  p95", "s", Spread.of(high), at_most=1.2),
        Line(f"{wakeups} at one instant: the last", "s", Spread.of(whole), at_most=2),
        Line("tasks that workers hold before", "tasks", Spread.of(held), at_most=0),
    ]


def _wake(lab: Lab, sessions: int, over_s: float) -> tuple[list[float], float]:
    """Run wake-ups; how late each was published, in seconds, and what workers held while they waited."""
    run = lab.run_id("wake")
    wakeups = sessions * NODES
    lead = LEAD_SECONDS + sessions
    first = time.time() + lead
    due: dict[str, float] = {}
    numbers = count()
    for session in range(sessions):
        nodes = []
        for number in islice(numbers, NODES):
            at = round(first + over_s * number / wakeups, 3)
            due[f"{run}/{session}/n{number}"] = at
            instant = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
            nodes.append(
                WorkflowNode(id=f"n{number}", execute_turn_input=turn_input(prompt(0)), wake_at=instant)
            )
        start_governed_agent_workflow(
            runtime=lab.runtime,
            workflow=Workflow(session_id=f"{run}/{session}", nodes=nodes),
            ctx=context(f"{run}/{session}"),
        )
    held = lab.held_tasks()
    if time.time() > first:
        raise BenchFailed(f"{run}: starting {sessions} sessions took longer than {lead:g} s")
    wait_completed(lab, run, sessions, wakeups)
    published: dict[str, float] = {}
    for at_ns, mark, of in lab.traced():
        if mark == "published" and of in due:
            published.setdefault(of, at_ns / 1e9)
    if len(published) != wakeups:
        raise BenchFailed(f"{run}: {len(published)} of {wakeups} wake-ups were published by the sweep")
    return [at - due[of] for of, at in published.items()], float(held)


FIGURE = Figure("wakeups", "due → published, PostgreSQL", measure)
