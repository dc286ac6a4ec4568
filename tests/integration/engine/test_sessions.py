"""Sessions from start to end, on both databases, with the engine's steps run in this process."""

import os
from pathlib import Path

import pytest

from runtime import (
    resume_governed_agent_session,
    run_governed_agent_loop,
    start_governed_agent_session,
    start_governed_agent_workflow,
)
from runtime.errors import ApprovalRefused, InvalidInput, SessionConflict
from tests.harness.sessions import call, context, turn_input, workflow


def ledger() -> list[str]:
    path = Path(os.environ["LEDGER"])
    return [line.rsplit(" ", 2)[0] for line in path.read_text().splitlines()] if path.exists() else []


def start(runtime, *turns, session_id="s-1", **values):
    return start_governed_agent_session(
        runtime=runtime, execute_turn_input=turn_input(*turns), ctx=context(session_id), **values
    )


def test_a_linear_session_runs_its_tools_and_completes(runtime, workers):
    flow = start(runtime, call("ledger:put", "a"), call("ledger:read", "b"), "/say Done.")
    workers.drain()
    assert flow.status() == "completed"
    assert ledger() == ["put a", "read b"]
    (node,) = flow.nodes()
    assert (node.turn_count, node.tool_call_count) == (3, 2)
    assert node.result["assistant_message"] == "Done."
    assert [entry["kind"] for entry in flow.continuations()] == ["created", "branch_completed", "completed"]
    assert [entry["sequence"] for entry in flow.continuations()] == [0, 1, 2]


def test_the_evidence_of_a_session_verifies(runtime, workers):
    start(runtime, call("ledger:big", "abcd"), "/say Done.")
    workers.drain()
    found = runtime.verify("s-1")
    assert found.verified, found.problem
    assert found.receipts == 7  # two turns, one call, the settle record
    assert found.blobs == 1


def test_several_calls_of_one_turn_are_answered_together(runtime, workers):
    flow = start(
        runtime,
        "\n".join([call("ledger:put", "a"), call("ledger:put", "secret"), call("ledger:raise", "c")]),
        "/say Seen.",
    )
    workers.drain()
    assert flow.status() == "completed"
    assert ledger() == ["put a"]
    (node,) = flow.nodes()
    assert (node.turn_count, node.tool_call_count) == (2, 3)
    results = [event.body["result"] for event in flow.events() if event.kind == "tool_call_finished"]
    assert sorted(results) == ["denied", "failure", "success", "success", "success"]
    assert runtime.verify("s-1").verified


def test_branches_join(runtime, workers):
    flow = start_governed_agent_workflow(
        runtime=runtime,
        workflow=workflow(
            "s-1",
            a=(["/say A."], ()),
            left=([call("ledger:put", "left"), "/say L."], ("a",)),
            right=(["/say R."], ("a",)),
            join=([call("ledger:put", "join"), "/say J."], ("left", "right")),
        ),
        ctx=context(),
    )
    workers.drain()
    assert flow.result(timeout=0).unwrap()["join"]["assistant_message"] == "J."
    assert ledger() == ["put left", "put join"]
    kinds = [entry["kind"] for entry in flow.continuations()]
    assert kinds.count("branch_completed") == 4
    assert kinds.count("join_ready") == 1
    assert runtime.verify("s-1").verified


def test_an_approved_call_runs_once_and_the_session_goes_on(runtime, workers):
    flow = start(runtime, call("ledger:guarded", "g"), "/say Paid.")
    workers.drain()
    assert flow.status() == "waiting_approval"
    (request,) = runtime.approvals("s-1")
    assert ledger() == []
    runtime.resolve_approval(request_id=request.request_id, approved=True, approved_by="op@example.com")
    hints = list(workers.inbox.hints)
    workers.inbox.hints = hints + hints  # every message twice
    workers.drain()
    assert flow.status() == "completed"
    assert ledger() == ["guarded g"]
    assert runtime.verify("s-1").verified


def test_a_denied_call_is_told_to_the_model(runtime, workers, model):
    flow = start(runtime, call("ledger:guarded", "g"), "/say I understand.")
    workers.drain()
    (request,) = runtime.approvals("s-1")
    runtime.resolve_approval(
        request_id=request.request_id, approved=False, approved_by="op@example.com", reason="not today"
    )
    workers.drain()
    assert flow.status() == "completed"
    assert ledger() == []
    assert flow.nodes()[0].result["assistant_message"] == "I understand."
    assert runtime.verify("s-1").verified


def test_the_second_answer_is_refused_and_told_who_answered(runtime, workers):
    start(runtime, call("ledger:guarded", "g"), "/say Paid.")
    workers.drain()
    (request,) = runtime.approvals("s-1")
    runtime.resolve_approval(request_id=request.request_id, approved=False, approved_by="first@example.com")
    with pytest.raises(ApprovalRefused, match=r"first@example\.com") as refused:
        runtime.resolve_approval(request_id=request.request_id, approved=True, approved_by="late@example.com")
    assert refused.value.code == "already_resolved"


def test_starting_again_is_the_same_session_or_a_conflict(runtime, workers):
    start(runtime, "/say Hello.")
    start(runtime, "/say Hello.")
    workers.drain()
    with pytest.raises(SessionConflict, match="another definition"):
        start(runtime, "/say Something else.")


