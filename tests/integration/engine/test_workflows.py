"""What a workflow's definition means: branches, conditions, failures, lists, wake-ups; on both databases."""

import json

import pytest
from sqlalchemy import text

from runtime import Workflow, WorkflowNode, start_governed_agent_workflow
from runtime.core.model import ExecutionContext
from runtime.edges.demo.model_server import Fault
from runtime.live.hints import AdvanceHint, ChainHint, ChordHint, StepHint
from runtime.store.tables import MOVING_NODES, UNPROPAGATED
from tests.harness.inline import Canvas
from tests.harness.sessions import call, context, turn_input


def node(id: str, *turns: str, tools: bool = True, **values) -> WorkflowNode:
    given = turn_input(*(turns or (f"/say {id}",)))
    if not tools:
        given["tool_catalog"] = []
    return WorkflowNode.model_validate({"id": id, "execute_turn_input": given, **values})


def leaf(id: str, *turns: str, **values) -> WorkflowNode:
    """A node without tools, which its first turn ends."""
    return node(id, *turns, tools=False, **values)


def answer(intent: str, message: str = "") -> str:
    """A turn that says what it is about."""
    reply = {"status": "complete", "intent": intent, "assistant_message": message}
    return f"/raw {json.dumps(reply)}"


@pytest.fixture
def canvas(runtime) -> Canvas:
    return Canvas(runtime)


def start(runtime, *nodes: WorkflowNode, session_id="s-1"):
    return start_governed_agent_workflow(
        runtime=runtime,
        workflow=Workflow(session_id=session_id, nodes=nodes),
        ctx=ExecutionContext.model_validate(context(session_id)),
    )


def fail(model, match: str, times: int = 1) -> None:
    """Let the model server refuse a turn in a way that no retry mends."""
    body = json.dumps({"error": {"message": "no such model", "code": "model_not_found"}})
    model.faults.add(Fault(match=match, times=times, status=400, body=body))


def statuses(flow) -> dict[str, str]:
    return {each.id: str(each.status) for each in flow.nodes()}


def kinds(flow, of: str) -> list[str]:
    return [each["kind"] for each in flow.continuations() if each.get("node_id") == of]


# --- canvas ---------------------------------------------------------------------------------------


def test_a_single_turn_join_starts_by_its_chord_alone(runtime, canvas):
    flow = start(runtime, leaf("a"), leaf("b"), node("join", depends_on=["a", "b"]))
    assert [type(hint) for hint in canvas.published] == [ChordHint]
    while any(isinstance(each.hint, StepHint) for each in canvas.waiting):
        canvas.next()
    assert [hint.node_id for hint in canvas.ran] == ["a", "b", "join"]  # no advance ran
    canvas.drain()
    assert flow.status() == "completed"
    assert "join_ready" in kinds(flow, "join")
    assert runtime.verify("s-1").verified


def test_without_canvas_the_join_starts_by_an_advance(runtime, workers):
    flow = start(runtime, leaf("a"), leaf("b"), node("join", depends_on=["a", "b"]))
    workers.drain()
    assert any(isinstance(hint, AdvanceHint) for hint in workers.ran)
    assert flow.status() == "completed"
    assert runtime.verify("s-1").verified


def test_a_line_of_single_turns_goes_by_chains(runtime, canvas):
    flow = start(runtime, leaf("a"), leaf("b", depends_on=["a"]), leaf("c", depends_on=["b"]))
    canvas.drain()
    assert flow.status() == "completed"
    assert isinstance(canvas.published[0], ChainHint)
    assert [h.node_id for h in canvas.ran if isinstance(h, StepHint)] == ["a", "b", "c"]
    assert runtime.verify("s-1").verified


def test_several_calls_of_a_turn_are_a_chord_with_the_next_turn(runtime, canvas):
    turns = "\n".join([call("ledger:put", "a"), call("ledger:put", "b")])
    flow = start(runtime, node("a", turns, "/say Done."))
    canvas.drain()
    chords = [hint for hint in canvas.published if isinstance(hint, ChordHint)]
    assert [len(chord.header) for chord in chords] == [2]
    assert isinstance(chords[0].body, StepHint)
    assert flow.status() == "completed"
    assert runtime.verify("s-1").verified


def test_a_chord_that_fires_early_changes_nothing(runtime, canvas):
    flow = start(runtime, leaf("a"), leaf("b"), node("join", depends_on=["a", "b"]))
    chord = canvas.published[0]
    runtime.executor().run_step(chord.body.step_id, ("turns",))
    assert statuses(flow)["join"] == "pending"
    canvas.drain()
    runtime.executor().run_step(chord.body.step_id, ("turns",))
    assert flow.status() == "completed"
    assert [each.turn_count for each in flow.nodes()] == [1, 1, 1]


