"""The workspace file: read strictly, checked whole, each problem with its line, value and fix."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import pytest

from runtime.core.canonical import digest
from runtime.core.model import Decision, NetworkScope, PathScope
from runtime.errors import ConfigurationError, SpecTampered
from runtime.workspace import MINIMAL_EXAMPLE, Workspace, load_workspace

FULL = """\
agent_runtime:
  default_model: operations
  models:
    operations: {provider: openai_compatible, model: ops-assistant, api_key_env: AGENT_RUNTIME_API_KEY,
                 base_url: "http://127.0.0.1:4010/v1"}
  intents:
    scheduling:
      description: Schedule or reschedule work
      allow_tools: [calendar:create-event, calendar:reschedule-event]
      approval_required_tools: [calendar:delete-event]
  limits: {max_turns_per_session: 12, max_tool_calls_per_session: 6, max_input_bytes: 65536}
  tools:
    modules: [calendar_tools]
    mcp_servers: {}
  approvals: {expires_after: 1h30m, sticky_approvals: true}
  schedules: []
security:
  allowed_scopes:
    - {type: path, pattern: "calendar/**", access: write}
    - {type: network, posture: allowlist, allowlist_entries: ["127.0.0.1:4010"]}
lanes:
  - {id: night, allowed_scopes: [{type: network, posture: off}], policies: {default_decision: deny}}
