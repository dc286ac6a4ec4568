"""``agent-runtime evidence seal`` and its copies, keys and exports: found out by their holder, offline."""

import json
import sqlite3
import subprocess
import sys

import pytest

from runtime.store.engine import Database
from tests.harness.forging import erase, forge
from tests.integration.edges.cli.conftest import ROOT

LONG = "a long text " * 200


@pytest.fixture(scope="module")
def made(tmp_path_factory, home, application, call):
    """A deployment of its own, with two sessions; returns its folder."""
    for session_id, notes in (("kept", ("short", LONG)), ("other", ("x",))):
        for note in notes:
            assert call(f"seals-{session_id}", "notes:read", note).success
    return home


@pytest.fixture
def place(made, tmp_path):
    """A copy of the database in a directory of its own, and the environment that seals it."""
    (tmp_path / ".agent-runtime").mkdir()
    source = sqlite3.connect(made / ".agent-runtime" / "runtime.db")
    target = sqlite3.connect(tmp_path / ".agent-runtime" / "runtime.db")
    source.backup(target)
    source.close()
    target.close()
    return tmp_path


@pytest.fixture
def evidence(console, place):
    """Runs a command of the group there, with the key of ``seal.key``."""

    def run(*arguments, key="seal.key"):
        variables = {"AGENT_RUNTIME_SEAL_KEY_FILE": str(place / key)} if key else {}
        return console("evidence", *arguments, cwd=place, **variables)

    return run


@pytest.fixture
def database(place):
    opened = Database(f"sqlite:///{place / '.agent-runtime' / 'runtime.db'}")
    yield opened
    opened.close()


@pytest.fixture
def public(evidence):
    """Make a key and seal everything with it; the public key."""
    key = evidence("generate-key", "seal.key", "--json").json["public_key"]
    assert evidence("seal", "--json").code == 0
    assert evidence("seals", "copy.jsonl").code == 0
    return key


