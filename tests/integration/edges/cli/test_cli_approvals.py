"""``agent-runtime approvals``: a person answers, and evidence says how the person was identified."""

import pytest

from runtime.engine.approvals import os_user


def test_the_list_holds_what_waits_with_its_exact_input(console, home, ask):
    request_id = ask("listed", text="the old one")
    found = console("approvals", "list", "--session", "listed", "--json", cwd=home).json["approvals"]
    assert [(each["request_id"], each["input"]) for each in found] == [(request_id, {"text": "the old one"})]
    assert found[0]["expires_at"] > found[0]["requested_at"]


@pytest.mark.parametrize(("command", "approved"), [("approve", True), ("deny", False)])
def test_an_answer_is_the_operating_systems_users(console, home, ask, command, approved):
    request_id = ask(f"answered-{command}")
    said = console("approvals", command, request_id, "--reason", "as agreed", "--json", cwd=home)
    assert said.code == 0
    assert said.json["approved"] is approved
    votes = console("approvals", "show", request_id, "--json", cwd=home).json["votes"]
    assert [(v["principal"], v["established_by"], v["approved"], v["reason"]) for v in votes] == [
        (os_user(), "os-user", approved, "as agreed")
    ]


def test_an_answer_under_another_name_is_asserted(console, home, ask):
    request_id = ask("asserted")
    console("approvals", "approve", request_id, "--as", "operator@example.com", cwd=home)
    receipts = console("evidence", "show", "asserted", "--json", cwd=home).json["receipts"]
    answer = receipts[-1]["body"]
    assert (answer["principal"], answer["established_by"]) == ("operator@example.com", "asserted")


def test_the_second_answer_is_refused_and_told_who_gave_the_first(console, home, ask):
    request_id = ask("contested")
    console("approvals", "deny", request_id, "--as", "first@example.com", cwd=home)
    said = console("approvals", "approve", request_id, "--json", cwd=home)
    assert (said.code, said.json["error"]["code"]) == (1, "already_resolved")
    assert "first@example.com" in said.json["error"]["message"]


def test_an_approved_host_call_runs_once(console, home, ask, application):
    request_id = ask("granted")
    console("approvals", "approve", request_id, cwd=home)
    ctx = {
        "run_id": "run",
        "task_id": "task",
        "session_id": "granted",
        "metadata": {"agent_intent": "tidying", "approval_request_id": request_id},
    }
    outputs = [application.execute_tool("notes:delete", {"text": "old"}, ctx) for _ in range(2)]
    assert [output.success for output in outputs] == [True, False]
    assert console("evidence", "verify", "granted", "--json", cwd=home).json["verified"] is True


@pytest.mark.parametrize("command", ["show", "approve", "deny"])
def test_an_unknown_request_exits_1_with_the_fix(console, home, application, command):
    said = console("approvals", command, "apr_unknown", cwd=home)
    assert (said.code, said.out) == (1, "")
    assert "agent-runtime approvals list" in said.err


def test_what_a_terminal_would_obey_is_shown_escaped(console, home, ask):
    request_id = ask("escapes", text="harmless\x1b[2K\u202egpj.exe")
    shown = console("approvals", "show", request_id, cwd=home).out
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert r"\u202egpj.exe" in shown
