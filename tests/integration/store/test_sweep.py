"""The sweep finds what nobody works on, each row once, and backs off."""

import threading

import pytest
from sqlalchemy import text

from runtime.engine.sweep import _claim_lost, _claim_ready, _unpropagated
from tests.harness.rows import insert_session, insert_step

FAR = 99_999_999_999_999


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
    assert ids(_claim_ready(journal, 5, 60)) == ["due"]
    assert ids(_claim_ready(journal, 5, 60)) == []
    with journal.writing() as connection:
        connection.execute(text("UPDATE step SET publishes = 9, publish_at = 0 WHERE id = 'due'"))
    assert ids(_claim_ready(journal, 5, 60)) == ["due"]
    with journal.reading() as connection:
        ahead = connection.execute(
            text(f"SELECT publish_at - {journal.now_sql} FROM step WHERE id = 'due'")
        ).scalar_one()
    assert 50_000 < ahead <= 60_000


def test_four_sweeps_at_once_publish_each_row_once(journal):
    for number in range(200):
        insert_step(journal, f"step-{number:03}")
    barrier, found = threading.Barrier(4), []

    def work():
        barrier.wait()
        found.extend(ids(_claim_ready(journal, 5, 60)))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [f"step-{number:03}" for number in range(200)]


def test_a_lost_lease_is_found_and_a_held_one_is_not(journal):
    insert_step(journal, "lost", status="running", lease_until=1)
    insert_step(journal, "held", status="running", lease_until=FAR)
    insert_step(journal, "host", status="running", lease_until=1, driver="host")
    assert ids(_claim_lost(journal, 5)) == ["lost"]
    assert ids(_claim_lost(journal, 5)) == []


def test_a_step_that_was_not_propagated_brings_its_session(journal):
    insert_step(journal, "ended", status="succeeded", propagated=False, finished_at=1)
    insert_step(journal, "fresh", session_id="other", status="succeeded", propagated=False, finished_at=FAR)
    assert _unpropagated(journal) == ["s"]
