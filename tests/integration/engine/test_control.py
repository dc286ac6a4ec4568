"""Pausing, unpausing and cancelling sessions, on both databases."""

import pytest
from sqlalchemy import text

from runtime import start_governed_agent_session
from runtime.engine.control import _DUE, open_steps
from runtime.engine.sweep import sweep
from runtime.errors import SessionConflict, SessionNotFound
from runtime.live.hints import StepHint
from tests.harness.graphs import fail, in_flight, kinds, node, numbers, run_sql, start, statuses
from tests.harness.inline import Canvas
from tests.harness.sessions import call, context, turn_input
from tests.harness.witness import ledger, receipts


@pytest.fixture
def canvas(runtime) -> Canvas:
    return Canvas(runtime)


# --- pause ----------------------------------------------------------------------------------------


def test_nothing_starts_in_a_paused_session_until_it_is_unpaused(runtime, canvas):
    flow = start(runtime, node("a"), node("b", depends_on=["a"]))
    assert flow.pause("a look first") == "paused"
    canvas.drain()
    assert statuses(flow) == {"a": "ready", "b": "pending"}
    assert flow.status() == "paused"
    flow.unpause()
    canvas.drain()
    assert flow.status() == "completed"
    assert [kind for kind in kinds(flow) if "paused" in kind] == ["paused", "unpaused"]
    assert numbers(flow) == list(range(len(numbers(flow))))
    assert [each["reason"] for each in receipts(flow, "session_paused")] == ["a look first"]
    assert len(receipts(flow, "session_unpaused")) == 1
    assert runtime.verify("s-1").verified


def test_a_turn_that_runs_when_its_session_is_paused_finishes_and_nothing_follows(runtime, canvas, model):
    flow = start(runtime, node("a", call("ledger:put", "x"), "/say Done."))
    with in_flight(model, "ledger:put", canvas.drain):
        assert flow.pause() == "active"
    canvas.drain()
    assert (flow.status(), ledger()) == ("paused", {})
    assert flow.nodes()[0].turn_count == 1
    flow.unpause()
    canvas.drain()
    assert (flow.status(), ledger()["put x"]) == ("completed", 1)
    assert runtime.verify("s-1").verified


def test_pausing_and_unpausing_twice_changes_nothing_more(runtime, canvas):
    flow = start(runtime, node("a"))
    flow.unpause()
    flow.pause("first")
    flow.pause("second")
    canvas.drain()
    flow.unpause()
    flow.unpause()
    canvas.drain()
    assert [each["reason"] for each in receipts(flow, "session_paused")] == ["first"]
    assert [kind for kind in kinds(flow) if "paused" in kind] == ["paused", "unpaused"]


def test_unpausing_publishes_all_that_is_due_and_lets_the_sweep_do_so_too(runtime, canvas):
    flow = start(runtime, *[node(f"n{k}") for k in range(5)], node("later", wake_after="1h"))
    flow.pause()
    canvas.drain()
    canvas.published.clear()
    flow.unpause()
    told = {hint.node_id for hint in canvas.published if isinstance(hint, StepHint)}
    assert told == {f"n{k}" for k in range(5)}
    canvas.waiting.clear()  # as if no message arrived
    assert sweep(runtime.parts).ready == 5
    canvas.drain()
    assert statuses(flow)["n4"] == "completed"
    assert flow.status() == "scheduled"


def test_an_answer_under_pause_is_kept_and_acts_on_unpause(runtime, canvas):
    flow = start(runtime, node("a", call("ledger:guarded", "g"), "/say Done."))
    canvas.drain()
    flow.pause()
    (request,) = runtime.approvals("s-1")
    runtime.resolve_approval(request_id=request.request_id, approved=True, approved_by="op@example.com")
    canvas.drain()
    assert (flow.status(), ledger()) == ("paused", {})
    flow.unpause()
    canvas.drain()
    assert (flow.status(), ledger()["guarded g"]) == ("completed", 1)
    assert runtime.verify("s-1").verified


def test_what_has_ended_is_neither_paused_nor_unpaused_and_the_refusal_says_why(runtime, canvas):
    flow = start(runtime, node("a"))
    canvas.drain()
    for steer in (flow.pause, flow.unpause):
        with pytest.raises(SessionConflict, match="has ended as completed"):
            steer()
    gone = start(runtime, node("a"), session_id="s-2")
    gone.cancel()
    for steer in (gone.pause, gone.unpause):
        with pytest.raises(SessionConflict, match="was cancelled"):
            steer()
    with pytest.raises(SessionNotFound):
        runtime.pause("nowhere")


