"""Scopes and a lane's policies bound calls where they are decided: by a host or by a worker."""

import json

import pytest
import yaml

from runtime import start_governed_agent_session
from runtime.agent_runtime import AgentRuntime
from runtime.core.model import PathScope
from tests.harness.inline import InlineWorkers
from tests.harness.sessions import call, context, turn_input
from tests.harness.witness import ledger, receipts

TOOLS = '''
"""A tool that says what it touches, and one that says that it touches nothing."""

from ledger_tools import Entry, _write

from runtime import ToolContext, tool
from runtime.core.model import PathScope


@tool("books:write", effect="idempotent", scopes=[PathScope(pattern="books/2026/**", access="write")])
def write(input: Entry, ctx: ToolContext) -> dict[str, str]:
    """Write into the books."""
    return _write("write", input, ctx)


@tool("books:enter", effect="idempotent", scopes=[PathScope(pattern="books/2026/**", access="write")])
def enter(input: Entry, ctx: ToolContext) -> dict[str, str]:
    """Write to a file of the books, wherever the input says."""
    with ctx.open(f"books/{input.name}", "w") as file:
        file.write("entered")
    return {"to": input.name}
'''

EVERYWHERE = {"type": "network", "posture": "full"}
REQUIRED = {"type": "path", "pattern": "books/2026/**", "access": "write"}


def path(pattern, access="write"):
    return {"type": "path", "pattern": pattern, "access": access}


ALL, YEAR, OTHER, NARROWER = (
    path("books/**"),
    path("books/2026/**"),
    path("books/2025/**"),
    path("books/2026/may/**"),
)


@pytest.fixture
def opened(folder, migrated_url, valkey):
    """Opens a runtime on the ledger's workspace with other scopes, lanes and rules; its steps run here."""
    (folder / "books_tools.py").write_text(TOOLS)
    file = folder / "workspace.yaml"
    content = yaml.safe_load(file.read_text())
    content["agent_runtime"]["tools"]["modules"].append("books_tools")
    content["agent_runtime"]["intents"]["bookkeeping"]["allow_tools"] += ["books:write", "books:enter"]
    (network,) = content["security"]["allowed_scopes"]
    closing = []

    def open_it(*, workspace=(ALL,), reachable=True, lane_scopes=None, lane_policies=None):
        content["policies"]["default_decision"] = "deny" if lane_policies is None else "allow"
        content["security"]["allowed_scopes"] = [*([network] if reachable else []), *workspace]
        lane = {"id": "night", "allowed_scopes": lane_scopes, "policies": lane_policies}
        content["lanes"] = [{key: value for key, value in lane.items() if value is not None}]
        file.write_text(json.dumps(content))
        runtime = AgentRuntime.open(file, database_url=migrated_url, redis_url=valkey.url)
        closing.append(runtime)
        return runtime, InlineWorkers(runtime)

    yield open_it
    for runtime in closing:
        runtime.close()


def by_host(runtime, tool, ctx):
    """Make the call in this process; what came of it, and the bodies of its two receipts."""
    ctx = ctx.model_copy(update={"session_id": "s-host", "metadata": {"agent_intent": "bookkeeping"}})
    output = runtime.execute_tool(tool, {"name": "a"}, ctx)
    return output.success, output.error, _receipts(runtime.session("s-host"), tool)


def by_worker(runtime, workers, tool, ctx):
    """Have a session's model ask for the call."""
    # Named to the model also where the governed listing leaves it out.
    catalog = [{"name": tool, "description": "Write.", "input_schema": {"type": "object"}}]
    flow = start_governed_agent_session(
        runtime=runtime,
        execute_turn_input=turn_input(call(tool, "a"), "/say Done.", tool_catalog=catalog),
        ctx=ctx,
    )
    workers.drain()
    started, finished = _receipts(flow, tool)
    return finished["result"] == "success", finished.get("error"), (started, finished)


def _receipts(flow, tool):
    (started,), (finished,) = (
        receipts(flow, kind, tool) for kind in ("tool_call_started", "tool_call_finished")
    )
    return started, finished


SCOPES = [
    # workspace file, lane, task; whether a tool that writes below books/2026 runs
    ([ALL], None, None, True),
    ([YEAR], None, None, True),
    ([ALL], None, [YEAR], True),
    ([ALL], [ALL], [YEAR], True),
    ([], None, None, False),
    ([OTHER], None, None, False),
    ([NARROWER], None, None, False),
    ([path("books/**", "read")], None, None, False),
    ([ALL], [], None, False),
    ([ALL], [OTHER], None, False),
    ([OTHER], [ALL], [ALL], False),
    ([ALL], None, [], False),
    ([ALL], None, [NARROWER], False),
    ([ALL], [ALL], [OTHER], False),
]


