"""A grant fits one exact call, is used once, and never beats a deny."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import text

from tests.harness.sessions import context


@pytest.fixture
def granted(runtime):
    """A parked host call and its approved request."""
    ctx = context(metadata={"agent_intent": "bookkeeping"})
    parked = runtime.execute_tool("ledger:guarded", {"name": "g"}, ctx)
    request = parked.error.details["request_id"]
    runtime.resolve_approval(request_id=request, approved=True, approved_by="op@example.com")
    return ctx.model_copy(
        update={"metadata": {"agent_intent": "bookkeeping", "approval_request_id": request}}
    )


def change(runtime, sql):
    with runtime.parts.database.writing() as connection:
        connection.execute(text(sql))


def test_the_approved_call_runs_once(runtime, granted):
    assert runtime.execute_tool("ledger:guarded", {"name": "g"}, granted).success
    again = runtime.execute_tool("ledger:guarded", {"name": "g"}, granted)
    assert again.error.details["reason"] == "already_consumed"


def test_another_input_is_not_what_was_approved(runtime, granted):
    refused = runtime.execute_tool("ledger:guarded", {"name": "other"}, granted)
    assert refused.error.details["reason"] == "action_digest_mismatch"
    assert runtime.execute_tool("ledger:guarded", {"name": "g"}, granted).success


def test_an_expired_grant_is_refused(runtime, granted):
    change(runtime, "UPDATE approval SET expires_at = 1")
    refused = runtime.execute_tool("ledger:guarded", {"name": "g"}, granted)
    assert refused.error.details["reason"] == "expired"


def test_a_denied_request_grants_nothing(runtime):
    ctx = context(metadata={"agent_intent": "bookkeeping"})
    request = runtime.execute_tool("ledger:guarded", {"name": "g"}, ctx).error.details["request_id"]
    runtime.resolve_approval(request_id=request, approved=False, approved_by="op@example.com")
    named = ctx.model_copy(update={"metadata": {**ctx.metadata, "approval_request_id": request}})
    assert runtime.execute_tool("ledger:guarded", {"name": "g"}, named).error.details["reason"] == "denied"


def test_a_grant_of_another_session_is_unknown_here(runtime, granted):
    other = granted.model_copy(update={"session_id": "s-2"})
    refused = runtime.execute_tool("ledger:guarded", {"name": "g"}, other)
    assert refused.error.details["reason"] == "unknown"


def test_a_deny_beats_a_grant(runtime, granted):
    denied = granted.model_copy(update={"metadata": {**granted.metadata, "agent_intent": "something-else"}})
    refused = runtime.execute_tool("ledger:guarded", {"name": "g"}, denied)
    assert refused.error.code == "POLICY_DENIED"
    assert "reason" not in refused.error.details


def test_a_request_that_was_not_answered_in_time_is_denied_by_default(runtime, workers):
    from runtime import start_governed_agent_session
    from runtime.engine.sweep import sweep
    from tests.harness.sessions import call, turn_input

    flow = start_governed_agent_session(
        runtime=runtime,
        execute_turn_input=turn_input(call("ledger:guarded", "g"), "/say I see."),
        ctx=context("s-late"),
    )
    workers.drain()
    change(runtime, "UPDATE approval SET expires_at = 1")
    assert sweep(runtime.parts).expired == 1
    workers.drain()
    assert flow.status() == "completed"
    (request,) = runtime.approvals("s-late", status=None)
    assert request.status == "expired"
    assert runtime.verify("s-late").verified


def test_two_calls_at_once_under_one_grant_are_one_that_runs_and_one_that_is_refused(
    runtime, granted, monkeypatch
):
    barrier, passed = threading.Barrier(2), threading.local()

    def reach(point):
        if point == "host_start.begin" and not hasattr(passed, "once"):
            passed.once = True
            barrier.wait(60)

    monkeypatch.setattr(runtime.parts.database.crash, "reach", reach)
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(runtime.execute_tool, "ledger:guarded", {"name": "g"}, granted) for _ in "ab"]
        outputs = [call.result() for call in calls]
    (refused,) = [output for output in outputs if not output.success]
    assert refused.error.details["reason"] == "already_consumed"
    assert Path(os.environ["LEDGER"]).read_text().count("guarded g") == 1
    assert runtime.verify("s-1").verified, "the refusal left its receipts too"
