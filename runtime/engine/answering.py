"""What an answer does to the step that waits: it runs, perhaps with an edited input, or it is over."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from runtime.core.canonical import canonical_json
from runtime.core.chain import Chain, Content
from runtime.core.lifecycle import StepEvent
from runtime.core.messages import create_approval_resolution_message
from runtime.core.model import Driver, StepStatus, ToolOutput
from runtime.engine.calls import call_of, context_of
from runtime.engine.outcome import CallResult, Outcome
from runtime.engine.parts import Parts
from runtime.engine.publishing import REPUBLISH_MS, step_hint
from runtime.engine.record import answer_model, tool_result
from runtime.engine.recording import Recording, add_finish
from runtime.errors import ApprovalRefused, ErrorCode
from runtime.kernel.verdict import Call, Grant, VerdictKind
from runtime.live.hints import AdvanceHint, Hint
from runtime.store.approvals import Approval, find_approval
from runtime.store.steps import LoadedStep, load_step_in
from runtime.store.write import Change
from runtime.tools.run import checked_output

WAITS = "status IN ('waiting_approval', 'in_doubt')"


def waits_for(step: LoadedStep | None, approval: Approval) -> bool:
    """Whether a worker's step waits for this request; a host repeats its call by itself."""
    return step is not None and step.driver != Driver.HOST and step.approval_id == approval.request_id


# --- an edited call -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Edit:
    """A call that a person edited, as it was decided.

    Attributes:
        content: The edited input.
        digest: The digest of the edited call.
        seen: The digest that the request had when the edited call was decided.
    """

    content: Content
    digest: str
    seen: str


def decide_edit(parts: Parts, request_id: str, content: Content) -> Edit | None:
    """Decide an edited call as if it ran now under its grant; outside any transaction.

    Returns:
        The edit; ``None`` if the request does not wait any more.

    Raises:
        ApprovalRefused: If policy, scopes, limits or the tool's schema refuse the edited call, or the request
            is not about a call that can be edited.
    """
    with parts.database.reading() as connection:
        approval = find_approval(connection, request_id)
        step = load_step_in(connection, parts.database, approval.step_id, "") if approval else None
    if approval is None or step is None or approval.status != "pending":
        return None
    if approval.kind != "call" or step.is_turn:
        raise ApprovalRefused(
            f"approval request {request_id} is not about a call that can be edited; approve or deny it",
            code="not_editable",
        )
    call = replace(call_of(step, context_of(step)), input=json.loads(content.text))
    digest = parts.host.digest_of(call, request_id)
    grant = Grant(request_id, "approved", digest, approval.expires_at, None, binding=True)
    _refuse_edit(parts, replace(call, grant=grant), step)
    return Edit(content, digest, approval.digest)


def _refuse_edit(parts: Parts, call: Call, step: LoadedStep) -> None:
    if step.driver == Driver.HOST:  # what else it is decided on, the host brings along when it repeats it
        tool = parts.host.registry.get(call.tool_name)
        if tool is not None:
            tool.parse(call.input)
        return
    verdict = parts.host.decide(call)
    error = verdict.output.error if verdict.output is not None else None
    if verdict.kind is not VerdictKind.RUN and error is not None:
        raise ApprovalRefused(
            f"the edited call may not run: {error.message}; the request waits as it was",
            code=str(error.code).lower(),
            details=error.details,
        )


def refuse_changed(parts: Parts, approval: Approval, step: LoadedStep | None) -> None:
    """Refuse to approve a call whose tool is not what it was when the request was made.

    Raises:
        ApprovalRefused: If the digest is another one now.
    """
    if step is None or step.is_turn or parts.host.registry.get(step.tool_name) is None:
        return
    if parts.host.digest_of(call_of(step, context_of(step)), approval.request_id) != approval.digest:
        raise ApprovalRefused(
            f"the call of approval request {approval.request_id}, or its tool {step.tool_name}, is not what "
            "was asked for; deny it, and let the model ask again",
            code="action_digest_mismatch",
        )


# --- the step -------------------------------------------------------------------------------------