def test_a_step_that_another_delivery_ran_does_not_rely_on_its_chord(runtime, canvas):
    flow = start(runtime, leaf("a"), leaf("b"), node("join", depends_on=["a", "b"]))
    for step in canvas.published[0].header:  # as the sweep would send them; the chord's own messages are lost
        runtime.executor().run_step(step.step_id, ("turns",))
    canvas.waiting = [each for each in canvas.waiting if isinstance(each.hint, AdvanceHint)]
    canvas.drain()
    assert flow.status() == "completed"


# --- conditions and failures ----------------------------------------------------------------------


def test_a_condition_on_an_intent_takes_one_branch_and_skips_the_other(runtime, canvas):
    flow = start(
        runtime,
        node("triage", answer("refund")),
        node("refund", depends_on=["triage"], when={"node": "triage", "intent": "refund"}),
        node("reply", depends_on=["triage"], when={"node": "triage", "intent": ["reply", "ask"]}),
        node("close", depends_on=["refund", "reply"]),
    )
    canvas.drain()
    assert statuses(flow) == {
        "triage": "completed",
        "refund": "completed",
        "reply": "skipped",
        "close": "completed",
    }
    assert flow.status() == "completed"
    assert kinds(flow, "reply") == ["skipped"]
    assert runtime.verify("s-1").verified


def test_what_depends_on_skipped_nodes_alone_is_skipped(runtime, canvas):
    flow = start(
        runtime,
        node("a", answer("this")),
        node("b", depends_on=["a"], when={"node": "a", "intent": "that"}),
        node("c", depends_on=["b"]),
        node("d", depends_on=["c"]),
    )
    canvas.drain()
    assert statuses(flow) == {"a": "completed", "b": "skipped", "c": "skipped", "d": "skipped"}
    assert flow.status() == "completed"


def test_a_failure_stops_what_depends_on_it(runtime, canvas, model):
    fail(model, "/say a")
    flow = start(runtime, node("a"), node("b", depends_on=["a"]), node("c"))
    canvas.drain()
    assert statuses(flow) == {"a": "error", "b": "pending", "c": "completed"}
    assert flow.status() == "error"


def test_on_error_continue_lets_dependants_run(runtime, canvas, model):
    fail(model, "/say a")
    flow = start(runtime, node("a", on_error="continue"), node("b", depends_on=["a"]))
    canvas.drain()
    assert statuses(flow) == {"a": "error", "b": "completed"}
    assert flow.status() == "completed"


def test_a_condition_on_an_error_handles_it(runtime, canvas, model):
    fail(model, "/say a")
    flow = start(
        runtime,
        node("a"),
        node("usual", depends_on=["a"], when={"node": "a", "status": "completed"}),
        node("rescue", depends_on=["a"], when={"node": "a", "status": "error"}),
    )
    canvas.drain()
    assert statuses(flow) == {"a": "error", "usual": "skipped", "rescue": "completed"}
    assert flow.status() == "completed"


def test_a_node_that_can_never_start_stalls_the_workflow(runtime, canvas, model):
    fail(model, "/say a")
    flow = start(
        runtime,
        node("a"),
        node("rescue", depends_on=["a"], when={"node": "a", "status": "error"}),
        node("b", depends_on=["a"]),
    )
    canvas.drain()
    assert flow.status() == "error"
    assert statuses(flow)["b"] == "pending"
    assert kinds(flow, "workflow") == ["error"]


# --- lists ----------------------------------------------------------------------------------------


def test_a_literal_list_runs_once_for_each_item_and_joins(runtime, canvas):
    flow = start(
        runtime, leaf("each", "/say Seen.", for_each=["red", "green"]), node("join", depends_on=["each"])
    )
    assert isinstance(canvas.published[0], ChordHint)
    canvas.drain()
    assert statuses(flow) == {
        "each": "completed",
        "each[0]": "completed",
        "each[1]": "completed",
        "join": "completed",
    }
    assert flow.status() == "completed"
    items = next(each.result for each in flow.nodes() if each.id == "each")["items"]
    assert [item["assistant_message"] for item in items] == ["Seen.", "Seen."]
    assert runtime.verify("s-1").verified