def test_another_principal_can_neither_pause_nor_unpause(runtime):
    start(runtime, node("a"), principal="ann")
    for steer in (runtime.pause, runtime.unpause):
        with pytest.raises(SessionConflict, match="another principal"):
            steer("s-1", principal="bob")
    assert runtime.pause("s-1", principal="ann").status() == "paused"
    assert runtime.unpause("s-1", principal="ann").status() == "active"


@pytest.mark.parametrize("migrated_url", ["sqlite"], indirect=True)
def test_what_is_due_is_found_by_the_index_of_open_steps(runtime):
    with runtime.parts.database.reading() as connection:
        asked = text(f"EXPLAIN QUERY PLAN {open_steps(_DUE, connection)}")
        plan = connection.execute(asked, {"id": "s-1", "now": 0, "publish": 0}).all()
    assert any("ix_step_open" in row[3] for row in plan), plan


# --- cancel ---------------------------------------------------------------------------------------


def test_cancel_lets_a_running_instance_finish_and_stops_the_others(runtime, canvas, model):
    flow = start(
        runtime,
        node("each", "/say Seen.", for_each=["red", "green", "blue"]),
        node("join", depends_on=["each"]),
    )
    with in_flight(model, "green", canvas.drain):
        flow.cancel("changed my mind")
    canvas.drain()
    assert flow.status() == "cancelled"
    found = statuses(flow)
    assert (found["each"], found["each[1]"], found["join"]) == ("cancelled", "completed", "cancelled")
    assert found["each[2]"] == "cancelled"
    assert numbers(flow) == list(range(len(numbers(flow))))
    assert runtime.verify("s-1").verified


def test_cancel_ends_a_paused_session(runtime, canvas):
    flow = start(runtime, node("a"))
    flow.pause()
    flow.cancel()
    canvas.drain()
    assert flow.status() == "cancelled"


def test_cancel_withdraws_the_questions_of_every_instance(runtime, canvas):
    flow = start(runtime, node("each", call("ledger:guarded", "g"), "/say Done.", for_each=[1, 2]))
    canvas.drain()
    assert len(runtime.approvals("s-1")) == 2
    flow.cancel()
    canvas.drain()
    assert (flow.status(), runtime.approvals("s-1"), ledger()) == ("cancelled", [], {})
    assert set(statuses(flow).values()) == {"cancelled"}


def test_cancel_after_a_failed_branch_keeps_the_failure(runtime, canvas, model):
    fail(model, "/say a")
    flow = start(runtime, node("a"), node("b", depends_on=["a"]), node("c", wake_after="1h"))
    canvas.drain()
    flow.cancel()
    canvas.drain()
    assert statuses(flow) == {"a": "error", "b": "cancelled", "c": "cancelled"}
    assert flow.status() == "cancelled"


# --- nodes, adoption ------------------------------------------------------------------------------


def test_nodes_are_listed_as_defined_with_the_instances_in_order(runtime, canvas):
    flow = start(runtime, node("last"), node("each", for_each=list(range(11))), node("a"))
    assert [each.id for each in flow.nodes()] == [
        "last", "each", *[f"each[{k}]" for k in range(11)], "a",
    ]  # fmt: skip


@pytest.mark.parametrize("other", ["bob", None])
def test_a_session_that_host_calls_began_is_adopted_by_its_own_principal_only(runtime, canvas, other):
    called = runtime.execute_tool(
        "ledger:read", {"name": "x"}, context(principal="ann", metadata={"agent_intent": "bookkeeping"})
    )
    assert called.success

    def begin(principal):
        return start_governed_agent_session(
            runtime=runtime, execute_turn_input=turn_input("/say Hi."), ctx=context(principal=principal)
        )

    with pytest.raises(SessionConflict, match="another principal"):
        begin(other)
    assert run_sql(runtime, "SELECT kind, principal FROM session")[0] == ("host", "ann")
    flow = begin("ann")
    canvas.drain()
    assert flow.status() == "completed"


def test_a_cancelled_node_has_no_deadline_any_more(runtime, canvas):
    flow = start(runtime, node("a", call("ledger:guarded", "g"), "/say Done.", deadline="1h"))
    canvas.drain()
    flow.cancel("no longer needed")
    canvas.drain()
    assert flow.status() == "cancelled"
    (row,) = run_sql(runtime, "SELECT deadline_at FROM node")
    assert row.deadline_at is None
