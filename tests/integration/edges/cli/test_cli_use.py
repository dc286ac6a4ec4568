"""Every command alike: exit codes, one JSON document on standard output, errors with their fix."""

import json

import pytest

COMMANDS = [
    ("sessions", "list"),
    ("sessions", "show", "s"),
    ("sessions", "steps", "s"),
    ("sessions", "cancel", "s"),
    ("sessions", "resume", "s"),
    ("approvals", "list"),
    ("approvals", "show", "r"),
    ("approvals", "approve", "r"),
    ("approvals", "deny", "r"),
    ("evidence", "show", "s"),
    ("evidence", "tail", "s"),
    ("evidence", "verify", "s"),
    ("evidence", "export", "s", "-o", "file"),
    ("tools", "list"),
    ("config", "check"),
    ("config", "activate"),
    ("db", "version"),
    ("doctor",),
    ("run", "flow.yaml"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_in_an_empty_directory_a_command_exits_1_with_one_document_and_leaves_nothing(
    console, tmp_path, command
):
    said = console(*command, "--json", cwd=tmp_path)
    document = json.loads(said.out)
    assert said.code == 1
    assert "Traceback" not in said.err
    assert "error" in document or document["ok"] is False
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "session_id"),
    [
        ("sessions show", "../unknown"),
        ("sessions cancel", "x" * 10_000),
        ("evidence verify", "-dash"),
        ("evidence tail", "unknown"),
    ],
    ids=["dots", "10-kB", "dash", "plain"],
)
def test_an_unknown_session_exits_1_with_the_fix(console, home, application, command, session_id):
    said = console(*command.split(), "--json", "--", session_id, cwd=home)
    error = said.json["error"]
    assert (said.code, error["code"]) == (1, "SESSION_NOT_FOUND")
    assert "agent-runtime sessions list" in error["message"]
    assert len(error["message"]) < 200


@pytest.mark.parametrize(
    "arguments",
    [
        ("sessions",),
        ("sessions", "show"),
        ("sessions", "list", "--limit", "0"),
        ("approvals", "approve"),
        ("approvals", "list", "--status", "maybe"),
        ("approvals", "approve", "r", "--as", " "),
        ("evidence", "tail", "s", "--timeout", "-1"),
        ("evidence", "export", "s", "--json"),
        ("config", "mend"),
        ("doctor", "now"),
        ("run",),
        ("sessions", "show", "\udcff"),
    ],
    ids=" ".join,
)
def test_wrong_use_exits_2_and_is_told_on_standard_error(console, home, arguments):
    said = console(*arguments, cwd=home)
    assert said.code == 2
    assert said.out == "" or arguments == ("sessions",)
    assert "Traceback" not in said.err
