"""Linear sessions and the relays that are their floor: how the figures run and time both."""

from __future__ import annotations

import time
from itertools import pairwise

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


def start_session(lab: Lab, session_id: str, calls: int) -> None:
    """Start one linear session."""
    start_governed_agent_session(
        runtime=lab.runtime,
        execute_turn_input={
            "model_profile": "stub",
            "messages": [{"role": "user", "content": prompt(calls)}],
        },
        ctx=ExecutionContext(run_id="bench", task_id="bench", session_id=session_id),
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
    ended = "SELECT count(*) FROM session WHERE id LIKE %s AND ended_status IS NOT NULL"
    lab.wait_until(f"sessions {run}", lambda: lab.rows(ended, f"{run}/%")[0][0] == sessions)
    ((last, completed),) = lab.rows(
        "SELECT max(ended_at), count(*) FILTER (WHERE ended_status = 'completed') "
        "FROM session WHERE id LIKE %s",
        f"{run}/%",
    )
    ((steps,),) = lab.rows(
        "SELECT count(*) FROM step WHERE session_id LIKE %s AND status = 'succeeded'", f"{run}/%"
    )
    if (completed, steps) != (sessions, sessions * steps_of(calls)):
        raise BenchFailed(f"{run}: {completed} of {sessions} sessions completed with {steps} good steps")
    if not lab.runtime.verify(f"{run}/0").verified:
        raise BenchFailed(f"{run}/0: the evidence does not verify")
    return run, last / 1000 - begun


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
    for line in lab.trace.read_text().splitlines():
        at, task, of = line.split(" ", 2)
        if task in STEP_TASKS and of in (run, f"{run}/0"):
            begun.append(int(at))
    begun.sort()
    return [(after - before) / 1e6 for before, after in pairwise(begun)]
