"""The sweep finds what nobody works on, each row once, and backs off."""

import json
import threading

import pytest
from sqlalchemy import text

from runtime import start_governed_agent_session
from runtime.engine.sweep import (
    BATCH,
    EXPIRY_BATCH,
    Backoff,
    _claim_expired,
    _claim_lost,
    _claim_ready,
    _claim_unpropagated,
    sweep,
)
from runtime.live.hints import AdvanceHint
from runtime.store.journal import apply
from runtime.store.tables import ApprovalRow
from runtime.store.write import Change
from tests.harness.rows import insert_session, insert_step
from tests.harness.sessions import call, context, turn_input

FAR = 99_999_999_999_999
BACKOFF = Backoff(5, 60)


@pytest.fixture
def journal(database):
    insert_session(database)
    return database


def ids(hints):
    return sorted(hint.step_id for hint in hints)


def test_a_ready_row_whose_time_has_come_is_published_once_and_backs_off(journal):
    insert_step(journal, "due")
    insert_step(journal, "later", publish_at=FAR)
    insert_step(journal, "pending", status="pending")
    assert ids(_claim_ready(journal, BACKOFF)) == ["due"]
    assert ids(_claim_ready(journal, BACKOFF)) == []
    with journal.writing() as connection:
        connection.execute(text("UPDATE step SET publishes = 9, publish_at = 0 WHERE id = 'due'"))
    assert ids(_claim_ready(journal, BACKOFF)) == ["due"]
    with journal.reading() as connection:
        ahead = connection.execute(
            text(f"SELECT publish_at - {journal.now_sql} FROM step WHERE id = 'due'")
        ).scalar_one()
    assert 50_000 < ahead <= 60_000


def at_once(count, work):
    """What several threads that start together return, one after the other."""
    barrier, found = threading.Barrier(count), []

    def run():
        barrier.wait()
        found.extend(work())

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_four_sweeps_at_once_publish_each_row_once(journal):
    for number in range(200):
        insert_step(journal, f"step-{number:03}")
    found = at_once(4, lambda: ids(_claim_ready(journal, BACKOFF)))
    assert sorted(found) == [f"step-{number:03}" for number in range(200)]


def test_a_lost_lease_is_found_and_a_held_one_is_not(journal):
    insert_step(journal, "lost", status="running", lease_until=1)
    insert_step(journal, "held", status="running", lease_until=FAR)
    insert_step(journal, "host", status="running", lease_until=1, driver="host")
    assert ids(_claim_lost(journal, 5)) == ["lost"]
    assert ids(_claim_lost(journal, 5)) == []


# --- steps from which nothing was made to follow --------------------------------------------------


def ended(journal, step_id, **values):
    """A step whose record left it unpropagated."""
    row = {"status": "succeeded", "propagated": False, "publish_at": 1, "finished_at": 1, **values}
    insert_step(journal, step_id, **row)


def column(journal, name, step_id):
    with journal.reading() as connection:
        return connection.execute(
            text(f"SELECT {name} FROM step WHERE id = :id"), {"id": step_id}
        ).scalar_one()


def make_due(journal, table="step", value=2):
    with journal.writing() as connection:
        connection.execute(text(f"UPDATE {table} SET publish_at = {value}"))


def delays(journal, claim, step_id, times):
    """The delay, in seconds, that each of several claims leaves."""
    found = []
    for _ in range(times):
        assert claim()
        ahead = column(journal, f"publish_at - {journal.now_sql}", step_id)
        found.append(round(ahead / 1000))
        make_due(journal)
    return found


def test_a_step_that_was_not_propagated_brings_its_session_once(journal):
    ended(journal, "ended")
    ended(journal, "another of it")
    ended(journal, "fresh", session_id="other", publish_at=FAR, finished_at=FAR)
    insert_step(journal, "propagated", session_id="third", status="succeeded", finished_at=1)
    assert _claim_unpropagated(journal, BACKOFF) == ["s"]
    assert _claim_unpropagated(journal, BACKOFF) == []


def test_a_record_of_just_now_is_left_to_its_own_advance(journal):
    ended(journal, "ended")
    make_due(journal, value=journal.now_sql)
    assert _claim_unpropagated(journal, BACKOFF) == []


def test_a_session_that_cannot_be_advanced_is_sent_ever_less_often(journal):
    ended(journal, "stuck")
    assert delays(journal, lambda: _claim_unpropagated(journal, BACKOFF), "stuck", 6) == [
        5, 10, 20, 40, 60, 60,
    ]  # fmt: skip


def test_how_often_a_step_was_published_before_it_ended_does_not_delay_what_follows(journal):
    ended(journal, "waited long for a worker")
    with journal.writing() as connection:
        connection.execute(text("UPDATE step SET publishes = 9, publish_at = 5000, finished_at = 5000"))
    _claim_unpropagated(journal, BACKOFF)
    assert column(journal, "publishes", "waited long for a worker") == 1


def test_stuck_sessions_do_not_keep_others_waiting(journal):
    for number in range(BATCH + 20):
        ended(journal, f"stuck-{number:03}", session_id=f"stuck-{number:03}")
    ended(journal, "last", session_id="last", publish_at=100, finished_at=100)
    first = _claim_unpropagated(journal, BACKOFF)
    second = _claim_unpropagated(journal, BACKOFF)
    assert (len(first), "last" in first) == (BATCH, False)
    assert (len(second), "last" in second) == (21, True)


