"""Verification holds a session's row, its approvals and its grants against the control chain."""

import pytest
from sqlalchemy import text

from runtime import resume_governed_agent_session, start_governed_agent_session
from runtime.agent_runtime import AgentRuntime
from runtime.engine.host_start import decidable, load_call
from runtime.engine.sweep import sweep
from tests.harness.inline import InlineWorkers
from tests.harness.sessions import call, context, turn_input
from tests.harness.witness import ledger

OPERATOR = "op@example.com"


def start(runtime, *turns):
    return start_governed_agent_session(runtime=runtime, execute_turn_input=turn_input(*turns), ctx=context())


def answer(runtime, approved, session_id="s-1", reason="I looked"):
    (request,) = runtime.approvals(session_id)
    runtime.resolve_approval(
        request_id=request.request_id, approved=approved, approved_by=OPERATOR, reason=reason
    )
    return request.request_id


def execute(runtime, sql, **values):
    with runtime.parts.database.writing() as connection:
        return connection.execute(text(sql), values).rowcount


def problem_of(runtime, session_id="s-1"):
    found = runtime.verify(session_id)
    assert found.verified is (found.problem is None)
    return found.problem


# --- what is as it should be ----------------------------------------------------------------------


@pytest.fixture
def ended(runtime, workers):
    """A session that completed: one call was approved, the next one denied."""
    flow = start(runtime, call("ledger:guarded", "a"), call("ledger:guarded", "b"), "/say Done.")
    workers.drain()
    answer(runtime, True)
    workers.drain()
    answer(runtime, False, reason=None)
    workers.drain()
    assert flow.status() == "completed"
    assert ledger() == {"guarded a": 1}
    assert problem_of(runtime) is None
    return runtime


def host_call(runtime, **metadata):
    ctx = context(metadata={"agent_intent": "bookkeeping", **metadata})
    return runtime.execute_tool("ledger:guarded", {"name": "a" * 2000}, ctx)


def test_a_host_driven_call_under_a_grant_verifies_and_so_does_a_question_that_waits(runtime):
    for _ in range(2):
        request = host_call(runtime).error.details["request_id"]
    runtime.resolve_approval(request_id=request, approved=True, approved_by=OPERATOR)
    assert host_call(runtime, approval_request_id=request).success
    assert problem_of(runtime) is None


@pytest.mark.parametrize("approved", [True, False])
def test_a_call_in_doubt_verifies_before_and_after_its_answer(folder, migrated_url, valkey, approved):
    with AgentRuntime.open(
        folder / "workspace.yaml", database_url=migrated_url, redis_url=valkey.url, tool_processes=True
    ) as runtime:
        workers = InlineWorkers(runtime)
        flow = start(runtime, call("ledger:hang-once"), "/say Done.")
        workers.drain()
        assert problem_of(runtime) is None
        answer(runtime, approved)
        workers.drain()
        assert flow.status() == ("waiting_approval" if approved else "completed")
        assert problem_of(runtime) is None


def test_a_session_that_was_cancelled_with_an_open_question_verifies(runtime, workers):
    flow = start(runtime, call("ledger:guarded"), "/say Done.")
    workers.drain()
    flow.cancel(reason="not today")
    workers.drain()
    assert [each.status for each in runtime.approvals("s-1", status=None)] == ["cancelled"]
    assert flow.status() == "cancelled"
    assert problem_of(runtime) is None


def test_a_session_that_ended_and_went_on_and_ended_again_verifies(ended, workers):
    resume_governed_agent_session(runtime=ended, session_id="s-1")
    assert problem_of(ended) is None
    say = [{"role": "user", "content": "/say More."}]
    resume_governed_agent_session(runtime=ended, session_id="s-1", messages=say)
    assert problem_of(ended) is None
    workers.drain()
    assert problem_of(ended) is None


# --- what was changed -----------------------------------------------------------------------------

APPROVED = "WHERE status = 'approved'"
VOTE = "WHERE approved = (1 = 1)"
CONTROL = "step_id = 'control'"


