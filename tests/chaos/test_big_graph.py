"""A large random graph completes while its workers are killed again and again and Redis is flushed twice.

``AGENT_RUNTIME_BIG_GRAPH`` is the number of nodes; ``pytest -s`` shows what happened.
"""

import os
import random
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress

import psutil
import pytest
import redis

from runtime.core.model import NodeStatus
from runtime.edges.supervisor import ChildFailed
from runtime.errors import ApprovalRefused, SessionConflict
from tests.harness.graphs import numbers, start
from tests.harness.mortal import FinishedSteps, once_effects, rows_of
from tests.harness.random_graph import SLOW_TOOLS, random_workflow
from tests.harness.witness import effects, verified_by_another_process

SIZE = int(os.environ.get("AGENT_RUNTIME_BIG_GRAPH", "120"))
SEED = int(os.environ.get("AGENT_RUNTIME_BIG_GRAPH_SEED", "1"))
KILL_EVERY_SECONDS = 2.0
LIMIT_SECONDS = 100 + SIZE

WORKERS = {"turns": "turns", "turns-2": "turns", "tools": "tools", "tools-2": "tools", "beat": "beat"}
"""Two groups on threads, two on prefork, and beat; each with the kind that it is of."""


@pytest.fixture
def folder(folder):
    """A workspace with the graph's tools, whose limits leave room for it."""
    (folder / "slow_tools.py").write_text(SLOW_TOOLS)
    path = folder / "workspace.yaml"
    given = path.read_text().replace("per_session: 40", "per_session: 100000")
    given = given.replace("modules: [ledger_tools]", "modules: [ledger_tools, slow_tools]")
    path.write_text(given.replace("allow_tools: [", 'allow_tools: ["slow:put", "slow:pay", '))
    return folder


class Killer:
    """Kills a random process of a stack every few seconds and starts it again."""

    def __init__(self, stack, seed: int) -> None:
        self.stack = stack
        self.kills: Counter[str] = Counter()
        self._chance = random.Random(seed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="killer")

    @contextmanager
    def at_work(self):
        """Kill while the block runs."""
        self._thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            self._thread.join(60)

    def _run(self) -> None:
        while not self._stop.wait(KILL_EVERY_SECONDS):
            ready = [name for name in WORKERS if self._is_ready(name)]
            if len(ready) > len(WORKERS) // 2:  # else nothing but starting processes would be killed
                self._kill(self._chance.choice(ready))

    def _is_ready(self, name: str) -> bool:
        try:
            self.stack.supervisor.wait_ready(name, 0)
        except ChildFailed:
            return False
        return True

    def _kill(self, name: str) -> None:
        with suppress(psutil.NoSuchProcess):
            self.stack.kill(name)
        self.kills[name] += 1
        self.stack.restart(name, like=WORKERS[name])


def operate(runtime, flow) -> None:
    """What an operator does: lets no call in doubt run again, and resumes what was quarantined."""
    for request in runtime.approvals("s-1"):
        with suppress(ApprovalRefused):
            runtime.resolve_approval(
                request_id=request.request_id, approved=False, approved_by="op@example.com"
            )
    if flow.status() == "suspended":
        with suppress(SessionConflict):
            runtime.resume("s-1")


def ended(runtime) -> int:
    """How many nodes have ended."""
    (row,) = rows_of(
        runtime, "SELECT count(*) AS n FROM node WHERE status IN ('completed', 'skipped', 'error')"
    )
    return row.n


@pytest.mark.timeout(LIMIT_SECONDS + 200)
@pytest.mark.parametrize("attached", ["postgresql"], indirect=True)
def test_a_random_graph_completes_while_workers_are_killed_and_redis_is_flushed_twice(
    attached, stack, own_valkey
):
    planned = random_workflow(SIZE, SEED)
    flushes = [SIZE // 4, SIZE // 2]
    finished, tick = FinishedSteps(), threading.Event()
    with stack() as workers:
        for name, kind in WORKERS.items():
            if name != kind:
                workers.start(name, like=kind)
        flow = start(attached, *[each.node for each in planned])
        begun = time.monotonic()
        with Killer(workers, SEED).at_work() as killer:
            while flow.status() != "completed":
                assert time.monotonic() - begun < LIMIT_SECONDS, Counter(str(n.status) for n in flow.nodes())
                finished.note(attached)
                if flushes and ended(attached) >= flushes[0]:
                    flushes.pop(0)
                    redis.Redis.from_url(own_valkey.url).flushall()
                operate(attached, flow)
                tick.wait(0.3)
        took = time.monotonic() - begun
    finished.note(attached)
    assert flushes == []
    assert killer.kills.total() >= 5
    calls = once_effects(attached, effects())
    assert_ran_as_planned(flow, planned)
    assert numbers(flow) == list(range(len(numbers(flow))))
    assert verified_by_another_process(attached)
    print_summary(attached, planned, killer.kills, calls, took)


def assert_ran_as_planned(flow, planned) -> None:
    """Each node, and each instance of a list, completed with the turns and calls of its script."""
    expected = {each.node.id: each for each in planned}
    for found in flow.nodes():
        name, _, instance = found.id.partition("[")
        plan = expected[name]
        assert found.status is NodeStatus.COMPLETED, found
        if instance or plan.node.for_each is None:
            assert (found.turn_count, found.tool_call_count) == (plan.turns, plan.calls), found.id


def print_summary(runtime, planned, kills, calls, took) -> None:
    """What ``pytest -s`` shows."""
    (steps,) = rows_of(runtime, "SELECT count(*) AS n, sum(crashes) AS crashes FROM step")
    (nodes,) = rows_of(runtime, "SELECT count(*) AS n FROM node")
    print(
        f"\n{len(planned)} nodes ({nodes.n} with instances), {steps.n} steps, completed in {took:.0f} s; "
        f"{kills.total()} kill -9 (groups: {', '.join(f'{name} {n}' for name, n in sorted(kills.items()))}), "
        f"2 FLUSHALL, {steps.crashes} leases lost; once calls: {calls.calls}, of which {calls.recorded} "
        f"succeeded with exactly one effect each and {calls.in_doubt} in doubt ({calls.in_doubt_and_done} of "
        "them had taken effect), none twice; verified by a second process"
    )
