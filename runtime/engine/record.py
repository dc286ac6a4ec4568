"""What follows from the end of a step: receipts, messages, next steps, the end of a node.

Every function adds to one `Change`; the caller commits it under the fence and then publishes the hints.
"""

from __future__ import annotations

import json
from typing import Any

from runtime.core.canonical import canonical_json
from runtime.core.chain import Content, extend_transcript
from runtime.core.lifecycle import StepEvent
from runtime.core.messages import create_tool_result_message
from runtime.core.model import TURN_TOOL, NodeStatus, StepKind, StepStatus, ToolOutput
from runtime.core.text import storable
from runtime.engine.ends import end_node, suspend_node
from runtime.engine.outcome import CallResult, Outcome
from runtime.engine.publishing import REPUBLISH_MS, hint_of, step_hint
from runtime.engine.recording import Recording
from runtime.live.hints import AdvanceHint, Carrier, ChordHint, StepHint
from runtime.store.ids import step_id
from runtime.store.rows import message_row, step_row
from runtime.store.steps import LoadedStep
from runtime.store.tables import MessageRow, StepRow

# --- turns ----------------------------------------------------------------------------------------


def record_turn(recording: Recording, outcome: Outcome, queue_of: Any, *, signalled: bool = False) -> None:
    """Record a turn that answered: its tool calls become steps, or its node ends.

    Args:
        recording: What to add to.
        outcome: What the model said.
        queue_of: The queue of a tool, by its name.
        signalled: Whether the node's inbox holds messages that this turn did not see: then the turn that
            would have ended the node is followed by another one.
    """
    step = recording.step
    inputs = [Content.of(call.input) for call in outcome.calls]
    text = canonical_json(_assistant_message(outcome, step))
    recording.contents.extend(inputs)
    recording.change.insert(MessageRow, [message_row(step.node_uid, step.messages_before, "assistant", text)])
    answers = not outcome.calls or step.mode == "turn"
    ends = answers and not signalled
    recording.end(
        StepEvent.SUCCEED,
        StepStatus.SUCCEEDED,
        outcome,
        output=canonical_json(outcome.output.data),
        propagated=not ends or not recording.plan.more,
    )
    if ends:
        end_node(
            recording,
            NodeStatus.COMPLETED,
            "branch_completed",
            result=outcome.output.data,
            turns=step.turn_index + 1,
            tool_calls=step.calls_before,
        )
        return
    digest, size = extend_transcript(step.transcript_digest, step.transcript_bytes, text)
    if answers:
        _go_on(recording, step.calls_before, step.messages_before + 1, digest, size)
        return
    rows = [
        _call_row(recording, outcome, index, content, queue_of, digest, size)
        for index, content in enumerate(inputs)
    ]
    calls = tuple(hint_of(row, step.priority) for row in rows)
    if len(rows) == 1:
        recording.hint(calls[0])
    else:
        rows.append(
            _next_turn_row(
                recording,
                step.turn_index + 1,
                status=StepStatus.PENDING,
                calls_before=step.calls_before + len(outcome.calls),
                messages_before=step.messages_before + 1 + len(outcome.calls),
                digest=digest,
                size=size,
                siblings=len(outcome.calls),
            )
        )
        _hint_calls(recording, calls, hint_of(rows[-1], step.priority))
    recording.change.insert(StepRow, rows)


def _hint_calls(recording: Recording, calls: tuple[StepHint, ...], then: StepHint) -> None:
    """Several calls and the turn after them are a chord, unless the turn has to wait for a resume."""
    if recording.step.turn_index + 1 < recording.step.turn_budget:
        recording.hint(ChordHint(calls, then))
        return
    for call in calls:
        recording.hint(call)


def record_turn_failure(recording: Recording, outcome: Outcome) -> None:
    """Record a turn that failed: it runs again later, or its node ends in error."""
    step = recording.step
    if outcome.retry_in_ms is not None:
        _retry(recording, outcome, outcome.retry_in_ms)
        return
    denied = outcome.result is CallResult.DENIED
    recording.end(
        StepEvent.DENY if denied else StepEvent.FAIL,
        StepStatus.DENIED if denied else StepStatus.FAILED,
        outcome,
        propagated=recording.plan.continues and not recording.plan.more,
    )
    end_node(
        recording,
        NodeStatus.ERROR,
        "error",
        error=outcome.output.error.model_dump() if outcome.output.error else None,
        turns=step.turn_index,  # a turn that failed is none that was made
        tool_calls=step.calls_before,
    )


def _retry(recording: Recording, outcome: Outcome, delay_ms: int) -> None:
    """Let the step run again when it is due; nobody waits for it."""
    recording.end(StepEvent.RETRY, StepStatus.READY, outcome, due_in_ms=delay_ms, reason="retry")
    if delay_ms == 0:
        recording.hint(step_hint(recording.step))


