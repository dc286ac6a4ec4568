"""A claim whose lease has run down when the call is about to be made is given back: nothing happened.

One that is held while its call goes on is extended, so that nobody takes it over.
"""

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text

from runtime import start_governed_agent_session
from runtime.agent_runtime import AgentRuntime
from runtime.engine.leases import Leases
from runtime.engine.sweep import sweep
from runtime.settings import Settings
from tests.harness.inline import InlineWorkers
from tests.harness.sessions import call, context, turn_input
from tests.harness.stack import until
from tests.harness.witness import ledger, let_go, receipts, results

NO_MARGIN_SECONDS = 1e-6
"""Gone before the start's own commit has returned, however fast the machine."""


@pytest.fixture
def slow(folder, runtime):
    """Runs one hint as a process whose leases have run down by the time that the start has committed."""
    settings = runtime.settings
    with AgentRuntime.open(
        folder / "workspace.yaml", database_url=settings.database_url, redis_url=settings.redis_url
    ) as opened:
        opened.parts.leases = Leases(opened.parts.database, NO_MARGIN_SECONDS, settings.heartbeat_seconds)
        yield lambda hint: opened.executor().run_step(hint.step_id, ("turns", "tools"))


def start(runtime, *turns):
    return start_governed_agent_session(runtime=runtime, execute_turn_input=turn_input(*turns), ctx=context())


def row(runtime, step_id):
    with runtime.parts.database.reading() as connection:
        return connection.execute(
            text("SELECT status, reason, crashes, fence, lease_until FROM step WHERE id = :id"),
            {"id": step_id},
        ).one()


RELEASED = ("ready", "released", 0, 1, None)


def test_a_turn_without_margin_is_released_uncounted_and_the_model_is_not_asked(
    runtime, workers, slow, model
):
    flow = start(runtime, "/say Done.")
    hint = workers.inbox.hints.pop()
    slow(hint)
    assert tuple(row(runtime, hint.step_id)) == RELEASED
    assert results(flow) == ["released"]
    assert model.faults.state()["requests"] == 0


@pytest.mark.parametrize("tool", ["ledger:put", "ledger:pay"])
def test_a_call_without_margin_is_released_uncounted_and_the_tool_is_not_run(runtime, workers, slow, tool):
    flow = start(runtime, call(tool, "a"), "/say Done.")
    workers.next()
    hint = workers.inbox.hints.pop()
    slow(hint)
    assert tuple(row(runtime, hint.step_id)) == RELEASED
    assert results(flow, tool) == ["released"]
    assert ledger() == {}


@pytest.mark.parametrize(("tool", "effect"), [("ledger:put", "put a"), ("ledger:pay", "pay a")])
def test_a_released_call_is_swept_up_and_runs_once(runtime, workers, slow, tool, effect):
    flow = start(runtime, call(tool, "a"), "/say Done.")
    workers.next()
    hint = workers.inbox.hints.pop()
    slow(hint)
    sweep(runtime.parts)
    assert workers.inbox.hints == [hint]
    workers.drain()
    assert flow.status() == "completed"
    assert ledger() == {effect: 1}
    assert results(flow, tool) == ["released", "success"]
    found = runtime.verify("s-1")
    assert found.verified, found.problem


# --- the heartbeat --------------------------------------------------------------------------------

LEASE_SECONDS = 1.0


@pytest.fixture
def two_processes(folder, migrated_url, valkey):
    """Two runtimes on one deployment, as two worker processes open them, whose leases are short."""
    settings = Settings.load(
        workspace=folder / "workspace.yaml",
        database_url=migrated_url,
        redis_url=valkey.url,
        lease_seconds=LEASE_SECONDS,
        heartbeat_seconds=LEASE_SECONDS / 5,
        republish_seconds=0.1,
        republish_max_seconds=0.1,
    )
    with AgentRuntime.open(settings=settings) as first, AgentRuntime.open(settings=settings) as second:
        yield first, second


@pytest.mark.parametrize(("tool", "effect"), [("ledger:put", "put a"), ("ledger:pay", "pay a")])
def test_a_call_that_lasts_longer_than_its_lease_runs_once_while_another_worker_sweeps(
    two_processes, tool, effect
):
    first, second = two_processes
    workers, others = InlineWorkers(first), InlineWorkers(second)
    flow = start(first, call(tool, "a", hold=True), "/say Done.")
    workers.next()
    hint = workers.inbox.hints[0]
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(workers.next)
        try:
            until(lambda: ledger() == {effect: 1})
            granted = row(second, hint.step_id).lease_until
            with second.parts.database.writing() as connection:  # or the sweep looks at it after 5 s only
                connection.execute(
                    text("UPDATE step SET publish_at = 0 WHERE id = :id"), {"id": hint.step_id}
                )
            # The lease as it was first granted has been over for twice its length when the call returns.
            until(lambda: swept_at(second) > granted + 2_000 * LEASE_SECONDS)
            assert others.inbox.hints == [], "nobody is asked to take over what is held"
        finally:
            let_go()
        running.result(60)
    workers.drain()
    others.drain()
    assert flow.status() == "completed"
    assert ledger() == {effect: 1}
    assert results(flow, tool) == ["success"]
    assert len(receipts(flow, "tool_call_started", tool)) == 1
    assert row(second, hint.step_id).fence == 1
    assert second.verify("s-1").verified


def swept_at(runtime):
    """Sweep; the database's clock afterwards."""
    sweep(runtime.parts)
    with runtime.parts.database.reading() as connection:
        return connection.execute(text(f"SELECT {runtime.parts.database.now_sql}")).scalar_one()
