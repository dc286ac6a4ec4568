"""Answering approval requests: one answer wins, and moves the step in the same transaction."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass

from sqlalchemy import Connection

from runtime.core.canonical import canonical_json
from runtime.core.chain import Chain, Receipt
from runtime.core.messages import create_approval_resolution_message
from runtime.core.model import StepStatus, ToolOutput
from runtime.core.text import check_name
from runtime.engine.parts import Parts
from runtime.engine.publishing import REPUBLISH_MS, step_hint
from runtime.engine.record import answer_model, tool_result
from runtime.engine.recording import Recording
from runtime.errors import ApprovalRefused, ErrorCode, InvalidInput
from runtime.live.hints import AdvanceHint, Hint
from runtime.store.approvals import Approval, find_approval
from runtime.store.crashpoints import Transition
from runtime.store.sessions import StoredSession, add_control_receipt, lock_session_of
from runtime.store.steps import LoadedStep, load_step_in
from runtime.store.tables import ApprovalVoteRow
from runtime.store.write import Change

ESTABLISHED_BY = ("asserted", "os-user", "http-auth")
"""How it may be known who answers: said by the caller, the system's user, or who logged in."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a person says to a request.

    Attributes:
        request_id: The request.
        approved: Whether the call may run.
        principal: Who answers.
        established_by: How that is known: one of `ESTABLISHED_BY`, or ``kernel`` for its own answers.
        reason: Why, in the person's words.
    """

    request_id: str
    approved: bool
    principal: str
    established_by: str
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Resolution:
    """The stored answer."""

    request_id: str
    approved: bool
    approved_by: str
    reason: str | None
    session_id: str
    tool_name: str


def os_user() -> str:
    """The operating system's user, as the command line identifies people; the environment is not asked."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def resolve(parts: Parts, answer: Answer) -> Resolution:
    """Answer a request; the first answer wins.

    Raises:
        ApprovalRefused: If there is no such request, or it was answered, has expired or was cancelled;
            nothing changes, and the message says who answered.
        InvalidInput: If the answer does not say which request, whether, who, or how that is known.
    """
    _check(answer)
    with parts.database.writing(Transition.RESOLVE) as connection:
        session = lock_session_of(parts.database, connection, answer.request_id)
        approval = find_approval(connection, answer.request_id)
        if session is None or approval is None:
            raise ApprovalRefused(
                f"there is no approval request {answer.request_id!r}; see 'agent-runtime approvals list'",
                code="not_found",
            )
        _refuse_late(approval, session)
        status = "approved" if answer.approved else "denied"
        receipt, hints = _write_answer(parts, connection, session, approval, answer, status)
    _tell(parts, approval, receipt, hints)
    return Resolution(
        approval.request_id,
        answer.approved,
        answer.principal,
        answer.reason,
        approval.session_id,
        approval.tool_name,
    )


def _tell(parts: Parts, approval: Approval, receipt: Receipt, hints: list[Hint]) -> None:
    parts.publisher.publish(hints)  # first, since the call waits for it
    parts.live.announce(approval.session_id, approval.node_id, [receipt], resolved=[approval.request_id])


def _check(answer: Answer) -> None:
    check_name("request_id", answer.request_id)
    check_name("approved_by", answer.principal)
    if not isinstance(answer.approved, bool):
        raise InvalidInput(f"approved is of type {type(answer.approved).__name__}; give True or False")
    if answer.established_by not in ESTABLISHED_BY:
        raise InvalidInput(
            f"established_by is {str(answer.established_by)[:40]!r}; give one of {', '.join(ESTABLISHED_BY)}"
        )


def _refuse_late(approval: Approval, session: StoredSession) -> None:
    if approval.status != "pending":
        said = f" by {approval.resolved_by}" if approval.resolved_by else ""
        code = {"expired": "expired", "cancelled": "cancelled"}.get(approval.status, "already_resolved")
        raise ApprovalRefused(
            f"approval request {approval.request_id} was already {approval.status}{said}",
            code=code,
            details={"status": approval.status, "resolved_by": approval.resolved_by},
        )
    if approval.expires_at <= session.now:
        raise ApprovalRefused(
            f"approval request {approval.request_id} has expired; the call is denied by default",
            code="expired",
        )
    if session.cancelled_at is not None:
        raise ApprovalRefused(
            f"session {session.id!r} was cancelled, so {approval.request_id} can no longer be answered",
            code="cancelled",
        )


def _write_answer(
    parts: Parts,
    connection: Connection,
    session: StoredSession,
    approval: Approval,
    answer: Answer,
    status: str,
) -> tuple[Receipt, list[Hint]]:
    """Write an answer and move the step that waits, in one change; its receipt, and what to publish."""
    step = load_step_in(connection, parts.database, approval.step_id, "")
    change, hints = _move_step(parts, step, approval, answer, session.now)
    receipt = _add_answer(change, session, approval, answer, status)
    if not change.apply(connection):
        raise ApprovalRefused(
            f"the call of approval request {approval.request_id} no longer waits", code="already_resolved"
        )
    return receipt, hints


