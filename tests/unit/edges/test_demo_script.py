"""The stand-in model answers the demo's story and the directives of tests, and says that it is no model."""

import json

from runtime.edges.demo.script import Line, next_line
from runtime.edges.demo.wire import FINGERPRINT, MODEL_NAME, chunks, completion

INTENTS = {"properties": {"agent_intent": {"enum": ["billing", "scheduling"]}}}


def user(text):
    return {"role": "user", "content": text}


def offer(*names, parameters=None):
    return [
        {"type": "function", "function": {"name": name, "parameters": parameters or {}}} for name in names
    ]


def after(message, result):
    """The messages of one answered turn."""
    answers = [
        {"role": "tool", "tool_call_id": call["id"], "content": json.dumps(result)}
        for call in message["tool_calls"]
    ]
    return [message, *answers]


def answer(messages, tools=()):
    return completion({"messages": messages, "tools": list(tools)})["choices"][0]["message"]


def called(message):
    return [(c["function"]["name"], json.loads(c["function"]["arguments"])) for c in message["tool_calls"]]


CALENDAR = {"success": True, "data": {"events": [{"id": "e7", "title": "Weekly review"}]}}
NAMES = ("calendar_list-events", "calendar_reschedule-event", "calendar_delete-event")


def test_the_review_is_moved_by_the_id_that_the_listing_told():
    messages = [user("Reschedule the weekly review, please: 2026-03-13T09:00:00Z")]
    listing = answer(messages, offer(*NAMES))
    assert called(listing) == [("calendar_list-events", {})]
    messages += after(listing, CALENDAR)
    moving = answer(messages, offer(*NAMES))
    assert called(moving) == [
        ("calendar_reschedule-event", {"event_id": "e7", "start": "2026-03-13T09:00:00Z"})
    ]
    messages += after(moving, {"success": True, "data": {"id": "e7"}})
    assert "now starts at 2026-03-13T09:00:00Z" in answer(messages)["content"]


def test_the_documents_first_prompt_asks_for_the_move_at_once():
    messages = [user("Reschedule the weekly review for tomorrow morning.")]
    moving = answer(messages, offer(NAMES[1]))
    assert called(moving) == [
        ("calendar_reschedule-event", {"event_id": "evt-review", "start": "2026-03-13T09:00:00Z"})
    ]
    done = answer([*messages, *after(moving, {"success": True, "data": {"id": "evt-review"}})])
    assert "now starts at 2026-03-13T09:00:00Z" in done["content"]
    refused = answer([*messages, *after(moving, {"success": False, "error": {"code": "POLICY_DENIED"}})])
    assert "could not be moved" in refused["content"]


def test_a_denied_deletion_is_told_as_such():
    event = {"id": "e1", "title": "Old planning call"}
    messages = [user("Write the hand-off.")]
    messages += after(answer(messages), {"events": [event]})
    asking = after(answer(messages), {"approval": {"request_id": "r", "approved": False}})
    failing = after(answer(messages), {"success": False, "error": {"code": "APPROVAL_REQUIRED"}})
    assert "not approved" in answer([*messages, *asking])["content"]
    assert "not approved" in answer([*messages, *failing])["content"]


def test_collecting_context_reads_each_day_in_one_turn():
    message = answer([user("Collect the scheduling constraints of 2026-03-12 and 2026-03-13.")])
    assert [arguments["day"] for _, arguments in called(message)] == ["2026-03-12", "2026-03-13"]


def test_the_scene_of_the_last_prompt_wins_over_the_context_before_it():
    prompts = [user("From reschedule-review: Reschedule the weekly review"), user("Write the hand-off.")]
    assert next_line(prompts).calls[0].name == "calendar:list-events"
    assert "Handed off" in next_line([*prompts, {"role": "assistant", "content": "x"}]).text


def test_directives_spell_out_one_turn_each():
    script = user('/call a:b {"x": 1}\n/call a:c\n/turn\n/say done')
    first = next_line([script])
    assert [(call.name, call.arguments) for call in first.calls] == [("a:b", {"x": 1}), ("a:c", {})]
    assert next_line([script, {"role": "assistant"}]) == Line("done")


def test_the_intent_that_the_schema_demands_is_filled_in():
    message = answer([user("/call calendar:list-events {}")], offer(NAMES[0], parameters=INTENTS))
    assert called(message) == [("calendar_list-events", {"agent_intent": "scheduling"})]


def test_a_tool_that_was_not_offered_is_asked_for_under_a_legal_name():
    assert called(answer([user("/call no:such-tool {}")])) == [("no_such-tool", {})]


def test_the_end_is_stated_in_the_form_that_the_instructions_ask_for():
    system = {"role": "system", "content": 'say {"assistant_message": text}\nIntents:\n- scheduling: Plan'}
    content = json.loads(answer([system, user("/say all done")])["content"])
    assert content == {"status": "complete", "intent": "scheduling", "assistant_message": "all done"}
    assert answer([system, user("/raw all done")])["content"] == "all done"


def test_the_same_request_gives_the_same_answer_labelled_as_no_model():
    request = {"model": "gpt", "messages": [user("/call a:b {}")]}
    assert completion(request) == completion(request)
    assert (completion(request)["model"], completion(request)["system_fingerprint"]) == (
        MODEL_NAME,
        FINGERPRINT,
    )


def test_a_stream_adds_up_to_the_whole_answer():
    request = {
        "messages": [user('/call a:b {"x": "long enough"}')],
        "stream_options": {"include_usage": True},
    }
    rows = [row.removeprefix(b"data: ").strip() for row in chunks(request)]
    assert rows.pop() == b"[DONE]"
    events = [json.loads(row) for row in rows]
    assert events.pop()["usage"] == completion(request)["usage"]
    calls = [call for event in events for call in event["choices"][0]["delta"].get("tool_calls", [])]
    whole = completion(request)["choices"][0]["message"]["tool_calls"][0]
    assert "".join(call["function"]["arguments"] for call in calls) == whole["function"]["arguments"]
    assert calls[0]["id"] == whole["id"]
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"
