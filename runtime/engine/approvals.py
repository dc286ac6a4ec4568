"""Answering approval requests: votes are counted, and the one that decides moves the step.

Each answer is one short transaction under the session's lock: read the request and its step, then write the
vote, its receipt in the control chain and, if it decides, what becomes of the step.
"""

from __future__ import annotations

import logging
import os
import pwd
from dataclasses import dataclass

from sqlalchemy import text

from runtime.core.chain import Receipt
from runtime.core.control_check import ESCALATED
from runtime.core.text import check_name
from runtime.engine import answering
from runtime.engine.answering import Edit
from runtime.engine.notifying import notify
from runtime.engine.parts import Parts
from runtime.engine.votes import ESTABLISHED_BY, KERNEL, Answer, Case
from runtime.errors import ApprovalRefused, InvalidInput, StoreUnavailable
from runtime.live.hints import Hint
from runtime.store.approvals import Approval, find_approval, read_votes
from runtime.store.crashpoints import Transition
from runtime.store.sessions import StoredSession, add_control_receipt, lock_session_of
from runtime.store.steps import LoadedStep, load_step_in
from runtime.store.write import Change

logger = logging.getLogger(__name__)

ESCALATION_BATCH = 100
"""How many requests one sweep escalates, each in a transaction of its own."""


@dataclass(frozen=True, slots=True)
class Resolution:
    """The stored answer.

    Attributes:
        status: What became of the request: ``approved``, ``denied`` or ``answered``, or still ``pending``.
        votes: How many people have said this so far.
        quorum: How many have to.
    """

    request_id: str
    approved: bool
    approved_by: str
    reason: str | None
    session_id: str
    tool_name: str
    status: str
    votes: int
    quorum: int