def _move_step(
    parts: Parts, step: LoadedStep | None, approval: Approval, answer: Answer, now: int
) -> tuple[Change, list[Hint]]:
    """Let the step run, or tell the model that it may not."""
    if step is None or step.driver == "host" or step.approval_id != approval.request_id:
        return Change(), []  # nothing waits: a host repeats its call by itself
    hints: list[Hint] = [step_hint(step)]
    change = Change()
    if answer.approved:
        _let_run(change, step, now)
    else:
        recording = _denied(parts, step, approval, answer, now)
        change, hints = recording.change, [*recording.hints(), AdvanceHint(step.session_id)]
    _node_runs_on(change, approval)
    return change, hints


def _add_answer(
    change: Change, session: StoredSession, approval: Approval, answer: Answer, status: str
) -> Receipt:
    said = {"principal": answer.principal, "established_by": answer.established_by, "at": session.now}
    reason = None if answer.reason is None else canonical_json(answer.reason)
    change.guard(
        "UPDATE approval SET status = :status, resolved_at = CAST(:now AS BIGINT), resolved_by = :by, "
        "reason = :reason WHERE id = :id AND status = 'pending'",
        status=status,
        now=session.now,
        by=answer.principal,
        reason=reason,
        id=approval.request_id,
    )
    vote = {"approval_id": approval.request_id, "approved": answer.approved, "reason": reason, **said}
    change.insert(ApprovalVoteRow, [vote])
    fields = {
        "request_id": approval.request_id,
        "status": "approved" if answer.approved else "denied",
        "digest": approval.digest,
        "tool_name": approval.tool_name,
        "step_id_asked": approval.step_id,
        "reason": answer.reason,
        **said,
    }
    return add_control_receipt(change, session, "approval_resolved", fields)


_WAITS = "status IN ('waiting_approval', 'in_doubt')"


def _let_run(change: Change, step: LoadedStep, now: int) -> None:
    change.guard(
        "UPDATE step SET status = 'ready', due_at = CAST(:now AS BIGINT), "
        f"publish_at = CAST(:publish AS BIGINT), reason = NULL WHERE id = :id AND {_WAITS}",
        now=now,
        publish=now + REPUBLISH_MS,
        id=step.id,
    )


def _node_runs_on(change: Change, approval: Approval) -> None:
    change.update(
        "UPDATE node SET status = 'running', reason = NULL WHERE uid = :uid AND mode <> 'host' "
        f"AND NOT EXISTS (SELECT 1 FROM step s WHERE s.node_uid = node.uid AND s.id <> :step AND s.{_WAITS})",
        uid=approval.node_uid,
        step=approval.step_id,
    )


def _denied(parts: Parts, step: LoadedStep, approval: Approval, answer: Answer, now: int) -> Recording:
    """The record of a call that may not run; the model is told so."""
    if approval.kind == "in_doubt":
        status, reason = StepStatus.FAILED, "in_doubt"
        output = ToolOutput.failed(
            ErrorCode.TOOL_EXECUTION_FAILED,
            f"{step.tool_name} was cut off and is not run again; whether it took effect is unknown",
            {"reason": "in_doubt", "answered_by": answer.principal},
        )
        message = tool_result(step, output)
    else:
        status, reason = StepStatus.DENIED, "denied"
        message = create_approval_resolution_message(
            request_id=approval.request_id,
            approved=False,
            approved_by=answer.principal,
            reason=answer.reason,
        )
    # The step's chain is left as it is: the answer is in the control chain.
    chain = Chain(step.id, step.fence, [step.head or ""], n=1)
    recording = Recording(step, chain, parts.database.now_sql, now, held=False)
    recording.change.guard(
        "UPDATE step SET status = :status, reason = :reason, propagated = :done, "
        f"finished_at = CAST(:now AS BIGINT) WHERE id = :id AND {_WAITS}",
        status=status,
        reason=reason,
        done=step.siblings == 1,
        now=now,
        id=step.id,
    )
    answer_model(recording, dict(message))
    return recording


def expire(parts: Parts, request_id: str) -> bool:
    """Deny a request by default once it has expired; used by the sweep."""
    try:
        return _expire(parts, request_id)
    except ApprovalRefused:  # somebody answered just now
        return False


def _expire(parts: Parts, request_id: str) -> bool:
    with parts.database.writing(Transition.EXPIRE) as connection:
        session = lock_session_of(parts.database, connection, request_id)
        approval = find_approval(connection, request_id)
        if session is None or approval is None:
            return False
        if approval.status != "pending" or approval.expires_at > session.now:
            return False
        answer = Answer(request_id, False, "kernel:expiry", "kernel", "no answer came in time")
        receipt, hints = _write_answer(parts, connection, session, approval, answer, "expired")
    _tell(parts, approval, receipt, hints)
    return True
