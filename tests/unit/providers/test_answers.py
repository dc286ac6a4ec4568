"""Rules 9 to 18: what an answer means, in ``tool_mode: native``."""

import json

import pytest

from runtime.core.turn import CatalogTool
from runtime.errors import ErrorCode
from runtime.providers.errors import ProviderError

from .wiring import (
    CHAT,
    INTENT,
    MESSAGES,
    TOOL,
    call,
    chat,
    chunks,
    delta,
    exchange,
    message,
    named,
    request,
    text,
    use,
)  # fmt: skip

STREAM = request(stream=True)


def fragment(index=0, call_id=None, name=None, arguments=None):
    made = {"function": {}}
    if index is not None:
        made["index"] = index
    if call_id is not None:
        made["id"] = call_id
    if name is not None:
        made["function"]["name"] = name
    if arguments is not None:
        made["function"]["arguments"] = arguments
    return made


def calls(output):
    return [(tool.name, tool.input, tool.provider_call_id) for tool in output.requested_tools]


def started(model="served", **usage):
    return {"type": "message_start", "message": {"model": model, "usage": usage}}


def block(index, content, *deltas):
    start = {"type": "content_block_start", "index": index, "content_block": content}
    return [start, *({"type": "content_block_delta", "index": index, "delta": item} for item in deltas),
            {"type": "content_block_stop", "index": index}]  # fmt: skip


def stopped(reason, **usage):
    return [
        {"type": "message_delta", "delta": {"stop_reason": reason}, "usage": usage},
        {"type": "message_stop"},
    ]


# --- plain text, JSON, intents ----------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "answer"), [(CHAT, chat("Hi.")), (MESSAGES, message(text("Hi.")))])
def test_plain_text_is_a_reply_without_an_intent(kind, answer):
    output = exchange(kind, answer, request(intents=[INTENT]))
    assert (output.status, output.intent, output.assistant_message) == ("reply", None, "Hi.")
    assert output.to_json()["intent"] is None


def test_a_documented_json_reply_keeps_its_status_and_intent():
    said = json.dumps({"status": "complete", "intent": "scheduling", "assistant_message": "Done."})
    output = exchange(CHAT, chat(said, finish="length"))
    assert (output.status, output.intent, output.assistant_message) == ("complete", "scheduling", "Done.")


def test_other_json_is_just_text():
    assert exchange(CHAT, chat('{"a":1}')).assistant_message == '{"a":1}'


@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        (CHAT, chat(None, calls=[call(arguments='{"title":"x","agent_intent":"scheduling"}')])),
        (MESSAGES, message(use(given={"title": "x", "agent_intent": "scheduling"}))),
    ],
)
def test_the_intent_of_a_call_is_taken_out_of_its_input(kind, answer):
    output = exchange(kind, answer, request(intents=[INTENT]))
    assert (output.status, output.intent) == ("tool_request", "scheduling")
    assert calls(output)[0][:2] == ("calendar:create-event", {"title": "x"})


def test_a_tool_that_has_such_a_property_keeps_it():
    tool = CatalogTool("t", "d", {"type": "object", "properties": {"agent_intent": {"type": "string"}}})
    answer = chat(None, calls=[call("t", '{"agent_intent":"own","agent_intent_2":"scheduling"}')])
    output = exchange(CHAT, answer, request(tools=[tool], intents=[INTENT]))
    assert (output.intent, output.requested_tools[0].input) == ("scheduling", {"agent_intent": "own"})


def test_calls_that_disagree_leave_the_intent_open():
    pair = [call(arguments='{"agent_intent":"a"}'), call(arguments='{"agent_intent":"b"}', call_id="c2")]
    output = exchange(CHAT, chat(None, calls=pair), request(intents=[INTENT]))
    assert (output.status, output.intent) == ("tool_request", None)


def test_without_a_stated_intent_none_is_guessed():
    assert exchange(CHAT, chat(None, calls=[call()]), request(intents=[INTENT])).intent is None


def test_requested_tools_appear_with_two_calls_only():
    one = exchange(CHAT, chat(None, calls=[call()])).to_json()
    two = exchange(CHAT, chat(None, calls=[call(), call(call_id="c2")])).to_json()
    assert "requested_tools" not in one
    assert [tool["name"] for tool in two["requested_tools"]] == ["calendar:create-event"] * 2
    assert two["requested_tool"] == two["requested_tools"][0] == {
        "name": "calendar:create-event", "input": {"title": "x"},
    }  # fmt: skip


