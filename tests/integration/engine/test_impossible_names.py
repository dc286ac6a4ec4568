"""Names that no database keeps alike: refused with the field, the value and the fix, or simply unknown."""

import pytest
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from runtime import (
    ExecutionContext,
    run_governed_agent_loop,
    start_governed_agent_session,
    start_governed_agent_workflow,
)
from runtime.errors import InvalidInput, SessionNotFound
from tests.harness.sessions import call, context, turn_input

IMPOSSIBLE = pytest.mark.parametrize("bad", ["a\x00b", "a\udc80b"], ids=["NUL", "surrogate"])
SAID = [{"role": "user", "content": "Go on."}]


def named(bad, **fields) -> ExecutionContext:
    """A context with one impossible name."""
    given = {"run_id": "run-1", "task_id": "task-1", "session_id": "s-1"}
    return ExecutionContext(**{**given, **dict.fromkeys(fields, bad)})


def refused(field, bad, work) -> None:
    with pytest.raises(InvalidInput) as found:
        work()
    message = str(found.value)
    assert message.startswith(f"{field} {bad!r} cannot be used; give 1-")
    assert "without control characters or lone surrogates" in message


def saved(runtime) -> list[int]:
    """How many sessions, steps, signals and receipts there are."""
    with runtime.parts.database.reading() as connection:
        return [
            connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one()
            for table in ("session", "step", "signal", "evidence", "continuation")
        ]


@IMPOSSIBLE
@pytest.mark.parametrize(
    "ask",
    [
        lambda runtime, bad: runtime.session(bad),
        lambda runtime, bad: runtime.verify(bad),
        lambda runtime, bad: runtime.resume(bad),
        lambda runtime, bad: runtime.pause(bad),
        lambda runtime, bad: runtime.unpause(bad),
        lambda runtime, bad: runtime.signal(bad, "session", SAID),
        lambda runtime, bad: runtime.fork(bad, "session", new_session_id="s-2"),
    ],
    ids=["session", "verify", "resume", "pause", "unpause", "signal", "fork"],
)
def test_an_impossible_session_id_names_no_session(runtime, bad, ask):
    with pytest.raises(SessionNotFound) as found:
        ask(runtime, bad)
    assert repr(bad) in str(found.value)


@IMPOSSIBLE
@pytest.mark.parametrize("field", ["run_id", "task_id", "principal"])
def test_a_context_with_an_impossible_name_starts_nothing(runtime, bad, field):
    ctx = named(bad, **{field: bad})
    turn = turn_input("/say Hi.")
    refused(
        field,
        bad,
        lambda: start_governed_agent_session(runtime=runtime, execute_turn_input=turn, ctx=ctx),
    )
    refused(field, bad, lambda: runtime.enqueue_turn(turn, ctx))
    refused(field, bad, lambda: runtime.execute_tool("ledger:read", {"name": "x"}, ctx))
    assert saved(runtime) == [0] * 5


@IMPOSSIBLE
def test_an_impossible_lane_is_refused(runtime, bad):
    ctx = named(bad, lane_id=bad)
    refused("lane_id", bad, lambda: runtime.execute_tool("ledger:read", {"name": "x"}, ctx))
    assert saved(runtime) == [0] * 5


@IMPOSSIBLE
def test_an_impossible_tool_name_is_refused(runtime, bad):
    refused("tool name", bad, lambda: runtime.execute_tool(bad, {}, context()))
    assert saved(runtime) == [0] * 5


@IMPOSSIBLE
@pytest.mark.parametrize("key", ["approval_request_id", "tool_call_id"])
def test_an_impossible_name_in_metadata_is_refused(runtime, bad, key):
    ctx = context(metadata={key: bad})
    refused(f"metadata[{key!r}]", bad, lambda: runtime.execute_tool("ledger:read", {"name": "x"}, ctx))
    assert saved(runtime) == [0] * 5


@IMPOSSIBLE
def test_other_metadata_may_hold_any_text(runtime, bad):
    ctx = context(metadata={"agent_intent": "bookkeeping", "note": bad})
    assert runtime.execute_tool("ledger:read", {"name": "x"}, ctx).success
    assert runtime.verify("s-1").verified


def test_a_node_with_an_impossible_id_is_refused(runtime):
    node = {"id": "a\x00b", "execute_turn_input": turn_input("/say Hi.")}
    flow = {"session_id": "s-1", "nodes": [node]}
    refused(
        "node id",
        "a\x00b",
        lambda: start_governed_agent_workflow(runtime=runtime, workflow=flow, ctx=context()),
    )
    node["id"] = "a\udc80b"
    with pytest.raises(InvalidInput, match="workflow is malformed"):
        start_governed_agent_workflow(runtime=runtime, workflow=flow, ctx=context())
    assert saved(runtime) == [0] * 5


@IMPOSSIBLE
def test_impossible_keys_and_node_ids_move_nothing(runtime, bad):
    start_governed_agent_session(runtime=runtime, execute_turn_input=turn_input("/say Hi."), ctx=context())
    before = saved(runtime)
    refused("idempotency_key", bad, lambda: runtime.resume("s-1", idempotency_key=bad))
    refused("idempotency_key", bad, lambda: runtime.signal("s-1", "session", SAID, idempotency_key=bad))
    refused("node_id", bad, lambda: runtime.signal("s-1", bad, SAID))
    refused("session_id", bad, lambda: runtime.fork("s-1", "session", new_session_id=bad))
    assert saved(runtime) == before


@IMPOSSIBLE
def test_impossible_questions_about_approvals_are_refused(runtime, bad):
    refused("session_id", bad, lambda: runtime.approvals(bad))
    refused("status", bad, lambda: runtime.approvals(status=bad))
    refused(
        "request_id", bad, lambda: runtime.resolve_approval(request_id=bad, approved=True, approved_by="ann")
    )


@IMPOSSIBLE
def test_a_model_that_asks_for_an_impossible_tool_is_told_that_there_is_none(runtime, bad):
    result = run_governed_agent_loop(
        runtime=runtime, execute_turn_input=turn_input(call(bad), "/say Then not."), ctx=context()
    )
    assert result.kind == "completed"
    assert [entry.get("tool_success") for entry in result.history] == [False, None]
    assert runtime.verify("s-1").verified


def test_an_idempotency_key_that_is_too_long_for_an_index_is_refused(runtime):
    start_governed_agent_session(runtime=runtime, execute_turn_input=turn_input("/say Hi."), ctx=context())
    with pytest.raises(InvalidInput, match=r"idempotency_key 'kkk.*give 1-200 characters"):
        runtime.resume("s-1", idempotency_key="k" * 100_000)


def test_something_that_is_not_text_is_refused_by_its_type(runtime):
    with pytest.raises(InvalidInput, match="approved_by of type NoneType cannot be used"):
        runtime.resolve_approval(request_id="apr_1", approved=True, approved_by=None)
    with pytest.raises(SessionNotFound):
        runtime.session(7)


def test_an_error_of_the_database_does_not_quote_what_was_to_be_written(database):
    with pytest.raises(SQLAlchemyError) as found, database.reading() as connection:
        connection.execute(text("SELECT nothing FROM session WHERE id = :id"), {"id": "very-secret"})
    assert "nothing" in str(found.value)
    assert "very-secret" not in str(found.value)