def let_run(step: LoadedStep, now: int, edit: Edit | None) -> tuple[Change, list[Hint]]:
    """Let the step run, with the edited input if there is one."""
    change = Change()
    edited, values = "", {}
    if edit is not None:
        edited = ", input = :input, input_hash = :hash"
        values = {"input": edit.content.text if edit.content.inline else None, "hash": edit.content.hash}
    change.guard(
        "UPDATE step SET status = 'ready', due_at = CAST(:now AS BIGINT), "
        f"publish_at = CAST(:publish AS BIGINT), reason = NULL{edited} WHERE id = :id AND {WAITS}",
        now=now,
        publish=now + REPUBLISH_MS,
        id=step.id,
        **values,
    )
    return change, [step_hint(step)]


def deny(
    parts: Parts, step: LoadedStep, approval: Approval, principal: str, reason: str | None, now: int
) -> tuple[Change, list[Hint]]:
    """End a call that may not run; the model is told so."""
    if approval.kind == "in_doubt":
        status, why = StepStatus.FAILED, "in_doubt"
        output = ToolOutput.failed(
            ErrorCode.TOOL_EXECUTION_FAILED,
            f"{step.tool_name} was cut off and is not run again; whether it took effect is unknown",
            {"reason": "in_doubt", "answered_by": principal},
        )
        message = tool_result(step, output)
    else:
        status, why = StepStatus.DENIED, "denied"
        message = dict(
            create_approval_resolution_message(
                request_id=approval.request_id, approved=False, approved_by=principal, reason=reason
            )
        )
    # The step's chain is left as it is: the answer is in the control chain.
    chain = Chain(step.id, step.fence, [step.head or ""], n=1)
    recording = Recording(step, chain, parts.database.now_sql, now, held=False)
    recording.change.guard(
        "UPDATE step SET status = :status, reason = :reason, propagated = :done, "
        f"finished_at = CAST(:now AS BIGINT) WHERE id = :id AND {WAITS}",
        status=status,
        reason=why,
        done=step.siblings == 1,
        now=now,
        id=step.id,
    )
    answer_model(recording, message)
    return recording.change, [step_hint(step), *recording.hints(), AdvanceHint(step.session_id)]


def respond(
    parts: Parts, step: LoadedStep, approval: Approval, principal: str, content: Content, now: int
) -> tuple[Change, list[Hint]]:
    """End a call with what a person supplies as its output; the tool does not run."""
    common = {
        "session_id": step.session_id,
        "node_id": step.node_id,
        "tool_name": step.tool_name,
        "request_id": approval.request_id,
        "answered_by": principal,
    }
    chain = Chain(step.id, step.fence + 1, step.chain_cites, common=common)
    recording = Recording(step, chain, parts.database.now_sql, now, held=False)
    outcome = Outcome(ToolOutput(success=True, data=json.loads(content.text)), CallResult.SUCCESS)
    add_finish(recording, outcome, [])
    recording.end(
        StepEvent.ANSWER,
        StepStatus.SUCCEEDED,
        outcome,
        reason="answered",
        output=canonical_json(outcome.output.data),
        propagated=step.siblings == 1,
    )
    answer_model(recording, tool_result(step, outcome.output))
    return recording.change, [*recording.hints(), AdvanceHint(step.session_id)]


def refuse_response(parts: Parts, approval: Approval, step: LoadedStep | None, content: Content) -> None:
    """Refuse a response that cannot stand for the call's output.

    Raises:
        ApprovalRefused: If no worker's tool call waits, or the tool does not promise such an output.
    """
    if step is None or step.is_turn or not waits_for(step, approval):
        raise ApprovalRefused(
            f"no tool call of a worker waits for approval request {approval.request_id}; deny it, and let "
            "whoever asked use the result",
            code="not_answerable",
        )
    tool = parts.host.registry.get(step.tool_name)
    if tool is None:
        return
    error = checked_output(tool, json.loads(content.text)).error
    if error is not None:
        raise ApprovalRefused(
            f"the response is no output of {step.tool_name}: {error.message}",
            code="invalid_output",
            details=error.details,
        )
