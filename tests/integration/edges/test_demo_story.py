"""The stand-in plays each node of the story over HTTP, through the real provider client and real tools."""

import json

import pytest
from pydantic import SecretStr

from runtime import ToolContext
from runtime.core.messages import create_tool_result_message
from runtime.core.model import ToolOutput
from runtime.core.profile import ModelProfile, ResolvedProfile
from runtime.core.turn import CatalogIntent, CatalogTool, ProviderRequest, ToolCall, TranscriptMessage
from runtime.edges.demo import calendar_tools
from runtime.edges.demo.model_server import DemoModelServer
from runtime.edges.demo.story import PROMPTS, RULES, SEED_EVENTS
from runtime.providers.client import ProviderClient

TOOLS = {
    tool.name: tool
    for tool in (
        calendar_tools.list_events,
        calendar_tools.create_event,
        calendar_tools.reschedule_event,
        calendar_tools.delete_event,
    )
}
INTENTS = (CatalogIntent("operations", "Run things"), CatalogIntent("scheduling", "Plan"))


@pytest.fixture
def calendar(tmp_path, monkeypatch):
    path = tmp_path / "calendar.db"
    monkeypatch.setenv("AGENT_RUNTIME_DEMO_CALENDAR", str(path))
    calendar_tools.seed(path, SEED_EVENTS)
    return path


@pytest.fixture(params=[False, True], ids=["whole", "streamed"])
def ask(request):
    """Makes one model call with the given messages."""
    with DemoModelServer() as server:
        client = ProviderClient()
        profile = ModelProfile(
            provider="openai_compatible", model="m", base_url=server.base_url, api_key_env="KEY"
        )
        resolved = ResolvedProfile("operations", profile, server.base_url, SecretStr("k"), (), ())
        catalog = tuple(
            CatalogTool(tool.name, tool.description, tool.input_schema) for tool in TOOLS.values()
        )

        def call(messages):
            turn = ProviderRequest(tuple(messages), catalog, INTENTS, stream=request.param)
            return client.execute(resolved, turn)

        yield call
        client.close()


def run_tool(wanted, call_id):
    context = ToolContext(
        session_id="s", node_id="n", run_id="r", task_id="t", call_id=call_id, idempotency_key=call_id
    )
    tool = TOOLS[wanted.name]
    output = ToolOutput(success=True, data=tool(tool.parse(wanted.input), context).model_dump(mode="json"))
    answer = create_tool_result_message(tool_name=wanted.name, tool_call_id=call_id, output=output)
    return TranscriptMessage("tool", answer["content"], wanted.name, call_id)


def play(ask, node):
    """Run one node's loop to its end: the outputs of its turns."""
    messages = [TranscriptMessage("system", RULES), TranscriptMessage("user", PROMPTS[node])]
    outputs = []
    while not outputs or outputs[-1].status == "tool_request":
        output = ask(messages)
        outputs.append(output)
        calls = [
            ToolCall(f"call-{len(outputs)}-{index}", wanted.name, wanted.input, wanted.provider_call_id)
            for index, wanted in enumerate(output.requested_tools)
        ]
        messages.append(TranscriptMessage("assistant", output.assistant_message, tool_calls=tuple(calls)))
        messages += [
            run_tool(wanted, call.id) for wanted, call in zip(output.requested_tools, calls, strict=True)
        ]
    return outputs


def test_each_node_ends_complete_and_every_turn_states_the_scheduling_intent(ask, calendar):
    for node in PROMPTS:
        outputs = play(ask, node)
        assert outputs[-1].status == "complete"
        assert {output.intent for output in outputs} == {"scheduling"}


def test_the_whole_story_leaves_the_calendar_as_the_demo_promises(ask, calendar):
    for node in PROMPTS:
        play(ask, node)
    events = [event.model_dump(mode="json") for event in calendar_tools.contents(calendar)]
    assert [(event["title"], event["start"]) for event in events] == [
        ("Stand-up", "2026-03-12T08:30:00Z"),
        ("Prepare the agenda", "2026-03-13T08:30:00Z"),
        ("Weekly review", "2026-03-13T09:00:00Z"),
        ("Dentist", "2026-03-13T14:00:00Z"),
    ]


def test_collecting_context_asks_for_both_days_in_one_turn(ask, calendar):
    first = play(ask, "collect-context")[0]
    assert [json.dumps(wanted.input) for wanted in first.requested_tools] == [
        '{"day": "2026-03-12"}',
        '{"day": "2026-03-13"}',
    ]
