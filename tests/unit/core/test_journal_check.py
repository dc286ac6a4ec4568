"""A row that does not fit the receipts it rests on is found, whatever is wrong with it."""

import dataclasses

import pytest

from runtime.core.canonical import canonical_json
from runtime.core.chain import Chain, Content, text_hash
from runtime.core.journal_check import (
    Manifest,
    NodeCheck,
    RecordedNode,
    RecordedStep,
    Transcript,
    node_problem,
    step_problem,
)

OUTPUT = {"status": "reply", "intent": None, "assistant_message": "Done."}
TEXTS = {"input": None, "output": canonical_json(OUTPUT), "error": None, "usage": '{"total":3}'}


def turn(**values) -> RecordedStep:
    """A turn that succeeded, beside its receipts."""
    chain = Chain("n.0.0", 1, [])
    started = chain.add("tool_call_started", {})
    fields = {"result": "success", "usage": {"total": 3}, **Content.of(OUTPUT).cited_as("output")}
    finished = chain.add("tool_call_finished", fields)
    step = RecordedStep(
        id="n.0.0",
        kind="turn",
        turn_index=0,
        call_index=0,
        fence=1,
        status="succeeded",
        head=finished.hash,
        input_hash=None,
        texts=TEXTS,
        messages_before=1,
        transcript_digest="",
        last=finished,
        started=started.body,
    )
    return dataclasses.replace(step, **values)


def test_a_step_that_says_what_its_receipt_says_fits():
    assert step_problem(turn()) is None


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"texts": {**TEXTS, "output": "{}"}}, "stored output"),
        ({"texts": {**TEXTS, "output": None}}, "stored output"),
        ({"texts": {**TEXTS, "error": "{}"}}, "stored error"),
        ({"texts": {**TEXTS, "usage": '{"total":4}'}}, "stored usage"),
        ({"texts": {**TEXTS, "input": "1"}, "input_hash": text_hash("2")}, "stored input"),
        ({"status": "failed"}, "it is 'failed'"),
        ({"fence": 2}, "its fence is 2"),
        ({"last": None}, "is missing"),
        ({"head": None, "last": None}, "in no receipt"),
    ],
)
def test_a_step_that_says_something_else_is_named(values, says):
    problem = step_problem(turn(**values))
    assert problem.entry == "n.0.0"
    assert says in problem.reason


def test_what_a_running_step_holds_of_an_earlier_attempt_counts_for_nothing():
    started = Chain("n.0.0", 2, []).add("tool_call_started", {})
    assert step_problem(turn(fence=2, head=started.hash, last=started, status="running")) is None


def test_an_output_of_null_is_in_no_receipt_and_fits():
    finished = Chain("n.0.0", 1, []).add("tool_call_finished", {"result": "success"})
    texts = {**TEXTS, "output": "null", "usage": None}
    assert step_problem(turn(head=finished.hash, last=finished, texts=texts)) is None


@pytest.mark.parametrize(("result", "fits"), [(TEXTS["output"], True), (None, False), ("{}", False)])
def test_a_nodes_result_is_the_output_of_its_last_call(result, fits):
    node = RecordedNode("u", "plan", "completed", turn().head, result, None, turn().last)
    assert (node_problem(node) is None) is fits


def test_a_node_that_goes_on_has_no_result_again():
    node = RecordedNode("u", "plan", "running", turn().head, None, None, turn().last)
    assert node_problem(node) is None


@pytest.mark.parametrize("status", ["completed", "error"])
def test_a_node_that_no_receipt_ended_is_not_over(status):
    assert (
        "no receipt says so" in node_problem(RecordedNode("u", "plan", status, None, None, None, None)).reason
    )


@pytest.mark.parametrize(
    ("kind", "body", "says"),
    [
        ("tool_call_finished", {"result": "success"}, "completed"),
        ("tool_call_finished", {"result": "denied"}, "error"),
        ("group_joined", {"output_hash": text_hash("[]")}, "completed"),
        ("group_joined", {"error_hash": text_hash("{}")}, "error"),
        ("node_copied", {"status": "error"}, "error"),
        ("session_forked", {}, None),
    ],
)
def test_a_nodes_end_is_what_its_last_receipt_says(kind, body, says):
    last = Chain("n.0.0", 1, []).add(kind, body)
    for status in ("completed", "error"):
        node = RecordedNode("u", "plan", status, last.hash, "[]", "{}", last)
        problem = node_problem(node)
        assert (problem is not None and repr(says) in problem.reason) is (status != says)


MESSAGES = [canonical_json({"role": "user", "content": word}) for word in ("one", "two", "three")]


def manifest(*texts):
    digest = ""
    for each in texts:
        digest = text_hash(digest + each)
    return Manifest(digest, len(texts), sum(len(each.encode()) for each in texts))


def transcript(*texts, first=0):
    return Transcript("plan", iter(list(enumerate(texts, first))))


def test_a_transcript_fits_what_each_turn_sent():
    found = transcript(*MESSAGES)
    assert found.sent(manifest(*MESSAGES[:1])) is None
    assert found.sent(manifest(*MESSAGES)) is None
    assert found.sent(manifest(*MESSAGES)) is None, "a turn that runs again sends the same"


def test_the_messages_since_the_last_turn_that_fitted_are_named():
    found = transcript(MESSAGES[0], MESSAGES[1], "changed")
    assert found.sent(manifest(*MESSAGES[:1])) is None
    assert found.sent(manifest(*MESSAGES)).entry == "messages 1 to 2 of node plan"


@pytest.mark.parametrize("stored", [MESSAGES[:2], MESSAGES[1:], []])
def test_a_message_that_is_gone_is_noticed(stored):
    assert transcript(*stored).sent(manifest(*MESSAGES)) is not None


def check(*texts, first=0):
    node = RecordedNode("u", "plan", "running", None, None, None, None)
    return NodeCheck(node, transcript(*texts, first=first))


def test_a_refused_first_turn_may_lack_the_context_that_is_stored_with_a_start():
    finished = Chain("n.0.0", 1, []).add("tool_call_finished", {"result": "denied"})
    refused = turn(
        status="denied",
        head=finished.hash,
        last=finished,
        texts=dict.fromkeys(TEXTS),
        transcript_digest=manifest(MESSAGES[1]).digest,
    )
    assert check(MESSAGES[1], first=1).step(refused, manifest(*MESSAGES[:2])) is None
    assert check(MESSAGES[2], first=1).step(refused, manifest(*MESSAGES[:2])) is not None


ANSWER = {"role": "assistant", "content": "Done."}


@pytest.mark.parametrize(
    ("answer", "fits"),
    [
        (canonical_json(ANSWER), True),
        (canonical_json({**ANSWER, "reasoning": [{"opaque": 1}]}), True),
        (canonical_json({**ANSWER, "content": "Undone."}), False),
        (canonical_json({**ANSWER, "more": 1}), False),
        (canonical_json({**ANSWER, "tool_calls": [{"name": "x", "input": {}}]}), False),
        (canonical_json(ANSWER) + " ", False),
        (canonical_json({**ANSWER, "role": "user"}), False),
    ],
)
def test_the_last_answer_is_what_its_turns_output_makes_it(answer, fits):
    found = check(MESSAGES[0], answer)
    assert found.step(turn(), manifest(MESSAGES[0])) is None
    assert (found.end() is None) is fits


def test_host_driven_turns_have_no_messages_to_compare():
    found = check()
    assert found.step(turn(), None) is None
    assert found.end() is None
