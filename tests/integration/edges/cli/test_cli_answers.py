"""Each way to answer, from the command line: approve, deny, edit, respond, and beforehand."""

import pytest
from sqlalchemy import text

from runtime.engine.approvals import os_user
from runtime.engine.sweep import sweep
from tests.harness.approving import ANN, BOB, CAT, approving, park
from tests.harness.witness import ledger

ME_AND_ANOTHER = [{"tools": ["ledger:*"], "quorum": 2, "approvers": {"principals": [os_user(), ANN]}}]


@pytest.fixture
def deployed(folder, tmp_path, console):
    """Opens a deployment under some approval rules; its command line is called in its folder."""
    url = f"sqlite:///{tmp_path / 'runtime.db'}"

    def type_in(*arguments):
        return console(*arguments, cwd=folder, AGENT_RUNTIME_DATABASE_URL=url, TEST_MODEL_KEY="k")

    with approving(folder, url) as runtime:
        yield runtime, type_in


def strict(folder, tmp_path, console):
    url = f"sqlite:///{tmp_path / 'runtime.db'}"

    def type_in(*arguments):
        return console(*arguments, cwd=folder, AGENT_RUNTIME_DATABASE_URL=url, TEST_MODEL_KEY="k")

    return approving(folder, url, rules=ME_AND_ANOTHER), type_in


def go_on(runtime, workers):
    """The command line published nowhere, so a sweep finds what it let run."""
    with runtime.parts.database.writing() as connection:
        connection.execute(text("UPDATE step SET publish_at = 1 WHERE status = 'ready'"))
    sweep(runtime.parts)
    workers.drain()


def status(runtime):
    return runtime.session("s-1", principal=CAT).status()


def test_an_edited_call_runs_as_it_was_typed(deployed):
    runtime, type_in = deployed
    workers, request = park(runtime)
    said = type_in("approvals", "edit", request, "--input", '{"name": "typed"}', "--json")
    assert (said.code, said.json["answer"], said.json["status"]) == (0, "edit", "approved")
    go_on(runtime, workers)
    assert (status(runtime), ledger()) == ("completed", {"guarded typed": 1})
    shown = type_in("approvals", "show", request).out
    assert "edited" in shown
    assert "typed" in shown
    (vote,) = type_in("approvals", "show", request, "--json").json["votes"]
    assert (vote["answer"], vote["content"]) == ("edit", {"name": "typed"})
    assert runtime.verify("s-1", principal=CAT).problem is None


def test_a_response_is_what_was_typed(deployed):
    runtime, type_in = deployed
    workers, request = park(runtime)
    said = type_in("approvals", "respond", request, "--response", '{"wrote": "by hand"}')
    assert said.code == 0
    assert said.out.startswith("responded: ledger:guarded")
    go_on(runtime, workers)
    assert (status(runtime), ledger()) == ("completed", {})
    found = type_in("approvals", "list", "--status", "answered", "--json").json["approvals"]
    assert [each["request_id"] for each in found] == [request]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("edit", "--input", '{"name": 7}'), 1, "INVALID_INPUT"),
        (("edit", "--input", "{"), 2, "not plain JSON"),
        (("edit", "--input", "NaN"), 2, "not plain JSON"),
        (("respond", "--response", "7"), 1, "invalid_output"),
        (("approve", "--digest", "0"), 1, "action_digest_mismatch"),
    ],
)
def test_an_answer_that_cannot_stand_is_refused_and_the_request_waits(deployed, arguments, code, said):
    runtime, type_in = deployed
    _, request = park(runtime)
    command, *rest = arguments
    found = type_in("approvals", command, request, *rest)
    assert found.code == code
    assert said.lower() in found.err.lower()
    assert [each.request_id for each in runtime.approvals("s-1")] == [request]


def test_a_quorum_is_shown_and_counted(folder, tmp_path, console):
    opening, type_in = strict(folder, tmp_path, console)
    with opening as runtime:
        workers, request = park(runtime)
        refused = type_in("approvals", "approve", request, "--as", ANN, "--json")
        assert (refused.code, refused.json["error"]["code"]) == (1, "not_authenticated")
        assert "1 of 2, so it still waits" in type_in("approvals", "approve", request).out
        again = type_in("approvals", "approve", request, "--json")
        assert (again.code, again.json["error"]["code"]) == (1, "already_voted")
        shown = type_in("approvals", "show", request).out
        assert "needs 2 who say the same; 1 answered so far" in shown
        assert ANN in shown
        asked = type_in("approvals", "show", request, "--json").json["requirement"]
        assert (asked["quorum"], asked["approvers"]) == (2, sorted([ANN, os_user()]))
        runtime.resolve_approval(request_id=request, approved=True, approved_by=ANN)
        workers.drain()
        assert ledger() == {"guarded g": 1}


def test_a_standing_grant_is_made_listed_used_and_revoked(deployed):
    runtime, type_in = deployed
    said = type_in(
        "grants", "add", "ledger:guarded", "--where", "name=g", "--uses", "3", "--expires", "8h", "--json"
    )
    assert said.code == 0, said.err
    grant_id = said.json["id"]
    assert said.json["condition"] == {"argument_equals": {"path": ["name"], "value": "g"}}
    assert (said.json["granted_by"], said.json["established_by"]) == (os_user(), "os-user")
    (listed,) = type_in("grants", "list", "--json").json["grants"]
    assert (listed["id"], listed["used"]) == (grant_id, 0)
    assert "0 of 3" in type_in("grants", "list").out
    revoked = type_in("grants", "revoke", grant_id, "--as", BOB, "--json")
    assert (revoked.json["revoked_by"], type_in("grants", "list", "--json").json["grants"]) == (BOB, [])
    assert [each.revoked_by for each in runtime.standing_grants(active=False)] == [BOB]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("add", "t", "--where", "name", "--uses", "1", "--expires", "1h"), 2, "not PATH=VALUE"),
        (("add", "t", "--where", "{", "--uses", "1", "--expires", "1h"), 2, "not JSON"),
        (("add", "t", "--uses", "1", "--expires", "soon"), 1, "not a duration"),
        (("revoke", "stg_unknown"), 1, "agent-runtime grants list"),
    ],
)
def test_a_grant_that_cannot_be_made_or_found_is_refused(deployed, arguments, code, said):
    _, type_in = deployed
    found = type_in("grants", *arguments)
    assert found.code == code
    assert said in found.err


def test_the_statements_of_a_role_are_printed_and_not_applied_to_sqlite(deployed):
    _, type_in = deployed
    found = type_in("db", "roles", "--tool-worker", "tools")
    assert found.code == 0
    assert 'GRANT SELECT ON approval_vote TO "tools";' in found.out
    assert "approval_vote TO" in found.out
    assert not [line for line in found.out.splitlines() if "approval_vote" in line and "INSERT" in line]
    applied = type_in("db", "roles", "--tool-worker", "tools", "--apply")
    assert (applied.code, "has no roles" in applied.err) == (1, True)
