"""Holds a session's own row, its approvals and its grants against its control chain.

The control chain says who answered which question, that the session was cancelled, and how it ended. While
the receipts are gone through, `ControlNotes` keeps where in the chain each of these stands; the rows come
later, one at a time, each with the receipt that it rests on. Nothing is read here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from runtime.core.chain import CONTROL_STEP, Problem, Receipt, call_digest
from runtime.core.lifecycle import NODE_ENDED
from runtime.core.model import NodeStatus

RESOLVED = "approval_resolved"
VOTED = "approval_vote"
ESCALATED = "approval_escalated"
REQUESTED = "approval_requested"
"""What a call that parks says of the rule by which its request is to be answered; on the step's own chain."""
SETTLED = "session_settled"
CANCELLED = "session_cancelled"


@dataclass(frozen=True, slots=True)
class Granted:
    """A started receipt that says that its call ran under a grant."""

    request_id: str
    step_id: str
    fence: int
    n: int

    @property
    def entry(self) -> str:
        """How a problem names it."""
        return f"{self.step_id} fence {self.fence} n {self.n} (tool_call_started)"


@dataclass(slots=True)
class ControlNotes:
    """Where the control chain says what; filled as the receipts go by.

    Attributes:
        answers: Number of the first `RESOLVED` receipt of each request.
        votes: Numbers of the `VOTED` receipts of each request.
        rules: Hash of the rule that each request states.
        escalated: Requests that more people were asked to answer.
        edits: Hash of the input that each step was given by an edited approval.
        again: The first request that was answered a second time.
        settled: Number of the last `SETTLED` receipt.
        cancelled: Whether the session was ever cancelled.
        count: How many receipts the chain has.
        head: Hash of its last one.
        grants: Every use of a grant.
    """

    answers: dict[str, int] = field(default_factory=dict)
    again: str | None = None
    votes: dict[str, list[int]] = field(default_factory=dict)
    rules: dict[str, str] = field(default_factory=dict)
    escalated: set[str] = field(default_factory=set)
    edits: dict[str, str] = field(default_factory=dict)
    settled: int | None = None
    cancelled: bool = False
    count: int = 0
    head: str | None = None
    grants: list[Granted] = field(default_factory=list)

    def noting(self, receipts: Iterable[Receipt]) -> Iterator[Receipt]:
        """Hand on receipts, taking note of them."""
        for receipt in receipts:
            if receipt.step_id == CONTROL_STEP:
                self._control(receipt)
            elif receipt.kind == "tool_call_started" and '"grant"' in receipt.body:
                request_id = body_of(receipt).get("grant")
                if isinstance(request_id, str):
                    self.grants.append(Granted(request_id, receipt.step_id, receipt.fence, receipt.n))
            elif receipt.kind == REQUESTED:
                body = body_of(receipt)
                self.rules[str(body.get("request_id"))] = str(body.get("rule_hash"))
            yield receipt

    def _control(self, receipt: Receipt) -> None:
        self.count += 1
        self.head = receipt.hash
        if receipt.kind == RESOLVED:
            body = body_of(receipt)
            request_id = str(body.get("request_id"))
            if request_id in self.answers:
                self.again = self.again or request_id
            self.answers.setdefault(request_id, receipt.n)
            if isinstance(body.get("edited_input_hash"), str):
                self.edits[str(body.get("step_id_asked"))] = body["edited_input_hash"]
        elif receipt.kind == VOTED:
            self.votes.setdefault(str(body_of(receipt).get("request_id")), []).append(receipt.n)
        elif receipt.kind == ESCALATED:
            self.escalated.add(str(body_of(receipt).get("request_id")))
        elif receipt.kind == SETTLED:
            self.settled = receipt.n
        elif receipt.kind == CANCELLED:
            self.cancelled = True


def body_of(receipt: Receipt | None) -> dict[str, Any]:
    """A receipt's body; empty where there is none."""
    try:
        body = json.loads(receipt.body) if receipt else {}
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


# --- the session ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RecordedSession:
    """A session's row.

    Attributes:
        numbered: How many of its continuations have a number.
        first: The lowest of these numbers.
        last: The highest.
    """

    ended_status: str | None
    cancelled: bool
    control_n: int
    control_head: str | None
    continuations: int
    numbered: int
    first: int | None
    last: int | None


