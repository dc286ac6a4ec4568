"""What follows from the end of a step: receipts, messages, next steps, the end of a node.

Every function adds to one `Change`; the caller commits it under the fence and then publishes the hints.
"""

from __future__ import annotations

import json
from collections.abc import Container
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from runtime.core.canonical import canonical_json
from runtime.core.canvas import NodePlan
from runtime.core.chain import Chain, Content, Receipt, extend_transcript
from runtime.core.lifecycle import StepEvent
from runtime.core.messages import create_tool_result_message
from runtime.core.model import TURN_TOOL, NodeStatus, StepKind, StepStatus, ToolOutput
from runtime.core.text import storable
from runtime.engine.outcome import CallResult, Outcome
from runtime.engine.publishing import REPUBLISH_MS, hint_of, hints_of, step_hint
from runtime.live.hints import AdvanceHint, Carrier, ChordHint, Hint, StepHint
from runtime.store.ids import step_id
from runtime.store.journal import LoadedStep, StepEnd, add_evidence, guard_record
from runtime.store.rows import continuation_row, message_row, step_row
from runtime.store.tables import ContinuationRow, MessageRow, StepRow
from runtime.store.write import Change


@dataclass
class Recording:
    """One record under construction.

    Attributes:
        step: The step as it was loaded.
        chain: The chain of the attempt that is recorded; its fence is the writer's.
        now_sql: SQL of the database's clock.
        now: The loaded clock plus the time elapsed since, for values that are rows.
        held: Whether this writer started the step and holds its fence.
        messages: Messages that belong to the transcript and that no start has written down.
        follow_ups: What to publish after the commit.
        ends_node: Whether the record ends its node, if the node's inbox has nothing new.
        kept: Whether it was committed.
    """

    step: LoadedStep
    chain: Chain
    now_sql: str
    now: int
    held: bool
    messages: tuple[dict[str, Any], ...] = ()
    change: Change = field(default_factory=Change)
    receipts: list[Receipt] = field(default_factory=list)
    contents: list[Content] = field(default_factory=list)
    follow_ups: list[tuple[Hint, Carrier | None]] = field(default_factory=list)
    ends_node: bool = False
    kept: bool = False

    def hint(self, hint: Hint, unless: Carrier | None = None) -> None:
        """Note what to publish after the commit, unless the step's own delivery brings it along."""
        self.follow_ups.append((hint, unless))

    def hints(self, carried: Container[Carrier] = ()) -> list[Hint]:
        """What to publish after the commit of a step that such a delivery brought."""
        return [hint for hint, unless in self.follow_ups if unless is None or unless not in carried]

    @cached_property
    def plan(self) -> NodePlan:
        """What the end of the step's node sets off."""
        return NodePlan.of(json.loads(self.step.plan))

    def end(self, event: StepEvent, status: StepStatus, outcome: Outcome, **values: Any) -> None:
        """Guard the step's row and write its end; receipts and blobs go with it."""
        error = outcome.output.error
        end = StepEnd(
            event=event,
            status=status,
            head=self.chain.head or self.step.head,
            error=canonical_json(error.model_dump()) if error else None,
            usage=canonical_json(outcome.usage) if outcome.usage else None,
            **values,
        )
        guard_record(self.change, self.step, self.chain.fence, end, self.now_sql, held=self.held)
        self.change.insert(MessageRow, self.messages, once=True)
        add_evidence(self.change, self.step.session_id, self.receipts, self.contents)


