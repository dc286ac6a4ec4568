"""What a resume wakes, continues and retries, and what it leaves as it is; on both databases."""

import pytest

from runtime import resume_governed_agent_workflow, start_governed_agent_session
from runtime.engine.resuming import Edge, Retried, what_to_retry
from runtime.errors import InvalidInput, SessionConflict
from tests.harness.counting import counting
from tests.harness.graphs import answer, fail, kinds, node, numbers, run_sql, said, start, statuses, user
from tests.harness.inline import Canvas
from tests.harness.sessions import call, context, turn_input
from tests.harness.witness import ledger


@pytest.fixture
def canvas(runtime) -> Canvas:
    return Canvas(runtime)


def turns(flow) -> dict[str, int]:
    return {each.id: each.turn_count for each in flow.nodes()}


# --- waking ---------------------------------------------------------------------------------------


def test_a_resume_wakes_what_is_due_and_nothing_else(runtime, canvas):
    flow = start(runtime, node("soon", wake_after="1h"), node("later", wake_after="2h"))
    canvas.drain()
    assert flow.status() == "scheduled"
    run_sql(runtime, "UPDATE step SET due_at = 1 WHERE node_id = 'soon'")  # an hour has passed
    runtime.resume("s-1")
    canvas.drain()
    assert statuses(flow) == {"soon": "completed", "later": "scheduled"}
    assert kinds(flow, "soon") == ["scheduled", "wakeup", "branch_completed"]
    assert kinds(flow).count("resumed") == 1


def test_a_resume_publishes_again_what_was_lost(runtime, canvas):
    flow = start(runtime, node("a"), node("b"))
    canvas.waiting.clear()
    runtime.resume("s-1")
    canvas.drain()
    assert flow.status() == "completed"


# --- retrying -------------------------------------------------------------------------------------


def test_a_resume_retries_a_failed_node_and_what_waits_for_it_runs(runtime, canvas, model):
    fail(model, "/say a")
    flow = start(runtime, node("a"), node("b", depends_on=["a"]), node("c"))
    canvas.drain()
    assert flow.status() == "error"
    runtime.resume("s-1")
    canvas.drain()
    assert statuses(flow) == {"a": "completed", "b": "completed", "c": "completed"}
    assert (flow.status(), turns(flow)) == ("completed", {"a": 1, "b": 1, "c": 1})
    assert next(each.error for each in flow.nodes() if each.id == "a") is None
    assert kinds(flow)[-1] == "completed"
    assert numbers(flow) == list(range(len(numbers(flow))))
    assert runtime.verify("s-1").verified


def test_a_failed_node_is_retried_while_other_branches_wait(runtime, canvas, model):
    fail(model, "/say a")
    flow = start(runtime, node("a"), node("b", call("ledger:guarded", "g"), "/say Done."))
    canvas.drain()
    assert flow.status() == "waiting_approval"
    runtime.resume("s-1")
    canvas.drain()
    assert statuses(flow) == {"a": "completed", "b": "waiting_approval"}


@pytest.mark.parametrize(
    ("values", "rescue"),
    [({"on_error": "continue"}, {}), ({}, {"when": {"node": "a", "status": "error"}})],
    ids=["continue", "when"],
)
def test_a_failure_that_the_graph_handles_is_not_retried(runtime, canvas, model, values, rescue):
    fail(model, "/say a")
    flow = start(runtime, node("a", **values), node("b", depends_on=["a"], **rescue))
    canvas.drain()
    assert flow.status() == "completed"
    runtime.resume("s-1")
    canvas.drain()
    assert statuses(flow) == {"a": "error", "b": "completed"}
    assert kinds(flow)[-2:] == ["resumed", "completed"]


