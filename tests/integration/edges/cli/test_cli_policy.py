"""``agent-runtime policy``: decisions are explained, tested and decided again."""

import json

import pytest

RULES = """
policies:
  default_decision: deny
  rules:
    - id: no-secrets
      decision: deny
      reason: secrets stay where they are
      when: {argument: {path: [text], starts_with: secret}}
    - id: watch-night
      decision: deny
      mode: log_only
      when: {time: {from: "22:00", until: "06:00"}}
lanes:
  - id: careful
    policies: {rules: [{id: ask, decision: approval_required, when: {tool_name_equals: "notes:read"}}]}
"""


@pytest.fixture
def folder(home, tmp_path):
    """A deployment whose workspace file has rules."""
    base = (home / "workspace.yaml").read_text().split("policies:")[0]
    (tmp_path / "workspace.yaml").write_text(base + RULES)
    (tmp_path / "console_notes.py").write_text((home / "console_notes.py").read_text())
    return tmp_path


def explained(console, folder, tool, *arguments):
    said = console("policy", "explain", tool, "--json", *arguments, cwd=folder)
    assert said.code == 0, said
    rules = {
        rule["id"]: rule for layer in said.json["layers"] for rule in layer["rules"] if rule["id"] is not None
    }
    return said.json["decision"], rules, said.json


def test_an_explanation_names_the_rule_that_decides_and_what_it_asked(console, folder):
    decision, rules, _ = explained(
        console, folder, "notes:read", "--intent", "reading", "--input", '{"text": "secret plan"}'
    )
    assert decision == "deny"
    rule = rules["no-secrets"]
    assert (rule["matched"], rule["took_effect"]) == (True, True)
    assert rule["conditions"] == [
        {"condition": {"argument": {"path": ["text"], "starts_with": "secret"}}, "holds": True}
    ]
    allowing = rules["intent-allow:reading"]
    assert (allowing["matched"], allowing["took_effect"]) == (True, False)
    assert "a deny rule before it is final" in allowing["why"]


def test_an_explanation_takes_lane_and_instant(console, folder):
    asked = ("notes:read", "--intent", "reading", "--input", '{"text": "x"}')
    night, rules, _ = explained(console, folder, *asked, "--at", "2026-01-05T23:00:00Z")
    assert (night, rules["watch-night"]["matched"], rules["watch-night"]["took_effect"]) == (
        "allow",
        True,
        False,
    )
    _, rules, _ = explained(console, folder, *asked, "--at", "2026-01-05T12:00:00Z")
    assert rules["watch-night"]["matched"] is False
    decision, rules, _ = explained(console, folder, *asked, "--lane", "careful")
    assert (decision, rules["ask"]["took_effect"]) == ("allow", False)
    assert "looser than deny" in rules["ask"]["why"]


def test_an_explanation_for_people_says_what_matched(console, folder):
    said = console(
        "policy", "explain", "notes:read", "--intent", "reading", "--input", '{"text": "a"}', cwd=folder
    )
    assert said.code == 0
    assert "* intent-allow:reading: allow – it matches; allow after it" in said.out
    assert said.out.endswith("notes:read: allow\n")


@pytest.mark.parametrize(
    ("option", "value"), [("--input", "{"), ("--metadata", "[1]"), ("--at", "yesterday"), ("--lane", "nope")]
)
def test_a_wrong_question_is_refused_with_its_name(console, folder, option, value):
    said = console("policy", "explain", "notes:read", option, value, cwd=folder)
    assert said.code == 1
    assert value in said.err or option in said.err


def test_cases_that_are_decided_otherwise_fail_the_test(console, folder):
    cases = folder / "cases.yaml"
    cases.write_text(
        """
cases:
  - {tool: "notes:read", intent: reading, input: {text: a}, expect: allow}
  - {tool: "notes:read", intent: reading, input: {text: secret}, expect: deny, rule: no-secrets}
  - {name: wrong, tool: "notes:delete", intent: reading, expect: approval_required}
  - {name: other rule, tool: "notes:read", intent: tidying, input: {text: a}, expect: allow, rule: no-secrets}
"""
    )
    said = console("policy", "test", "cases.yaml", "--json", cwd=folder)
    assert (said.code, said.json["failed"]) == (1, 2)
    assert [case["ok"] for case in said.json["cases"]] == [True, True, False, False]
    cases.write_text(json.dumps({"cases": [{"tool": "notes:read", "intent": "reading", "expect": "allow"}]}))
    said = console("policy", "test", "cases.yaml", cwd=folder)
    assert (said.code, said.out) == (0, "1 of 1 cases are decided as expected\n")


@pytest.mark.parametrize(
    "text", ["", "cases: []", "cases: [{tool: a}]", "cases: [{tool: a, expect: maybe}]", "a: ["]
)
def test_a_file_that_holds_no_cases_is_refused(console, folder, text):
    (folder / "cases.yaml").write_text(text)
    said = console("policy", "test", "cases.yaml", cwd=folder)
    assert said.code == 1
    assert "cases.yaml" in said.err


def test_recorded_calls_are_decided_again_under_another_file(console, home, call, tmp_path):
    assert call("replayed", "notes:read", "secret plan").success
    assert call("replayed", "notes:read", "plain").success
    same = console("policy", "replay", "--since", "2000-01-01T00:00:00Z", "--json", cwd=home)
    assert (same.code, [each for each in same.json["differing"] if each["session_id"] == "replayed"]) == (
        0,
        [],
    )
    changed = home / "changed.yaml"
    changed.write_text((home / "workspace.yaml").read_text().split("policies:")[0] + RULES)
    said = console(
        "policy", "replay", "--since", "2000-01-01T00:00:00Z", "--workspace", str(changed), "--json", cwd=home
    )
    (differing,) = [each for each in said.json["differing"] if each["session_id"] == "replayed"]
    assert (differing["before"], differing["after"]) == ("allow", "deny")
    assert "no-secrets" in [each["policy_id"] for each in differing["decisions"]]
    later = console("policy", "replay", "--since", "2999-01-01T00:00:00Z", "--json", cwd=home)
    assert later.json == {"decided": 0, "skipped": 0, "differing": []}