def add_finish(recording: Recording, outcome: Outcome, decisions: list[Any]) -> None:
    """Add the progress receipts and the finished receipt of an outcome."""
    for number, snapshot in enumerate(outcome.progress):
        content = Content.of(snapshot)
        recording.contents.append(content)
        recording.receipts.append(
            recording.chain.add("tool_call_progress", {"sequence": number, **content.cited_as("snapshot")})
        )
    fields: dict[str, Any] = {
        "result": outcome.result,
        "policy_decisions": decisions,
        "duration_ms": outcome.duration_ms,
        "artifacts_written": [],
        "at": recording.now,
    }
    if outcome.output.success and outcome.output.data is not None:
        content = Content.of(outcome.output.data)
        recording.contents.append(content)
        fields |= content.cited_as("output")
    if outcome.output.error is not None:
        content = Content.of(outcome.output.error.model_dump())
        recording.contents.append(content)
        fields |= content.cited_as("error")
    if outcome.usage:
        fields["usage"] = outcome.usage
    if outcome.reconciled is not None:
        fields["reconciled"] = outcome.reconciled
    recording.receipts.append(recording.chain.add("tool_call_finished", fields))


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


def suspend_node(recording: Recording, tool_calls: int) -> None:
    """Suspend a node whose turn budget is used up; its next turn stays pending until a resume."""
    step = recording.step
    recording.change.update(
        "UPDATE node SET status = :status, reason = 'max_turns', turns = :turns, tool_calls = :calls "
        "WHERE uid = :uid",
        uid=step.node_uid,
        status=NodeStatus.SUSPENDED,
        turns=step.turn_index + 1,
        calls=tool_calls,
    )
    recording.change.insert(
        ContinuationRow,
        [continuation_row(step.session_id, "suspended", recording.now, step.node_id)],
    )
    recording.hint(AdvanceHint(step.session_id))


# --- shared ---------------------------------------------------------------------------------------


def end_node(
    recording: Recording,
    status: NodeStatus,
    continuation: str,
    *,
    turns: int,
    tool_calls: int,
    result: Any = None,
    error: Any = None,
) -> None:
    """End the step's node, satisfy the edges that leave it, and ask for an advance."""
    step = recording.step
    recording.ends_node = status is NodeStatus.COMPLETED
    recording.change.guard(
        "UPDATE node SET status = :status, reason = NULL, result = :result, error = :error, turns = :turns, "
        "tool_calls = :calls, head = :head, deadline_at = NULL WHERE uid = :uid"
        + (" AND inbox = :taken" if recording.ends_node else ""),
        uid=step.node_uid,
        status=status,
        result=None if result is None else canonical_json(result),
        error=None if error is None else canonical_json(error),
        turns=turns,
        calls=tool_calls,
        head=recording.chain.head,
        **({"taken": step.taken} if recording.ends_node else {}),
    )
    plan = recording.plan
    goes_on = status is NodeStatus.COMPLETED or plan.continues
    recording.change.update(
        "UPDATE edge SET satisfied = :yes WHERE depends_on_uid = :uid" + ("" if goes_on else " AND on_end"),
        uid=step.node_uid,
        yes=True,
    )
    recording.change.insert(
        ContinuationRow,
        [continuation_row(step.session_id, continuation, recording.now, step.node_id)],
    )
    if goes_on and plan.promotes:
        _promote(recording)
    if plan.more or not goes_on:
        recording.hint(AdvanceHint(step.session_id), unless=Carrier.CHORD if plan.join and goes_on else None)


def _promote(recording: Recording) -> None:
    """Make ready what depends on this node alone."""
    step, plan = recording.step, recording.plan
    alone = "(SELECT e.node_uid FROM edge e WHERE e.depends_on_uid = :uid AND e.sole)"
    recording.change.update(
        "UPDATE step SET status = 'ready', cites = :cites, due_at = CAST(:now AS BIGINT), "
        "publish_at = CAST(:publish AS BIGINT) "
        f"WHERE status = 'pending' AND turn_index = 0 AND call_index = 0 AND node_uid IN {alone}",
        uid=step.node_uid,
        cites=json.dumps([recording.chain.head]),
        now=recording.now,
        publish=recording.now + REPUBLISH_MS,
    )
    recording.change.update(
        f"UPDATE node SET status = 'ready' WHERE status = 'pending' AND uid IN {alone}", uid=step.node_uid
    )
    chained = len(plan.promotes) == 1 and not plan.more
    for hint in hints_of(step.session_id, plan.sets_off, step.priority):
        recording.hint(hint, unless=Carrier.CHAIN if chained else None)
