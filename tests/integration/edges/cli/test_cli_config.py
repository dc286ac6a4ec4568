"""``agent-runtime config``, ``db``, ``tools`` and ``doctor`` without servers."""

import pytest

from runtime.store.migrate import HEAD

BROKEN = """
agent_runtime:
  intents:
    tidying: {allow_tools: ["notes:read", "notes:raed"], approval_required_tools: ["notes:gone"]}
  tools: {modules: [console_notes]}
policies:
  default_decision: deny
  rules:
    - {id: never, decision: allow, when: {tool_name_equals: "notes:read"}}
    - {id: typo, decision: deny, when: {tool_name_equals: "notes:delte"}}
"""


@pytest.fixture
def folder(home, tmp_path):
    """A deployment of its own that may be broken."""
    for name in ("workspace.yaml", "console_notes.py"):
        (tmp_path / name).write_text((home / name).read_text())
    return tmp_path


def levels(document):
    return {line["name"]: line["level"] for line in document["checks"]}


def test_a_good_file_is_told_with_its_tools(console, home):
    said = console("config", "check", "--json", cwd=home)
    assert (said.code, said.json["ok"], said.json["problems"]) == (0, True, [])
    assert said.json["tools"] == ["notes:read", "notes:delete"]


def test_all_problems_are_told_at_once(console, folder):
    (folder / "workspace.yaml").write_text(BROKEN)
    said = console("config", "check", "--json", cwd=folder)
    problems = [(each["severity"], each["text"]) for each in said.json["problems"]]
    assert said.code == 1
    assert [severity for severity, text in problems if "notes:raed" in text or "notes:gone" in text] == [
        "error"
    ] * 2
    assert [severity for severity, text in problems if "'never'" in text] == ["error"]
    assert [severity for severity, text in problems if "'notes:delte'" in text] == ["warning"]
    assert "set allow_loosening: true" in console("config", "check", cwd=folder).out


def test_a_file_that_cannot_be_loaded_is_told_line_by_line(console, folder):
    (folder / "workspace.yaml").write_text("lanes: 3\npolicies: {default_decision: perhaps}\n")
    said = console("config", "check", cwd=folder)
    assert said.code == 1
    assert [line.split(": ")[1] for line in said.out.splitlines()] == ["workspace.yaml:1", "workspace.yaml:2"]


def test_a_file_with_errors_is_not_activated(console, folder):
    console("db", "upgrade", cwd=folder)
    (folder / "workspace.yaml").write_text(BROKEN)
    said = console("config", "activate", "--json", cwd=folder)
    assert (said.code, said.json["error"]["code"]) == (1, "CONFIGURATION_ERROR")


def test_an_activated_file_joins_the_one_before_it(console, folder):
    console("db", "upgrade", cwd=folder)
    first = console("config", "activate", "--json", cwd=folder).json
    text = (folder / "workspace.yaml").read_text()
    (folder / "workspace.yaml").write_text(text.replace("description: Look", "description: See"))
    assert levels(console("doctor", "--json", cwd=folder).json)["active"] == "fail"
    second = console("config", "activate", "--json", cwd=folder).json
    assert second["active"] == [second["hash"], first["hash"]]
    assert levels(console("doctor", "--json", cwd=folder).json)["active"] == "ok"


def test_an_upgrade_makes_the_schema_and_repeats_harmlessly(console, folder):
    said = [console("db", "upgrade", "--json", cwd=folder).json for _ in range(2)]
    assert [(each["before"], each["version"]) for each in said] == [(None, HEAD), (HEAD, HEAD)]
    version = console("db", "version", "--json", cwd=folder)
    assert (version.code, version.json["current"]) == (0, True)


def test_the_listing_depends_on_the_intent(console, home):
    def listed(*options):
        tools = console("tools", "list", *options, "--json", cwd=home).json["tools"]
        return {tool["name"]: tool["decision"] for tool in tools}

    assert listed("--intent", "reading") == {"notes:read": "allow"}
    assert listed("--intent", "tidying") == {"notes:read": "allow", "notes:delete": "approval_required"}


@pytest.mark.parametrize("option", ["--intent", "--lane"])
def test_an_unknown_intent_or_lane_is_refused(console, home, option):
    said = console("tools", "list", option, "nowhere", cwd=home)
    assert (said.code, said.out) == (1, "")
    assert "'nowhere'" in said.err


def test_the_doctor_names_missing_keys_and_never_tells_a_value(console, home, application):
    missing = console("doctor", "--json", cwd=home)
    lines = {line["name"]: line for line in missing.json["checks"]}
    assert (missing.code, lines["model"]["level"]) == (1, "fail")
    assert "NOTES_KEY" in lines["model"]["text"]
    given = console("doctor", cwd=home, NOTES_KEY="s3cret-value")
    assert "NOTES_KEY is set" in given.out
    assert "s3cret" not in given.out + given.err


def test_the_doctor_tells_each_part_and_its_fix(console, home, application):
    said = console("doctor", "--json", cwd=home, NOTES_KEY="k")
    expected = {"settings": "ok", "workspace": "ok", "database": "ok", "active": "ok", "model": "ok"}
    assert levels(said.json) == {**expected, "redis": "fail"}
    assert all(line["fix"] for line in said.json["checks"] if line["level"] != "ok")


def test_the_doctor_goes_on_where_servers_are_away_and_hides_passwords(console, home, application):
    urls = {
        "AGENT_RUNTIME_DATABASE_URL": "postgresql://app:s3cret@127.0.0.1:9/app",
        "AGENT_RUNTIME_REDIS_URL": "redis://:s3cret@127.0.0.1:9/0",
    }
    said = console("doctor", "--json", cwd=home, **urls)
    found = levels(said.json)
    assert (said.code, found["database"], found["redis"]) == (1, "fail", "fail")
    assert "s3cret" not in said.out + said.err