def _assistant_message(outcome: Outcome, step: LoadedStep) -> dict[str, Any]:
    message = dict(outcome.assistant_message or {"role": "assistant", "content": ""})
    if outcome.calls:
        message["tool_calls"] = [
            {
                "id": call_id(step.calls_before + index),
                "provider_id": call.provider_call_id,
                "name": call.name,
                "input": call.input,
            }
            for index, call in enumerate(outcome.calls)
        ]
    return message


def call_id(calls_before: int) -> str:
    """The id under which a node's n-th tool call is known to the model, n counted from 1."""
    return f"agent-runtime-tool-call-{calls_before + 1}"


def _call_row(
    recording: Recording,
    outcome: Outcome,
    index: int,
    content: Content,
    queue_of: Any,
    digest: str,
    size: int,
) -> dict[str, Any]:
    step, name = recording.step, storable(outcome.calls[index].name)
    return step_row(
        id=step_id(step.node_uid, step.turn_index, index + 1),
        session_id=step.session_id,
        node_uid=step.node_uid,
        node_id=step.node_id,
        kind=StepKind.TOOL_CALL,
        turn_index=step.turn_index,
        call_index=index + 1,
        tool_name=name,
        queue=queue_of(name),
        due_at=recording.now,
        publish_at=recording.now + REPUBLISH_MS,
        cites=json.dumps([recording.chain.head]),
        input=content.text if content.inline else None,
        input_hash=content.hash,
        call_id=call_id(step.calls_before + index),
        calls_before=step.calls_before + index,
        messages_before=step.messages_before + 1,
        transcript_digest=digest,
        transcript_bytes=size,
        siblings=len(outcome.calls),
        inbox=step.taken,
        intent=None if outcome.intent is None else storable(outcome.intent),
    )


def _next_turn_row(
    recording: Recording,
    turn_index: int,
    *,
    status: StepStatus,
    calls_before: int,
    messages_before: int,
    digest: str,
    size: int,
    siblings: int = 1,
    cites: tuple[str, ...] = (),
) -> dict[str, Any]:
    step = recording.step
    return step_row(
        id=step_id(step.node_uid, turn_index, 0),
        session_id=step.session_id,
        node_uid=step.node_uid,
        node_id=step.node_id,
        kind=StepKind.TURN,
        turn_index=turn_index,
        call_index=0,
        tool_name=TURN_TOOL,
        queue="turns",
        status=status,
        due_at=recording.now,
        publish_at=recording.now + REPUBLISH_MS,
        cites=json.dumps(cites),
        calls_before=calls_before,
        messages_before=messages_before,
        transcript_digest=digest,
        transcript_bytes=size,
        siblings=siblings,
        inbox=step.taken,
    )


# --- tool calls -----------------------------------------------------------------------------------


def record_call(recording: Recording, outcome: Outcome) -> None:
    """Record a tool call that ended, well or not; the model is told in the next turn."""
    step = recording.step
    if outcome.retry_in_ms is not None:
        _retry(recording, outcome, outcome.retry_in_ms)
        return
    event, status = {
        CallResult.SUCCESS: (StepEvent.SUCCEED, StepStatus.SUCCEEDED),
        CallResult.DENIED: (StepEvent.DENY, StepStatus.DENIED),
    }.get(outcome.result, (StepEvent.FAIL, StepStatus.FAILED))
    data = outcome.output.data
    recording.end(
        event,
        status,
        outcome,
        output=canonical_json(data) if outcome.output.success else None,
        propagated=step.siblings == 1,
    )
    answer_model(recording, tool_result(step, outcome.output))


def tool_result(step: LoadedStep, output: ToolOutput) -> dict[str, Any]:
    """The tool message that tells the model what came of a call."""
    message = create_tool_result_message(
        tool_name=step.tool_name, tool_call_id=step.call_id or step.id, output=output
    )
    return dict(message)


def answer_model(recording: Recording, message: dict[str, Any]) -> None:
    """Append a call's message, and insert the next turn if this was the turn's sole call."""
    step = recording.step
    text = canonical_json(message)
    number = step.messages_before + step.call_index - 1
    recording.change.insert(MessageRow, [message_row(step.node_uid, number, "tool", text)])
    if step.siblings > 1:
        recording.hint(AdvanceHint(step.session_id), unless=Carrier.CHORD)
        return
    digest, size = extend_transcript(step.transcript_digest, step.transcript_bytes, text)
    _go_on(recording, step.calls_before + 1, number + 1, digest, size)


def _go_on(recording: Recording, calls_before: int, messages_before: int, digest: str, size: int) -> None:
    """Insert the turn that follows this step alone; it is ready unless the turn budget is used up."""
    step = recording.step
    suspends = step.turn_index + 1 >= step.turn_budget
    row = _next_turn_row(
        recording,
        step.turn_index + 1,
        status=StepStatus.PENDING if suspends else StepStatus.READY,
        calls_before=calls_before,
        messages_before=messages_before,
        digest=digest,
        size=size,
        cites=(recording.chain.head or "",),
    )
    recording.change.insert(StepRow, [row])
    if suspends:
        suspend_node(recording, calls_before)
    else:
        recording.hint(hint_of(row, step.priority))