@pytest.mark.parametrize(("workspace", "lane", "task", "runs"), SCOPES)
def test_a_tool_runs_only_with_what_workspace_lane_and_task_all_allow(opened, workspace, lane, task, runs):
    runtime, workers = opened(workspace=workspace, lane_scopes=None if lane is None else [*lane, EVERYWHERE])
    ctx = context(
        lane_id=None if lane is None else "night",
        allowed_scopes=None if task is None else [PathScope(**each) for each in task],
    )
    for success, error, (started, finished) in (
        by_host(runtime, "books:write", ctx),
        by_worker(runtime, workers, "books:write", ctx),
    ):
        assert success is runs
        assert started["scope_requested"] == [REQUIRED]
        assert started["scope_allowed"] == ([REQUIRED] if runs else [])
        assert finished["result"] == ("success" if runs else "denied")
        if not runs:
            error = error if isinstance(error, dict) else error.model_dump()
            assert error["code"] == "SCOPE_DENIED"
            assert error["details"] == {"scope_requested": [REQUIRED], "scope_allowed": []}
            boundary = {"policy_id": "kernel.scope.boundary", "decision": "deny"}
            assert started["policy_decisions"] == finished["policy_decisions"] == [boundary]
    assert ledger() == ({"write a": 2} if runs else {})
    assert runtime.verify("s-1").verified
    assert runtime.verify("s-host").verified


@pytest.mark.parametrize("task", [None, []])
def test_a_tool_that_declares_no_scope_needs_none(opened, task):
    runtime, workers = opened(workspace=[], lane_scopes=None)
    ctx = context(allowed_scopes=task)
    assert by_host(runtime, "ledger:put", ctx)[0]
    assert by_worker(runtime, workers, "ledger:put", ctx)[0]
    assert ledger() == {"put a": 2}


@pytest.mark.parametrize(("reachable", "lane"), [(False, None), (True, []), (True, [ALL])])
def test_a_turn_whose_models_host_is_not_allowed_is_refused_and_the_model_is_not_asked(
    opened, model, reachable, lane
):
    runtime, workers = opened(reachable=reachable, lane_scopes=lane)
    ctx = context(lane_id=None if lane is None else "night")
    host = ctx.model_copy(update={"session_id": "s-host"})
    output = runtime.execute_tool("agent:execute-turn", turn_input("/say Hello.", session_id="s-host"), host)
    flow = start_governed_agent_session(
        runtime=runtime, execute_turn_input=turn_input("/say Hello."), ctx=ctx
    )
    workers.drain()
    address = model.base_url.removeprefix("http://").split("/")[0]
    asked = [{"type": "network", "posture": "allowlist", "allowlist_entries": [address]}]
    for error, session in (
        (output.error.model_dump(mode="json"), runtime.session("s-host")),
        (flow.nodes()[0].error, flow),
    ):
        assert error["code"] == "SCOPE_DENIED", error
        assert error["details"] == {"scope_requested": asked, "scope_allowed": []}
        started, finished = _receipts(session, "agent:execute-turn")
        assert (started["scope_requested"], started["scope_allowed"]) == (asked, [])
        assert finished["result"] == "denied"
    assert flow.status() == "error"
    assert model.faults.state()["requests"] == 0


def test_a_tasks_scopes_bound_its_tools_and_not_its_turns(opened):
    runtime, workers = opened()
    flow = start_governed_agent_session(
        runtime=runtime, execute_turn_input=turn_input("/say Done."), ctx=context(allowed_scopes=[])
    )
    workers.drain()
    assert flow.status() == "completed"


# --- a lane's policies ----------------------------------------------------------------------------


def lane_rule(decision):
    when = {"all": [{"tool_name_equals": "ledger:put"}]}
    return {"rules": [{"id": "at-night", "decision": decision, "reason": "it is night", "when": when}]}


LANES = [(lane, allowed) for lane in (None, "night") for allowed in ("ledger:put", "ledger:read")]


@pytest.mark.parametrize(("lane", "tool"), LANES)
@pytest.mark.parametrize(
    ("decision", "code"), [("deny", "POLICY_DENIED"), ("approval_required", "APPROVAL_REQUIRED")]
)
def test_a_lanes_rule_bounds_the_calls_of_that_lane_alone(opened, decision, code, lane, tool):
    runtime, workers = opened(lane_policies=lane_rule(decision))
    bounded = (lane, tool) == ("night", "ledger:put")
    ctx = context(lane_id=lane)
    for success, error, (started, finished) in (
        by_host(runtime, tool, ctx),
        by_worker(runtime, workers, tool, ctx),
    ):
        assert success is not bounded
        decisions = [(each["policy_id"], each["decision"]) for each in started["policy_decisions"]]
        assert (any(name.endswith("at-night") for name, _ in decisions)) is bounded
        assert finished["result"] == ("denied" if bounded else "success")
        if bounded:
            error = error if isinstance(error, dict) else error.model_dump()
            assert error["code"] == code
            assert "it is night" in error["message"]
    assert ledger() == ({} if bounded else {f"{tool.partition(':')[2]} a": 2})
    asked = [request.tool_name for request in runtime.approvals("s-1")]
    assert asked == (["ledger:put"] if bounded and decision == "approval_required" else [])


@pytest.mark.parametrize(
    ("name", "fits"), [("2026/may.txt", True), ("2025/may.txt", False), ("2026/../x", False)]
)
def test_a_tool_opens_what_lies_in_the_scopes_of_its_call_and_nothing_else(opened, folder, name, fits):
    (folder / "books" / "2025").mkdir(parents=True)
    (folder / "books" / "2026").mkdir()
    runtime, _ = opened()
    ctx = context("s-open", metadata={"agent_intent": "bookkeeping"})
    output = runtime.execute_tool("books:enter", {"name": name}, ctx)
    assert (output.success, (folder / "books" / name).exists()) == (fits, fits)
    assert fits or output.error.code == "SCOPE_DENIED"
    (finished,) = receipts(runtime.session("s-open"), "tool_call_finished", "books:enter")
    assert finished["result"] == ("success" if fits else "denied")
