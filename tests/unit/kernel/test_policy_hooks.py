"""Policy in Python: entry points tighten, never loosen, and fail closed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest

from runtime.core.model import ExecutionContext
from runtime.errors import ConfigurationError
from runtime.kernel.policy_hooks import PolicyHooks
from runtime.kernel.tool_host import ToolHost
from runtime.kernel.verdict import Call, VerdictKind
from runtime.tools.context import ToolContext
from runtime.tools.declare import tool
from runtime.tools.registry import ToolRegistry
from runtime.workspace import Workspace
from runtime.workspace_model import Policies, WorkspaceFile

MODULE = """
seen = []

def silent(question): seen.append(question)
def loose(question): return "allow", "why not"
def asks(question): return "approval_required", "a person should look"
def refuses(question):
    turn = question.metadata["agent_turn_index"]
    return "deny", f"{question.tool_name} of {question.input['who']} on turn {turn}"
def breaks(question): raise KeyError("oops")
def babbles(question): return {"decision": "deny"}
def exact(question): return "perhaps"
def writes(question): question.input["who"] = "me"
number = 3
"""


@tool("a:do", effect="read")
def act(input: dict[str, object], ctx: ToolContext) -> dict[str, object]:
    """Do something."""
    return input


@pytest.fixture
def host(tmp_path):
    """Makes a kernel under entry points, and one default decision."""
    (tmp_path / "house_rules.py").write_text(MODULE)

    def make(*functions, default="allow"):
        registry = ToolRegistry()
        registry.register(act)
        names = tuple(f"house_rules:{name}" for name in functions)
        file = WorkspaceFile(policies=Policies(default_decision=default, entry_points=names))
        return ToolHost(replace(Workspace.empty(), path=tmp_path / "workspace.yaml", file=file), registry)

    return make


def decide(host):
    return host.decide(
        Call(
            tool_name="a:do",
            input={"who": "eve", "list": [1]},
            ctx=ExecutionContext(run_id="r", task_id="t", session_id="s"),
            session_id="s",
            node_id="n",
            step_id="p",
            call_id="c",
            intent=None,
            turn_index=4,
            tool_calls=0,
            now=0,
        )
    )


@pytest.mark.parametrize("functions", [(), ("silent",), ("loose",), ("silent", "loose")])
def test_one_that_says_nothing_or_allows_changes_nothing(host, functions):
    verdict = decide(host(*functions))
    assert (verdict.kind, verdict.decisions) == (VerdictKind.RUN, ())


def test_one_may_ask_or_deny_and_evidence_says_which(host):
    asked = decide(host("asks"))
    assert asked.kind is VerdictKind.PARK
    assert "a person should look" in asked.output.error.message
    denied = decide(host("asks", "refuses", "breaks"))
    assert (denied.kind, denied.output.error.code) == (VerdictKind.REFUSE, "POLICY_DENIED")
    assert "a:do of eve on turn 4" in denied.output.error.message
    assert [each["policy_id"] for each in denied.decisions] == ["house_rules:asks", "house_rules:refuses"]


def test_none_is_asked_about_what_rules_deny_and_none_loosens(host):
    verdict = decide(host("loose", "breaks", default="deny"))
    assert (verdict.kind, verdict.decisions) == (VerdictKind.REFUSE, ())
    assert decide(host("loose", default="approval_required")).kind is VerdictKind.PARK


@pytest.mark.parametrize("function", ["breaks", "babbles", "exact", "writes"])
def test_one_that_fails_denies_the_call(host, function):
    verdict = decide(host(function))
    assert verdict.kind is VerdictKind.REFUSE
    assert f"the policy entry point house_rules:{function} failed" in verdict.output.error.message


def test_what_it_is_shown_cannot_be_changed(host):
    kernel = host("silent")
    decide(kernel)
    (_, function) = kernel._hooks.functions[0]
    (question,) = function.__globals__["seen"]
    assert isinstance(question.input, MappingProxyType)
    assert question.input["list"] == (1,)


def test_under_entry_points_every_listed_tool_depends_on_the_call(host):
    ctx = ExecutionContext(run_id="r", task_id="t", session_id="s")
    assert [each.depends_on_input for each in host("silent").list_governed_tools(ctx)] == [True]
    assert [each.depends_on_input for each in host().list_governed_tools(ctx)] == [False]


@pytest.mark.parametrize("name", ["house_rules:nope", "house_rules:number", "nowhere_at_all:f"])
def test_one_that_is_not_there_is_a_configuration_error(host, tmp_path, name):
    host()
    with pytest.raises(ConfigurationError, match=name.partition(":")[2]):
        PolicyHooks.load([name], Path(tmp_path))
