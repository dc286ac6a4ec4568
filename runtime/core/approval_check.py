"""Holds an approval request's row and its votes against the receipts about it, and counts again.

The call that parked states the rule by which its request is to be answered; the control chain says who
answered what, and that more people were asked. Nothing is read here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from runtime.core.canonical import canonical_json
from runtime.core.chain import Problem, Receipt, text_hash
from runtime.core.control_check import body_of
from runtime.core.quorum import Ballot, Requirement, Vote, response_digest

_ANSWERED = {"approved": "approved", "denied": "denied", "answered": "answered", "expired": "denied"}
"""What the receipt of an answered request says, by the status of its row."""


@dataclass(frozen=True, slots=True)
class RecordedVote:
    """One answer's row; ``reason`` and ``content`` are canonical JSON."""

    principal: str
    established_by: str
    approved: bool
    reason: str | None
    answer: str | None
    digest: str | None
    content: str | None


@dataclass(frozen=True, slots=True)
class RecordedApproval:
    """One request's row beside its votes.

    Attributes:
        input: The input that people are shown, as canonical JSON.
        input_hash: Hash of the input of the step that asks; ``None`` if there is no such step.
        asked_for: The principal for whom the session was started.
        resolved_by: Who answered.
        reason: Why, as canonical JSON.
        rule: Who may answer, and how many have to; see `Requirement.to_text`.
    """

    id: str
    step_id: str
    tool_name: str
    digest: str
    input: str
    input_hash: str | None
    asked_for: str | None
    status: str
    resolved_by: str | None
    reason: str | None
    consumed_by: str | None
    rule: str | None
    escalated: bool
    votes: Sequence[RecordedVote]


@dataclass(frozen=True, slots=True)
class Said:
    """What receipts say of one request.

    Attributes:
        answer: Its `RESOLVED` receipt, if there is one.
        votes: Its `VOTED` receipts.
        rule: Hash of the rule that its call stated.
        escalated: Whether more people were asked to answer it.
    """

    answer: Receipt | None = None
    votes: Sequence[Receipt] = ()
    rule: str | None = None
    escalated: bool = False


def approval_problem(approval: RecordedApproval, said: Said, *, cancelled: bool) -> Problem | None:
    """What in a request's row does not fit the receipts about it.

    Args:
        approval: The row and its votes.
        said: What receipts say of it.
        cancelled: Whether the session was cancelled.
    """
    reason = (
        _question_problem(approval, said)
        or _answer_problem(approval, said, cancelled=cancelled)
        or _votes_problem(approval, said)
        or _quorum_problem(approval, said)
    )
    return Problem(f"approval {approval.id}", reason) if reason else None


def _question_problem(approval: RecordedApproval, said: Said) -> str | None:
    edited = body_of(said.answer).get("edited_input_hash")
    shown = text_hash(approval.input)
    if approval.input_hash is None or shown != (edited or approval.input_hash):
        return "the input that it shows is not that of the step that asks"
    if (None if approval.rule is None else text_hash(approval.rule)) != said.rule:
        return "its rule is not the one that its call stated"
    if approval.escalated != said.escalated:
        stated = "no receipt says so" if approval.escalated else "its row does not say so"
        return f"it was escalated, but {stated}"
    return None


def _answer_problem(approval: RecordedApproval, said: Said, *, cancelled: bool) -> str | None:
    answer, receipt = _ANSWERED.get(approval.status), said.answer
    if answer is None:
        if receipt is not None or len(approval.votes) > len(said.votes):
            return f"it is {approval.status!r}, but was answered"
        if approval.status == "cancelled" and not cancelled:
            return "it is cancelled, but its session never was"
        return None
    if receipt is None:
        return f"it is {approval.status!r}, but no receipt says so"
    body = body_of(receipt)
    by_kernel = body.get("established_by") == "kernel"
    if (approval.status == "expired") != by_kernel:
        return f"it is {approval.status!r}, but its receipt says who answered otherwise"
    stored = {
        "status": answer,
        "digest": approval.digest,
        "tool_name": approval.tool_name,
        "step_id_asked": approval.step_id,
        "principal": approval.resolved_by,
        "reason": approval.reason,
    }
    if name := _differs(stored, body):
        return f"its stored {name} does not match receipt {receipt.n} of the control chain"
    return None


def _votes_problem(approval: RecordedApproval, said: Said) -> str | None:
    receipts = [*said.votes, *([said.answer] if said.answer is not None else [])]
    bodies = [(receipt.n, body_of(receipt)) for receipt in receipts]
    if len(approval.votes) != len(bodies):
        return f"it has {len(approval.votes)} answers, and the control chain says {len(bodies)}"
    rows = {vote.principal: vote for vote in approval.votes}
    for number, body in bodies:
        vote = rows.get(str(body.get("principal")))
        receipt = f"receipt {number} of the control chain"
        if vote is None:
            return f"the principal of its answer does not match {receipt}"
        if name := _vote_differs(vote, body):
            return f"the {name} of its answer does not match {receipt}"
    return None


def _vote_differs(vote: RecordedVote, body: Mapping[str, Any]) -> str | None:
    if vote.approved != (body.get("answer", body.get("status")) not in ("deny", "denied")):
        return "status"
    if "answer" not in body:  # before there were edits and responses
        return _differs({"established_by": vote.established_by, "reason": vote.reason}, body)
    content = body.get("edited_input_hash") or body.get("response_hash")
    if (None if vote.content is None else text_hash(vote.content)) != content:
        return "content"
    if vote.digest != _voted_for(body):
        return "digest"
    stored = {"established_by": vote.established_by, "answer": vote.answer, "reason": vote.reason}
    return _differs(stored, body)


def _voted_for(body: Mapping[str, Any]) -> str | None:
    digest, response = body.get("digest"), body.get("response_hash")
    if isinstance(digest, str) and isinstance(response, str):
        return response_digest(digest, response)
    return digest if isinstance(digest, str) else None


def _quorum_problem(approval: RecordedApproval, said: Said) -> str | None:
    """Count again: what was approved must have been by enough people who were allowed to."""
    if said.answer is None or approval.status not in ("approved", "answered"):
        return None
    body = body_of(said.answer)
    ballot = Ballot(Requirement.from_text(approval.rule), approval.asked_for, said.escalated)
    if ballot.requirement == Requirement():
        return None
    votes = [Vote(vote.principal, vote.established_by, vote.approved, vote.digest) for vote in approval.votes]
    for vote in votes:
        if refusal := ballot.refusal(vote):
            return f"it was answered against its rule: {refusal.text}"
    counted = replace(ballot, votes=tuple(votes)).count(_voted_for(body))
    if counted < ballot.requirement.quorum:
        return f"{counted} people approved it, and its rule asks for {ballot.requirement.quorum}"
    return None


def _differs(stored: Mapping[str, str | None], body: Mapping[str, Any]) -> str | None:
    """The first value that is not what a receipt says; a reason is stored as canonical JSON."""
    for name, value in stored.items():
        said = body.get(name)
        if name == "reason" and said is not None:
            said = canonical_json(said)
        if value != said:
            return name
    return None
