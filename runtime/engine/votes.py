"""One answer to an approval request as it is written: the vote, its receipt, what becomes of the call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from runtime.core.canonical import canonical_json
from runtime.core.chain import Content, Receipt
from runtime.core.control_check import RESOLVED, VOTED
from runtime.core.quorum import Ballot, Requirement, Vote, response_digest
from runtime.engine import answering
from runtime.engine.answering import Edit
from runtime.engine.notifying import notify
from runtime.engine.parts import Parts
from runtime.errors import ApprovalRefused
from runtime.live.hints import Hint
from runtime.store.approvals import Approval
from runtime.store.grants import StandingGrant, use_grant
from runtime.store.sessions import StoredSession, add_control_receipt
from runtime.store.steps import LoadedStep
from runtime.store.tables import ApprovalVoteRow
from runtime.store.write import Change

ESTABLISHED_BY = ("asserted", "os-user", "http-auth")
"""How it may be known who answers: said by the caller, the system's user, or who logged in."""

KERNEL = "kernel"
"""How it is known that the kernel itself answers: nobody did in time."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a person says to a request.

    Attributes:
        request_id: The request.
        approved: Whether the call may run, or a response stands in for it.
        principal: Who answers.
        established_by: How that is known: one of `ESTABLISHED_BY`, or `KERNEL` for its own answers.
        reason: Why, in the person's words.
        input: The input with which the call is to run instead of its own.
        response: The output that stands in for the call, which does not run then.
        digest: The call that the person looked at; ``None`` for the one that waits.
        standing: The standing grant by which the person has answered beforehand.
    """

    request_id: str
    approved: bool
    principal: str
    established_by: str
    reason: str | None = None
    input: Content | None = None
    response: Content | None = None
    digest: str | None = None
    standing: StandingGrant | None = None

    @property
    def kind(self) -> str:
        """How evidence names it: ``approve``, ``deny``, ``edit`` or ``respond``."""
        if not self.approved:
            return "deny"
        if self.input is not None:
            return "edit"
        return "approve" if self.response is None else "respond"