@pytest.mark.parametrize(
    ("damage", "entry"),
    [
        (f"DELETE FROM approval {APPROVED}", "approval apr"),
        ("DELETE FROM approval WHERE status = 'denied'", "approval apr"),
        (f"UPDATE approval SET status = 'denied' {APPROVED}", "approval apr"),
        ("UPDATE approval SET status = 'approved' WHERE status = 'denied'", "approval apr"),
        ("UPDATE approval SET status = 'expired' WHERE status = 'denied'", "approval apr"),
        (f"UPDATE approval SET status = 'pending' {APPROVED}", "approval apr"),
        (f"UPDATE approval SET status = 'cancelled' {APPROVED}", "approval apr"),
        (f"UPDATE approval SET resolved_by = 'boss@example.com' {APPROVED}", "approval apr"),
        (f"UPDATE approval SET reason = NULL {APPROVED}", "approval apr"),
        (f"UPDATE approval SET digest = id {APPROVED}", "approval apr"),
        (f"UPDATE approval SET tool_name = 'ledger:put' {APPROVED}", "approval apr"),
        (f"UPDATE approval SET step_id = consumed_by || 'x' {APPROVED}", "approval apr"),
        (f"UPDATE approval SET input = '{{}}' {APPROVED}", "approval apr"),
        (f"UPDATE approval SET consumed_by = NULL {APPROVED}", "approval apr"),
        (f"DELETE FROM approval_vote {VOTE}", "approval apr"),
        (f"UPDATE approval_vote SET approved = (1 = 0) {VOTE}", "approval apr"),
        (f"UPDATE approval_vote SET principal = 'boss@example.com' {VOTE}", "approval apr"),
        (f"UPDATE approval_vote SET established_by = 'http-auth' {VOTE}", "approval apr"),
        (f"UPDATE approval_vote SET reason = NULL {VOTE}", "approval apr"),
        (
            "INSERT INTO approval_vote (approval_id, principal, established_by, approved, at) "
            f"SELECT id, 'second', 'asserted', (1 = 1), 0 FROM approval {APPROVED}",
            "approval apr",
        ),
        ("UPDATE session SET ended_status = 'error'", "session"),
        ("UPDATE session SET cancelled_at = 1", "session"),
        ("UPDATE session SET control_n = control_n + 1", "control"),
        ("UPDATE session SET control_n = control_n - 1", "control"),
        ("UPDATE session SET control_head = NULL", "control"),
        ("UPDATE session SET continuations = continuations + 1", "continuations"),
        ("UPDATE node SET status = 'error'", "node "),
        ("UPDATE node SET status = 'running'", "node "),
        ("UPDATE node SET status = 'skipped'", "node "),
        ("UPDATE node SET status = 'cancelled'", "node "),
        ("UPDATE node SET head = NULL", "node "),
        ("UPDATE node SET result = NULL", "node "),
        ("DELETE FROM continuation WHERE number = 0", "continuations"),
        ("DELETE FROM continuation WHERE number = (SELECT max(number) FROM continuation)", "continuations"),
        ("UPDATE continuation SET number = 99 WHERE number = 2", "continuations"),
    ],
)
def test_a_row_that_does_not_fit_the_control_chain_is_named(ended, damage, entry):
    assert execute(ended, damage) == 1
    assert problem_of(ended).entry.startswith(entry)


def test_rows_of_one_approval_that_are_all_gone_are_missed(ended):
    execute(ended, f"DELETE FROM approval_vote {VOTE}")
    execute(ended, f"DELETE FROM approval {APPROVED}")
    assert problem_of(ended).reason == "a receipt answers it, but its row is missing"


def test_a_question_that_waited_and_is_gone_is_missed(runtime, workers):
    start(runtime, call("ledger:guarded"), "/say Done.")
    workers.drain()
    assert execute(runtime, "DELETE FROM approval") == 1
    assert problem_of(runtime).reason.endswith("names it, but its row is missing")


@pytest.mark.parametrize(
    ("session", "reason"),
    [
        ("control_head = NULL", "the session counts 3 receipts in its control chain, which has 0"),
        ("control_head = NULL, control_n = 0", "it ended as 'completed', but no receipt says so"),
        (
            "control_head = NULL, control_n = 0, ended_status = NULL",
            "it is 'approved', but no receipt says so",
        ),
    ],
)
def test_a_control_chain_that_is_gone_is_missed_whatever_the_session_says(ended, session, reason):
    assert execute(ended, f"DELETE FROM evidence WHERE {CONTROL}") == 3
    execute(ended, f"UPDATE session SET {session}")
    execute(ended, "UPDATE approval SET status = 'cancelled' WHERE status = 'denied'")
    assert problem_of(ended).reason in (reason, "it is 'cancelled', but was answered")


