"""What a caller gives narrows what the model may do: the turn's catalogue and the lane; on both databases."""

import pytest
from sqlalchemy import text

from runtime import ToolContext, run_governed_agent_loop, start_governed_agent_session, tool
from runtime.agent_runtime import AgentRuntime
from runtime.errors import ConfigurationError
from tests.harness.sessions import call, context, turn_input

READER = [{"name": "ledger:read", "description": "Look something up."}]
JOT = "/call jot {}"

jotted: list[str] = []


@tool("jot", effect="once")
def jot(input: dict, ctx: ToolContext) -> dict:
    """Write something down. Models are told this very name, so they can ask for it unasked."""
    jotted.append(ctx.call_id)
    return {}


@pytest.fixture
def runtime(folder, migrated_url, valkey):
    path = folder / "workspace.yaml"
    path.write_text(path.read_text().replace("allow_tools: [", 'allow_tools: ["jot", '))
    jotted.clear()
    with AgentRuntime.open(path, database_url=migrated_url, redis_url=valkey.url, tools=[jot]) as found:
        yield found


def finishes(flow) -> list[tuple[str | None, str, str | None]]:
    return [
        (event.tool_name, event.body["result"], event.body.get("error", {}).get("code"))
        for event in flow.events(timeout=0.1)
        if event.kind == "tool_call_finished" and event.tool_name != "agent:execute-turn"
    ]


@pytest.mark.parametrize("catalog", [[], READER])
def test_a_tool_outside_the_turns_catalogue_does_not_run_and_the_model_is_told(runtime, workers, catalog):
    given = turn_input(JOT, "/say Noted.", tool_catalog=catalog)
    flow = start_governed_agent_session(runtime=runtime, execute_turn_input=given, ctx=context())
    workers.drain()
    assert flow.status() == "completed"
    assert finishes(flow) == [("jot", "denied", "TOOL_NOT_FOUND")]
    assert jotted == []
    assert runtime.verify("s-1").verified


def test_without_a_catalogue_the_governed_listing_holds(runtime, workers):
    start_governed_agent_session(
        runtime=runtime, execute_turn_input=turn_input(JOT, "/say Noted."), ctx=context()
    )
    workers.drain()
    assert len(jotted) == 1


def test_a_tool_of_the_catalogue_runs(runtime, workers):
    given = turn_input(call("ledger:read", "a"), "/say Noted.", tool_catalog=READER)
    flow = start_governed_agent_session(runtime=runtime, execute_turn_input=given, ctx=context())
    workers.drain()
    assert finishes(flow) == [("ledger:read", "success", None)]


def test_a_host_driven_loop_keeps_to_the_catalogue_too(runtime):
    given = turn_input(JOT, "/say Noted.", tool_catalog=READER)
    result = run_governed_agent_loop(runtime=runtime, execute_turn_input=given, ctx=context())
    assert result.kind == "completed"
    assert [entry.get("tool_success") for entry in result.history] == [False, None]
    assert jotted == []


def test_a_lane_that_the_file_does_not_have_is_refused_at_the_start(runtime):
    with pytest.raises(ConfigurationError, match="lane_id 'fast'"):
        start_governed_agent_session(
            runtime=runtime, execute_turn_input=turn_input("/say A."), ctx=context(lane_id="fast")
        )
    assert runtime.execute_tool("ledger:read", {"name": "a"}, context("h", lane_id="fast")).error is not None


def test_a_lane_that_is_gone_ends_the_node_with_a_reason(runtime, workers):
    flow = start_governed_agent_session(
        runtime=runtime, execute_turn_input=turn_input("/say A."), ctx=context()
    )
    with runtime.parts.database.writing() as connection:  # as if the file had lost the lane since the start
        connection.execute(text("UPDATE session SET context = :c"), {"c": '{"lane_id":"gone"}'})
    workers.drain()
    assert flow.status() == "error"
    (node,) = flow.nodes()
    assert node.error["code"] == "SCOPE_DENIED"
    assert "'gone'" in node.error["message"]


def test_a_host_driven_turn_in_an_unknown_lane_is_an_output(runtime):
    output = runtime.execute_tool("agent:execute-turn", turn_input("/say A."), context("h", lane_id="gone"))
    assert output.error.code in {"SCOPE_DENIED", "CONFIGURATION_ERROR"}
    assert runtime.verify("h").verified