# --- streams ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stream",
    [
        chunks(delta(content="Hi"), delta(finish="stop"), done=False),
        chunks(delta(content="Hi"), done=True),
    ],
)
def test_rule_9_a_chat_stream_ends_with_a_finish_reason_or_done(stream):
    assert exchange(CHAT, stream, STREAM).assistant_message == "Hi"


@pytest.mark.parametrize(
    ("kind", "stream"),
    [
        (
            CHAT,
            chunks(
                delta(tool_calls=[fragment(0, "c", "calendar_create-event", '{"title":"x"}')]), done=False
            ),
        ),
        (MESSAGES, named(started(), *block(0, use()), stopped("tool_use")[0])),
        (CHAT, b""),
        (MESSAGES, b""),
    ],
)
def test_rule_9_a_stream_without_its_end_is_an_error_although_its_arguments_parse(kind, stream):
    with pytest.raises(ProviderError) as failed:
        exchange(kind, stream, STREAM)
    assert failed.value.code == ErrorCode.PROVIDER_MALFORMED_RESPONSE
    assert failed.value.retryable


@pytest.mark.parametrize(
    ("kind", "stream", "code", "retryable"),
    [
        (
            CHAT,
            chunks(delta(content="a"), {"error": {"message": "busy", "code": 529}}),
            "PROVIDER_HTTP_ERROR",
            True,
        ),
        (CHAT, chunks(delta(finish="stop"), {"error": "bare"}), "PROVIDER_HTTP_ERROR", True),
        (CHAT, b"event: error\ndata: gone\n\n", "PROVIDER_HTTP_ERROR", True),
        (CHAT, chunks({"error": {"code": "insufficient_quota"}}), "PROVIDER_RATE_LIMITED", False),
        (
            MESSAGES,
            named(started(), {"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}),
            "PROVIDER_HTTP_ERROR",
            True,
        ),
        (
            MESSAGES,
            named({"type": "error", "error": {"type": "rate_limit_error", "message": "slow"}}),
            "PROVIDER_RATE_LIMITED",
            True,
        ),
    ],
)
def test_rule_10_errors_in_mid_stream_are_errors(kind, stream, code, retryable):
    with pytest.raises(ProviderError) as failed:
        exchange(kind, stream, STREAM)
    assert (failed.value.code, failed.value.retryable) == (code, retryable)


def test_rule_10_an_error_that_quotes_the_key_does_not_pass_it_on():
    with pytest.raises(ProviderError) as failed:
        exchange(CHAT, chunks({"error": {"message": "bad key secret-key"}}), STREAM)
    assert "secret-key" not in f"{failed.value} {failed.value.details}"


def test_rule_11_json_may_answer_a_streaming_request_and_the_reverse():
    assert exchange(CHAT, chat("Hi."), STREAM).assistant_message == "Hi."
    assert exchange(CHAT, chunks(delta(content="Hi."), delta(finish="stop"))).assistant_message == "Hi."
    assert exchange(MESSAGES, message(text("Hi.")), STREAM).assistant_message == "Hi."


def test_snapshots_accumulate_and_the_final_one_is_the_output():
    seen = []
    stream = named(
        started(),
        *block(0, {"type": "thinking", "thinking": ""}, {"type": "thinking_delta", "thinking": "hm"}),
        *block(1, text(""), {"type": "text_delta", "text": "a"}, {"type": "text_delta", "text": "b"}),
        *stopped("end_turn"),
    )
    output = exchange(MESSAGES, stream, STREAM, snapshots=seen)
    assert [(item.sequence, item.state, item.data["assistant_message"]) for item in seen] == [
        (0, "partial", "a"), (1, "partial", "ab"), (2, "final", "ab"),
    ]  # fmt: skip
    assert seen[-1].data == output.to_json()


# --- tool calls -------------------------------------------------------------------------------------

NAME = "calendar_create-event"


@pytest.mark.parametrize(
    "fragments",
    [
        [fragment(0, "c", NAME, ""), fragment(0, "", "", '{"title":'), fragment(0, None, None, '"x"}')],
        [fragment(1, "c", NAME, '{"title"'), fragment(1, "", None, ':"x"}')],
        [fragment(None, "c", NAME, '{"title":"x"}')],
        [fragment(None, "c", NAME), fragment(None, None, None, '{"title":"x"}')],
    ],
)
def test_rule_12_fragments_are_merged_by_index(fragments):
    stream = chunks(*(delta(tool_calls=[item]) for item in fragments), delta(finish="tool_calls"))
    assert calls(exchange(CHAT, stream, STREAM)) == [("calendar:create-event", {"title": "x"}, "c")]


def test_rule_12_interleaved_calls_stay_apart():
    fragments = [
        fragment(1, "b", NAME, '{"title":'),
        fragment(0, "a", NAME, '{"title":"1"}'),
        fragment(1, "", "", '"2"}'),
    ]
    stream = chunks(*(delta(tool_calls=[item]) for item in fragments), delta(finish="tool_calls"))
    assert [item[1:] for item in calls(exchange(CHAT, stream, STREAM))] == [
        ({"title": "1"}, "a"),
        ({"title": "2"}, "b"),
    ]


@pytest.mark.parametrize("index", [0, None])
def test_rule_12_whole_calls_under_one_index_are_several(index):
    both = [fragment(index, "a", NAME, "{}"), fragment(index, "b", NAME, "{}")]
    stream = chunks(delta(tool_calls=both), delta(finish="tool_calls"))
    assert [item[2] for item in calls(exchange(CHAT, stream, STREAM))] == ["a", "b"]


@pytest.mark.parametrize("call_id", [None, "", "same"])
@pytest.mark.parametrize("index", [0, None])
def test_rule_12_whole_calls_without_ids_of_their_own_are_several(index, call_id):
    both = [fragment(index, call_id, NAME, '{"title":"1"}'), fragment(index, call_id, NAME, '{"title":"2"}')]
    stream = chunks(delta(tool_calls=both), delta(finish="tool_calls"))
    asked = calls(exchange(CHAT, stream, STREAM))
    assert [item[1] for item in asked] == [{"title": "1"}, {"title": "2"}]


@pytest.mark.parametrize("index", [0, None])
def test_rule_12_what_continues_the_second_of_such_calls_does_not_go_to_the_first(index):
    fragments = [
        fragment(index, "a", NAME, '{"title":"1"}'),
        fragment(index, "b", NAME, ""),
        fragment(index, "", "", '{"title":'),
        fragment(index, "", "", '"2"}'),
    ]
    stream = chunks(*(delta(tool_calls=[item]) for item in fragments), delta(finish="tool_calls"))
    asked = calls(exchange(CHAT, stream, STREAM))
    assert [item[1:] for item in asked] == [({"title": "1"}, "a"), ({"title": "2"}, "b")]


def test_rule_12_a_continuation_that_has_only_an_id_goes_to_the_call_of_that_id():
    fragments = [
        fragment(None, "a", NAME, '{"title":'),
        fragment(None, "b", NAME, '{"title":'),
        fragment(None, "a", None, '"1"}'),
        fragment(None, "b", None, '"2"}'),
    ]
    stream = chunks(*(delta(tool_calls=[item]) for item in fragments), delta(finish="tool_calls"))
    assert [item[1] for item in calls(exchange(CHAT, stream, STREAM))] == [{"title": "1"}, {"title": "2"}]


def test_rule_12_a_name_that_comes_with_every_fragment_is_one_call():
    fragments = [fragment(0, "a", NAME, part) for part in ('{"title":', '"x"}', "")]
    stream = chunks(*(delta(tool_calls=[item]) for item in fragments), delta(finish="tool_calls"))
    assert calls(exchange(CHAT, stream, STREAM)) == [("calendar:create-event", {"title": "x"}, "a")]


@pytest.mark.parametrize("empty", [[], None])
def test_rule_12_an_empty_list_is_no_request(empty):
    assert exchange(CHAT, chat("Hi.", calls=empty)).status == "reply"


@pytest.mark.parametrize("arguments", [None, "", " "])
def test_rule_12_absent_arguments_are_an_empty_object(arguments):
    assert exchange(CHAT, chat(None, calls=[call(arguments=arguments)])).requested_tools[0].input == {}


def test_rule_12_missing_and_repeated_ids_become_distinct_ones():
    sent = [call(call_id="call_1"), call(call_id="call_1"), call(call_id=None), call(call_id="")]
    ids = [item[2] for item in calls(exchange(CHAT, chat(None, calls=sent)))]
    assert ids[0] == "call_1"
    assert len(set(ids)) == 4


@pytest.mark.parametrize("finish", ["stop", "", None, "tool_calls", "surprise"])
def test_rule_13_tool_calls_decide_not_the_finish_reason(finish):
    assert exchange(CHAT, chat(None, finish, [call()])).status == "tool_request"


@pytest.mark.parametrize(
    ("kind", "answer", "reason"),
    [
        (CHAT, chat("part", "length", [call()]), "length"),
        (CHAT, chat("part", "content_filter", [call()]), "content_filter"),
        (CHAT, chat(None, "stop", [call()], refusal="No."), "refusal"),
        (MESSAGES, message(text("part"), use(), stop="max_tokens"), "max_tokens"),
        (MESSAGES, message(use(), stop="refusal"), "refusal"),
        (MESSAGES, message(use(), stop="model_context_window_exceeded"), "model_context_window_exceeded"),
    ],
)
def test_rule_13_on_a_cut_answer_nothing_runs(kind, answer, reason):
    output = exchange(kind, answer)
    assert (output.status, output.requested_tools, output.finish_reason) == ("escalate", (), reason)


def test_rule_13_a_cut_json_answer_that_asks_for_a_tool_runs_nothing():
    said = json.dumps({"status": "tool_request", "intent": "i", "requested_tool": {"name": "a", "input": {}}})
    for mode in ("native", "prompt"):
        output = exchange(CHAT, chat(said, "length"), tool_mode=mode)
        assert (output.status, output.requested_tools) == ("escalate", ())


@pytest.mark.parametrize(
    "arguments",
    ["[1]", "null", '"x"', '{"a":NaN}', '{"a":Infinity}', '{"a":1e999}', '{"a":', "{'a':1}", 3, ["x"]],
)
def test_rule_14_arguments_that_are_no_sound_object_are_refused(arguments):
    with pytest.raises(ProviderError) as failed:
        exchange(CHAT, chat(None, calls=[call(arguments=arguments)]))
    assert failed.value.code == ErrorCode.PROVIDER_MALFORMED_RESPONSE


@pytest.mark.parametrize("pieces", [['{"title":"x'], ['{"a":NaN}'], ["[]"]])
def test_rule_14_streamed_inputs_that_are_no_sound_object_are_refused(pieces):
    deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in pieces]
    stream = named(started(), *block(0, use(given={}), *deltas), *stopped("tool_use"))
    with pytest.raises(ProviderError) as failed:
        exchange(MESSAGES, stream, STREAM)
    assert failed.value.code == ErrorCode.PROVIDER_MALFORMED_RESPONSE


def test_streamed_inputs_of_messages_are_put_together():
    deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in ("", '{"title":', '"x"}')]
    stream = named(
        started(), {"type": "ping"}, {"type": "news"}, *block(0, text("")), *block(1, use(given={}), *deltas),
        *block(2, use(given={}, call_id="u2")), *stopped("tool_use"),
    )  # fmt: skip
    assert [item[1:] for item in calls(exchange(MESSAGES, stream, STREAM))] == [
        ({"title": "x"}, "u1"),
        ({}, "u2"),
    ]


