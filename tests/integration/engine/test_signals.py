"""Messages handed to a node at any moment are seen by exactly one of its turns; on both databases."""

import pytest

from runtime import start_governed_agent_session
from runtime.errors import InvalidInput, SessionConflict, SessionNotFound
from tests.harness.graphs import (
    fail,
    in_flight,
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
from tests.harness.witness import ledger


@pytest.fixture
def canvas(runtime) -> Canvas:
    return Canvas(runtime)


def heard(runtime, of: str, words: str) -> int:
    """How often a node's transcript says something."""
    return [content for _, _, content in transcript(runtime, of)].count(words)


def in_order(runtime, of: str) -> bool:
    """Whether a node's messages are numbered from 0 without a gap."""
    found = [number for number, _, _ in transcript(runtime, of)]
    return found == list(range(len(found)))


def test_a_signal_before_the_first_turn_is_seen_by_it(runtime, canvas):
    flow = start(runtime, node("a"))
    flow.signal("a", [user("one more thing"), user("and another")])
    canvas.drain()
    assert flow.status() == "completed"
    assert [content for _, _, content in transcript(runtime, "a")][1:3] == ["one more thing", "and another"]
    assert (flow.nodes()[0].turn_count, in_order(runtime, "a")) == (1, True)
    assert runtime.verify("s-1").verified


def test_a_signal_to_a_pending_node_waits_for_its_first_turn(runtime, canvas):
    flow = start(runtime, node("a"), node("b", depends_on=["a"], context_from=["a"]))
    flow.signal("b", [user("for later")])
    canvas.drain()
    assert flow.status() == "completed"
    assert (heard(runtime, "b", "for later"), in_order(runtime, "b")) == (1, True)
    assert runtime.verify("s-1").verified


def test_a_signal_between_turns_is_seen_by_the_next_one_and_by_no_later_one(runtime, canvas):
    flow = start(runtime, node("a", call("ledger:put", "x"), call("ledger:put", "y"), "/say Done."))
    canvas.next()
    flow.signal("a", [user("by the way")])
    canvas.drain()
    assert (flow.status(), ledger()) == ("completed", {"put x": 1, "put y": 1})
    roles = [role for _, role, _ in transcript(runtime, "a")]
    assert roles == ["user", "assistant", "tool", "user", "assistant", "tool", "assistant"]
    assert (heard(runtime, "a", "by the way"), in_order(runtime, "a")) == (1, True)
    assert runtime.verify("s-1").verified


def test_a_signal_during_several_calls_comes_behind_all_their_answers(runtime, canvas):
    calls = "\n".join([call("ledger:put", "x"), call("ledger:put", "y")])
    flow = start(runtime, node("a", calls, "/say Done."))
    canvas.next()
    canvas.next()
    flow.signal("a", [user("by the way")])
    canvas.drain()
    assert flow.status() == "completed"
    roles = [role for _, role, _ in transcript(runtime, "a")]
    assert roles == ["user", "assistant", "tool", "tool", "user", "assistant"]
    assert runtime.verify("s-1").verified


def test_a_signal_during_the_last_turn_makes_another_one_that_sees_it(runtime, canvas, model):
    flow = start(runtime, node("a", "/say First."), node("b", depends_on=["a"]))
    with in_flight(model, "First", canvas.drain):
        flow.signal("a", [user("/say Second.")])
    canvas.drain()
    assert flow.status() == "completed"
    assert (said(flow, "a"), flow.nodes()[0].turn_count) == ("Second.", 2)
    assert kinds(flow, "a") == ["signalled", "branch_completed"]
    assert in_order(runtime, "a")
    assert numbers(flow) == list(range(len(numbers(flow))))
    assert runtime.verify("s-1").verified


def test_a_signal_during_the_last_turn_of_the_budget_suspends_the_node_until_a_resume(runtime, canvas, model):
    flow = start(runtime, node("a", "/say First.", max_turns=1))
    with in_flight(model, "First", canvas.drain):
        flow.signal("a", [user("/say Second.")])
    canvas.drain()
    assert (flow.status(), flow.nodes()[0].reason) == ("suspended", "max_turns")
    runtime.resume("s-1")
    canvas.drain()
    assert (flow.status(), said(flow, "a")) == ("completed", "Second.")
    assert runtime.verify("s-1").verified


def test_a_signal_to_a_node_that_waits_for_an_approval_is_seen_behind_the_answer(runtime, canvas):
    flow = start(runtime, node("a", call("ledger:guarded", "g"), "/say Done."))
    canvas.drain()
    flow.signal("a", [user("while you wait")])
    canvas.drain()
    assert flow.status() == "waiting_approval"
    (request,) = runtime.approvals("s-1")
    runtime.resolve_approval(request_id=request.request_id, approved=True, approved_by="op@example.com")
    canvas.drain()
    assert (flow.status(), ledger()["guarded g"]) == ("completed", 1)
    roles = [role for _, role, _ in transcript(runtime, "a")]
    assert roles == ["user", "assistant", "tool", "user", "assistant"]
    assert runtime.verify("s-1").verified


def test_a_signal_to_a_suspended_node_waits_for_the_resume(runtime, canvas):
    flow = start(runtime, node("a", call("ledger:put", "x"), "/say Done.", max_turns=1))
    canvas.drain()
    flow.signal("a", [user("go on then")])
    canvas.drain()
    assert flow.status() == "suspended"
    runtime.resume("s-1")
    canvas.drain()
    assert (flow.status(), heard(runtime, "a", "go on then")) == ("completed", 1)
    assert runtime.verify("s-1").verified


def test_a_takeover_does_not_take_a_message_in_twice(runtime, canvas, monkeypatch):
    class Lost(BaseException):
        pass

    def lost(point):
        if point == "start.after_commit":
            raise Lost

    flow = start(runtime, node("a"))
    flow.signal("a", [user("before the crash")])
    with monkeypatch.context() as patch:
        patch.setattr(runtime.parts.database.crash, "reach", lost)
        with pytest.raises(Lost):
            canvas.next()
    flow.signal("a", [user("behind the crash")])
    run_sql(runtime, "UPDATE step SET lease_until = 1 WHERE status = 'running'")
    runtime.executor().run_step(run_sql(runtime, "SELECT id FROM step")[0].id, ("turns",))
    canvas.drain()
    assert flow.status() == "completed"
    assert [content for _, _, content in transcript(runtime, "a")][1:3] == [
        "before the crash", "behind the crash",
    ]  # fmt: skip
    assert in_order(runtime, "a")
    assert runtime.verify("s-1").verified


def test_a_failed_turn_that_is_retried_has_each_message_once(runtime, canvas, model):
    fail(model, "/say a")
    flow = start(runtime, node("a"))
    flow.signal("a", [user("note this")])
    canvas.drain()
    assert flow.status() == "error"
    assert runtime.verify("s-1").verified
    runtime.resume("s-1")
    canvas.drain()
    assert (flow.status(), heard(runtime, "a", "note this")) == ("completed", 1)
    assert runtime.verify("s-1").verified


def test_a_repeat_with_the_same_key_changes_nothing(runtime, canvas):
    flow = start(runtime, node("a"), node("b"))
    for _ in range(2):
        flow.signal("a", [user("once")], idempotency_key="k")
    flow.signal("b", [user("once")], idempotency_key="k")
    canvas.drain()
    flow.signal("a", [user("once")], idempotency_key="k")
    assert (heard(runtime, "a", "once"), heard(runtime, "b", "once")) == (1, 1)
    assert kinds(flow).count("signalled") == 2


def test_what_has_ended_takes_no_messages_and_says_why(runtime, canvas):
    flow = start(runtime, node("a"), node("later", wake_after="1h"))
    canvas.drain()
    with pytest.raises(SessionConflict, match="'a' of session 's-1' has ended as completed"):
        flow.signal("a", [user("late")])
    flow.cancel()
    with pytest.raises(SessionConflict, match="was cancelled"):
        flow.signal("later", [user("late")])
    done = start(runtime, node("a"), session_id="s-2")
    canvas.drain()
    with pytest.raises(SessionConflict, match="has ended as completed"):
        done.signal("a", [user("late")])
    assert run_sql(runtime, "SELECT * FROM signal") == []


def test_unknown_nodes_and_groups_are_refused_and_instances_are_not(runtime, canvas):
    flow = start(runtime, node("each", "/say Seen.", for_each=[1, 2]))
    with pytest.raises(SessionConflict, match="no node 'ghost'"):
        flow.signal("ghost", [user("hello")])
    with pytest.raises(SessionConflict, match=r"signal one of its instances, such as 'each\[0\]'"):
        flow.signal("each", [user("hello")])
    with pytest.raises(SessionNotFound):
        runtime.signal("nowhere", "a", [user("hello")])
    flow.signal("each[1]", [user("hello")])
    canvas.drain()
    assert (flow.status(), heard(runtime, "each[1]", "hello")) == ("completed", 1)
    assert runtime.verify("s-1").verified


def test_an_enqueued_turn_takes_no_messages(runtime, canvas):
    handle = runtime.enqueue_turn(turn_input("/say Hi."), context("s-turn"))
    with pytest.raises(SessionConflict, match="is one turn"):
        handle.signal("turn", [user("hello")])


@pytest.mark.parametrize(
    "messages", [[], [{"role": "nobody", "content": "x"}], ["x"], [{"role": "user"}]], ids=str
)
def test_malformed_messages_are_refused_and_nothing_is_saved(runtime, messages):
    flow = start(runtime, node("a"))
    with pytest.raises(InvalidInput):
        flow.signal("a", messages)
    with pytest.raises(InvalidInput, match="idempotency_key is empty"):
        flow.signal("a", [user("x")], idempotency_key="")
    assert run_sql(runtime, "SELECT * FROM signal") == []
    assert statuses(flow) == {"a": "ready"}


def test_another_principal_can_not_signal(runtime):
    start(runtime, node("a"), principal="ann")
    with pytest.raises(SessionConflict, match="another principal"):
        runtime.signal("s-1", "a", [user("x")], principal="bob")
    runtime.signal("s-1", "a", [user("x")], principal="ann")


def test_saying_more_to_a_linear_session_does_not_repeat_its_signals(runtime, canvas):
    flow = start_governed_agent_session(
        runtime=runtime, execute_turn_input=turn_input("/say Hello."), ctx=context()
    )
    flow.signal("session", [user("aside")])
    canvas.drain()
    runtime.resume("s-1", messages=[user("/say Again.")])
    canvas.drain()
    assert (flow.status(), said(flow, "session")) == ("completed", "Again.")
    assert (heard(runtime, "session", "aside"), in_order(runtime, "session")) == (1, True)
    assert runtime.verify("s-1").verified


def test_a_turn_that_is_too_long_for_its_messages_fails_and_the_evidence_holds(runtime, canvas):
    flow = start(runtime, node("a"))
    flow.signal("a", [user("x" * 300_000)])
    canvas.drain()
    assert flow.status() == "error"
    assert flow.nodes()[0].error["code"] == "LIMIT_EXCEEDED"
    assert runtime.verify("s-1").verified