policies: {default_decision: deny, rules: [{id: r1, decision: allow, when: {tool_name_equals: a}}]}
"""


@pytest.fixture
def load(tmp_path):
    def write_and_load(text: str) -> Workspace:
        path = tmp_path / "workspace.yaml"
        path.write_text(text, encoding="utf-8")
        return load_workspace(path)

    return write_and_load


@pytest.fixture
def problems(load):
    def problems_of(text: str) -> list[str]:
        with pytest.raises(ConfigurationError) as caught:
            load(text)
        assert str(caught.value).splitlines() == caught.value.details["problems"]
        return str(caught.value).splitlines()

    return problems_of


def test_the_documented_file_loads_with_every_section(load, tmp_path):
    workspace = load(FULL)
    assert workspace.path == tmp_path / "workspace.yaml"
    assert workspace.default_model == "operations"
    assert workspace.models["operations"].base_url == "http://127.0.0.1:4010/v1"
    assert workspace.intents["scheduling"].approval_required_tools == ("calendar:delete-event",)
    assert workspace.limits.max_input_bytes == 65536
    assert workspace.tools.modules == ("calendar_tools",)
    assert workspace.approvals.expires_after == timedelta(hours=1, minutes=30)
    assert workspace.allowed_scopes == (
        PathScope(pattern="calendar/**", access="write"),
        NetworkScope(posture="allowlist", allowlist_entries=("127.0.0.1:4010",)),
    )


def test_the_example_that_a_missing_file_suggests_loads(load):
    assert load(MINIMAL_EXAMPLE).default_model == "operations"


def test_a_missing_file_says_where_it_was_sought_and_what_to_paste(tmp_path):
    with pytest.raises(ConfigurationError) as caught:
        load_workspace(tmp_path / "nowhere.yaml")
    assert str(tmp_path / "nowhere.yaml") in str(caught.value)
    assert MINIMAL_EXAMPLE in str(caught.value)


def test_a_directory_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigurationError, match="Is a directory"):
        load_workspace(tmp_path)


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}"])
def test_an_empty_file_denies_everything(load, text):
    workspace = load(text)
    assert workspace.allowed_scopes == ()
    assert workspace.policy_layers()[0].default_decision is Decision.DENY
    assert workspace.hash == Workspace.empty().hash


def test_the_hash_is_that_of_what_the_file_says(load):
    assert load("lanes: [{id: a}]").hash == digest({"lanes": [{"id": "a"}]})
    assert load("# a comment\nlanes:\n  - id: 'a'\n").hash == load("lanes: [{id: a}]").hash
    assert load("lanes: [{id: b}]").hash != load("lanes: [{id: a}]").hash


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("lans: []", "1: lans: unknown key — did you mean 'lanes'?", id="misspelt section"),
        pytest.param(
            "agent_runtime:\n  limits:\n    max_turns: 3",
            "3: agent_runtime.limits.max_turns: unknown key — did you mean 'max_turns_per_session'?",
            id="misspelt key",
        ),
        pytest.param(
            "security:\n  allowed_scopes:\n    - {type: path, pattern: x, acess: read}",
            "3: security.allowed_scopes[0].access: is missing — add 'access' here",
            id="missing key",
        ),
        pytest.param(
            "security:\n  allowed_scopes:\n    - {type: path, pattern: x, access: reed}",
            "3: security.allowed_scopes[0].access: is not one of 'read' or 'write', the value is 'reed' — "
            "did you mean 'read'?",
            id="misspelt value",
        ),
        pytest.param(
            "security:\n  allowed_scopes:\n    - {type: pth}",
            "3: security.allowed_scopes[0]: is not one of 'path', 'network' — did you mean 'path'?",
            id="misspelt type",
        ),
        pytest.param(
            "agent_runtime:\n  limits: {max_input_bytes: '10'}",
            "2: agent_runtime.limits.max_input_bytes: is not a whole number, the value is '10' — "
            "write one, without quotes",
            id="text for a number",
        ),
        pytest.param(
            "agent_runtime:\n  limits: {max_input_bytes: 0}",
            "2: agent_runtime.limits.max_input_bytes: input should be greater than 0, the value is 0 — "
            "change the value",
            id="too small",
        ),
        pytest.param(
            "agent_runtime:\n  approvals: {expires_after: 24}",
            "2: agent_runtime.approvals.expires_after: is not a duration, the value is 24 — "
            "write a number and a unit, such as 24h, 90m or 1h30m",
            id="duration without unit",
        ),
        pytest.param(
            "lanes:\n", "1: lanes: nothing is written here — remove the key or give it a value", id="null"
        ),
        pytest.param(
            "policies:\n  rules:\n    - {id: a, decision: alow}",
            "3: policies.rules[0].decision: is not one of 'allow', 'deny' or 'approval_required', "
            "the value is 'alow' — did you mean 'allow'?",
            id="misspelt decision",
        ),
        pytest.param(
            "agent_runtime:\n  default_model: opps\n  models:\n    ops: {provider: openai_compatible, "
            "model: m, api_key_env: K, base_url: 'http://h/'}",
            "2: agent_runtime.default_model: no model has the name 'opps' — did you mean 'ops'?",
            id="missing reference",
        ),
        pytest.param(
            "agent_runtime:\n  models:\n    ops: {provider: openai_compatible, model: m, api_key_env: K}",
            "3: agent_runtime.models.ops: has no address — add base_url, or base_url_env with the name of a "
            "variable that holds it",
            id="model without address",
        ),
        pytest.param(
            "lanes:\n  - {id: a}\n  - {id: a}",
            "3: lanes[1].id: the id 'a' is taken by an earlier entry — choose another one",
            id="lane twice",
        ),
        pytest.param(
            "security: {allowed_scopes: [{type: network, posture: allowlist}]}",
            "1: security.allowed_scopes[0]: the allowlist has no entries — "
            "add allowlist_entries: ['host:port']",
            id="empty allowlist",
        ),
        pytest.param(
            "lanes: []\nlanes: []",
            "2: lanes: the key stands here for a second time (first on line 1) — keep one of them",
            id="key twice",
        ),
        pytest.param(
            "agent_runtime:\n  default_model: !!int abc",
            "2: agent_runtime.default_model: 'abc' does not fit the tag 'tag:yaml.org,2002:int' — "
            "remove the tag",
            id="wrong tag",
        ),
        pytest.param("1: x", "1: the key '1' is not a text — put it in quotes", id="number as key"),
        pytest.param(
            "lanes: []\n---\nlanes: []",
            "2: is not valid YAML: a second document begins here, after a line of --- — "
            "keep one document in the file",
            id="two documents",
        ),
        pytest.param(
            "lanes: !!python/object/apply:os.system ['true']",
            "1: lanes: the tag 'tag:yaml.org,2002:python/object/apply:os.system' is not allowed — "
            "write a plain value",
            id="python object",
        ),
        pytest.param(
            "lanes: &a [*a]",
            "1: lanes[0]: an alias contains itself — write the value out",
            id="endless alias",
        ),
    ],
)
def test_what_is_wrong_is_named_with_line_value_and_fix(problems, text, expected):
    assert f"workspace.yaml:{expected}" in problems(text)


def test_broken_yaml_is_reported_with_its_line(problems):
    (problem,) = problems("lanes: []\npolicies: {rules: [}\n")
    assert problem.startswith("workspace.yaml:2: is not valid YAML: ")


def test_all_problems_are_reported_at_once_in_the_order_of_their_lines(problems):
    found = problems("lans: []\nagent_runtime: {limits: {max_turns: 1}}\npolicies: {default_decision: no}\n")
    assert [problem.split(":")[1] for problem in found] == ["1", "2", "3"]


def test_a_wrong_condition_suggests_the_nearest_key(problems):
    text = "policies:\n  rules:\n    - {id: a, decision: deny, when: {tool_name_equal: x}}"
    (problem,) = problems(text)
    assert problem.startswith("workspace.yaml:3: policies.rules[0].when: ")
    assert problem.endswith("— did you mean 'tool_name_equals'?")


def test_values_of_headers_are_not_repeated(problems):
    text = (
        "agent_runtime:\n  models:\n    a: {provider: openai_compatible, model: m, api_key_env: K, "
        "base_url: 'http://h/', headers: {X-Token: 12345678}}"
    )
    (problem,) = problems(text)
    assert "headers.X-Token" in problem
    assert "12345678" not in problem


def test_off_is_a_posture_and_not_a_boolean(load):
    workspace = load("security: {allowed_scopes: [{type: network, posture: off}]}")
    assert workspace.allowed_scopes == (NetworkScope(posture="off"),)


def test_anchors_and_merges_are_allowed(load):
    text = (
        "lanes:\n  - &base {id: a, allowed_scopes: [{type: path, pattern: x, access: read}]}\n"
        "  - {<<: *base, id: b}\n"
    )
    assert load(text).lane("b").allowed_scopes == load(text).lane("a").allowed_scopes


def test_the_lane_adds_its_layer_after_the_workspace(load):
    layers = load(FULL).policy_layers("night")
    assert [(layer.level, layer.default_decision) for layer in layers] == [
        ("workspace", Decision.DENY),
        ("lane", Decision.DENY),
    ]


def test_an_unknown_lane_is_refused(load):
    with pytest.raises(ConfigurationError, match=r"'day'.*it has 'night'.*add it under lanes"):
        load(FULL).policy_layers("day")


def test_a_tool_that_an_intent_names_must_exist(load):
    with pytest.raises(ConfigurationError) as caught:
        load(FULL).check_tools({"calendar:create-event", "calendar:delete-event"})
    assert str(caught.value) == (
        "workspace.yaml:9: agent_runtime.intents.scheduling.allow_tools[1]: no tool has the name "
        "'calendar:reschedule-event' — declare it in one of tools.modules, or remove it"
    )


def test_variables_that_hold_keys_and_addresses_are_known(load):
    assert load(FULL).secret_variables == {"AGENT_RUNTIME_API_KEY", "AGENT_RUNTIME_BASE_URL"}


# --- tampering ------------------------------------------------------------------------------------


def test_an_untouched_file_is_unchanged(load):
    load(FULL).ensure_unchanged()


def test_a_mere_reformat_is_no_difference(load):
    workspace = load("lanes: [{id: a}]")
    workspace.path.write_text("# new\nlanes:\n- id: a\n")
    workspace.ensure_unchanged()


@pytest.mark.parametrize("text", ["lanes: [{id: b}]", "lanes: [", ""])
def test_other_content_is_tampering(load, text):
    workspace = load("lanes: [{id: a}]")
    workspace.path.write_text(text)
    with pytest.raises(SpecTampered, match="restore it, or restart"):
        workspace.ensure_unchanged()


def test_a_vanished_file_is_tampering(load):
    workspace = load("lanes: [{id: a}]")
    workspace.path.unlink()
    with pytest.raises(SpecTampered, match="cannot be read any more"):
        workspace.ensure_unchanged()


def test_a_change_of_the_same_length_with_the_old_time_is_seen(load):
    workspace = load("lanes: [{id: a}]")
    before = workspace.path.stat()
    workspace.path.write_text("lanes: [{id: b}]")
    os.utime(workspace.path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(SpecTampered):
        workspace.ensure_unchanged()


def test_a_settled_file_is_not_read_again(load, monkeypatch):
    workspace = load("lanes: [{id: a}]")
    monkeypatch.setattr("runtime.workspace._SETTLED_NS", -1)
    workspace.ensure_unchanged()
    monkeypatch.setattr(Path, "open", None)
    workspace.ensure_unchanged()


def test_a_restored_file_is_unchanged_again(load):
    workspace = load("lanes: [{id: a}]")
    workspace.path.write_text("lanes: []")
    with pytest.raises(SpecTampered):
        workspace.ensure_unchanged()
    workspace.path.write_text("lanes: [{id: a}]")
    workspace.ensure_unchanged()


def test_the_empty_workspace_cannot_be_tampered_with():
    Workspace.empty().ensure_unchanged()