def test_a_tool_that_was_not_offered_is_returned_as_it_is():
    assert exchange(CHAT, chat(None, calls=[call("rm_rf")])).requested_tools[0].name == "rm_rf"


# --- meaning ----------------------------------------------------------------------------------------


def test_rule_15_reasoning_is_kept_apart_from_what_is_said():
    thought = {"type": "thinking", "thinking": "secret plan", "signature": "s"}
    output = exchange(MESSAGES, message(thought, text("Hi.")))
    assert (output.assistant_message, output.reasoning) == ("Hi.", (thought,))
    assert exchange(CHAT, chat("Hi.", reasoning_content="plan")).assistant_message == "Hi."
    parts = [{"type": "reasoning", "text": "plan"}, {"type": "text", "text": "Hi."}]
    assert exchange(CHAT, chat(parts)).assistant_message == "Hi."


def test_rule_15_streamed_thinking_is_kept_with_its_signature():
    deltas = [{"type": "thinking_delta", "thinking": "hm"}, {"type": "signature_delta", "signature": "sig"}]
    start = {"type": "thinking", "thinking": "", "signature": ""}
    stream = named(started(), *block(0, start, *deltas), *block(1, text("Hi.")), *stopped("end_turn"))
    assert exchange(MESSAGES, stream, STREAM).reasoning == (
        {"type": "thinking", "thinking": "hm", "signature": "sig"},
    )