def os_user() -> str:
    """The operating system's user, as the command line identifies people; the environment is not asked."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def resolve(parts: Parts, answer: Answer) -> Resolution:
    """Answer a request: the answer that decides moves the call, one that does not is kept as a vote.

    Raises:
        ApprovalRefused: If there is no such request, it was answered, has expired or was cancelled, the
            person may not answer or has done so, or the call or its edited form may not run; nothing changes,
            and the message says why.
        InvalidInput: If the answer does not say which request, whether, who, or how that is known.
    """
    _check(answer)
    edit = None
    if answer.input is not None:
        edit = answering.decide_edit(parts, answer.request_id, answer.input)
    with parts.database.writing(Transition.RESOLVE) as connection:
        session = lock_session_of(parts.database, connection, answer.request_id)
        approval = find_approval(connection, answer.request_id)
        if session is None or approval is None:
            raise ApprovalRefused(
                f"there is no approval request {answer.request_id!r}; see 'agent-runtime approvals list'",
                code="not_found",
            )
        _refuse_late(approval, session)
        step = load_step_in(connection, parts.database, approval.step_id, "")
        _refuse_other_call(parts, approval, step, answer, edit)
        case = Case(parts, session, approval, step, answer, edit)
        ballot = case.ballot(read_votes(connection, approval.request_id) if approval.votes else ())
        if refusal := ballot.refusal(case.vote):
            raise ApprovalRefused(
                f"approval request {approval.request_id} takes no such answer: {refusal.text}",
                code=refusal.code,
            )
        decided = ballot.completed_by(case.vote)
        receipt, hints = case.write(connection, case.status if decided else "pending", ballot)
    _tell(parts, approval, receipt, hints, decided=decided)
    return Resolution(
        approval.request_id,
        answer.approved,
        answer.principal,
        answer.reason,
        approval.session_id,
        approval.tool_name,
        case.status if decided else "pending",
        ballot.count(case.vote.digest) + answer.approved,
        ballot.requirement.quorum,
    )


def _tell(parts: Parts, approval: Approval, receipt: Receipt, hints: list[Hint], *, decided: bool) -> None:
    parts.publisher.publish(hints)  # first, since the call waits for it
    over = [approval.request_id] if decided else []
    parts.live.announce(approval.session_id, approval.node_id, [receipt], resolved=over)


# --- what is refused ------------------------------------------------------------------------------


def _check(answer: Answer) -> None:
    check_name("request_id", answer.request_id)
    check_name("approved_by", answer.principal)
    if not isinstance(answer.approved, bool):
        raise InvalidInput(f"approved is of type {type(answer.approved).__name__}; give True or False")
    if answer.established_by not in ESTABLISHED_BY:
        raise InvalidInput(
            f"established_by is {str(answer.established_by)[:40]!r}; give one of {', '.join(ESTABLISHED_BY)}"
        )
    given = [name for name in ("input", "response") if getattr(answer, name) is not None]
    if len(given) > 1 or (given and not answer.approved):
        raise InvalidInput(
            f"{' and '.join(given)} cannot go with this answer; approve, and give one of the two at most"
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


def _refuse_other_call(
    parts: Parts, approval: Approval, step: LoadedStep | None, answer: Answer, edit: Edit | None
) -> None:
    """Refuse what was said of another call than the one that waits."""
    looked_at = {answer.digest or approval.digest, edit.seen if edit is not None else approval.digest}
    if looked_at != {approval.digest}:
        raise ApprovalRefused(
            f"the call of approval request {approval.request_id} is not the one that was looked at; look at "
            "it again",
            code="action_digest_mismatch",
        )
    if answer.input is not None and edit is None:
        raise ApprovalRefused(
            f"no call waits for approval request {approval.request_id} that could be edited",
            code="not_editable",
        )
    if answer.response is not None:
        answering.refuse_response(parts, approval, step, answer.response)
    elif answer.approved and edit is None:
        answering.refuse_changed(parts, approval, step)


# --- what time does -------------------------------------------------------------------------------


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
        answer = Answer(request_id, False, "kernel:expiry", KERNEL, "no answer came in time")
        step = load_step_in(connection, parts.database, approval.step_id, "")
        receipt, hints = Case(parts, session, approval, step, answer).write(connection, "expired")
    _tell(parts, approval, receipt, hints, decided=True)
    return True


def escalate_due(parts: Parts) -> int:
    """Let the second group answer what nobody answered for a while; used by the sweep.

    Returns:
        How many requests were escalated.
    """
    database = parts.database
    with database.reading() as connection:
        due = connection.execute(
            text(
                "SELECT id FROM approval WHERE status = 'pending' "
                f"AND escalate_at <= (SELECT {database.now_sql}) ORDER BY escalate_at LIMIT :batch"
            ),
            {"batch": ESCALATION_BATCH},
        ).all()
    return sum(_try_to_escalate(parts, row.id) for row in due)


def _try_to_escalate(parts: Parts, request_id: str) -> bool:
    """Escalate one request; one that cannot be escalated is left for later, and the others go on."""
    try:
        return _escalate(parts, request_id)
    except StoreUnavailable:
        raise
    except ApprovalRefused:  # somebody answered just now
        return False
    except Exception:  # whatever it is, it concerns this request alone
        logger.exception("approval request %s could not be escalated; it is tried again later", request_id)
        return False


def _escalate(parts: Parts, request_id: str) -> bool:
    with parts.database.writing(Transition.OTHER) as connection:
        session = lock_session_of(parts.database, connection, request_id)
        approval = find_approval(connection, request_id)
        if session is None or approval is None or approval.status != "pending":
            return False
        if approval.escalate_at is None or approval.escalate_at > session.now:
            return False
        change = Change()
        change.guard(
            "UPDATE approval SET escalate_at = NULL, escalated_at = CAST(:now AS BIGINT) "
            "WHERE id = :id AND status = 'pending' AND escalate_at IS NOT NULL",
            id=request_id,
            now=session.now,
        )
        added = sorted(approval.requirement.escalate_to)
        fields = {"request_id": request_id, "approvers_added": added, "at": session.now}
        receipt = add_control_receipt(change, session, ESCALATED, fields)
        notify(parts, change, "approval_escalated", approval, session.now, status="pending")
        if not change.apply(connection):
            raise ApprovalRefused(f"approval request {request_id} no longer waits", code="already_resolved")
    parts.live.announce(approval.session_id, approval.node_id, [receipt])
    return True
