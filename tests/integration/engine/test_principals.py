"""Whose a session is: its principal starts, resumes and reads it, and nobody else."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime import resume_governed_agent_session, start_governed_agent_session
from runtime.engine.handle import SessionHandle
from runtime.engine.identity import turn_session_id
from runtime.errors import InvalidInput, SessionConflict, SessionNotFound
from tests.harness.sessions import call, context, turn_input

OTHERS = ["bob", None, ""]


@pytest.fixture
def anns(runtime, workers):
    """A session of Ann's that waits for an approval."""
    flow = start_governed_agent_session(
        runtime=runtime,
        execute_turn_input=turn_input(call("ledger:guarded"), "/say Done."),
        ctx=context(principal="ann"),
    )
    workers.drain()
    return flow


@pytest.mark.parametrize("other", OTHERS)
def test_a_session_is_neither_shown_nor_cancelled_nor_verified_for_another_principal(runtime, anns, other):
    for ask in (runtime.session, runtime.verify):
        with pytest.raises(SessionConflict, match="give the one for whom it was started") as refused:
            ask("s-1", principal=other)
        assert "ann" not in str(refused.value)
    assert anns.status() == "waiting_approval"


def test_who_gives_no_principal_is_refused_a_session_that_has_one(runtime, anns):
    with pytest.raises(SessionConflict):
        runtime.session("s-1")
    with pytest.raises(SessionConflict):
        runtime.verify("s-1")


def test_its_own_principal_reads_and_cancels_a_session(runtime, anns, workers):
    assert runtime.verify("s-1", principal="ann").verified
    flow = runtime.session("s-1", principal="ann")
    assert flow.nodes()[0].pending_request_id
    flow.cancel()
    workers.drain()
    assert flow.status() == "cancelled"


def test_the_handles_of_start_and_resume_work_as_they_are(runtime, anns):
    resumed = resume_governed_agent_session(runtime=runtime, session_id="s-1", principal="ann")
    assert anns.status() == resumed.status() == "waiting_approval"
    assert [each.id for each in anns.nodes()] == [each.id for each in resumed.nodes()]


@pytest.mark.parametrize("other", OTHERS)
def test_another_principal_can_neither_start_nor_resume_nor_call_in_a_session(runtime, anns, other):
    with pytest.raises(SessionConflict, match="another principal"):
        resume_governed_agent_session(runtime=runtime, session_id="s-1", principal=other)
    with pytest.raises(SessionConflict, match="another principal"):
        runtime.execute_tool("ledger:read", {"name": "x"}, context(principal=other))
    with pytest.raises(SessionConflict, match="another principal"):
        start_governed_agent_session(
            runtime=runtime,
            execute_turn_input=turn_input(call("ledger:guarded"), "/say Done."),
            ctx=context(principal=other),
        )


def test_somebody_else_answers_and_needs_no_principal_of_the_session(runtime, anns, workers):
    (request,) = runtime.approvals("s-1")
    runtime.resolve_approval(request_id=request.request_id, approved=True, approved_by="boss@example.com")
    workers.drain()
    assert anns.status() == "completed"


def test_a_session_of_nobody_in_particular_is_shown_to_all(runtime, workers):
    start_governed_agent_session(
        runtime=runtime, execute_turn_input=turn_input("/say Hello."), ctx=context("open")
    )
    assert runtime.session("open").status() == runtime.session("open", principal="bob").status() == "active"


def test_the_operator_makes_a_handle_of_any_session_directly(runtime, anns):
    assert SessionHandle(runtime.parts, "s-1").status() == "waiting_approval"


def test_a_session_that_does_not_exist_is_told_as_such_whoever_asks(runtime):
    with pytest.raises(SessionNotFound, match="sessions list"):
        runtime.session("nowhere", principal="ann")


# --- the sessions of enqueued turns ---------------------------------------------------------------


def test_a_turn_under_a_key_is_not_the_session_that_is_named_like_both(runtime, workers):
    named = runtime.enqueue_turn(turn_input("/say Named."), context("s#k"))
    keyed = runtime.enqueue_turn(turn_input("/say Keyed."), context("s"), idempotency_key="k")
    workers.drain()
    said = [handle.output(timeout=0).unwrap()["assistant_message"] for handle in (named, keyed)]
    assert said == ["Named.", "Keyed."]


def test_a_repeat_with_the_same_key_is_the_same_turn(runtime, workers):
    first = runtime.enqueue_turn(turn_input("/say Once."), context("s"), idempotency_key="k")
    again = runtime.enqueue_turn(turn_input("/say Once."), context("s"), idempotency_key="k")
    assert again.session_id == first.session_id
    assert len(workers.inbox.hints) == 1
    with pytest.raises(SessionConflict, match="another definition"):
        runtime.enqueue_turn(turn_input("/say Twice."), context("s"), idempotency_key="k")


def test_another_key_is_another_turn(runtime, workers):
    for key in ("k", "l"):
        runtime.enqueue_turn(turn_input("/say Once."), context("s"), idempotency_key=key)
    assert len(workers.inbox.hints) == 2


def test_the_longest_session_id_takes_any_key(runtime, workers):
    handle = runtime.enqueue_turn(turn_input("/say Hi."), context("x" * 200), idempotency_key="\x00" * 999)
    workers.drain()
    assert handle.output(timeout=0).success


@pytest.mark.parametrize(("session_id", "key"), [("s", ""), ("", "k"), ("x" * 201, "k"), ("a\x00", "k")])
def test_an_empty_key_or_a_session_id_that_cannot_be_used_is_refused(runtime, session_id, key):
    with pytest.raises(InvalidInput):
        runtime.enqueue_turn(turn_input("/say Hi."), context(session_id), idempotency_key=key)


names = st.text(st.sampled_from('ab#:[",'), min_size=1, max_size=6)


@settings(max_examples=300)
@given(names, names, names, names)
def test_different_pairs_have_different_ids(session_a, key_a, session_b, key_b):
    same = (session_a, key_a) == (session_b, key_b)
    assert (turn_session_id(session_a, key_a) == turn_session_id(session_b, key_b)) is same


@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=200), names)
def test_the_id_begins_like_the_session_and_can_be_stored(session_id, key):
    found = turn_session_id(session_id, key)
    assert len(found) <= 200
    assert found.startswith(session_id[:100])