def test_an_upstream_list_decides_how_many_instances_run(runtime, canvas):
    flow = start(
        runtime,
        node("plan", answer("plan", json.dumps({"files": ["a.txt", "b.txt", "c.txt"]}))),
        node(
            "each",
            call("ledger:put", "x"),
            "/say ok",
            depends_on=["plan"],
            for_each={"node": "plan", "path": ["files"]},
        ),
        node("join", depends_on=["each"], context_from=["each"]),
    )
    canvas.drain()
    assert flow.status() == "completed"
    assert [name for name in statuses(flow) if name.startswith("each[")] == ["each[0]", "each[1]", "each[2]"]
    assert runtime.verify("s-1").verified


def test_an_empty_upstream_list_satisfies_the_join(runtime, canvas):
    flow = start(
        runtime,
        node("plan", answer("plan", "[]")),
        node("each", depends_on=["plan"], for_each={"node": "plan"}),
        node("join", depends_on=["each"]),
    )
    canvas.drain()
    assert statuses(flow) == {"plan": "completed", "each": "completed", "join": "completed"}


def test_output_that_is_no_list_fails_the_node_and_says_so(runtime, canvas):
    flow = start(
        runtime,
        node("plan", answer("plan", "three files")),
        node("each", depends_on=["plan"], for_each={"node": "plan"}),
    )
    canvas.drain()
    assert flow.status() == "error"
    error = next(each.error for each in flow.nodes() if each.id == "each")
    assert error["code"] == "INVALID_OUTPUT"
    assert "'plan' is not JSON" in error["message"]


@pytest.mark.parametrize(("on_error", "status"), [("fail", "error"), ("continue", "completed")])
def test_a_failed_instance_fails_its_group_unless_it_may_go_on(runtime, canvas, model, on_error, status):
    fail(model, "Item 2 of 3")
    flow = start(
        runtime,
        node("each", "/say Seen.", for_each=[1, 2, 3], on_error=on_error),
        node("join", depends_on=["each"]),
    )
    canvas.drain()
    found = statuses(flow)
    assert found["each[1]"] == "error"
    assert (found["each"], flow.status()) == ("error" if on_error == "fail" else "completed", status)
    assert found["join"] == ("pending" if on_error == "fail" else "completed")
    assert runtime.verify("s-1").verified


# --- any order ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_shuffled_doubled_and_lost_messages_change_nothing_but_time(runtime, seed):
    canvas = Canvas(runtime, seed)
    turns = "\n".join([call("ledger:put", "a"), call("ledger:read", "b")])
    flow = start(
        runtime,
        leaf("a"),
        node("b", turns, "/say b"),
        leaf("c", depends_on=["a"]),
        leaf("d", depends_on=["a"]),
        node("e", depends_on=["c", "d"]),
        leaf("f", depends_on=["e", "b"], for_each=[1, 2]),
        node("g", depends_on=["f", "a"]),
    )
    for _ in range(200):
        canvas.drain()
        if flow.status() == "completed":
            break
        nudge(runtime)
    assert set(statuses(flow).values()) == {"completed"}
    assert [each.turn_count for each in flow.nodes() if each.id != "f"] == [1, 2, 1, 1, 1, 1, 1, 1]
    sequence = [each["sequence"] for each in flow.continuations()]
    assert sequence == list(range(len(sequence)))
    assert runtime.verify("s-1").verified


def nudge(runtime) -> None:
    """Do what the sweep does in the end: hint again at all that is ready, and advance."""
    from sqlalchemy import text

    with runtime.parts.database.reading() as connection:
        rows = connection.execute(text("SELECT id FROM step WHERE status = 'ready'")).all()
    for row in rows:
        runtime.executor().run_step(row.id, ("turns", "tools"))
    runtime.executor().advance("s-1")


def test_what_an_advance_asks_is_found_without_a_look_at_what_has_ended(runtime):
    """The two partial indexes hold what is open; EXPLAIN says that they are asked."""
    dialect = runtime.parts.database.dialect
    asked = {
        "ix_node_moving": f"SELECT 1 FROM node WHERE session_id = :id AND {MOVING_NODES}",
        "ix_step_followed": f"SELECT 1 FROM step s WHERE session_id = :id AND {UNPROPAGATED[dialect]}",
    }
    explain = "EXPLAIN QUERY PLAN" if dialect == "sqlite" else "EXPLAIN"
    with runtime.parts.database.reading() as connection:
        if dialect == "postgresql":
            connection.execute(text("SET enable_seqscan = off"))  # the tables are empty
        for index, sql in asked.items():
            plan = connection.execute(text(f"{explain} {sql}"), {"id": "s-1"}).all()
            assert index in str(plan), plan
