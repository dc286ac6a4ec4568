"""Ends of an attempt that wait for a person: parked calls, calls in doubt, quarantined steps."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from runtime.core.canonical import canonical_json
from runtime.core.chain import Chain, Content
from runtime.core.control_check import REQUESTED
from runtime.core.lifecycle import StepEvent
from runtime.core.model import Driver, Effect, NodeStatus, StepStatus, ToolOutput
from runtime.core.quorum import Requirement
from runtime.engine.calls import call_of, context_of
from runtime.engine.notifying import announce
from runtime.engine.outcome import CallResult, Outcome
from runtime.engine.parts import Parts, worker_name
from runtime.engine.recording import Recording, add_finish
from runtime.engine.standing import answer_by_standing
from runtime.engine.testimony import testify
from runtime.errors import ErrorCode
from runtime.kernel.verdict import Verdict
from runtime.live.hints import AdvanceHint
from runtime.store import journal
from runtime.store.crashpoints import Transition
from runtime.store.grants import has_active_grants
from runtime.store.ids import new_id
from runtime.store.rows import continuation_row
from runtime.store.steps import LoadedStep
from runtime.store.tables import ApprovalRow, ContinuationRow


def park_step(parts: Parts, recording: Recording, verdict: Verdict, now: int) -> None:
    """Park a call until a person answers; nothing waits in a worker."""
    assert verdict.output is not None
    assert verdict.request_id is not None
    outcome = Outcome(verdict.output, CallResult.DENIED)
    asked = _state_rule(parts, recording, verdict.request_id, now)
    standing = recording.step.standing
    if recording.step.driver == Driver.HOST:  # which is not loaded as workers' steps are
        standing = has_active_grants(parts.database)
    add_finish(recording, outcome, list(verdict.decisions))
    recording.end(
        StepEvent.PARK, StepStatus.WAITING_APPROVAL, outcome,
        reason="approval_required", approval_id=verdict.request_id,
    )  # fmt: skip
    _ask(
        parts, recording, kind="call", request_id=verdict.request_id, digest=verdict.digest or "",
        input_text=verdict.input.text, decisions=list(verdict.decisions),
        message=verdict.output.error.message if verdict.output.error else "", now=now, asked=asked,
        standing=standing,
    )  # fmt: skip
    if _commit(parts, recording, verdict.request_id, Transition.PARK) and standing:
        answer_by_standing(parts, verdict.request_id)


def put_in_doubt(parts: Parts, recording: Recording, cut_off: Outcome) -> None:
    """Put a ``once`` call in doubt that was cut off; ask a person what to do.

    Args:
        parts: The parts of this process.
        recording: The record, by the holder of the step or by who takes it over.
        cut_off: How the call ended: its progress, its duration, and in its error the reason.
    """
    step, error = recording.step, cut_off.output.error
    assert error is not None
    message = (
        f"{step.tool_name} was cut off: {error.message}. Whether it took effect is unknown: "
        "check the target; to run it again may do it twice"
    )
    told = ToolOutput.failed(ErrorCode.TOOL_EXECUTION_FAILED, message, error.details)
    outcome = replace(cut_off, output=told)
    request_id = new_id("apr")
    asked = _state_rule(parts, recording, request_id, recording.now)
    add_finish(recording, outcome, [])
    recording.end(StepEvent.LOSE, StepStatus.IN_DOUBT, outcome, reason="in_doubt", approval_id=request_id)
    digest = parts.host.digest_of(call_of(step, context_of(step)), request_id)
    _ask(
        parts, recording, kind="in_doubt", request_id=request_id, digest=digest,
        input_text=step.input or "null", decisions=[], message=message, now=recording.now, asked=asked,
    )  # fmt: skip
    _commit(parts, recording, request_id, Transition.DOUBT)


def abandon_step(parts: Parts, step: LoadedStep, effect: Effect, now: int) -> None:
    """End a step of a cancelled session whose worker was lost; evidence says if its effect is unknown.

    Args:
        parts: The parts of this process.
        step: The step as it was loaded.
        effect: The tool's declared effect.
        now: The database's clock as loaded plus the time elapsed since.
    """
    recording = takeover(parts, step, now)
    doubtful = effect is Effect.ONCE
    outcome = Outcome(
        ToolOutput.failed(
            ErrorCode.TOOL_EXECUTION_FAILED,
            f"{step.tool_name} lost its worker, and its session was cancelled; it is not run again",
            {"reason": "in_doubt" if doubtful else "crashed", "cause": "worker_lost"},
        ),
        CallResult.IN_DOUBT if doubtful else CallResult.CRASHED,
    )
    add_finish(recording, outcome, [])
    # Unpropagated: should this process die before its advance, the sweep sends another one.
    recording.end(StepEvent.CANCEL, StepStatus.CANCELLED, outcome, reason="cancelled", propagated=False)
    if journal.apply(parts.database, recording.change, Transition.ABANDON):
        parts.live.announce(step.session_id, step.node_id, recording.receipts)


def takeover(parts: Parts, step: LoadedStep, now: int) -> Recording:
    """The record of a step whose holder was lost, under the fence after the holder's.

    Args:
        parts: The parts of this process.
        step: The step as it was loaded.
        now: The database's clock as loaded plus the time elapsed since.
    """
    common = {
        "session_id": step.session_id,
        "node_id": step.node_id,
        "tool_name": step.tool_name,
        "worker": worker_name(),
    }
    chain = Chain(step.id, step.fence + 1, step.chain_cites, common=common)
    recording = Recording(step, chain, parts.database.now_sql, now, held=False)
    crashed = {"result": CallResult.CRASHED, "of_fence": step.fence, "at": now}
    recording.receipts.append(recording.chain.add("tool_call_finished", crashed))
    return recording


def quarantine_step(parts: Parts, step: LoadedStep) -> None:
    """Take a step out of circulation that crashed its workers too often; a resume resets it."""
    chain = Chain(step.id, step.fence + 1, step.chain_cites, common={"session_id": step.session_id})
    recording = Recording(step, chain, parts.database.now_sql, step.now, held=False)
    outcome = Outcome(
        ToolOutput.failed(
            ErrorCode.TOOL_EXECUTION_FAILED,
            f"{step.tool_name} lost its worker {step.crashes + 1} times; mend it, then resume the session",
            {"reason": "quarantined", "crashes": step.crashes + 1},
        ),
        CallResult.CRASHED,
    )
    add_finish(recording, outcome, [])
    recording.end(StepEvent.QUARANTINE, StepStatus.QUARANTINED, outcome, reason="crashes")
    recording.change.update(
        "UPDATE node SET status = :status, reason = 'quarantined' WHERE uid = :uid",
        uid=step.node_uid,
        status=NodeStatus.SUSPENDED,
    )
    if journal.apply(parts.database, recording.change, Transition.QUARANTINE):
        parts.live.announce(step.session_id, step.node_id, recording.receipts)


def _state_rule(parts: Parts, recording: Recording, request_id: str, now: int) -> Requirement:
    """What the request asks of those who answer; evidence states it where it asks for something."""
    asked = parts.host.workspace.approvals.requirement_for(recording.step.tool_name)
    rule = asked.to_text()
    if rule is not None:
        fields = {"request_id": request_id, "at": now, **Content.of(json.loads(rule)).cited_as("rule")}
        recording.contents.append(Content.of(json.loads(rule)))
        recording.receipts.append(recording.chain.add(REQUESTED, fields))
    return asked


def _ask(
    parts: Parts,
    recording: Recording,
    *,
    kind: str,
    request_id: str,
    digest: str,
    input_text: str,
    decisions: list[Any],
    message: str,
    now: int,
    asked: Requirement,
    standing: bool = False,
) -> None:
    """Insert the question and mark the node as waiting."""
    step, tool_name = recording.step, recording.step.tool_name
    expires_at = _expiry(parts, tool_name, now)
    escalates = asked.escalate_after_ms
    recording.change.update(
        "UPDATE node SET status = :status, reason = :reason WHERE uid = :uid AND mode <> 'host'",
        uid=step.node_uid,
        status=NodeStatus.WAITING_APPROVAL,
        reason="in_doubt" if kind == "in_doubt" else None,
    )
    recording.change.insert(
        ApprovalRow,
        [
            {
                "id": request_id,
                "kind": kind,
                "session_id": step.session_id,
                "node_uid": step.node_uid,
                "node_id": step.node_id,
                "step_id": step.id,
                "tool_name": tool_name,
                "digest": digest,
                "input": input_text,
                "policy_decisions": canonical_json(decisions),
                "message": canonical_json(message),
                "principal": step.principal,
                "requested_at": now,
                "expires_at": expires_at,
                "rule": asked.to_text(),
                "standing": standing,
                "escalate_at": None if escalates is None else now + escalates,
            }
        ],
    )
    announce(
        parts, recording.change, "approval_requested", now, request_id=request_id, kind=kind,
        session_id=step.session_id, node_id=step.node_id, tool_name=tool_name, expires_at=expires_at,
        status="pending",
    )  # fmt: skip
    recording.change.insert(
        ContinuationRow,
        [continuation_row(step.session_id, "approval_required", now, step.node_id, request_id)],
    )


def _commit(parts: Parts, recording: Recording, request_id: str, transition: Transition) -> bool:
    if not journal.apply(parts.database, recording.change, transition):
        testify(parts, recording)
        return False
    step = recording.step
    expiry = _expiry(parts, step.tool_name, recording.now)
    parts.live.announce(step.session_id, step.node_id, recording.receipts, parked={request_id: expiry})
    parts.publisher.publish([AdvanceHint(step.session_id)])
    return True


def _expiry(parts: Parts, tool_name: str, now: int) -> int:
    return now + parts.host.workspace.approvals.expires_after_ms(tool_name)
