"""Sessions parked on approvals: what they hold, how fast one goes on, and all of them at once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from statistics import median

import psutil  # type: ignore[import-untyped]

from bench.figure import Figure, Line, Spread, ratios
from bench.lab import Lab
from bench.linear import run_relays, start_session, wait_completed
from runtime.live.celery_settings import CALL_TASK

_PENDING = "SELECT id, session_id FROM approval WHERE status = 'pending' AND session_id LIKE %s ORDER BY id"
_SETTLED = "SELECT count(*) FROM step WHERE session_id LIKE %s AND NOT propagated"
_RELEASERS = 4
"""Threads that answer when all sessions are released at once."""

STEPS_AFTER = 2
"""Steps of a session after the answer: the call and the last turn."""


def measure(lab: Lab, quick: bool) -> list[Line]:
    """Park sessions in four parts, release some one by one beside bare hops, then the others in rounds."""
    sessions, singles, rounds = (40, 6, 2) if quick else (2000, 50, 5)
    lab.start_workers()
    run_relays(lab, 2, 10, pg=True)
    run = lab.run_id("parked")
    held = [_park(lab, run, range(part * sessions // 4, (part + 1) * sessions // 4)) for part in range(4)]
    # The least of several looks: a task that happens to run is not one that a parked session holds.
    slots = min(lab.held_tasks() for _ in range(3))
    waiting = lab.rows(_PENDING, f"{run}/%")
    hops, floor = _one_by_one(lab, waiting[:singles], rounds)
    released, relays = _all_at_once(lab, waiting[singles:], rounds)
    wait_completed(lab, run, sessions, sessions * (1 + STEPS_AFTER))
    # Children of the tools worker are replaced after some thousand calls: only who lived all along can tell.
    alive = held[0].keys() & held[3].keys()
    per_session = sum(held[3][pid] - held[0][pid] for pid in alive) / 1024 / (sessions * 3 / 4)
    return [
        Line(f"{sessions} parked: worker slots", "tasks", Spread(slots, slots, slots), at_most=0),
        Line("worker memory per session", "kB", Spread(*(per_session,) * 3), at_most=0.1),
        Line("resolve → next step, p50", "ms", Spread.of(hops)),
        Line("a bare Celery hop, p50", "ms", Spread.of(floor)),
        Line("resolve → next step / bare hop", "×", ratios(hops, floor), at_most=2),
        Line("released at once", "steps/s", Spread.of(released)),
        Line("relay_pg", "steps/s", Spread.of(relays)),
        Line("released at once / relay_pg", "×", ratios(released, relays), at_least=0.5),
    ]


def _park(lab: Lab, run: str, numbers: Sequence[int]) -> dict[int, int]:
    """Start sessions and wait until all wait for an approval; bytes that each worker process holds then."""
    for number in numbers:
        start_session(lab, f"{run}/{number}", 1, tool="guarded")
    lab.wait_until(f"{run} to park", lambda: len(lab.rows(_PENDING, f"{run}/%")) > numbers[-1])
    lab.wait_until(f"{run} to settle", lambda: lab.rows(_SETTLED, f"{run}/%")[0][0] == 0)
    return _private_bytes(lab)


def _private_bytes(lab: Lab) -> dict[int, int]:
    """What each process of the workers holds for itself."""
    held = {}
    for process in lab.worker_processes:
        with suppress(psutil.NoSuchProcess):
            held[process.pid] = process.memory_full_info().uss
    return held


def _one_by_one(lab: Lab, waiting: Sequence[tuple[str, ...]], rounds: int) -> tuple[list[float], list[float]]:
    """Answer requests one after the other, a bare hop after each; medians of each round, in milliseconds."""
    hops, floor = [], []
    for part in range(rounds):
        answered, published = {}, {}
        for request_id, session_id in waiting[part::rounds]:
            answered[session_id] = time.monotonic_ns()
            _approve(lab, request_id)
            _wait_ended(lab, [session_id])
            hop = lab.run_id("hop")
            published[hop] = time.monotonic_ns()
            lab.producer.send_task(
                "bench.relay", kwargs={"run": hop, "left": 1, "pg": False}, queue="tools", retry=False
            )
            lab.wait_done(hop, 1)
        hops.append(_until_begun(lab, CALL_TASK, answered))
        floor.append(_until_begun(lab, "bench.relay", published))
    return hops, floor


def _until_begun(lab: Lab, task: str, since: dict[str, int]) -> float:
    # A call that parked was begun before its answer as well.
    found = [(of, at - since[of]) for at, name, of in lab.traced() if name == task and of in since]
    return median(min(late for each, late in found if each == of and late > 0) for of in since) / 1e6


def _all_at_once(
    lab: Lab, waiting: Sequence[tuple[str, ...]], rounds: int
) -> tuple[list[float], list[float]]:
    """Answer a round's requests at once, then run as many relays of as many steps; steps per second."""
    released, relays = [], []
    for part in range(rounds):
        mine = waiting[part::rounds]
        begun = time.time()
        with ThreadPoolExecutor(_RELEASERS) as pool:
            list(pool.map(lambda each: _approve(lab, each[0]), mine))
        seconds = _wait_ended(lab, [session_id for _, session_id in mine]) - begun
        released.append(len(mine) * STEPS_AFTER / seconds)
        relays.append(len(mine) * STEPS_AFTER / run_relays(lab, len(mine), STEPS_AFTER, pg=True)[1])
    return released, relays


def _wait_ended(lab: Lab, ids: list[str]) -> float:
    """Wait until sessions ended; the instant of the last, in seconds since the epoch."""
    ended = "SELECT count(*), max(ended_at) FROM session WHERE id = ANY(%s) AND ended_status IS NOT NULL"
    lab.wait_until("what was released", lambda: lab.rows(ended, ids)[0][0] == len(ids))
    return float(lab.rows(ended, ids)[0][1]) / 1000


def _approve(lab: Lab, request_id: str) -> None:
    lab.runtime.resolve_approval(request_id=request_id, approved=True, approved_by="bench@example.com")


FIGURE = Figure("parked", "sessions that wait for approvals, PostgreSQL", measure)