def test_what_was_skipped_because_of_a_failure_is_decided_anew(runtime, canvas, model):
    fail(model, "/raw")
    flow = start(
        runtime,
        node("a", answer("refund")),
        node("refund", depends_on=["a"], when={"node": "a", "intent": "refund"}),
        node("reply", depends_on=["a"], when={"node": "a", "intent": "reply"}),
        node("close", depends_on=["refund", "reply"]),
    )
    canvas.drain()
    assert statuses(flow) == {"a": "error", "refund": "skipped", "reply": "skipped", "close": "skipped"}
    runtime.resume("s-1")
    canvas.drain()
    assert statuses(flow) == {
        "a": "completed", "refund": "completed", "reply": "skipped", "close": "completed",
    }  # fmt: skip
    assert flow.status() == "completed"
    assert runtime.verify("s-1").verified


def test_what_already_ran_behind_a_failure_does_not_run_again(runtime, canvas, model):
    fail(model, "/raw")
    flow = start(
        runtime,
        node("a", answer("refund")),
        node("other"),
        node("refund", depends_on=["a"], when={"node": "a", "intent": "refund"}),
        node("close", depends_on=["refund", "other"]),
    )
    canvas.drain()
    assert statuses(flow) == {"a": "error", "other": "completed", "refund": "skipped", "close": "completed"}
    runtime.resume("s-1")
    canvas.drain()
    assert statuses(flow)["refund"] == "completed"
    assert (flow.status(), turns(flow)["close"]) == ("completed", 1)
    assert runtime.verify("s-1").verified


def test_a_failed_group_runs_its_failed_instances_again_and_no_other(runtime, canvas, model):
    fail(model, "Item 2 of 3")
    flow = start(runtime, node("each", "/say Seen.", for_each=[1, 2, 3]), node("join", depends_on=["each"]))
    canvas.drain()
    assert statuses(flow)["each"] == "error"
    requests = model.faults.state()["requests"]
    runtime.resume("s-1")
    assert statuses(flow)["each"] == "running"
    canvas.drain()
    assert set(statuses(flow).values()) == {"completed"}
    assert flow.status() == "completed"
    assert model.faults.state()["requests"] == requests + 2  # the instance, and the join
    items = next(each.result for each in flow.nodes() if each.id == "each")["items"]
    assert [item["assistant_message"] for item in items] == ["Seen."] * 3
    assert runtime.verify("s-1").verified


def test_a_failed_instance_is_retried_while_its_siblings_still_run(runtime, canvas, model):
    fail(model, "Item 1 of 2")
    flow = start(runtime, node("each", call("ledger:guarded", "g"), "/say Done.", for_each=[1, 2]))
    canvas.drain()
    assert statuses(flow) == {"each": "running", "each[0]": "error", "each[1]": "waiting_approval"}
    runtime.resume("s-1")
    canvas.drain()
    assert statuses(flow)["each[0]"] == "waiting_approval"
    for request in runtime.approvals("s-1"):
        runtime.resolve_approval(request_id=request.request_id, approved=True, approved_by="op")
    canvas.drain()
    assert (flow.status(), ledger()["guarded g"]) == ("completed", 2)
    assert runtime.verify("s-1").verified


def test_a_retry_that_fails_again_ends_the_session_in_error_again(runtime, canvas, model):
    fail(model, "/say a", times=2)
    flow = start(runtime, node("a"))
    canvas.drain()
    runtime.resume("s-1")
    canvas.drain()
    assert flow.status() == "error"
    assert kinds(flow, "a") == ["error", "error"]
    assert runtime.verify("s-1").verified


# --- continuing -----------------------------------------------------------------------------------


def test_a_resume_brings_its_own_turn_budget(runtime, canvas):
    calls = [call("ledger:put", str(k)) for k in range(4)]
    flow = start(runtime, node("a", *calls, "/say Done."), max_turns_per_invocation=1)
    canvas.drain()
    assert (flow.status(), turns(flow)) == ("suspended", {"a": 1})
    resume_governed_agent_workflow(runtime=runtime, session_id="s-1", max_turns_per_invocation=3)
    canvas.drain()
    assert (flow.status(), turns(flow)) == ("suspended", {"a": 4})
    runtime.resume("s-1")
    canvas.drain()
    assert (flow.status(), turns(flow)) == ("completed", {"a": 5})
    assert runtime.verify("s-1").verified