@pytest.mark.parametrize("session_id", ["", "a\x00b", "x" * 10_000, "line\nbreak", "\ud800"])
def test_a_session_id_that_cannot_be_stored_is_refused(runtime, session_id):
    with pytest.raises(InvalidInput, match="session_id"):
        start(runtime, "/say Hello.", session_id=session_id)


def test_a_session_id_is_opaque(runtime, workers):
    flow = start(runtime, "/say Hello.", session_id="../../etc/passwd")
    workers.drain()
    assert flow.status() == "completed"
    assert runtime.verify("../../etc/passwd").verified


def test_a_turn_budget_suspends_and_a_resume_goes_on(runtime, workers):
    flow = start(runtime, call("ledger:put", "a"), call("ledger:put", "b"), "/say Done.", max_turns=1)
    workers.drain()
    assert (flow.status(), ledger()) == ("suspended", ["put a"])
    resume_governed_agent_session(runtime=runtime, session_id="s-1")
    workers.drain()
    resume_governed_agent_session(runtime=runtime, session_id="s-1")
    workers.drain()
    assert (flow.status(), ledger()) == ("completed", ["put a", "put b"])
    assert runtime.verify("s-1").verified


def test_a_linear_session_takes_more_messages(runtime, workers):
    flow = start(runtime, "/say Hello.")
    workers.drain()
    resume_governed_agent_session(
        runtime=runtime, session_id="s-1", messages=[{"role": "user", "content": "/say Again."}]
    )
    workers.drain()
    assert flow.status() == "completed"
    assert flow.nodes()[0].result["assistant_message"] == "Again."
    assert runtime.verify("s-1").verified


def test_a_provider_that_fails_is_tried_again_at_a_due_time(runtime, workers, model):
    from runtime.edges.demo.model_server import Fault

    model.faults.add(Fault(status=503, headers={"retry-after-ms": "1"}))
    flow = start(runtime, "/say Hello.")
    workers.drain()
    assert flow.status() == "active"
    from runtime.engine.sweep import sweep

    while not workers.inbox.hints:
        sweep(runtime.parts)
    workers.drain()
    assert flow.status() == "completed"
    assert runtime.verify("s-1").verified


def test_a_malformed_answer_ends_the_node_in_error(runtime, workers):
    from runtime.edges.demo.model_server import Fault

    flow = start(runtime, "/say Hello.")
    runtime_model = runtime.workspace.models["operations"]
    assert runtime_model.base_url
    # 400 is not retryable.
    _fault(runtime, Fault(times=9, status=400, body='{"error": {"message": "no"}}'))
    workers.drain()
    assert flow.status() == "error"
    assert flow.nodes()[0].error["code"] == "PROVIDER_HTTP_ERROR"
    assert runtime.verify("s-1").verified


def _fault(runtime, fault):
    import json
    import urllib.request

    base = runtime.workspace.models["operations"].base_url.rsplit("/", 1)[0]
    body = {"fault": {"match": fault.match, "times": fault.times, "status": fault.status, "body": fault.body}}
    request = urllib.request.Request(
        f"{base}/control", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    urllib.request.urlopen(request).close()


def test_cancel_stops_what_has_not_started(runtime, workers):
    flow = start(runtime, call("ledger:guarded", "g"), "/say Paid.")
    workers.drain()
    flow.cancel(reason="changed my mind")
    workers.drain()
    assert flow.status() == "cancelled"
    assert runtime.approvals("s-1") == []
    assert runtime.verify("s-1").verified


def test_a_host_driven_loop_runs_in_this_process(runtime):
    result = run_governed_agent_loop(
        runtime=runtime,
        execute_turn_input=turn_input(call("ledger:put", "a"), "/say Done."),
        ctx=context("s-loop"),
    )
    assert (result.kind, result.turn_count, result.tool_call_count) == ("completed", 2, 1)
    assert ledger() == ["put a"]
    assert runtime.verify("s-loop").verified


def test_an_enqueued_turn_returns_its_output_and_runs_no_tool(runtime, workers):
    handle = runtime.enqueue_turn(turn_input(call("ledger:put", "a")), context("s-turn"))
    workers.drain()
    output = handle.output(timeout=0)
    assert output.unwrap()["requested_tool"]["name"] == "ledger:put"
    assert ledger() == []


def test_a_turn_that_names_no_model_gets_the_default(runtime, workers, model):
    given = {key: value for key, value in turn_input("/say Hello.").items() if key != "model_profile"}
    flow = start_governed_agent_session(runtime=runtime, execute_turn_input=given, ctx=context())
    workers.drain()
    assert flow.status() == "completed"
    host = runtime.execute_tool("agent:execute-turn", {**given, "session_id": "s-2"}, context("s-2"))
    assert host.unwrap()["assistant_message"] == "Hello."


def test_without_a_default_a_node_must_name_its_model(runtime, monkeypatch):
    monkeypatch.setattr(type(runtime.workspace), "default_model", None)
    given = {key: value for key, value in turn_input("/say Hello.").items() if key != "model_profile"}
    with pytest.raises(InvalidInput, match="default_model"):
        start_governed_agent_session(runtime=runtime, execute_turn_input=given, ctx=context())