def offline(folder, *arguments):
    """Run the command on an empty machine: no variables, no files, no database."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "runtime.edges.cli", "evidence", "verify", *arguments, "--json"],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert list(folder.iterdir()) == []
    assert "Traceback" not in done.stderr
    return done.returncode, json.loads(done.stdout)


# --- sealing --------------------------------------------------------------------------------------


def test_sealing_says_what_it_covers_and_again_that_nothing_came(evidence, public):
    assert evidence("seal").out == "nothing has come since the last seal\n"
    (key,) = evidence("keys", "--json").json["keys"]
    assert (key["public_key"], key["seal"]) == (public, 0)


def test_all_evidence_is_verified_beside_the_copy_and_the_tail_is_stated(evidence, public):
    said = evidence("verify", "--seals", "copy.jsonl", "--json", key=None)
    assert (said.code, said.json["verified"], said.json["unsealed_tail"]) == (0, True, 0)
    assert said.json["sealed"] == said.json["receipts"] >= 6
    one = evidence("verify", "seals-kept", "--seals", "copy.jsonl", "--public-key", public, key=None)
    assert one.code == 0
    assert "4 receipts are covered by" in one.out
    assert "the unsealed tail has 0" in one.out


def test_a_recomputed_chain_is_told_with_the_copy_and_not_without(evidence, public, database):
    forge(database, "seals-kept", worker="somebody else")
    assert evidence("verify", "seals-kept", key=None).code == 0
    said = evidence("verify", "--seals", "copy.jsonl", key=None)
    assert said.code == 1
    assert "(tool_call_finished) of session seals-kept" in said.out
    assert "it is not the receipt" in said.out


def test_a_deleted_session_is_told(evidence, public, database):
    erase(database, "seals-other")
    said = evidence("verify", "--seals", "copy.jsonl", "--json", key=None)
    assert (said.code, said.json["session_id"]) == (1, "seals-other")


def test_a_key_is_rotated_by_the_one_before(evidence, public):
    new = evidence("generate-key", "new.key", "--json").json
    said = evidence("rotate-key", "new.key", "--json")
    assert said.json["public_key"] == new["public_key"]
    evidence("generate-key", "third.key")
    for command in (("rotate-key", "third.key"), ("rotate-key", "seal.key")):
        refused = evidence(*command)
        assert (refused.code, refused.out, "count" in refused.err) == (1, "", True)
    assert evidence("seal", key="new.key").code == 0
    assert len(evidence("keys", "--json").json["keys"]) == 2
    evidence("seals", "later.jsonl")
    said = evidence("verify", "--seals", "later.jsonl", "--public-key", public, "--json", key=None)
    assert (said.code, said.json["problem"]) == (0, None)


@pytest.mark.parametrize(
    ("prepare", "fix"),
    [
        (lambda file: None, "cannot be read"),
        (lambda file: (file.write_text("no key"), file.chmod(0o600)), "generate-key"),
        (lambda file: (file.write_text("no key"), file.chmod(0o640)), "chmod 600"),
    ],
    ids=["missing", "junk", "open to others"],
)
def test_a_key_that_cannot_be_used_is_refused_with_the_fix(evidence, place, prepare, fix):
    prepare(place / "seal.key")
    said = evidence("seal")
    assert (said.code, said.out) == (1, "")
    assert said.err.startswith("error: CONFIGURATION_ERROR: ")
    assert fix in said.err


def test_without_a_key_the_settings_are_named(evidence):
    said = evidence("seal", key=None)
    assert said.err.startswith("error: MISSING_ENVIRONMENT: ")
    assert "AGENT_RUNTIME_SEAL_KEY_FILE" in said.err


def test_a_key_may_come_from_a_variable(console, evidence, place, public):
    variables = {"AGENT_RUNTIME_SEAL_KEY_ENV": "SEAL_KEY", "SEAL_KEY": (place / "seal.key").read_text()}
    assert console("evidence", "seal", cwd=place, **variables).code == 0


def test_the_private_key_is_its_owners_alone_and_no_other_file_is_overwritten(evidence, place, public):
    assert (place / "seal.key").stat().st_mode & 0o777 == 0o600
    for command in (("generate-key", "seal.key"), ("seals", "copy.jsonl")):
        assert evidence(*command).code == 1


# --- exports, offline -----------------------------------------------------------------------------


def test_an_export_verifies_on_an_empty_machine_without_a_database(evidence, public, place):
    assert evidence("export", "seals-kept", "kept.jsonl", key=None).code == 0
    file, copy, machine = place / "kept.jsonl", place / "copy.jsonl", place / "machine"
    for given in (("--public-key", public), ("--seals", str(copy)), ()):
        code, said = offline(machine, "--export", str(file), *given)
        assert (code, said["verified"], said["problem"]) == (0, True, None)
        assert (said["session_id"], said["receipts"], said["sealed"], said["unsealed_tail"]) == (
            "seals-kept",
            4,
            4,
            0,
        )
        assert said["vouched"] is bool(given)


def test_checking_an_export_loads_no_engine_and_no_database(evidence, public, place):
    evidence("export", "seals-kept", "kept.jsonl", key=None)
    code = (
        "import sys\nfrom runtime.edges.cli.checking import verify_export\nfrom pathlib import Path\n"
        f"verify_export(Path({str(place / 'kept.jsonl')!r}), None, [], as_json=True)\n"
        "heavy = ('runtime.engine', 'runtime.store', 'runtime.live', 'sqlalchemy', 'celery')\n"
        "loaded = {name for name in sys.modules if name.startswith(heavy)}\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr.count("Error")) == (0, 0), done.stderr


def test_an_export_that_was_forged_is_told_offline(evidence, public, database, place):
    forge(database, "seals-kept", leaves=True, worker="somebody else")
    with database.writing() as connection:
        connection.exec_driver_sql("DELETE FROM seal")
        connection.exec_driver_sql("DELETE FROM seal_leaf")
    evidence("generate-key", "forger.key")
    assert evidence("seal", key="forger.key").code == 0
    evidence("export", "seals-kept", "forged.jsonl", key=None)
    file, copy, machine = place / "forged.jsonl", place / "copy.jsonl", place / "machine"
    assert offline(machine, "--export", str(file))[0] == 0, "the file is whole in itself"
    for given in (("--public-key", public), ("--seals", str(copy))):
        code, said = offline(machine, "--export", str(file), *given)
        assert (code, said["verified"]) == (1, False)
        assert said["problem"]["entry"].startswith("seal ")


def test_an_export_after_retention_says_what_was_removed(home, console, place, database, evidence, public):
    with database.writing() as connection:
        connection.exec_driver_sql(
            "UPDATE session SET ended_status = 'completed', ended_at = 0 WHERE id = 'seals-kept'"
        )
    said = evidence("retain", "--older-than", "90d", "--json", key=None)
    assert said.json == {"sessions": 1, "contents": 1, "damaged": 0}
    with database.writing() as connection:
        connection.exec_driver_sql(
            "UPDATE session SET ended_status = NULL, ended_at = NULL WHERE id = 'seals-kept'"
        )
    told = evidence("verify", "seals-kept", key=None)
    assert (told.code, "1 contents were removed by retention" in told.out) == (0, True)
    evidence("export", "seals-kept", "retained.jsonl", key=None)
    code, said = offline(place / "machine", "--export", str(place / "retained.jsonl"), "--public-key", public)
    assert (code, said["removed"], said["blobs"], said["unsealed_tail"]) == (0, 1, 0, 1)


@pytest.mark.parametrize(
    "arguments",
    [
        ("verify",),
        ("verify", "s", "--export", "f"),
        ("verify", "s", "--public-key", "00"),
        ("retain", "--older-than", "never"),
        ("retain",),
    ],
)
def test_wrong_use_exits_2(evidence, arguments):
    assert evidence(*arguments, key=None).code == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("verify", "--export", "missing"),
        ("verify", "--seals", "missing"),
        ("verify", "--seals", "junk"),
        ("verify", "--export", "junk", "--public-key", "junk"),
    ],
)
def test_files_that_are_missing_or_junk_are_refused_in_one_line(evidence, place, arguments):
    (place / "junk").write_bytes(b"\xff\x00junk")
    said = evidence(*arguments, key=None)
    assert said.code == 1
    assert (said.out, len(said.err.splitlines())) == ("", 1)


def test_a_file_that_is_no_export_is_not_verified(evidence, place):
    (place / "junk").write_bytes(b"\xff\x00junk")
    said = evidence("verify", "--export", "junk", "--json", key=None)
    assert (said.code, said.json["verified"], said.json["problem"]["entry"]) == (1, False, "line 1")
