"""Interleavings that once went wrong, run in exactly that order on both databases."""

import pytest
from sqlalchemy import text

from runtime import start_governed_agent_session, start_governed_agent_workflow
from runtime.engine import advance as advancing
from runtime.engine.sweep import sweep
from runtime.live.hints import StepHint
from tests.harness.sessions import call, context, turn_input, workflow


def start(runtime, *turns):
    return start_governed_agent_session(runtime=runtime, execute_turn_input=turn_input(*turns), ctx=context())


def run_sql(runtime, sql):
    with runtime.parts.database.writing() as connection:
        connection.execute(text(sql))


def lose(runtime, workers, monkeypatch):
    """Start the next step and lose its worker before it acts."""

    class Lost(BaseException):
        pass

    def lost(point):
        if point == "start.after_commit":
            raise Lost

    with monkeypatch.context() as patch:
        patch.setattr(runtime.parts.database.crash, "reach", lost)
        with pytest.raises(Lost):
            workers.next()
    run_sql(runtime, "UPDATE step SET lease_until = 1 WHERE status = 'running'")


def sweep_and_drain(runtime, workers):
    run_sql(runtime, "UPDATE step SET publish_at = 0")
    sweep(runtime.parts)
    workers.drain()


@pytest.mark.parametrize("migrated_url", ["postgresql"], indirect=True)
def test_a_record_between_the_two_looks_of_an_advance_does_not_end_the_session(runtime, workers, monkeypatch):
    flow = start_governed_agent_workflow(
        runtime=runtime,
        workflow=workflow("s-1", a=(["/say A."], ()), b=(["/say B."], ("a",))),
        ctx=context(),
    )
    look = advancing._unpropagated

    def look_then_record(work):
        found = look(work)
        monkeypatch.setattr(advancing, "_unpropagated", look)
        workers.next()  # the record of node a commits just now
        return found

    monkeypatch.setattr(advancing, "_unpropagated", look_then_record)
    runtime.executor().advance("s-1")
    workers.drain()
    assert flow.status() == "completed"


@pytest.mark.parametrize("order", [("ledger:guarded", "ledger:read"), ("ledger:read", "ledger:guarded")])
def test_a_node_with_a_parked_call_waits_whichever_call_started_first(runtime, workers, order):
    flow = start(runtime, "\n".join(call(name, "x") for name in order), "/say Done.")
    workers.drain()
    assert flow.status() == "waiting_approval"
    (request,) = runtime.approvals("s-1")
    runtime.resolve_approval(request_id=request.request_id, approved=True, approved_by="op@example.com")
    workers.drain()
    assert flow.status() == "completed"


def test_a_cancelled_session_whose_worker_was_lost_still_ends(runtime, workers, monkeypatch):
    flow = start(runtime, call("ledger:put", "a"), "/say Done.")
    lose(runtime, workers, monkeypatch)
    flow.cancel()
    sweep_and_drain(runtime, workers)
    assert flow.status() == "cancelled"
    assert runtime.verify("s-1").verified


def test_an_approved_call_that_is_taken_over_after_the_expiry_is_the_same_use(runtime, workers, monkeypatch):
    start(runtime, call("ledger:guarded", "g"), "/say Done.")
    workers.drain()
    (request,) = runtime.approvals("s-1")
    runtime.resolve_approval(request_id=request.request_id, approved=True, approved_by="op@example.com")
    workers.inbox.hints = [hint for hint in workers.inbox.hints if isinstance(hint, StepHint)]
    lose(runtime, workers, monkeypatch)
    run_sql(runtime, "UPDATE approval SET expires_at = 1")
    sweep_and_drain(runtime, workers)
    kinds = {request.kind for request in runtime.approvals("s-1")}
    assert kinds == {"in_doubt"}, "a once call is in doubt, and is not told to the model as denied"


def test_resuming_a_quarantined_call_leaves_the_turn_after_it_pending(runtime, workers, monkeypatch):
    object.__setattr__(runtime.parts.settings, "max_crashes", 1)
    flow = start(runtime, "\n".join([call("ledger:read", "a"), call("ledger:read", "b")]), "/say Done.")
    workers.next()
    first = workers.inbox.hints.pop(0)
    workers.inbox.hints.insert(0, first)
    lose(runtime, workers, monkeypatch)
    run_sql(runtime, "UPDATE step SET crashes = 5 WHERE status = 'running'")
    sweep_and_drain(runtime, workers)
    assert flow.status() == "suspended"
    assert flow.nodes()[0].reason == "quarantined"
    runtime.resume("s-1")
    with runtime.parts.database.reading() as connection:
        turn = connection.execute(
            text("SELECT status FROM step WHERE kind = 'turn' AND turn_index = 1")
        ).scalar_one()
    assert turn == "pending"
    workers.drain()
    assert flow.status() == "completed"
    assert runtime.verify("s-1").verified


def test_a_session_cancelled_right_before_a_record_that_lets_others_follow_still_ends(
    runtime, workers, monkeypatch
):
    flow = start_governed_agent_workflow(
        runtime=runtime, workflow=workflow("s-1", a=(["/say A."], ()), b=(["/say B."], ("a",))), ctx=context()
    )
    left = ["record.begin"]

    def cancel(point):
        if point in left:
            left.remove(point)
            flow.cancel()
            runtime.executor().advance("s-1")  # it finds the node still running

    with monkeypatch.context() as patch:
        patch.setattr(runtime.parts.database.crash, "reach", cancel)
        workers.next()
    assert not left
    workers.inbox.hints.clear()  # all messages were lost
    sweep_and_drain(runtime, workers)
    assert flow.status() == "cancelled"
    assert {node.id: str(node.status) for node in flow.nodes()} == {"a": "completed", "b": "cancelled"}
    assert runtime.verify("s-1").verified