def session_problem(session: RecordedSession, notes: ControlNotes, settled: Receipt | None) -> Problem | None:
    """What in a session's row does not fit its control chain.

    Args:
        session: The row.
        notes: What the chain says.
        settled: Its last `SETTLED` receipt.
    """
    if session.control_n != notes.count:
        counts = f"the session counts {session.control_n} receipts in its control chain, which has"
        return Problem(CONTROL_STEP, f"{counts} {notes.count}")
    if session.control_head != notes.head:
        return Problem(CONTROL_STEP, "its last receipt is not the one that the session names")
    if session.cancelled != notes.cancelled:
        return Problem(
            "session",
            "it is cancelled, but no receipt says so"
            if session.cancelled
            else "a receipt says that it was cancelled, but its row does not",
        )
    if session.ended_status is not None:
        said = body_of(settled).get("status")
        if said is None:
            return Problem("session", f"it ended as {session.ended_status!r}, but no receipt says so")
        if said != session.ended_status:
            return Problem("session", f"it ended as {session.ended_status!r}, but its last end was {said!r}")
    return _continuations_problem(session)


def _continuations_problem(session: RecordedSession) -> Problem | None:
    if session.numbered != session.continuations:
        counts = f"the session counts {session.continuations}, and there are"
        return Problem("continuations", f"{counts} {session.numbered}")
    if session.numbered and (session.first, session.last) != (0, session.numbered - 1):
        return Problem("continuations", f"their numbers do not run from 0 to {session.numbered - 1}")
    return None


@dataclass(slots=True)
class EndCheck:
    """Goes through the nodes of a session beside the receipt that ended it, which cites all their heads.

    Args:
        cancelled: Whether the session was cancelled.
        settled: The receipt of its end; ``None`` while it has not ended.
    """

    cancelled: bool
    settled: Receipt | None
    _left: set[str] | None = None

    def __post_init__(self) -> None:
        """Take the cited heads; the first citation is the control chain's own."""
        if self.settled is not None:
            cites = body_of(self.settled).get("cites", [])
            self._left = set(cites[1:] if self.settled.n else cites)

    def node(self, node_id: str, mode: str, status: str, head: str | None) -> Problem | None:
        """Check one node."""
        entry = f"node {node_id}"
        if status == NodeStatus.CANCELLED and not self.cancelled:
            return Problem(entry, "it is cancelled, but its session never was")
        if status == NodeStatus.SKIPPED and head is not None:
            return Problem(entry, "it is skipped, but a receipt ended it")
        if self._left is None or mode == "host":
            return None
        if status not in {*NODE_ENDED, NodeStatus.PENDING}:
            return Problem(entry, f"it is {status!r}, but its session has ended")
        if head is not None and head not in self._left:
            return Problem(entry, "the receipt that ended the session does not cite its last receipt")
        self._left.discard(head or "")
        return None

    def end(self) -> Problem | None:
        """See that every head that the end cites was some node's."""
        if not self._left:
            return None
        return Problem(
            "session", f"the receipt that ended it cites {min(self._left)[:16]}, which ends no node"
        )


# --- grants ---------------------------------------------------------------------------------------


def grant_problem(
    granted: Granted,
    started: Receipt,
    input_text: str | None,
    answer: Receipt | None,
    consumed_by: str | None,
) -> Problem | None:
    """Why a call that says it ran under a grant had none.

    Args:
        granted: The use of the grant.
        started: The receipt that says so.
        input_text: Canonical JSON of the call's input.
        answer: The `RESOLVED` receipt of the request, if there is one.
        consumed_by: The step that the request's row says used it.
    """
    said = body_of(answer)
    if said.get("status") != "approved":
        return Problem(granted.entry, f"no receipt says that its grant {granted.request_id} was approved")
    if said.get("digest") != _digest(granted, body_of(started), input_text):
        return Problem(granted.entry, f"its grant {granted.request_id} was approved for another call")
    if consumed_by != granted.step_id:
        return Problem(f"approval {granted.request_id}", f"its use by step {granted.step_id} is not noted")
    return None


def _digest(granted: Granted, started: Mapping[str, Any], input_text: str | None) -> str | None:
    """The digest of the call that a started receipt describes."""
    if input_text is None:
        return None
    return call_digest(
        request_id=granted.request_id,
        session_id=str(started.get("session_id")),
        node_id=str(started.get("node_id")),
        call_id=str(started.get("call_id") or granted.step_id),
        tool_name=str(started.get("tool_name")),
        tool_digest=str(started.get("tool_digest")),
        principal=started.get("principal"),
        input_text=input_text,
    )
