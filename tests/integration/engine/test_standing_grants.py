"""A standing grant answers requests beforehand: so many, so long, for calls that fit, never over a deny."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml
from sqlalchemy import text

from runtime import start_governed_agent_session
from runtime.engine.standing import answer_by_standing
from runtime.engine.sweep import sweep
from runtime.errors import InvalidInput
from tests.harness.approving import ANN, BOB, CAT, approving, park, receipts, say
from tests.harness.inline import InlineWorkers
from tests.harness.sessions import call, context, turn_input
from tests.harness.witness import ledger

NAMED_G = {"argument_equals": {"path": ["name"], "value": "g"}}


@pytest.fixture
def opened(folder, migrated_url):
    with approving(folder, migrated_url) as runtime:
        yield runtime


def grant(runtime, tool="ledger:guarded", **values):
    given = {"uses": 1, "expires_in": "1h", "granted_by": ANN, **values}
    return runtime.grant_standing(tool, **given)


def run(runtime, *names, session_id="s-1"):
    """Run a session that makes guarded calls; its status."""
    workers = InlineWorkers(runtime)
    flow = start_governed_agent_session(
        runtime=runtime,
        execute_turn_input=turn_input(*(call("ledger:guarded", name) for name in names), "/say Done."),
        ctx=context(session_id, principal=CAT),
    )
    workers.drain()
    return flow.status()


def problem(runtime, session_id="s-1"):
    return runtime.verify(session_id, principal=CAT).problem


def test_a_call_that_fits_runs_without_anybody_being_asked(opened):
    given = grant(opened, where=NAMED_G, reason="nightly")
    assert run(opened, "g") == "completed"
    assert ledger() == {"guarded g": 1}
    (body,) = [json.loads(each.body) for each in receipts(opened) if each.kind == "approval_resolved"]
    assert body["principal"] == ANN
    assert body["standing_grant"] == {
        "id": given.id, "granted_by": ANN, "tools": ["ledger:guarded"], "condition": NAMED_G, "uses": 1,
    }  # fmt: skip
    assert [each.used for each in opened.standing_grants(active=False)] == [1]
    assert problem(opened) is None


@pytest.mark.parametrize(
    "values",
    [
        {"tool": "ledger:pay"},
        {"tool": "calendar:*"},
        {"where": {"argument_equals": {"path": ["name"], "value": "other"}}},
        {"where": {"not": NAMED_G}},
    ],
)
def test_a_call_that_does_not_fit_waits_for_people(opened, values):
    grant(opened, **values)
    assert run(opened, "g") == "waiting_approval"
    (request,) = opened.approvals("s-1")
    assert not request.standing, "the sweep does not ask again"
    assert [each.used for each in opened.standing_grants()] == [0]


def test_uses_are_used_up(opened):
    grant(opened, uses=2)
    assert run(opened, "g", "g", "g") == "waiting_approval"
    assert ledger() == {"guarded g": 2}
    assert opened.standing_grants() == []
    assert problem(opened) is None


def test_a_grant_that_was_revoked_or_has_expired_answers_nothing(opened):
    opened.revoke_standing(grant(opened).id, revoked_by=BOB)
    grant(opened)
    with opened.parts.database.writing() as connection:
        connection.execute(text("UPDATE standing_grant SET expires_at = 1 WHERE revoked_at IS NULL"))
    assert run(opened, "g") == "waiting_approval"
    assert {each.revoked_by for each in opened.standing_grants(active=False)} == {BOB, None}


def test_uses_never_exceed_what_was_granted_however_many_ask_at_once(opened):
    requests = []
    for number in range(4):
        _, request = park(opened, session_id=f"s-{number}")
        requests.append(request)
    grant(opened, uses=2)
    barrier = threading.Barrier(4)

    def ask(request):
        barrier.wait(60)
        return answer_by_standing(opened.parts, request)

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(ask, requests)) == [False, False, True, True]
    (found,) = opened.standing_grants(active=False)
    assert found.used == 2
    with opened.parts.database.reading() as connection:
        assert connection.execute(text("SELECT count(*) FROM standing_grant_use")).scalar_one() == 2
    assert [problem(opened, f"s-{number}") for number in range(4)] == [None] * 4


def test_a_deny_beats_a_standing_grant(folder, migrated_url):
    path = folder / "workspace.yaml"
    content = yaml.safe_load(path.read_text())
    content["policies"]["rules"].append(
        {"id": "never", "decision": "deny", "when": {"tool_name_equals": "ledger:guarded"}}
    )
    path.write_text(yaml.safe_dump(content))
    with approving(folder, migrated_url) as runtime:
        grant(runtime, "*", uses=5)
        assert run(runtime, "g") == "completed"
        assert ledger() == {}
        assert [each.used for each in runtime.standing_grants()] == [0]


def test_a_standing_grant_is_one_vote_of_who_made_it(folder, migrated_url):
    with approving(folder, migrated_url, rules=[{"tools": ["*"], "quorum": 2}]) as runtime:
        grant(runtime, uses=3)
        grant(runtime, uses=3)
        assert run(runtime, "g") == "waiting_approval"
        (request,) = runtime.approvals("s-1")
        assert request.votes == 1
        assert sorted(each.used for each in runtime.standing_grants()) == [0, 1]
        assert say(runtime, request.request_id, BOB).status == "approved"
        InlineWorkers(runtime).drain()
        assert problem(runtime) is None


def test_separation_of_duty_holds_for_standing_grants_too(folder, migrated_url):
    with approving(folder, migrated_url, rules=[{"tools": ["*"], "separation_of_duty": True}]) as runtime:
        grant(runtime, granted_by=CAT)
        assert run(runtime, "g") == "waiting_approval"
        assert [each.used for each in runtime.standing_grants()] == [0]


def test_the_sweep_asks_standing_grants_where_the_process_that_parked_could_not(opened, monkeypatch):
    grant(opened)
    monkeypatch.setattr("runtime.engine.park.answer_by_standing", lambda *_: False)
    assert run(opened, "g") == "waiting_approval"
    sweep(opened.parts)
    InlineWorkers(opened).drain()
    sweep(opened.parts)
    assert opened.approvals("s-1") == []
    assert problem(opened) is None


def test_a_host_repeats_a_call_that_a_standing_grant_let_run(opened):
    grant(opened, where=NAMED_G)
    ctx = context(metadata={"agent_intent": "bookkeeping"})
    request = opened.execute_tool("ledger:guarded", {"name": "g"}, ctx).error.details["request_id"]
    assert opened.approvals("s-1") == []
    named = ctx.model_copy(update={"metadata": {**ctx.metadata, "approval_request_id": request}})
    assert opened.execute_tool("ledger:guarded", {"name": "g"}, named).success
    assert not opened.execute_tool("ledger:guarded", {"name": "g"}, named).success
    assert opened.verify("s-1").problem is None


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"tool": []}, "tool '' cannot be used"),
        ({"uses": 0}, "uses is 0"),
        ({"uses": True}, "uses is True"),
        ({"expires_in": "soon"}, "expires_in 'soon' is not a duration"),
        ({"granted_by": ""}, "granted_by '' cannot be used"),
        ({"where": {"nothing": 1}}, "where: a condition is a mapping with exactly one of the keys"),
        ({"where": {"intent_equals": "x"}}, "looks at the tool and its input only"),
        ({"where": {"not": {"metadata_equals": {"path": ["a"], "value": 1}}}}, "not at 'metadata_equals'"),
    ],
)
def test_a_grant_that_cannot_be_used_is_refused(opened, values, said):
    with pytest.raises(InvalidInput, match=said):
        grant(opened, **values)
    assert opened.standing_grants(active=False) == []


def test_a_grant_that_does_not_exist_cannot_be_revoked(opened):
    with pytest.raises(InvalidInput, match="there is no standing grant 'stg_x'"):
        opened.revoke_standing("stg_x", revoked_by=ANN)
