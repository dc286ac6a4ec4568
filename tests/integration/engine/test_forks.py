"""What a fork keeps, what it runs again, and when it is refused; on both databases."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import WorkflowNode, start_governed_agent_session
from runtime.core.graph import upstream
from runtime.engine.forks import kept_nodes
from runtime.errors import InvalidInput, SessionConflict, SessionNotFound
from tests.harness.graphs import (
    answer,
    fail,
    kinds,
    node,
    numbers,
    run_sql,
    said,
    start,
    statuses,
    transcript,
    user,
)
from tests.harness.inline import Canvas
from tests.harness.sessions import call, context, turn_input
from tests.harness.witness import ledger, receipts


@pytest.fixture
def canvas(runtime) -> Canvas:
    return Canvas(runtime)


def turns_made(runtime, session_id) -> set[str]:
    """The nodes that made a turn in a session of their own."""
    rows = run_sql(
        runtime, "SELECT node_id FROM step WHERE session_id = :id AND status = 'succeeded'", id=session_id
    )
    return {row.node_id for row in rows}


def diamond(runtime, canvas, **values):
    flow = start(
        runtime,
        node("a", call("ledger:put", "a"), "/say From a."),
        node("left", depends_on=["a"]),
        node("right", depends_on=["a"]),
        node("join", depends_on=["left", "right"], context_from=["left", "right"]),
        **values,
    )
    canvas.drain()
    assert flow.status() == "completed"
    return flow


def test_a_fork_keeps_what_is_finished_and_runs_the_node_and_what_follows_again(runtime, canvas):
    source = diamond(runtime, canvas)
    before = source.nodes()
    fork = source.fork("left", new_session_id="s-2")
    assert statuses(fork) == {"a": "completed", "left": "ready", "right": "completed", "join": "pending"}
    canvas.drain()
    assert fork.status() == "completed"
    assert turns_made(runtime, "s-2") == {"left", "join"}
    assert ledger() == {"put a": 1}
    kept = {each.id: each for each in fork.nodes()}["a"]
    assert kept == before[0]
    assert transcript(runtime, "a", "s-2") == transcript(runtime, "a", "s-1")
    assert kinds(fork)[:2] == ["created", "forked"]
    assert numbers(fork) == list(range(len(numbers(fork))))
    assert source.nodes() == before


def test_a_fork_cites_the_evidence_of_its_source(runtime, canvas):
    source = diamond(runtime, canvas)
    heads = {row.node_id: row.head for row in run_sql(runtime, "SELECT node_id, head FROM node")}
    fork = source.fork("left", new_session_id="s-2")
    canvas.drain()
    (origin,) = receipts(fork, "session_forked")
    assert (origin["source"], origin["node_id"]) == ("s-1", "left")
    assert origin["copied"] == [{"node_id": name, "head": heads[name]} for name in ("a", "right")]
    copies = {each["node_id"]: each for each in receipts(fork, "node_copied")}
    assert copies["a"]["source_head"] == heads["a"]
    assert copies["a"]["output"]["assistant_message"] == "From a."
    (told,) = receipts(source, "forked")
    assert (told["into"], told["node_id"]) == ("s-2", "left")
    started = next(each for each in receipts(fork, "tool_call_started") if each["node_id"] == "left")
    kept = run_sql(runtime, "SELECT head FROM node WHERE session_id = 's-2' AND node_id = 'a'")[0].head
    assert started["cites"] == [kept]
    assert run_sql(runtime, "SELECT forked_from FROM session WHERE id = 's-2'")[0].forked_from == "s-1"
    assert runtime.verify("s-1").verified
    assert runtime.verify("s-2").verified


def test_a_changed_result_of_a_kept_node_is_found(runtime, canvas):
    diamond(runtime, canvas).fork("left", new_session_id="s-2")
    canvas.drain()
    run_sql(
        runtime,
        "UPDATE node SET result = :forged WHERE session_id = 's-2' AND node_id = 'a'",
        forged='{"assistant_message":"forged"}',
    )
    found = runtime.verify("s-2")
    assert not found.verified
    assert found.problem.entry == "node a"


def test_a_fork_from_a_root_keeps_what_does_not_depend_on_it(runtime, canvas):
    source = start(runtime, node("a"), node("b", depends_on=["a"]), node("c"), node("d", depends_on=["c"]))
    canvas.drain()
    fork = runtime.fork("s-1", "a", new_session_id="s-2")
    canvas.drain()
    assert fork.status() == "completed"
    assert turns_made(runtime, "s-2") == {"a", "b"}
    assert source.status() == "completed"
    assert runtime.verify("s-2").verified


def test_a_fork_tells_the_node_something_else(runtime, canvas):
    source = diamond(runtime, canvas)
    fork = source.fork("left", new_session_id="s-2", messages=[user("/say Otherwise.")])
    canvas.drain()
    assert (said(fork, "left"), said(source, "left")) == ("Otherwise.", "left")
    context_message = transcript(runtime, "join", "s-2")[0][2]
    assert "Otherwise." in context_message
    assert runtime.verify("s-2").verified


def test_a_fork_of_a_failed_session_runs_what_failed_and_what_never_ran(runtime, canvas, model):
    fail(model, "/say b")
    source = start(runtime, node("a"), node("b", depends_on=["a"]), node("c", depends_on=["b"]))
    canvas.drain()
    assert source.status() == "error"
    fork = source.fork("b", new_session_id="s-2")
    canvas.drain()
    assert (fork.status(), turns_made(runtime, "s-2")) == ("completed", {"b", "c"})
    assert source.status() == "error"
    assert runtime.verify("s-2").verified


def test_a_failure_that_the_graph_handles_is_finished_and_kept_with_what_followed(runtime, canvas, model):
    fail(model, "/say a")
    source = start(
        runtime,
        node("a", on_error="continue"),
        node("b", depends_on=["a"]),
        node("c", depends_on=["b"]),
    )
    canvas.drain()
    assert source.status() == "completed"
    fork = runtime.fork("s-1", "c", new_session_id="s-2")
    canvas.drain()
    assert fork.status() == "completed"
    assert statuses(fork) == {"a": "error", "b": "completed", "c": "completed"}
    assert turns_made(runtime, "s-2") == {"c"}
    assert runtime.verify("s-2").verified


def test_a_branch_that_was_skipped_stays_skipped_and_what_followed_is_kept(runtime, canvas):
    source = start(
        runtime,
        node("triage", answer("refund")),
        node("refund", depends_on=["triage"], when={"node": "triage", "intent": "refund"}),
        node("reply", depends_on=["triage"], when={"node": "triage", "intent": "reply"}),
        node("close", depends_on=["refund", "reply"]),
        node("last", depends_on=["close"]),
    )
    canvas.drain()
    fork = source.fork("last", new_session_id="s-2")
    canvas.drain()
    assert statuses(fork) == statuses(source)
    assert turns_made(runtime, "s-2") == {"last"}
    again = source.fork("triage", new_session_id="s-3", messages=[user(answer("reply"))])
    canvas.drain()
    assert statuses(again) == {
        "triage": "completed", "refund": "skipped", "reply": "completed", "close": "completed",
        "last": "completed",
    }  # fmt: skip
    assert runtime.verify("s-2").verified
    assert runtime.verify("s-3").verified


def test_a_condition_on_a_kept_node_is_decided_by_its_kept_result(runtime, canvas):
    source = start(
        runtime,
        node("triage", answer("refund")),
        node("refund", depends_on=["triage"], when={"node": "triage", "intent": "refund"}),
    )
    canvas.drain()
    fork = source.fork("refund", new_session_id="s-2")
    canvas.drain()
    assert turns_made(runtime, "s-2") == {"refund"}
    assert fork.status() == "completed"


# --- groups ---------------------------------------------------------------------------------------


def lists(runtime, canvas, **values):
    source = start(
        runtime,
        node("plan", answer("plan", json.dumps(["red", "green"]))),
        node("each", "/say Seen.", depends_on=["plan"], for_each={"node": "plan"}, **values),
        node("join", depends_on=["each"]),
    )
    canvas.drain()
    assert source.status() == "completed"
    return source


def test_a_finished_group_is_kept_whole(runtime, canvas):
    source = lists(runtime, canvas)
    fork = source.fork("join", new_session_id="s-2")
    canvas.drain()
    assert turns_made(runtime, "s-2") == {"join"}
    assert [each.result for each in fork.nodes()][:4] == [each.result for each in source.nodes()][:4]
    assert {each.id: each.depends_on for each in fork.nodes()} == {
        each.id: each.depends_on for each in source.nodes()
    }
    assert runtime.verify("s-2").verified


def test_a_group_that_runs_again_expands_anew(runtime, canvas):
    source = lists(runtime, canvas)
    fork = source.fork("each", new_session_id="s-2")
    canvas.drain()
    assert turns_made(runtime, "s-2") == {"each[0]", "each[1]", "join"}
    other = source.fork("plan", new_session_id="s-3", messages=[user(answer("plan", json.dumps(["blue"])))])
    canvas.drain()
    assert [each.id for each in other.nodes()] == ["plan", "each", "each[0]", "join"]
    assert fork.status() == other.status() == "completed"
    assert runtime.verify("s-2").verified
    assert runtime.verify("s-3").verified


def test_a_literal_list_runs_again_from_the_start(runtime, canvas):
    source = start(runtime, node("each", "/say Seen.", for_each=[1, 2]), node("join", depends_on=["each"]))
    canvas.drain()
    fork = source.fork("each", new_session_id="s-2")
    canvas.drain()
    assert fork.status() == "completed"
    assert turns_made(runtime, "s-2") == {"each[0]", "each[1]", "join"}
    assert runtime.verify("s-2").verified


def test_a_kept_group_keeps_its_failed_instances_as_they_are(runtime, canvas, model):
    fail(model, "Item 2 of 2")
    source = lists(runtime, canvas, on_error="continue")
    fork = source.fork("join", new_session_id="s-2")
    canvas.drain()
    assert statuses(fork) == statuses(source)
    assert statuses(fork)["each[1]"] == "error"
    assert fork.status() == "completed"
    assert runtime.verify("s-2").verified


def test_an_instance_is_no_place_to_fork_from(runtime, canvas):
    source = lists(runtime, canvas)
    with pytest.raises(InvalidInput, match="fork from its group"):
        source.fork("each[0]", new_session_id="s-2")


# --- effects --------------------------------------------------------------------------------------


def payment(runtime, canvas, tool="ledger:pay"):
    source = start(
        runtime, node("a"), node("pay", call(tool, "p"), "/say Paid.", depends_on=["a"]),
        node("tell", depends_on=["pay"]),
    )  # fmt: skip
    canvas.drain()
    return source


def test_a_once_call_that_was_made_is_made_again_only_if_that_is_allowed(runtime, canvas):
    source = payment(runtime, canvas)
    for place in ("a", "pay"):
        with pytest.raises(SessionConflict, match=r"ledger:pay in node 'pay' \(succeeded\).*allow_effects"):
            source.fork(place, new_session_id="s-2")
    assert run_sql(runtime, "SELECT id FROM session") == [("s-1",)]
    assert receipts(source, "forked") == []
    fork = source.fork("pay", new_session_id="s-2", allow_effects=True)
    canvas.drain()
    assert (fork.status(), ledger()["pay p"]) == ("completed", 2)
    assert runtime.verify("s-2").verified


def test_a_once_call_in_a_part_that_is_kept_does_not_matter(runtime, canvas):
    source = payment(runtime, canvas)
    fork = source.fork("tell", new_session_id="s-2")
    canvas.drain()
    assert (fork.status(), ledger()["pay p"]) == ("completed", 1)


def test_a_once_call_that_is_in_doubt_counts_as_made(runtime, canvas):
    source = start(runtime, node("pay", call("ledger:pay", "p"), "/say Paid."))
    canvas.next()
    run_sql(
        runtime,
        "UPDATE step SET status = 'running', fence = 1, started_at = 1, lease_until = 1 "
        "WHERE kind = 'tool_call'",
    )  # as if its worker had been lost
    canvas.drain()
    assert (source.status(), ledger()) == ("waiting_approval", {})
    with pytest.raises(SessionConflict, match=r"ledger:pay in node 'pay' \(in_doubt\)"):
        source.fork("pay", new_session_id="s-2")


def test_a_tool_that_this_process_does_not_know_counts_as_once(runtime, canvas):
    source = diamond(runtime, canvas)
    run_sql(runtime, "UPDATE step SET tool_name = 'gone:tool' WHERE kind = 'tool_call'")
    with pytest.raises(SessionConflict, match="gone:tool in node 'a'"):
        source.fork("a", new_session_id="s-2")


def test_a_call_that_was_denied_or_is_repeatable_does_not_hinder_a_fork(runtime, canvas):
    calls = "\n".join([call("ledger:put", "secret"), call("ledger:put", "x"), call("ledger:guarded", "g")])
    source = start(runtime, node("a", calls, "/say Done."))
    canvas.drain()
    (request,) = runtime.approvals("s-1")
    runtime.resolve_approval(request_id=request.request_id, approved=False, approved_by="op@example.com")
    canvas.drain()
    fork = source.fork("a", new_session_id="s-2")
    canvas.drain()
    assert fork.status() == "waiting_approval"  # the fork asks for itself


# --- identity -------------------------------------------------------------------------------------


def test_a_fork_that_is_repeated_is_the_same_session(runtime, canvas):
    source = diamond(runtime, canvas)
    source.fork("left", new_session_id="s-2")
    canvas.drain()
    again = source.fork("left", new_session_id="s-2")
    assert again.status() == "completed"
    assert len(receipts(source, "forked")) == 1


def test_an_id_that_stands_for_something_else_is_refused(runtime, canvas):
    source = diamond(runtime, canvas)
    start(runtime, node("a"), session_id="s-2")
    source.fork("left", new_session_id="s-3")
    for taken in ("s-1", "s-2"):
        with pytest.raises(SessionConflict, match="is not this fork"):
            source.fork("left", new_session_id=taken)
    for different in ({"node_id": "right"}, {"node_id": "left", "messages": [user("/say No.")]}):
        with pytest.raises(SessionConflict, match="is not this fork"):
            source.fork(**different, new_session_id="s-3")
    with pytest.raises(SessionConflict, match="another definition"):
        start(runtime, node("a"), session_id="s-3")


def test_only_the_principal_forks_and_owns_the_fork(runtime, canvas):
    diamond(runtime, canvas, principal="ann")
    for other in ("bob", None):
        with pytest.raises(SessionConflict, match="another principal"):
            runtime.fork("s-1", "left", new_session_id="s-2", principal=other)
    runtime.fork("s-1", "left", new_session_id="s-2", principal="ann")
    with pytest.raises(SessionConflict, match="another principal"):
        runtime.session("s-2", principal="bob")


def test_what_cannot_be_forked_is_refused_with_the_reason(runtime, canvas):
    source = diamond(runtime, canvas)
    with pytest.raises(InvalidInput, match="no node 'ghost'"):
        source.fork("ghost", new_session_id="s-2")
    with pytest.raises(InvalidInput, match="session_id"):
        source.fork("left", new_session_id="")
    with pytest.raises(InvalidInput, match="'left'"):
        source.fork("left", new_session_id="s-2", messages=[{"role": "nobody", "content": "x"}])
    with pytest.raises(SessionNotFound):
        runtime.fork("nowhere", "a", new_session_id="s-2")
    runtime.execute_tool(
        "ledger:read", {"name": "x"}, context("host", metadata={"agent_intent": "bookkeeping"})
    )
    with pytest.raises(SessionConflict, match="host-driven calls only"):
        runtime.fork("host", "a", new_session_id="s-2")


def test_a_linear_session_runs_again_from_its_beginning(runtime, canvas):
    source = start_governed_agent_session(
        runtime=runtime, execute_turn_input=turn_input("/say Hello."), ctx=context()
    )
    canvas.drain()
    fork = source.fork("session", new_session_id="s-2", messages=[user("/say Other.")])
    canvas.drain()
    assert (fork.status(), said(fork, "session")) == ("completed", "Other.")
    runtime.resume("s-2", messages=[user("/say More.")])
    canvas.drain()
    assert said(fork, "session") == "More."
    assert runtime.verify("s-2").verified


def test_a_fork_of_a_fork_keeps_what_was_kept(runtime, canvas):
    first = diamond(runtime, canvas).fork("left", new_session_id="s-2")
    canvas.drain()
    second = first.fork("join", new_session_id="s-3")
    canvas.drain()
    assert turns_made(runtime, "s-3") == {"join"}
    assert statuses(second) == statuses(first)
    assert runtime.verify("s-3").verified


def test_a_running_session_can_be_forked_and_goes_on(runtime, canvas):
    source = start(runtime, node("a"), node("b", call("ledger:guarded", "g"), "/say b", depends_on=["a"]))
    canvas.drain()
    assert source.status() == "waiting_approval"
    fork = source.fork("b", new_session_id="s-2", messages=[user("/say Without.")])
    canvas.drain()
    assert (fork.status(), source.status()) == ("completed", "waiting_approval")


# --- the rule -------------------------------------------------------------------------------------

PLAIN = {"model_profile": "operations", "messages": [{"role": "user", "content": "go"}]}


@st.composite
def graphs(draw):
    size = draw(st.integers(1, 9))
    nodes = [
        WorkflowNode(
            id=f"n{k}",
            execute_turn_input=PLAIN,
            depends_on=sorted(draw(st.sets(st.sampled_from([f"n{i}" for i in range(k)])))) if k else (),
        )
        for k in range(size)
    ]
    ends = st.sampled_from(["completed", "skipped", "error", "running", "pending", "cancelled"])
    return nodes, {each.id: draw(ends) for each in nodes}, f"n{draw(st.integers(0, size - 1))}"


@given(graphs())
def test_what_is_kept_is_finished_closed_under_dependencies_and_not_behind_the_fork(graph):
    nodes, statuses, at = graph
    kept, above = kept_nodes(nodes, statuses, at), upstream(nodes)
    for each in nodes:
        expected = (
            each.id != at
            and at not in above[each.id]
            and all(statuses[name] in ("completed", "skipped") for name in {each.id, *above[each.id]})
        )
        assert (each.id in kept) == expected