def test_rule_15_the_providers_own_tools_are_not_ours():
    other = {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}
    assert exchange(MESSAGES, message(other, text("Hi."))).status == "reply"


@pytest.mark.parametrize("stop", ["pause_turn", "model_context_window_exceeded", "something_new"])
def test_rule_15_unknown_stop_reasons_do_not_read_as_complete(stop):
    assert exchange(MESSAGES, message(text("Hm"), stop=stop)).status == "escalate"
    assert exchange(CHAT, chat("Hm", stop)).status == "escalate"


def test_rule_16_usage_is_replaced_not_added_and_cache_tokens_stay_apart():
    stream = named(
        started(input_tokens=10, output_tokens=1, cache_read_input_tokens=5),
        *block(0, text("Hi.")),
        *stopped("end_turn", output_tokens=7),
    )
    assert dict(exchange(MESSAGES, stream, STREAM).usage) == {
        "input_tokens": 10, "output_tokens": 7, "cache_read_input_tokens": 5,
    }  # fmt: skip
    last = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}}
    chat_stream = chunks(delta(content="Hi") | {"usage": {"prompt_tokens": 3}}, delta(finish="stop"), last)
    assert dict(exchange(CHAT, chat_stream, STREAM).usage) == {
        "input_tokens": 3, "output_tokens": 4, "total_tokens": 7,
    }  # fmt: skip