@dataclass(frozen=True, slots=True)
class Case:
    """One answer to one request, as both were read under the session's lock."""

    parts: Parts
    session: StoredSession
    approval: Approval
    step: LoadedStep | None
    answer: Answer
    edit: Edit | None = None

    @property
    def digest(self) -> str:
        """The call that the request is about, once this answer decided."""
        return self.approval.digest if self.edit is None else self.edit.digest

    @property
    def content(self) -> Content | None:
        """What the person wrote: an input, or a response."""
        return self.answer.response or (self.edit.content if self.edit is not None else None)

    @property
    def status(self) -> str:
        """What becomes of the request if this answer decides."""
        if self.answer.established_by == KERNEL:
            return "expired"
        return {"deny": "denied", "respond": "answered"}.get(self.answer.kind, "approved")

    @property
    def vote(self) -> Vote:
        """The answer as it counts."""
        digest, response = self.digest, self.answer.response
        if response is not None:
            digest = response_digest(digest, response.hash)
        return Vote(self.answer.principal, self.answer.established_by, self.answer.approved, digest)

    def ballot(self, votes: tuple[Vote, ...]) -> Ballot:
        """The request as it is answered: its own rule and this process's file hold, both."""
        approval, config = self.approval, self.parts.host.workspace.approvals
        asked, now = approval.requirement, config.requirement_for(approval.tool_name)
        both = asked if now == Requirement() else asked.tightened(now)
        return Ballot(both, self.session.principal, approval.escalated_at is not None, votes)

    def write(
        self, connection: Connection, status: str, ballot: Ballot | None = None
    ) -> tuple[Receipt, list[Hint]]:
        """Write the answer and what follows from it, in one change; its receipt, and what to publish.

        Raises:
            ApprovalRefused: If the request, its call or the standing grant is not what was read.
        """
        change, hints = self._moved(status)
        receipt = self._add_answer(change, status, ballot)
        standing = self.answer.standing
        if standing is not None:
            use_grant(change, standing.id, self.approval.request_id, self.session.id, self.session.now)
        if not change.apply(connection):
            used_up = "" if standing is None else f", or standing grant {standing.id} lets nothing more run"
            raise ApprovalRefused(
                f"the call of approval request {self.approval.request_id} no longer waits{used_up}",
                code="already_resolved",
            )
        return receipt, hints

    def _moved(self, status: str) -> tuple[Change, list[Hint]]:
        """What becomes of the step, and of its node."""
        step, approval, now = self.step, self.approval, self.session.now
        if status == "pending" or step is None or not answering.waits_for(step, approval):
            return Change(), []
        who = self.answer.principal
        if status == "approved":
            change, hints = answering.let_run(step, now, self.edit)
        elif status == "answered" and self.answer.response is not None:
            change, hints = answering.respond(self.parts, step, approval, who, self.answer.response, now)
        else:
            change, hints = answering.deny(self.parts, step, approval, who, self.answer.reason, now)
        _node_goes_on(change, approval)
        return change, hints

    def _add_answer(self, change: Change, status: str, ballot: Ballot | None) -> Receipt:
        approval, answer, now = self.approval, self.answer, self.session.now
        reason = None if answer.reason is None else canonical_json(answer.reason)
        decided = status != "pending"
        if decided:
            self._close(change, status, reason)
            notify(self.parts, change, "approval_resolved", approval, now, status=status, by=answer.principal)
        vote = {
            "approval_id": approval.request_id,
            "principal": answer.principal,
            "established_by": answer.established_by,
            "approved": answer.approved,
            "reason": reason,
            "at": now,
            "answer": answer.kind,
            "digest": self.vote.digest,
            "content": None if self.content is None else self.content.text,
        }
        change.insert(ApprovalVoteRow, [vote])
        contents = [] if self.content is None else [self.content]
        return add_control_receipt(
            change,
            self.session,
            RESOLVED if decided else VOTED,
            self._said(status, ballot),
            contents=contents,
        )

    def _close(self, change: Change, status: str, reason: str | None) -> None:
        edited, values = "", {}
        if self.edit is not None:
            edited = ", digest = :digest, input = :input"
            values = {"digest": self.edit.digest, "input": self.edit.content.text}
        change.guard(
            "UPDATE approval SET status = :status, resolved_at = CAST(:now AS BIGINT), resolved_by = :by, "
            f"reason = :reason{edited} WHERE id = :id AND status = 'pending' AND digest = :seen",
            status=status,
            now=self.session.now,
            by=self.answer.principal,
            reason=reason,
            id=self.approval.request_id,
            seen=self.approval.digest,
            **values,
        )

    def _said(self, status: str, ballot: Ballot | None) -> dict[str, Any]:
        """What the receipt says of the answer."""
        approval, answer = self.approval, self.answer
        said: dict[str, Any] = {
            "request_id": approval.request_id,
            "status": {"expired": "denied"}.get(status, status),
            "answer": answer.kind,
            "digest": self.digest,
            "tool_name": approval.tool_name,
            "step_id_asked": approval.step_id,
            "reason": answer.reason,
            "principal": answer.principal,
            "established_by": answer.established_by,
            "at": self.session.now,
        }
        if ballot is not None and ballot.requirement != Requirement():
            said["quorum"] = ballot.requirement.quorum
            said["votes"] = ballot.count(self.vote.digest) + answer.approved
        if self.edit is not None:
            said |= {"digest_asked": approval.digest, **self.edit.content.cited_as("edited_input")}
        if answer.response is not None:
            said |= {"answered_by": answer.principal, **answer.response.cited_as("response")}
        if answer.standing is not None:
            said["standing_grant"] = {
                "id": answer.standing.id,
                "granted_by": answer.standing.granted_by,
                "tools": list(answer.standing.tools),
                "condition": answer.standing.condition,
                "uses": answer.standing.uses,
            }
        return said


def _node_goes_on(change: Change, approval: Approval) -> None:
    """The node runs, unless another step of it waits for a person, or for the resume of its quarantine."""
    sibling = "SELECT 1 FROM step s WHERE s.node_uid = node.uid AND s.id <> :step AND s."
    quarantined = f"EXISTS ({sibling}status = 'quarantined')"
    change.update(
        f"UPDATE node SET status = CASE WHEN {quarantined} THEN 'suspended' ELSE 'running' END, "
        f"reason = CASE WHEN {quarantined} THEN 'quarantined' END WHERE uid = :uid AND mode <> 'host' "
        f"AND NOT EXISTS ({sibling}{answering.WAITS})",
        uid=approval.node_uid,
        step=approval.step_id,
    )
