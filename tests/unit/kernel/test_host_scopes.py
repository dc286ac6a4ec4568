"""Fixed layers are compared once per lane and tool; what a context allows, at each decision."""

from __future__ import annotations

from dataclasses import replace

import pytest

from runtime.core.model import Decision, ExecutionContext, NetworkScope, PathScope
from runtime.errors import ErrorCode
from runtime.kernel.tool_host import ToolHost
from runtime.kernel.verdict import Call, VerdictKind
from runtime.tools.declare import tool
from runtime.tools.registry import ToolRegistry
from runtime.workspace import Workspace
from runtime.workspace_model import Lane, Policies, SecurityConfig, WorkspaceFile

MODEL = NetworkScope(posture="allowlist", allowlist_entries=("model.example:443",))


def read(*patterns):
    return tuple(PathScope(pattern=pattern, access="read") for pattern in patterns)


def reader(name, *patterns):
    @tool(name, effect="read", scopes=read(*patterns))
    def act(input: dict, ctx) -> dict:
        """Do nothing."""
        return {}

    return act


@pytest.fixture
def host():
    file = WorkspaceFile(
        security=SecurityConfig(allowed_scopes=(*read("a/**", "b/**"), MODEL)),
        policies=Policies(default_decision=Decision.ALLOW),
        lanes=(Lane(id="narrow", allowed_scopes=read("a/**")), Lane(id="wide")),
    )
    registry = ToolRegistry([reader("t:a", "a/x"), reader("t:b", "b/x"), reader("t:free")])
    return ToolHost(replace(Workspace.empty(), file=file), registry)


def decide(host, name, task=None, lane_id=None, **more):
    ctx = ExecutionContext(run_id="r", task_id="t", session_id="s", lane_id=lane_id, allowed_scopes=task)
    return host.decide(
        Call(
            tool_name=name,
            input={},
            ctx=ctx,
            session_id="s",
            node_id="n",
            step_id="p",
            call_id="c",
            intent=None,
            turn_index=0,
            tool_calls=0,
            now=0,
            **more,
        )
    )  # fmt: skip


def test_each_context_narrows_its_own_decision_only(host):
    """Also right after another context, and again after it."""
    for _ in range(2):
        assert decide(host, "t:a").kind is VerdictKind.RUN
        assert decide(host, "t:a", read("b/**")).output.error.code == ErrorCode.SCOPE_DENIED
        assert decide(host, "t:a", read("{a,b}/*")).granted == read("a/x")
        assert decide(host, "t:a", ()).output.error.code == ErrorCode.SCOPE_DENIED


def test_each_lane_narrows_its_own_decisions_only(host):
    for _ in range(2):
        assert decide(host, "t:b", lane_id="wide").kind is VerdictKind.RUN
        assert decide(host, "t:b", lane_id="narrow").output.error.code == ErrorCode.SCOPE_DENIED
        assert decide(host, "t:a", lane_id="narrow").kind is VerdictKind.RUN
        assert decide(host, "t:b").kind is VerdictKind.RUN


def test_an_unknown_lane_is_refused_each_time(host):
    for _ in range(2):
        assert "'none'" in decide(host, "t:a", lane_id="none").output.error.message


def test_a_tool_without_scopes_runs_where_nothing_is_allowed(host):
    assert decide(host, "t:free", (), lane_id="narrow").kind is VerdictKind.RUN


def test_what_is_missing_is_named_with_the_first_layer_that_lacks_it(host):
    message = decide(host, "t:b", read("a/**"), lane_id="narrow").output.error.message
    assert "lane does not allow read b/x; task does not allow read b/x" in message


def test_a_turn_is_bounded_by_its_own_addresses_each_time(host):
    for _ in range(2):
        fine = decide(host, "agent:execute-turn", (), network=("model.example:443",))
        other = decide(host, "agent:execute-turn", (), network=("other.example:443",))
        assert fine.output is None or fine.output.error.code != ErrorCode.SCOPE_DENIED
        assert other.output.error.code == ErrorCode.SCOPE_DENIED
