"""Claims, leases and records of one step: who may move it, and who may not."""

import threading

import pytest
from sqlalchemy import text

from runtime.core.chain import Chain
from runtime.core.lifecycle import StepEvent
from runtime.core.model import StepStatus
from runtime.store import journal
from runtime.store.journal import Claim, StepEnd
from runtime.store.steps import load_step
from runtime.store.write import Change
from tests.harness.rows import WORKSPACE, insert_session, insert_step

CLAIM = Claim("worker-1", 30_000, ("turns",), WORKSPACE)


@pytest.fixture
def step(database):
    insert_session(database)
    insert_step(database, "one")
    return lambda: load_step(database, "one", WORKSPACE)


def start(database, loaded, claim=CLAIM) -> bool:
    change = Change()
    chain = Chain(loaded.id, loaded.fence + 1, loaded.chain_cites)
    receipt = chain.add("tool_call_started", {})
    journal.guard_start(change, loaded, claim, receipt.hash, database.now_sql)
    journal.add_evidence(change, loaded.session_id, [receipt])
    return journal.apply(database, change)


def record(database, loaded, fence, held=True) -> bool:
    change = Change()
    end = StepEnd(StepEvent.SUCCEED, StepStatus.SUCCEEDED, "head")
    journal.guard_record(change, loaded, fence, end, database.now_sql, held=held)
    return journal.apply(database, change)


def run_sql(database, sql, **values):
    with database.writing() as connection:
        connection.execute(text(sql), values)


def test_a_start_takes_the_lease_and_raises_the_fence(database, step):
    assert start(database, step())
    after = step()
    assert (after.status, after.fence, after.attempts, after.crashes) == ("running", 1, 1, 0)
    assert after.lease_until - after.now == pytest.approx(30_000, abs=5_000)


def test_of_eight_workers_that_start_at_once_one_wins(database, step):
    loaded, barrier, won = step(), threading.Barrier(8), []

    def work():
        barrier.wait()
        won.append(start(database, loaded))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == [False] * 7 + [True]
    with database.reading() as connection:
        assert connection.execute(text("SELECT count(*) FROM evidence")).scalar_one() == 1


@pytest.mark.parametrize(
    "spoil",
    [
        "UPDATE session SET cancelled_at = 1",
        "UPDATE session SET paused_at = 1",
        "UPDATE session SET ended_status = 'completed'",
        "UPDATE step SET queue = 'gpu'",
        "UPDATE step SET due_at = 99999999999999",
        "UPDATE step SET status = 'succeeded'",
        "UPDATE step SET fence = 5",
        "DELETE FROM workspace_version",
    ],
)
def test_what_changed_since_the_load_stops_the_start(database, step, spoil):
    loaded = step()
    run_sql(database, spoil)
    assert not start(database, loaded)
    with database.reading() as connection:
        assert connection.execute(text("SELECT count(*) FROM evidence")).scalar_one() == 0


def test_a_lease_that_runs_out_is_taken_over_and_counts_a_crash(database, step):
    assert start(database, step())
    assert not start(database, step())
    run_sql(database, "UPDATE step SET lease_until = 1")
    assert step().lease_expired
    assert start(database, step())
    assert (step().fence, step().crashes) == (2, 1)


def test_a_stale_holder_cannot_record(database, step):
    loaded = step()
    assert start(database, loaded)
    run_sql(database, "UPDATE step SET lease_until = 1")
    assert start(database, step())
    assert not record(database, loaded, fence=1)
    assert record(database, step(), fence=2)
    assert step().status == "succeeded"
    assert not record(database, step(), fence=2), "an ended step cannot end again"


def test_a_refusal_is_recorded_only_from_the_state_it_was_decided_in(database, step):
    loaded = step()
    assert start(database, loaded)
    assert not record(database, loaded, fence=1, held=False)


def test_a_heartbeat_extends_only_what_is_still_held(database, step):
    assert start(database, step())
    run_sql(database, "UPDATE step SET lease_until = 1")
    assert journal.extend_leases(database, [("one", 7), ("two", 1)], 30_000) == set()
    assert step().lease_expired
    assert journal.extend_leases(database, [("one", 1)], 30_000) == {"one"}
    assert not step().lease_expired


def test_a_grant_is_consumed_by_the_start_and_fits_one_step(database, step):
    run_sql(
        database,
        "INSERT INTO approval (id, kind, session_id, node_uid, node_id, step_id, tool_name, digest, input, "
        "policy_decisions, message, status, requested_at, expires_at) "
        "VALUES ('apr', 'call', 's', 'n', 'node', "
        "'one', 'x', 'digest', '{}', '[]', '\"\"', 'approved', 0, 99999999999999)",
    )
    run_sql(database, "UPDATE step SET approval_id = 'apr'")
    loaded = step()
    run_sql(database, "UPDATE approval SET consumed_by = 'another'")
    assert not start(database, loaded)
    run_sql(database, "UPDATE approval SET consumed_by = NULL")
    assert start(database, loaded)
    with database.reading() as connection:
        assert connection.execute(text("SELECT consumed_by FROM approval")).scalar_one() == "one"