def test_an_end_that_no_receipt_states_is_named(runtime, workers):
    start(runtime, call("ledger:guarded"), "/say Done.")
    workers.drain()
    assert execute(runtime, "UPDATE session SET ended_status = 'completed'") == 1
    assert problem_of(runtime).reason == "it ended as 'completed', but no receipt says so"


def test_a_node_that_no_receipt_ended_is_named(runtime):
    start(runtime, "/say Done.")
    assert execute(runtime, "UPDATE node SET status = 'completed'") == 1
    assert problem_of(runtime).reason == "it is 'completed', but no receipt says so"


# --- what was forged ------------------------------------------------------------------------------


def forge(runtime):
    """Answer the open question as somebody who can write the database, without a receipt."""
    (request,) = runtime.approvals("s-1")
    named = {"id": request.request_id, "by": OPERATOR}
    execute(runtime, "UPDATE approval SET status = 'approved', resolved_by = :by WHERE id = :id", **named)
    execute(
        runtime,
        "INSERT INTO approval_vote (approval_id, principal, established_by, approved, at) "
        "VALUES (:id, :by, 'asserted', (1 = 1), 0)",
        **named,
    )
    execute(runtime, "UPDATE step SET status = 'ready', publish_at = 0 WHERE status = 'waiting_approval'")
    execute(runtime, "UPDATE node SET status = 'running' WHERE status = 'waiting_approval'")


def test_an_approval_that_was_forged_in_sql_is_named_though_its_call_ran(runtime, workers):
    flow = start(runtime, call("ledger:guarded", "a"), "/say Done.")
    workers.drain()
    forge(runtime)
    sweep(runtime.parts)
    workers.drain()
    assert (flow.status(), ledger()) == ("completed", {"guarded a": 1})
    found = problem_of(runtime)
    assert (found.entry[:12], found.reason) == ("approval apr", "it is 'approved', but no receipt says so")


def test_a_call_that_used_a_forged_grant_is_named_though_its_rows_were_taken_away(runtime, workers):
    start(runtime, call("ledger:guarded", "a"), "/say Done.")
    workers.drain()
    forge(runtime)
    sweep(runtime.parts)
    workers.drain()
    execute(runtime, "DELETE FROM approval_vote")
    execute(runtime, "DELETE FROM approval")
    execute(runtime, "UPDATE step SET approval_id = NULL")
    found = problem_of(runtime)
    assert found.entry.endswith("(tool_call_started)")
    assert "no receipt says that its grant" in found.reason


def test_a_grant_that_was_given_for_another_call_is_named(runtime):
    first, second = (host_call(runtime).error.details["request_id"] for _ in "ab")
    runtime.resolve_approval(request_id=first, approved=True, approved_by=OPERATOR)
    # What the kernel compares before it runs the call is a row; what people answered is a receipt.
    with runtime.parts.database.reading() as connection:
        digests = dict(connection.execute(text("SELECT id, digest FROM approval")).all())
    assert digests[first] != digests[second]
    ctx = context(metadata={"agent_intent": "bookkeeping", "approval_request_id": first})
    asked = {"id": first, "digest": _digest_of(runtime, ctx, first, {"name": "another"})}
    execute(runtime, "UPDATE approval SET digest = :digest WHERE id = :id", **asked)
    assert runtime.execute_tool("ledger:guarded", {"name": "another"}, ctx).success
    execute(runtime, "UPDATE approval SET digest = :digest WHERE id = :id", id=first, digest=digests[first])
    found = problem_of(runtime)
    assert found.entry.endswith("(tool_call_started)")
    assert found.reason == f"its grant {first} was approved for another call"


def _digest_of(runtime, ctx, request_id, value):
    loaded = load_call(runtime.parts, "ledger:guarded", ctx)
    return runtime.parts.host.digest_of(decidable(loaded, value, None), request_id)
