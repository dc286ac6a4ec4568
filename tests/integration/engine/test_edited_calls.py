"""A person may approve another input than the model's, or supply the call's output instead of the tool."""

import json

import pytest
import yaml
from sqlalchemy import text

from runtime import start_governed_agent_session
from runtime.agent_runtime import AgentRuntime
from runtime.engine.sweep import sweep
from runtime.errors import ApprovalRefused, InvalidInput
from tests.harness.approving import ANN, BOB, CAT, approving, kinds, park, receipts, say
from tests.harness.inline import InlineWorkers
from tests.harness.sessions import call, context, turn_input
from tests.harness.witness import ledger

TWO = {"rules": [{"tools": ["ledger:*"], "quorum": 2}]}


@pytest.fixture
def opened(folder, migrated_url):
    """A runtime under no particular rule; the ledger refuses to write ``secret``."""
    path = folder / "workspace.yaml"
    content = yaml.safe_load(path.read_text())
    rule = content["policies"]["rules"][0]
    rule["when"]["all"][0] = {"tool_name_equals": "ledger:guarded"}
    path.write_text(yaml.safe_dump(content))
    with approving(folder, migrated_url) as runtime:
        yield runtime


def problem(runtime, session_id="s-1"):
    return runtime.verify(session_id, principal=CAT).problem


def status(runtime, session_id="s-1"):
    return runtime.session(session_id, principal=CAT).status()


def refusal(runtime, request, who=ANN, **values):
    """The code with which an answer is refused that changes nothing."""
    before = (kinds(runtime), rows(runtime))
    with pytest.raises(ApprovalRefused) as refused:
        say(runtime, request, who, **values)
    assert (kinds(runtime), rows(runtime)) == before
    return refused.value.code


def rows(runtime):
    with runtime.parts.database.reading() as connection:
        return [
            connection.execute(text(f"SELECT * FROM {table} ORDER BY 1, 2")).all()
            for table in ("approval", "approval_vote", "step", "message")
        ]


def execute(runtime, sql):
    with runtime.parts.database.writing() as connection:
        return connection.execute(text(sql)).rowcount


def answers(runtime):
    return [json.loads(each.body) for each in receipts(runtime) if each.kind == "approval_resolved"]


# --- edited input ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["edited", "e" * 3000], ids=["small", "large"])
def test_the_edited_call_runs_and_evidence_says_whose_edit_it_was(opened, name):
    workers, request = park(opened)
    (asked,) = opened.approvals("s-1")
    assert say(opened, request, ANN, input={"name": name}, reason="wrong name").status == "approved"
    assert problem(opened) is None, "also before the call ran"
    workers.drain()
    assert (status(opened), ledger()) == ("completed", {f"guarded {name}": 1})
    (body,) = answers(opened)
    assert (body["answer"], body["principal"], body["digest_asked"]) == ("edit", ANN, asked.digest)
    assert body["digest"] != asked.digest
    assert problem(opened) is None


def test_an_edited_call_that_policy_denies_is_refused_and_nothing_changes(opened):
    workers, request = park(opened)
    assert refusal(opened, request, input={"name": "secret"}) == "policy_denied"
    say(opened, request, ANN)
    workers.drain()
    assert ledger() == {"guarded g": 1}


@pytest.mark.parametrize("value", [{}, {"name": 7}, {"name": "g", "more": 1}, None, "g"])
def test_an_edited_input_that_the_tool_does_not_take_is_refused(opened, value):
    _, request = park(opened)
    assert refusal(opened, request, input=value) == "invalid_input"


@pytest.mark.parametrize("value", [float("nan"), {"name": object()}])
def test_what_is_no_json_is_refused(opened, value):
    _, request = park(opened)
    with pytest.raises(InvalidInput):
        say(opened, request, ANN, input=value)


def test_an_edit_and_a_response_and_a_denial_exclude_each_other(opened):
    _, request = park(opened)
    for values in ({"input": {}, "response": {}}, {"approved": False, "input": {"name": "x"}}):
        with pytest.raises(InvalidInput, match="cannot go with this answer"):
            say(opened, request, ANN, **values)


def test_a_quorum_is_of_people_who_made_the_same_edit(folder, migrated_url):
    with approving(folder, migrated_url, **TWO) as runtime:
        workers, request = park(runtime)
        assert say(runtime, request, ANN, input={"name": "same"}).status == "pending"
        assert say(runtime, request, "dan@example.com").status == "pending", "the call as it was asked for"
        assert problem(runtime) is None
        assert say(runtime, request, BOB, input={"name": "same"}).status == "approved"
        workers.drain()
        assert ledger() == {"guarded same": 1}
        assert problem(runtime) is None


def test_a_host_repeats_its_call_as_it_was_edited(opened):
    ctx = context(metadata={"agent_intent": "bookkeeping"})
    request = opened.execute_tool("ledger:guarded", {"name": "g"}, ctx).error.details["request_id"]
    say(opened, request, ANN, input={"name": "other"})
    (answered,) = opened.approvals("s-1", status="approved")
    named = ctx.model_copy(update={"metadata": {**ctx.metadata, "approval_request_id": request}})
    refused = opened.execute_tool("ledger:guarded", {"name": "g"}, named)
    assert refused.error.details["reason"] == "action_digest_mismatch"
    assert opened.execute_tool("ledger:guarded", answered.input, named).success
    assert ledger() == {"guarded other": 1}
    assert opened.verify("s-1").problem is None


