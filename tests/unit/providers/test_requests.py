"""Rules 1 to 6: what is sent."""

import json

import pytest

from runtime.core.turn import CatalogTool, ToolCall, TranscriptMessage

from .wiring import CHAT, INTENT, MESSAGES, TOOL, USER, chat, exchange, request, sent_body

ASKED = TranscriptMessage(
    "assistant",
    "Let me see.",
    tool_calls=(
        ToolCall("agent-runtime-tool-call-1", "calendar:create-event", {"title": "x"}, "toolu_1"),
        ToolCall("agent-runtime-tool-call-2", "calendar:create-event", {"title": "y"}, "toolu_2"),
    ),
    reasoning=({"type": "thinking", "thinking": "hm", "signature": "sig"},),
)
SECOND = TranscriptMessage(
    "tool", '{"success":true,"data":2}', "calendar:create-event", "agent-runtime-tool-call-2"
)
DENIED = TranscriptMessage(
    "tool", '{"approval":{"request_id":"r","approved":false}}', "calendar:create-event", "approval-r"
)


def test_rule_1_names_are_mapped_in_the_catalogue_and_in_the_history():
    body = sent_body(CHAT, request(USER, ASKED, SECOND, DENIED))
    assert body["tools"][0]["function"]["name"] == "calendar_create-event"
    assert body["messages"][1]["tool_calls"][0]["function"]["name"] == "calendar_create-event"


def test_rule_2_results_follow_their_calls_directly_under_the_providers_ids():
    later = TranscriptMessage("user", "and?")
    body = sent_body(CHAT, request(USER, ASKED, later, SECOND, DENIED))
    assert [(item["role"], item.get("tool_call_id")) for item in body["messages"]] == [
        ("user", None), ("assistant", None), ("tool", "toolu_1"), ("tool", "toolu_2"), ("user", None),
    ]  # fmt: skip
    assert body["messages"][1]["tool_calls"][0]["function"]["arguments"] == '{"title":"x"}'


def test_rule_2_without_tools_nothing_about_tools_is_sent():
    extra = {"parallel_tool_calls": False, "tool_choice": "auto"}
    assert set(sent_body(CHAT, request(tools=()), extra_body=extra)) == {"model", "messages"}
    assert sent_body(CHAT, extra_body=extra)["parallel_tool_calls"] is False


def test_rule_3_messages_carry_what_the_protocol_requires():
    seen_system = TranscriptMessage("system", "Be brief.")
    asked = request(seen_system, USER, ASKED, SECOND, DENIED, tools=[CatalogTool("bare", "No schema")])
    body = sent_body(MESSAGES, asked)
    assert body["max_tokens"] > 0
    assert body["system"] == "Be brief."
    assert body["tools"][0]["input_schema"] == {"type": "object", "properties": {}}
    assert [item["role"] for item in body["messages"]] == ["user", "assistant", "user"]


def test_rule_3_all_results_go_first_into_one_user_message_with_failures_marked():
    after = TranscriptMessage("user", "and?")
    results = sent_body(MESSAGES, request(USER, ASKED, SECOND, DENIED, after))["messages"][2]["content"]
    assert [(item["type"], item.get("tool_use_id"), item.get("is_error")) for item in results] == [
        ("tool_result", "toolu_1", True), ("tool_result", "toolu_2", None), ("text", None, None),
    ]  # fmt: skip


def test_rule_3_thinking_goes_back_unchanged_and_first():
    content = sent_body(MESSAGES, request(USER, ASKED, SECOND, DENIED))["messages"][1]["content"]
    assert content[0] == {"type": "thinking", "thinking": "hm", "signature": "sig"}
    assert [block["type"] for block in content] == ["thinking", "text", "tool_use", "tool_use"]
    assert content[2]["input"] == {"title": "x"}


def test_rule_4_a_call_that_was_never_answered_gets_a_result_that_says_so():
    body = sent_body(CHAT, request(USER, ASKED, SECOND))
    missing = next(item for item in body["messages"] if item.get("tool_call_id") == "toolu_1")
    assert json.loads(missing["content"])["success"] is False


def test_rule_4_a_denied_call_returns_the_answer_to_its_approval_request():
    body = sent_body(CHAT, request(USER, ASKED, SECOND, DENIED))
    answer = next(item for item in body["messages"] if item.get("tool_call_id") == "toolu_1")
    assert "approval" in json.loads(answer["content"])