def test_a_retried_node_has_a_new_turn_budget(runtime, canvas, model):
    fail(model, "wrote")
    flow = start(
        runtime, node("a", call("ledger:put", "x"), call("ledger:put", "y"), "/say Done.", max_turns=2)
    )
    canvas.drain()
    assert (flow.status(), turns(flow)) == ("error", {"a": 1})
    runtime.resume("s-1")
    canvas.drain()
    assert (flow.status(), turns(flow)) == ("completed", {"a": 3})


def test_a_quarantined_call_goes_on_and_its_sibling_still_waits_for_its_answer(runtime, canvas):
    calls = "\n".join([call("ledger:put", "x"), call("ledger:guarded", "g")])
    flow = start(runtime, node("a", calls, "/say Done."))
    canvas.next()
    put = run_sql(runtime, "SELECT id FROM step WHERE tool_name = 'ledger:put'")[0].id
    run_sql(
        runtime,
        "UPDATE step SET status = 'running', fence = 1, crashes = 99, lease_until = 1 WHERE id = :id",
        id=put,
    )
    canvas.drain()
    assert flow.nodes()[0].reason == "quarantined" or flow.status() == "waiting_approval"
    runtime.resume("s-1")
    assert flow.status() == "waiting_approval"
    canvas.drain()
    (request,) = runtime.approvals("s-1")
    runtime.resolve_approval(request_id=request.request_id, approved=True, approved_by="op@example.com")
    canvas.drain()
    assert (flow.status(), ledger()) == ("completed", {"put x": 1, "guarded g": 1})


def test_a_node_at_the_hard_limit_is_not_continued(runtime, canvas):
    calls = [call("ledger:put", str(k)) for k in range(45)]
    flow = start(runtime, node("a", *calls), max_turns_per_invocation=50)
    canvas.drain()
    assert (flow.status(), turns(flow)) == ("suspended", {"a": 40})
    with pytest.raises(SessionConflict, match="max_turns_per_session is 40") as refused:
        runtime.resume("s-1")
    assert refused.value.code == "LIMIT_EXCEEDED"
    assert "resumed" not in kinds(flow)


# --- what stays as it is --------------------------------------------------------------------------


def test_on_a_completed_session_a_resume_changes_nothing_but_the_record(runtime, canvas):
    flow = start(runtime, node("a"), node("b", depends_on=["a"]))
    canvas.drain()
    before = flow.nodes()
    ended = run_sql(runtime, "SELECT ended_at FROM session")
    receipts = run_sql(runtime, "SELECT * FROM evidence ORDER BY step_id, n")
    steps = run_sql(runtime, "SELECT * FROM step ORDER BY id")
    for _ in range(2):
        runtime.resume("s-1")
        canvas.drain()
    assert (flow.status(), flow.nodes()) == ("completed", before)
    assert run_sql(runtime, "SELECT ended_at FROM session") == ended
    added = [row for row in run_sql(runtime, "SELECT * FROM evidence ORDER BY n") if row not in receipts]
    assert [row.kind for row in added] == ["session_resumed", "session_resumed"]
    assert run_sql(runtime, "SELECT * FROM step ORDER BY id") == steps
    assert kinds(flow)[-5:] == ["completed", "resumed", "completed", "resumed", "completed"]
    assert numbers(flow) == list(range(len(numbers(flow))))
    assert runtime.verify("s-1").verified


def test_a_stalled_session_that_nothing_can_mend_ends_as_stalled_again(runtime, canvas, model):
    fail(model, "/say a")
    flow = start(
        runtime,
        node("a"),
        node("rescue", depends_on=["a"], when={"node": "a", "status": "error"}),
        node("b", depends_on=["a"]),
    )
    canvas.drain()
    runtime.resume("s-1")
    canvas.drain()
    assert flow.status() == "error"
    assert kinds(flow) == ["created", "error", "branch_completed", "error", "resumed", "error"]
    assert numbers(flow) == list(range(len(numbers(flow))))


