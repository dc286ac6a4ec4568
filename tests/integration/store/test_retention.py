"""Retention removes contents and keeps what proves them, on both databases."""

import json

import pytest
from sqlalchemy import text

from runtime import start_governed_agent_session, start_governed_agent_workflow
from runtime.core.chain import CONTENTS_REMOVED
from runtime.store.evidence import read_receipts, snapshot, verify_session
from runtime.store.retention import Retained, remove_contents
from tests.harness.sessions import call, context, turn_input, workflow

LONG = "abcd" * 5
OPERATOR = "operator@example.com"


def contents(database, session_id="s-1"):
    with database.reading() as connection:
        rows = connection.execute(
            text("SELECT hash FROM blob WHERE session_id = :id ORDER BY hash"), {"id": session_id}
        )
        return list(rows.scalars())


def retain(database, older_than_ms=-1000):
    """Remove contents of sessions that ended, by default also of one that ended just now."""
    return remove_contents(database, older_than_ms, "the contract ended")


@pytest.fixture
def ended(runtime, workers):
    """A session that ended, with blobs."""
    start_governed_agent_session(
        runtime=runtime,
        execute_turn_input=turn_input(call("ledger:big", LONG), "/say Done."),
        ctx=context(),
    )
    workers.drain()
    database = runtime.parts.database
    assert contents(database)
    assert verify_session(database, "s-1").verified
    return database


def test_contents_go_and_the_evidence_still_verifies_as_removed_by_retention(ended):
    names = contents(ended)
    before = verify_session(ended, "s-1")
    assert retain(ended) == Retained(sessions=1, contents=len(names))
    assert contents(ended) == []
    after = verify_session(ended, "s-1")
    assert after.problem is None
    assert (after.blobs, after.removed) == (0, len(names))
    assert after.receipts == before.receipts + 1
    with snapshot(ended) as connection:
        *_, last = read_receipts(connection, "s-1")
    assert (last.kind, json.loads(last.body)["contents"]) == (CONTENTS_REMOVED, names)
    assert json.loads(last.body)["reason"] == "the contract ended"


def test_removing_again_changes_nothing(ended):
    retain(ended)
    receipts = verify_session(ended, "s-1").receipts
    assert retain(ended) == Retained(0, 0)
    assert verify_session(ended, "s-1").receipts == receipts


def test_what_ended_more_recently_is_left_alone(ended):
    assert retain(ended, older_than_ms=3_600_000) == Retained(0, 0)
    assert contents(ended)


def test_a_session_that_has_not_ended_is_left_alone(runtime):
    ctx = context("open", metadata={"agent_intent": "bookkeeping"})
    assert runtime.execute_tool("ledger:big", {"name": LONG}, ctx).success
    assert retain(runtime.parts.database) == Retained(0, 0)
    assert contents(runtime.parts.database, "open")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("DELETE FROM removed_blob", "is missing"),
        ("DELETE FROM evidence WHERE kind = 'contents_removed'", "no receipt says that retention removed it"),
    ],
)
def test_a_content_that_is_gone_without_row_or_receipt_counts_as_tampered(ended, damage, reason):
    retain(ended)
    with ended.writing() as connection:
        assert connection.execute(text(damage)).rowcount
    assert reason in verify_session(ended, "s-1").problem.reason


def test_a_content_that_somebody_took_away_is_missing_whatever_retention_removed(ended):
    name, *_ = contents(ended)
    with ended.writing() as connection:
        connection.execute(text("DELETE FROM blob WHERE hash = :name"), {"name": name})
    retain(ended)
    assert verify_session(ended, "s-1").problem.reason.startswith(f"blob {name[:16]} ")


def test_a_row_that_says_removed_does_not_make_up_for_a_receipt(ended):
    name, *_ = contents(ended)
    with ended.writing() as connection:
        connection.execute(text("DELETE FROM blob WHERE hash = :name"), {"name": name})
        connection.execute(
            text("INSERT INTO removed_blob (session_id, hash, at, reason) VALUES ('s-1', :name, 0, 'x')"),
            {"name": name},
        )
    assert "no receipt says" in verify_session(ended, "s-1").problem.reason


def test_a_damaged_content_is_kept_as_a_finding(ended):
    name, *_ = contents(ended)
    with ended.writing() as connection:
        connection.execute(text("UPDATE blob SET content = '1' WHERE hash = :name"), {"name": name})
    retain(ended)
    assert contents(ended) == [name]
    assert "was changed" in verify_session(ended, "s-1").problem.reason


def test_a_session_whose_control_chain_is_damaged_is_left_alone(ended):
    with ended.writing() as connection:
        connection.execute(text("UPDATE evidence SET body = '[' WHERE step_id = 'control'"))
    assert retain(ended) == Retained(0, 0, damaged=1)
    assert contents(ended)


def test_the_input_of_an_approved_call_is_kept_because_its_grant_rests_on_it(runtime, workers):
    database = runtime.parts.database
    flow = start_governed_agent_session(
        runtime=runtime,
        execute_turn_input=turn_input(call("ledger:guarded", "b" * 2000), "/say Done."),
        ctx=context(),
    )
    workers.drain()
    (request,) = runtime.approvals("s-1")
    runtime.resolve_approval(request_id=request.request_id, approved=True, approved_by=OPERATOR)
    workers.drain()
    assert flow.status() == "completed"
    before = set(contents(database))
    assert retain(database).contents
    with database.reading() as connection:
        given = connection.execute(
            text("SELECT input_hash FROM step WHERE approval_id IS NOT NULL")
        ).scalar_one()
    assert given in before & set(contents(database))
    assert verify_session(database, "s-1").problem is None


def test_what_a_fork_rests_on_is_kept_and_the_rest_goes(runtime, workers):
    database = runtime.parts.database
    start_governed_agent_workflow(
        runtime=runtime,
        workflow=workflow("w", first=((f"/say {LONG * 100}",), ()), second=(("/say Done.",), ("first",))),
        ctx=context("w"),
    )
    workers.drain()
    runtime.session("w").fork("second", new_session_id="f")
    workers.drain()
    before = set(contents(database, "w"))
    retain(database)
    with database.reading() as connection:
        head = connection.execute(
            text(
                "SELECT body FROM evidence e JOIN node n ON n.head = e.hash "
                "WHERE n.session_id = 'w' AND n.node_id = 'first'"
            )
        ).scalar_one()
    output = json.loads(head)["output_hash"]
    assert set(contents(database, "w")) & before == {output}
    assert verify_session(database, "w").problem is None
    assert verify_session(database, "f").problem is None