@pytest.mark.parametrize("kind", [CHAT, MESSAGES])
def test_a_tool_message_without_a_call_gets_one(kind):
    lone = TranscriptMessage("tool", "{}", "calendar:create-event", "agent-runtime-tool-call-9")
    messages = sent_body(kind, request(USER, lone, lone))["messages"]
    text = json.dumps(messages)
    assert "agent-runtime-tool-call-9" in text
    assert "calendar:create-event" not in text
    if kind == CHAT:
        ids = [item["tool_call_id"] for item in messages if item["role"] == "tool"]
        assert len(set(ids)) == 2
        assert [item["tool_calls"][0]["id"] for item in messages if "tool_calls" in item] == ids


def test_rule_5_optional_fields_are_the_profiles_business():
    body = sent_body(
        CHAT, max_tokens=7, max_tokens_field="max_completion_tokens", extra_body={"temperature": 0}
    )
    assert (body["max_completion_tokens"], body["temperature"]) == (7, 0)
    assert "max_tokens" not in body
    prompt = sent_body_of_prompt(extra_body={"response_format": None, "model": "other", "messages": []})
    assert "response_format" not in prompt
    assert prompt["model"] == "asked-model"
    assert prompt["messages"]


def sent_body_of_prompt(**profile):
    seen = []
    said = '{"status":"reply","intent":"i","assistant_message":""}'
    exchange(CHAT, chat(said), seen=seen, tool_mode="prompt", **profile)
    return json.loads(seen[0].content)


def test_rule_6_usage_is_asked_for_only_when_streaming():
    assert "stream_options" not in sent_body(CHAT)
    body = sent_body(CHAT, request(stream=True))
    assert body["stream_options"] == {"include_usage": True}
    assert "stream_options" not in sent_body(CHAT, request(stream=True), extra_body={"stream_options": None})


@pytest.mark.parametrize("kind", [CHAT, MESSAGES])
def test_with_intents_every_tool_must_state_one(kind):
    tool = sent_body(kind, request(intents=[INTENT]))["tools"][0]
    schema = tool["function"]["parameters"] if kind == CHAT else tool["input_schema"]
    assert schema["properties"]["agent_intent"]["enum"] == ["scheduling"]
    assert schema["required"] == ["title", "agent_intent"]
    assert TOOL.input_schema["required"] == ["title"]


def test_the_key_goes_where_each_protocol_wants_it():
    seen = []
    exchange(CHAT, chat(), seen=seen, headers={"X-Team": "a"})
    assert seen[0].headers["authorization"] == "Bearer secret-key"
    assert seen[0].headers["x-team"] == "a"
    assert str(seen[0].url) == "http://provider.test/v1/chat/completions"
    answer = {"type": "message", "content": []}
    exchange(MESSAGES, answer, seen=seen)
    exchange(MESSAGES, answer, seen=seen, send_bearer=True)
    assert [(sent.headers["x-api-key"], sent.headers.get("authorization")) for sent in seen[1:]] == [
        ("secret-key", None), ("secret-key", "Bearer secret-key"),
    ]  # fmt: skip
    assert str(seen[1].url) == "http://provider.test/v1/messages"
    assert seen[1].headers["anthropic-version"]


@pytest.mark.parametrize("kind", [CHAT, MESSAGES])
def test_rule_18_nul_and_lone_surrogates_are_sent_as_escapes(kind):
    said = sent_body(kind, request(TranscriptMessage("user", "a\0\ud800"), tools=()))["messages"][0][
        "content"
    ]
    assert (said if kind == CHAT else said[0]["text"]) == "a\0\ud800"


def test_a_joined_prompt_request_uses_no_tool_role():
    lone = TranscriptMessage("tool", "{}", "a:b", "c1")
    seen = []
    answer = chat('{"status":"reply","intent":"i","assistant_message":""}')
    exchange(CHAT, answer, request(USER, ASKED, lone), seen=seen, tool_mode="prompt")
    messages = json.loads(seen[0].content)["messages"]
    assert [set(item) for item in messages] == [{"role", "content"}] * 4
    assert [item["role"] for item in messages] == ["system", "user", "assistant", "user"]