def test_rule_16_usage_may_be_absent():
    assert "usage" not in exchange(CHAT, chat()).to_json()


@pytest.mark.parametrize("said", ["a\0b", "\ud800", "\udc00x\ud83d"])
def test_rule_18_nul_and_lone_surrogates_survive(said):
    assert exchange(CHAT, chat(said)).assistant_message == said
    assert exchange(CHAT, chunks(delta(content=said), delta(finish="stop")), STREAM).assistant_message == said
    arguments = json.dumps({"title": said})
    assert exchange(CHAT, chat(None, calls=[call(arguments=arguments)])).requested_tools[0].input == {
        "title": said
    }


def test_rule_18_a_surrogate_pair_cut_between_two_deltas_is_one_character_again():
    pieces = ("a\ud83d", "\ude00b")
    stream = chunks(*(delta(content=piece) for piece in pieces), delta(finish="stop"))
    assert exchange(CHAT, stream, STREAM).assistant_message == "a😀b"
    deltas = [{"type": "text_delta", "text": piece} for piece in pieces]
    stream = named(started(), *block(0, text(""), *deltas), *stopped("end_turn"))
    assert exchange(MESSAGES, stream, STREAM).assistant_message == "a😀b"


@pytest.mark.parametrize("body", [chat(None), message()])
def test_an_answer_that_says_nothing_is_an_empty_reply(body):
    kind = CHAT if "choices" in body else MESSAGES
    assert exchange(kind, body).assistant_message == ""


def test_an_error_as_a_whole_body_under_http_200_is_an_error():
    with pytest.raises(ProviderError) as failed:
        exchange(CHAT, {"error": {"message": "no capacity", "code": 502}})
    assert failed.value.details == {"provider_message": "no capacity"}
    with pytest.raises(ProviderError, match="overloaded"):
        exchange(MESSAGES, {"type": "error", "error": {"type": "overloaded_error", "message": "overloaded"}})


def test_a_deeply_nested_answer_is_malformed_not_a_crash():
    said = '{"a":' * 100_000
    assert exchange(CHAT, chat(said)).assistant_message == said


def test_the_catalogue_is_left_alone():
    assert TOOL.input_schema == {
        "type": "object", "properties": {"title": {"type": "string"}}, "required": ["title"],
    }  # fmt: skip
