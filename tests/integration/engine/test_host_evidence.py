"""What evidence says of host-driven calls that are refused, cut off or report more than their data."""

import json

import pytest

from runtime.core.policy import PolicyLayer
from runtime.errors import SessionConflict
from runtime.store.clock import Clock
from tests.harness.recorded import Killed, Killer, recorded_stage
from tests.harness.sessions import context

WRITES = {"type": "path", "pattern": "src/**", "access": "write"}
RESERVED = {"type": "path", "pattern": ".agent-runtime/**", "access": "write"}
ALLOW = PolicyLayer.model_validate({"level": "workspace", "default_decision": "allow"})


def handled(**handler):
    return {"name": "demo:tool", "required_scopes": [WRITES], "handler": handler}


@pytest.fixture
def staged():
    """Opens a stage with one tool and scopes that fit it."""
    opened = []

    def stage(given):
        workspace = {"security": {"allowed_scopes": [WRITES]}, "policies": {"default_decision": "allow"}}
        opened.append(recorded_stage(workspace, [given], [ALLOW]))
        return opened[-1].__enter__()

    yield stage
    for each in opened:
        each.__exit__(None, None, None)


def receipts(stage, kind=None):
    rows = stage.rows(
        "SELECT kind, CAST(body AS TEXT) AS body FROM evidence ORDER BY transaction_id, position"
    )
    return [json.loads(row.body) for row in rows if kind in (None, row.kind)]


def test_a_refusal_for_the_reserved_directory_names_its_rule_and_what_the_layers_have_in_common(staged):
    stage = staged({**handled(echo=True), "required_scopes": [WRITES, RESERVED]})
    output = stage.opened.execute_tool("demo:tool", {}, context())
    assert output.error.code == "SCOPE_DENIED"
    assert output.error.details == {"reserved_scopes": [".agent-runtime/**"]}
    started, finished = receipts(stage)
    assert started["scope_allowed"] == [WRITES]
    assert finished["policy_decisions"] == [{"policy_id": "kernel.scope.reserved-path", "decision": "deny"}]
    assert stage.notes.handled == []


def test_a_tool_for_which_any_scope_suffices_and_that_requires_none_is_refused(staged):
    stage = staged({**handled(echo=True), "required_scopes": []})
    assert stage.opened.execute_tool("demo:tool", {}, context()).error.code == "SCOPE_DENIED"
    assert stage.notes.handled == []


def test_a_tool_that_finds_its_scopes_too_narrow_is_recorded_as_denied(staged):
    error = {"code": "SCOPE_DENIED", "message": "not below src"}
    stage = staged(handled(returns={"success": False, "error": error}))
    stage.opened.execute_tool("demo:tool", {}, context())
    assert receipts(stage)[-1]["result"] == "denied"
    assert [row.status for row in stage.rows("SELECT status FROM step")] == ["denied"]
    assert stage.opened.verify("s-1").verified


def test_an_error_beside_the_data_of_a_success_reaches_the_caller_and_evidence(staged):
    warning = {"code": "STALE", "message": "an hour old"}
    stage = staged(handled(returns={"success": True, "data": {"n": 1}, "error": warning}))
    output = stage.opened.execute_tool("demo:tool", {}, context())
    assert (output.success, output.data, output.error.code) == (True, {"n": 1}, "STALE")
    assert receipts(stage)[-1]["result"] == "success"
    assert receipts(stage)[-1]["error"]["message"] == "an hour old"
    assert stage.opened.verify("s-1").verified


SNAPSHOTS = [
    {"sequence": 3, "state": "partial", "data": {"n": 1}},
    {"sequence": 4, "state": "final", "data": 2},
]


@pytest.mark.parametrize("success", [True, False])
def test_snapshots_that_a_tool_hands_over_at_its_end_are_evidence(staged, success):
    end = {"success": True} if success else {"success": False, "error": {"code": "X", "message": "no"}}
    stage = staged(handled(returns={**end, "metadata": {"tool_progress_snapshots": SNAPSHOTS}}))
    stage.opened.execute_tool("demo:tool", {}, context())
    assert [body["snapshot"] for body in receipts(stage, "tool_call_progress")] == SNAPSHOTS
    assert stage.opened.verify("s-1").verified


@pytest.mark.parametrize(
    "bad",
    [
        {"sequence": -1, "state": "final", "data": 1},
        {"sequence": 1, "state": "done", "data": 1},
        {"sequence": 1},
        5,
    ],
)
def test_one_malformed_snapshot_drops_all(staged, bad):
    returns = {"success": True, "metadata": {"tool_progress_snapshots": [*SNAPSHOTS, bad]}}
    stage = staged(handled(returns=returns))
    assert stage.opened.execute_tool("demo:tool", {}, context()).success
    assert receipts(stage, "tool_call_progress") == []


def test_a_file_that_changed_before_the_first_call_leaves_its_event(staged):
    stage = staged(handled(echo=True))
    stage.path.unlink()
    assert stage.opened.execute_tool("demo:tool", {}, context()).error.code == "SPEC_TAMPERED"
    assert [body["kind"] for body in receipts(stage)] == ["spec_tampered"]
    assert stage.notes.handled == []


def test_tampering_is_not_told_to_a_session_of_somebody_else(staged):
    stage = staged(handled(echo=True))
    stage.opened.execute_tool("demo:tool", {}, context(principal="ann"))
    stage.path.unlink()
    with pytest.raises(SessionConflict):
        stage.opened.execute_tool("demo:tool", {}, context(principal="bob"))
    assert receipts(stage, "spec_tampered") == []


def test_calls_of_a_lost_process_are_finished_in_the_order_of_their_starts_and_denied_another_run(staged):
    stage = staged(handled(echo=True))
    database = stage.opened.parts.database
    database.crash = Killer()
    for place, task in enumerate(["late", "early", "middle"]):
        database.clock = Clock(1_700_000_000_000 + [3, 1, 2][place])
        with pytest.raises(Killed):
            stage.opened.execute_tool("demo:tool", {}, context().model_copy(update={"task_id": task}))
    stage.restart()
    finished = receipts(stage, "tool_call_finished")
    assert [body["node_id"].rpartition(":")[2] for body in finished] == ["early", "middle", "late"]
    assert {body["result"] for body in finished} == {"crashed"}
    assert all(body["policy_decisions"][0]["decision"] == "deny" for body in finished)