def test_a_cancelled_or_paused_session_is_not_resumed_and_the_refusal_says_what_to_do(runtime, canvas):
    flow = start(runtime, node("a"))
    flow.pause()
    with pytest.raises(SessionConflict, match="is paused; unpause it"):
        runtime.resume("s-1")
    flow.cancel()
    with pytest.raises(SessionConflict, match="was cancelled; start another one"):
        runtime.resume("s-1")
    assert "resumed" not in kinds(flow)


def test_a_resume_with_a_key_that_was_used_changes_nothing(runtime, canvas):
    flow = start(runtime, node("a", call("ledger:put", "x"), call("ledger:put", "y"), max_turns=1))
    canvas.drain()
    for _ in range(3):
        runtime.resume("s-1", idempotency_key="k")
        canvas.drain()
    assert (flow.status(), turns(flow), kinds(flow).count("resumed")) == ("suspended", {"a": 2}, 1)
    runtime.resume("s-1", idempotency_key="another")
    canvas.drain()
    assert turns(flow) == {"a": 3}


def test_saying_more_with_a_key_that_was_used_says_it_once(runtime, canvas):
    flow = start_governed_agent_session(
        runtime=runtime, execute_turn_input=turn_input("/say Hello."), ctx=context()
    )
    canvas.drain()
    for _ in range(2):
        runtime.resume("s-1", messages=[user("/say Again.")], idempotency_key="k")
        canvas.drain()
    assert (said(flow, "session"), turns(flow)) == ("Again.", {"session": 2})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"idempotency_key": ""}, "idempotency_key is empty"),
        ({"max_turns_per_invocation": 0}, "max_turns_per_invocation is 0"),
        ({"messages": [{"role": "nobody", "content": "x"}]}, "role"),
    ],
)
def test_a_malformed_resume_is_refused(runtime, options, message):
    flow = start(runtime, node("a"))
    with pytest.raises(InvalidInput, match=message):
        runtime.resume("s-1", **options)
    assert kinds(flow) == ["created"]


def test_messages_for_a_workflow_are_refused_with_what_to_do(runtime):
    start(runtime, node("a"))
    with pytest.raises(SessionConflict, match="signal one of its nodes"):
        runtime.resume("s-1", messages=[user("hello")])


# --- cost -----------------------------------------------------------------------------------------


def test_a_resume_costs_the_same_statements_however_many_nodes_failed_or_are_suspended(
    runtime, canvas, model
):
    def cost(session_id, width):
        fail(model, f"/say {session_id}", times=width)
        broken = [node(f"f{k}", f"/say {session_id}") for k in range(width)]
        stopped = [node(f"s{k}", call("ledger:put", "x"), "/say ok", max_turns=1) for k in range(width)]
        flow = start(runtime, *broken, *stopped, session_id=session_id)
        canvas.drain()
        assert flow.status() == "suspended"
        with counting(runtime.parts.database) as counted:
            runtime.resume(session_id)
        canvas.drain()
        assert flow.status() == "completed"
        return len(counted.sent)

    assert cost("narrow", 1) == cost("wide", 12)


# --- the rule -------------------------------------------------------------------------------------


def test_a_retry_takes_back_the_chain_of_skipped_nodes_up_to_what_ran():
    edges = [
        Edge("b", "skipped", "a"),
        Edge("c", "skipped", "b"),
        Edge("d", "completed", "c"),
        Edge("e", "skipped", "d"),
        Edge("f", "pending", "a"),
    ]
    found = what_to_retry(["a"], [], edges)
    assert found == Retried(frozenset("a"), frozenset(), frozenset("bc"))


def test_a_group_is_retried_only_if_one_of_its_instances_is():
    edges = [Edge("g", "error", "g[0]", instance=True), Edge("h", "error", "plan")]
    found = what_to_retry(["g[0]"], ["g", "h"], edges)
    assert found.groups == frozenset(["g"])
