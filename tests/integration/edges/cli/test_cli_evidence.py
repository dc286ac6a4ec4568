"""``agent-runtime evidence``: receipts are shown, followed, exported, and verified."""

import json
import shutil
import sqlite3

import pytest
from sqlalchemy import text

from runtime import start_governed_agent_session
from runtime.core.chain import receipt_hash, text_hash
from tests.harness.sessions import call as scripted
from tests.harness.sessions import context, turn_input

LONG = "a long text " * 200


@pytest.fixture(scope="module")
def recorded(call):
    """A session with inline values and a blob for the long one."""
    for note in ("short", LONG, "ä\ud800"):
        assert call("../recorded", "notes:read", note).success
    return "../recorded"


@pytest.fixture
def copy(recorded, home, tmp_path, application):
    """The database alone, without a workspace file, in a directory of its own."""
    (tmp_path / ".agent-runtime").mkdir()
    source = sqlite3.connect(home / ".agent-runtime" / "runtime.db")
    target = sqlite3.connect(tmp_path / ".agent-runtime" / "runtime.db", isolation_level=None)
    source.backup(target)
    source.close()
    yield target
    target.close()


def test_whole_evidence_verifies_without_a_workspace_file(console, copy, tmp_path, recorded):
    assert not (tmp_path / "workspace.yaml").exists()
    said = console("evidence", "verify", recorded, "--json", cwd=tmp_path)
    assert said.code == 0
    assert said.json == {
        "session_id": recorded,
        "verified": True,
        "receipts": 6,
        "blobs": 1,
        "removed": 0,
        "problem": None,
    }


def flip_a_byte(database, session_id, flip):
    """Change the third byte of a session's blob; returns the blob's name."""
    name, content = database.execute(
        "SELECT hash, CAST(content AS BLOB) FROM blob WHERE session_id = ?", (session_id,)
    ).fetchone()
    damaged = bytes([content[0], content[1], content[2] ^ flip, *content[3:]])
    database.execute("UPDATE blob SET content = CAST(? AS TEXT) WHERE hash = ?", (damaged, name))
    return name


def test_a_flipped_byte_in_a_blob_is_named(agent_runtime, copy, tmp_path, recorded):
    name = flip_a_byte(copy, recorded, 0x01)
    said = agent_runtime("evidence", "verify", recorded, "--json", cwd=tmp_path)
    document = json.loads(said.stdout)
    assert (said.returncode, document["verified"]) == (1, False)
    assert name[:16] in document["problem"]["reason"]


def test_a_flipped_byte_that_leaves_no_text_is_named_as_well(console, copy, tmp_path, recorded):
    name = flip_a_byte(copy, recorded, 0x80)
    said = console("evidence", "verify", recorded, "--json", cwd=tmp_path)
    assert (said.code, said.json["verified"]) == (1, False)
    assert name[:16] in said.json["problem"]["reason"]


@pytest.fixture
def ended(runtime, workers):
    """A session on either database: two calls side by side, one of which fails, a blob, an answer."""
    calls = "\n".join([scripted("ledger:big", "abcd"), scripted("ledger:raise", "b")])
    flow = start_governed_agent_session(
        runtime=runtime, execute_turn_input=turn_input(calls, "/say All is done."), ctx=context()
    )
    workers.drain()
    assert flow.status() == "completed"
    return runtime.parts.database


def flip_in_row(database, table, column, where):
    """Change one byte in the middle of one value."""
    with database.writing() as connection:
        (value,) = connection.execute(text(f"SELECT {column} FROM {table} WHERE {where}")).one()
        middle = len(value) // 2
        damaged = value[:middle] + chr(ord(value[middle]) ^ 1) + value[middle + 1 :]
        connection.execute(text(f"UPDATE {table} SET {column} = :v WHERE {where}"), {"v": damaged})


def test_what_the_journal_says_is_verified_on_both_databases(console, ended, tmp_path, migrated_url):
    said = console(
        "evidence", "verify", "s-1", "--json", cwd=tmp_path, AGENT_RUNTIME_DATABASE_URL=migrated_url
    )
    assert (said.code, said.json["verified"], said.json["problem"]) == (0, True, None)


CALL = "id LIKE '%.0.1'"
RAISED = "id LIKE '%.0.2'"
LAST_TURN = "id LIKE '%.1.0'"


@pytest.mark.parametrize(
    ("table", "column", "where", "entry"),
    [
        ("blob", "content", "content LIKE '%abcdabcd%' AND content LIKE '{\"wrote%'", ".0.1 fence 1 n 1 "),
        ("evidence", "body", "step_id LIKE '%.0.2' AND n = 0", ".0.2 fence 1 n 0 (tool_call_started)"),
        ("step", "output", CALL, ".0.1"),
        ("step", "output", LAST_TURN, ".1.0"),
        ("step", "error", RAISED, ".0.2"),
        ("step", "input", RAISED, ".0.2"),
        ("step", "usage", LAST_TURN, ".1.0"),
        ("node", "result", "result IS NOT NULL", "node "),
        ("message", "content", "number = 0", "message 0 of node"),
        ("message", "content", "number = 1", "message 1 of node"),
        ("message", "content", "number = 2", "messages 2 to 3 of node"),
        ("message", "content", "number = 3", "messages 2 to 3 of node"),
        ("message", "content", "number = 4", "message 4 of node"),
    ],
)
def test_a_flipped_byte_in_any_row_is_named(
    console, ended, tmp_path, migrated_url, table, column, where, entry
):
    flip_in_row(ended, table, column, where)
    said = console(
        "evidence", "verify", "s-1", "--json", cwd=tmp_path, AGENT_RUNTIME_DATABASE_URL=migrated_url
    )
    assert (said.code, said.json["verified"]) == (1, False)
    assert entry in said.json["problem"]["entry"]


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM message WHERE number = 4",
        "DELETE FROM message WHERE number = 2",
        "DELETE FROM step WHERE id LIKE '%.0.1'",
        "UPDATE step SET head = NULL WHERE id LIKE '%.0.1'",
        "UPDATE step SET status = 'failed' WHERE id LIKE '%.0.1'",
        "UPDATE step SET fence = 2 WHERE id LIKE '%.0.1'",
        "UPDATE step SET output = NULL WHERE id LIKE '%.0.1'",
        "UPDATE evidence SET body = 'null' WHERE step_id LIKE '%.0.1' AND n = 0",
    ],
)
def test_rows_that_are_gone_or_contradict_their_receipts_are_named(
    console, ended, tmp_path, migrated_url, damage
):
    with ended.writing() as connection:
        assert connection.execute(text(damage)).rowcount == 1
    said = console(
        "evidence", "verify", "s-1", "--json", cwd=tmp_path, AGENT_RUNTIME_DATABASE_URL=migrated_url
    )
    assert (said.code, said.json["verified"]) == (1, False)
    assert said.json["problem"]["entry"]


