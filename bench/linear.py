"""Linear sessions and the relays that are their floor: how the figures run and time both."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

from bench.figure import BenchFailed
from bench.lab import Lab
from bench.stub import prompt
from runtime.core.model import ExecutionContext
from runtime.live.celery_settings import CALL_TASK, TURN_TASK
from runtime.orchestration import start_governed_agent_session

STEP_TASKS = frozenset({TURN_TASK, CALL_TASK, "bench.relay"})


def steps_of(calls: int) -> int:
    """Steps of a session that makes so many calls: a turn before each of them, and the last turn."""
    return 2 * calls + 1


def turn_input(script: str) -> dict[str, Any]:
    """What a session or a node starts with."""
    return {"model_profile": "stub", "messages": [{"role": "user", "content": script}]}


def context(session_id: str) -> ExecutionContext:
    """The context of a measured session."""
    return ExecutionContext(run_id="bench", task_id="bench", session_id=session_id)


def start_session(lab: Lab, session_id: str, calls: int, *, tool: str = "noop", says: int = 0) -> None:
    """Start one linear session."""
    start_governed_agent_session(
        runtime=lab.runtime,
        execute_turn_input=turn_input(prompt(calls, tool, says)),
        ctx=context(session_id),
        max_turns=calls + 1,
    )


def run_sessions(lab: Lab, sessions: int, calls: int) -> tuple[str, float]:
    """Run sessions side by side to their end.

    Returns:
        The prefix of their ids, and the seconds from before the first start to the last session's end.

    Raises:
        BenchFailed: If a session did not complete, or a step ran otherwise than planned.
    """
    run = lab.run_id("session")
    begun = time.time()
    for number in range(sessions):
        start_session(lab, f"{run}/{number}", calls)
    return run, wait_completed(lab, run, sessions, sessions * steps_of(calls)) - begun


def wait_completed(lab: Lab, run: str, sessions: int, steps: int) -> float:
    """Wait until all sessions of a run ended; the instant of the last, in seconds since the epoch.

    Raises:
        BenchFailed: If a session did not complete, or a step ran otherwise than planned.
    """
    ended = "SELECT count(*) FROM session WHERE id LIKE %s AND ended_status IS NOT NULL"
    lab.wait_until(f"sessions {run}", lambda: lab.rows(ended, f"{run}/%")[0][0] == sessions)
    ((last, completed),) = lab.rows(
        "SELECT max(ended_at), count(*) FILTER (WHERE ended_status = 'completed') "
        "FROM session WHERE id LIKE %s",
        f"{run}/%",
    )
    ((good,),) = lab.rows(
        "SELECT count(*) FROM step WHERE session_id LIKE %s AND status = 'succeeded'", f"{run}/%"
    )
    if (completed, good) != (sessions, steps):
        raise BenchFailed(f"{run}: {completed} of {sessions} sessions completed with {good} good steps")
    if not lab.runtime.verify(f"{run}/0").verified:
        raise BenchFailed(f"{run}/0: the evidence does not verify")
    return float(last) / 1000


def run_relays(lab: Lab, relays: int, steps: int, *, pg: bool) -> tuple[str, float]:
    """Run relays side by side to their end; the run's id, and the seconds it took."""
    run = lab.run_id("relay")
    begun = time.time()
    for _ in range(relays):
        lab.producer.send_task(
            "bench.relay", kwargs={"run": run, "left": steps, "pg": pg}, queue="turns", retry=False
        )
    lab.wait_done(run, relays)
    return run, time.time() - begun


def hops_ms(lab: Lab, run: str) -> list[float]:
    """The times from the beginning of one step to the beginning of the next, in milliseconds."""
    begun = []
    for at, task, of in lab.traced():
        if task in STEP_TASKS and of in (run, f"{run}/0"):
            begun.append(at)
    begun.sort()
    return [(after - before) / 1e6 for before, after in pairwise(begun)]