def test_two_sweeps_at_once_bring_each_unpropagated_session_once(journal):
    for number in range(200):
        ended(journal, f"step-{number:03}", session_id=f"session-{number:03}")
    found = at_once(2, lambda: _claim_unpropagated(journal, BACKOFF))
    assert sorted(found) == [f"session-{number:03}" for number in range(200)]


# --- requests that nobody answered ----------------------------------------------------------------


def ask(journal, name, expires_at=1, status="pending"):
    """A step that waits for the answer to a request."""
    insert_step(journal, f"step of {name}", status="waiting_approval", publish_at=1)
    row = {
        "id": name,
        "kind": "call",
        "session_id": "s",
        "node_uid": "n",
        "node_id": "node",
        "step_id": f"step of {name}",
        "tool_name": "ledger:pay",
        "digest": "",
        "input": "{}",
        "policy_decisions": "[]",
        "message": json.dumps(""),
        "status": status,
        "requested_at": 0,
        "expires_at": expires_at,
    }
    change = Change()
    change.insert(ApprovalRow, [row])
    assert apply(journal, change)


def test_a_request_that_expired_is_claimed_once_and_one_that_waits_is_not(journal):
    ask(journal, "expired")
    ask(journal, "waits", expires_at=FAR)
    ask(journal, "answered", status="approved")
    assert _claim_expired(journal, BACKOFF) == ["expired"]
    assert _claim_expired(journal, BACKOFF) == []


def test_a_request_that_cannot_be_expired_is_tried_ever_less_often(journal):
    ask(journal, "stuck")
    assert delays(journal, lambda: _claim_expired(journal, BACKOFF), "step of stuck", 6) == [
        5, 10, 20, 40, 60, 60,
    ]  # fmt: skip


def test_requests_that_cannot_be_expired_do_not_keep_others_waiting(journal):
    for number in range(EXPIRY_BATCH):
        ask(journal, f"stuck-{number:03}")
    ask(journal, "last", expires_at=2)
    assert "last" not in _claim_expired(journal, BACKOFF)
    assert _claim_expired(journal, BACKOFF) == ["last"]


def test_two_sweeps_at_once_claim_each_expired_request_once(journal):
    for number in range(60):
        ask(journal, f"request-{number:02}")
    found = at_once(2, lambda: _claim_expired(journal, BACKOFF))
    assert sorted(found) == [f"request-{number:02}" for number in range(60)]


# --- whole sweeps ---------------------------------------------------------------------------------


def start(runtime, number, *turns):
    start_governed_agent_session(
        runtime=runtime, execute_turn_input=turn_input(*turns), ctx=context(f"s-{number}")
    )


def start_asking(runtime, workers, count):
    """Sessions that each wait for an answer, which has expired by now."""
    for number in range(count):
        start(runtime, number, call("ledger:guarded", str(number)), "/say Done.")
    workers.drain()
    with runtime.parts.database.writing() as connection:
        connection.execute(text("UPDATE approval SET expires_at = 1"))


def statuses(runtime):
    with runtime.parts.database.reading() as connection:
        rows = connection.execute(text("SELECT session_id, status FROM approval"))
        return {row.session_id: row.status for row in rows}


def test_two_sweeps_at_once_expire_each_request_once(runtime, workers):
    start_asking(runtime, workers, 6)
    swept = at_once(2, lambda: [sweep(runtime.parts)])
    assert sum(each.expired for each in swept) == 6
    assert statuses(runtime) == {f"s-{number}": "expired" for number in range(6)}
    workers.drain()
    assert {runtime.session(f"s-{number}").status() for number in range(6)} == {"completed"}


def test_a_request_that_cannot_be_expired_does_not_block_the_others(runtime, workers, caplog):
    start_asking(runtime, workers, 3)
    with runtime.parts.database.writing() as connection:
        # Nothing can be read from it any more.
        connection.execute(text("UPDATE approval SET message = 'not JSON' WHERE session_id = 's-0'"))
    assert sweep(runtime.parts).expired == 2
    assert statuses(runtime) == {"s-0": "pending", "s-1": "expired", "s-2": "expired"}
    assert "could not be expired; it is tried again later" in caplog.text
    caplog.clear()
    assert sweep(runtime.parts).expired == 0
    assert caplog.text == ""  # not in every sweep


def test_two_sweeps_at_once_send_one_advance_per_session(runtime, workers):
    for number in range(20):
        start(runtime, number, "/say Done.")
    while steps := [hint for hint in workers.inbox.hints if not isinstance(hint, AdvanceHint)]:
        workers.inbox.hints = steps
        workers.next()
    workers.inbox.hints.clear()  # every advance was lost
    with runtime.parts.database.writing() as connection:
        connection.execute(text("UPDATE step SET publish_at = 1"))
    swept = at_once(2, lambda: [sweep(runtime.parts)])
    assert sum(each.advanced for each in swept) == 20
    assert len(workers.inbox.hints) == 20
    workers.drain()
    assert {runtime.session(f"s-{number}").status() for number in range(20)} == {"completed"}