def test_an_edit_that_was_changed_in_the_step_before_it_ran_is_named(opened):
    _, request = park(opened)
    say(opened, request, ANN, input={"name": "edited"})
    assert execute(opened, "UPDATE step SET input = '{\"name\":\"forged\"}' WHERE status = 'ready'") == 1
    assert problem(opened).reason == "its stored input does not match its hash"


# --- responses ------------------------------------------------------------------------------------


def test_a_response_is_the_calls_output_and_the_tool_does_not_run(opened):
    workers, request = park(opened)
    found = say(opened, request, ANN, response={"wrote": "by hand"})
    assert found.status == "answered"
    workers.drain()
    assert (status(opened), ledger()) == ("completed", {})
    bodies = [json.loads(each.body) for each in receipts(opened)]
    (finish,) = [body for body in bodies if body.get("answered_by") and body["step_id"] != "control"]
    assert (finish["result"], finish["output"], finish["answered_by"]) == (
        "success", {"wrote": "by hand"}, ANN,
    )  # fmt: skip
    with opened.parts.database.reading() as connection:
        (message,) = connection.execute(text("SELECT content FROM message WHERE role = 'tool'")).scalars()
    assert "by hand" in message
    assert problem(opened) is None


def test_a_response_that_the_tool_could_not_have_given_is_refused(opened):
    _, request = park(opened)
    assert refusal(opened, request, response=[1, 2]) == "invalid_output"


def test_a_response_needs_as_many_people_as_an_approval(folder, migrated_url):
    with approving(folder, migrated_url, **TWO) as runtime:
        workers, request = park(runtime)
        assert say(runtime, request, ANN, response={"wrote": "x"}).status == "pending"
        assert say(runtime, request, "dan@example.com", response={"wrote": "y"}).status == "pending"
        assert problem(runtime) is None
        assert say(runtime, request, BOB, response={"wrote": "x"}).status == "answered"
        workers.drain()
        assert (status(runtime), ledger()) == ("completed", {})
        assert problem(runtime) is None


def test_a_host_takes_no_response(opened):
    ctx = context(metadata={"agent_intent": "bookkeeping"}, principal=CAT)
    request = opened.execute_tool("ledger:guarded", {"name": "g"}, ctx).error.details["request_id"]
    assert refusal(opened, request, response={"wrote": "g"}) == "not_answerable"


def test_a_call_in_doubt_takes_a_response_but_no_edit(folder, migrated_url):
    with AgentRuntime.open(
        folder / "workspace.yaml", database_url=migrated_url, tool_processes=True
    ) as runtime:
        workers = InlineWorkers(runtime)
        start_governed_agent_session(
            runtime=runtime,
            execute_turn_input=turn_input(call("ledger:hang-once"), "/say Done."),
            ctx=context(principal=CAT),
        )
        workers.drain()
        (request,) = runtime.approvals("s-1")
        assert refusal(runtime, request.request_id, input={"name": "x"}) == "not_editable"
        assert say(runtime, request.request_id, ANN, response={"wrote": "x"}).status == "answered"
        workers.drain()
        assert status(runtime) == "completed"
        assert problem(runtime) is None


def test_of_several_calls_of_a_turn_each_is_answered_in_its_own_way(opened):
    workers = InlineWorkers(opened)
    asks = "\n".join(call("ledger:guarded", name) for name in ("run", "edit", "respond", "deny"))
    flow = start_governed_agent_session(
        runtime=opened, execute_turn_input=turn_input(asks, "/say Done."), ctx=context(principal=CAT)
    )
    workers.drain()
    waiting = {each.input["name"]: each.request_id for each in opened.approvals("s-1")}
    say(opened, waiting["deny"], ANN, False)
    say(opened, waiting["respond"], ANN, response={"wrote": "by hand"})
    say(opened, waiting["edit"], ANN, input={"name": "edited"})
    workers.drain()
    assert problem(opened) is None
    say(opened, waiting["run"], ANN)
    workers.drain()
    assert (flow.status(), ledger()) == ("completed", {"guarded run": 1, "guarded edited": 1})
    assert problem(opened) is None


def test_an_edit_under_pause_is_kept_and_acts_on_unpause(opened):
    workers, request = park(opened)
    opened.pause("s-1", principal=CAT)
    say(opened, request, ANN, input={"name": "edited"})
    workers.drain()
    assert ledger() == {}
    opened.unpause("s-1", principal=CAT)
    workers.drain()
    assert (status(opened), ledger()) == ("completed", {"guarded edited": 1})
    assert problem(opened) is None


@pytest.mark.parametrize("values", [{"input": {"name": "edited"}}, {"response": {"wrote": "by hand"}}])
def test_a_session_that_was_so_answered_can_be_forked_and_both_verify(opened, values):
    workers, request = park(opened)
    say(opened, request, ANN, **values)
    workers.drain()
    opened.fork("s-1", "session", new_session_id="s-2", principal=CAT, allow_effects=True)
    workers.drain()
    assert [problem(opened, name) for name in ("s-1", "s-2")] == [None, None]


def test_a_response_whose_row_was_changed_is_named(opened):
    workers, request = park(opened)
    say(opened, request, ANN, response={"wrote": "by hand"})
    workers.drain()
    sweep(opened.parts)
    assert execute(opened, 'UPDATE approval_vote SET content = \'{"wrote":"else"}\'') == 1
    assert problem(opened).reason.startswith("the content of its answer does not match")