def test_the_first_entry_that_does_not_fit_is_told_to_people(console, copy, tmp_path, recorded):
    copy.execute("DELETE FROM evidence WHERE session_id = ? AND kind = 'tool_call_finished'", (recorded,))
    said = console("evidence", "verify", recorded, cwd=tmp_path)
    assert said.code == 1
    assert "NOT verified" in said.out
    assert "the first entry that does not fit: " in said.out


def test_receipts_are_paged_by_cursor_without_loss_or_repeat(console, home, recorded):
    seen, after = [], []
    while after is not None:
        page = console("evidence", "show", recorded, "--limit", "4", *after, "--json", cwd=home).json
        seen += page["receipts"]
        after = page["next"] and ["--after", page["next"]]
    assert [entry["kind"] for entry in seen] == ["tool_call_started", "tool_call_finished"] * 3
    assert len({entry["hash"] for entry in seen}) == 6


def test_a_lone_surrogate_of_a_model_survives_as_json(console, home, recorded):
    receipts = console("evidence", "show", recorded, "--json", cwd=home).json["receipts"]
    assert receipts[-1]["body"]["output"] == {"text": "ä\ud800"}


def test_tail_goes_on_behind_a_cursor_and_prints_json_lines(console, home, recorded):
    page = console("evidence", "show", recorded, "--limit", "4", "--json", cwd=home).json
    said = console(
        "evidence", "tail", recorded, "--after", page["next"], "--timeout", "0", "--json", cwd=home
    )
    entries = [json.loads(line) for line in said.out.splitlines()]
    assert (said.code, [entry["kind"] for entry in entries]) == (
        0,
        ["tool_call_started", "tool_call_finished"],
    )


@pytest.mark.parametrize("command", ["show", "tail"])
def test_a_cursor_of_nothing_is_refused(console, home, recorded, command):
    said = console("evidence", command, recorded, "--after", "no/such/cursor", cwd=home)
    assert (said.code, said.out) == (1, "")
    assert said.err.startswith("error: INVALID_INPUT: ")


def test_an_export_holds_every_text_as_it_was_hashed(console, home, tmp_path, recorded):
    file = tmp_path / "evidence.jsonl"
    said = console("evidence", "export", recorded, "--output", str(file), "--json", cwd=home)
    assert (said.json["receipts"], said.json["blobs"]) == (6, 1)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert lines[0]["session_id"] == recorded
    for line in lines:
        if line["type"] == "receipt":
            assert receipt_hash(line["body"]) == line["hash"]
        elif line["type"] == "blob":
            assert text_hash(line["content"]) == line["hash"]
    assert (lines[-1]["type"], lines[-1]["receipts"], lines[-1]["blobs"]) == ("end", 6, 1)
    assert file.stat().st_mode & 0o777 == 0o600


def test_an_export_overwrites_nothing(console, home, tmp_path, recorded):
    file = tmp_path / "precious"
    file.write_text("precious")
    said = console("evidence", "export", recorded, "--output", str(file), cwd=home)
    assert (said.code, file.read_text()) == (1, "precious")
    assert "exists" in said.err


def test_an_export_goes_to_standard_output_as_well(console, home, recorded):
    lines = [json.loads(line) for line in console("evidence", "export", recorded, cwd=home).out.splitlines()]
    assert [line["type"] for line in lines] == ["session", "blob", *["receipt"] * 6, "end"]


def test_looking_for_a_database_makes_none(console, tmp_path):
    said = console("evidence", "verify", "any", "--json", cwd=tmp_path)
    assert (said.code, said.json["error"]["code"]) == (1, "STORE_UNAVAILABLE")
    assert "agent-runtime db upgrade" in said.json["error"]["message"]
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_database_is_told_in_one_line(console, tmp_path):
    (tmp_path / "junk.db").write_text("this is no database, but some text" * 100)
    url = f"sqlite:///{tmp_path / 'junk.db'}"
    said = console("evidence", "verify", "any", cwd=tmp_path, AGENT_RUNTIME_DATABASE_URL=url)
    assert said.code == 1
    assert said.err.startswith("error: STORE_UNAVAILABLE: ")
    assert len(said.err.splitlines()) == 1


def test_evidence_of_a_copied_file_is_read_where_the_variable_points(console, copy, tmp_path, recorded):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.move(tmp_path / ".agent-runtime" / "runtime.db", elsewhere / "kept.db")
    url = f"sqlite:///{elsewhere / 'kept.db'}"
    said = console("evidence", "verify", recorded, cwd=elsewhere, AGENT_RUNTIME_DATABASE_URL=url)
    assert (said.code, said.err) == (0, "")
