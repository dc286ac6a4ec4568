"""Who may answer an approval request, and how many have to: rules, what was asked, and counting.

A rule of the workspace file becomes a `Requirement` when a call parks, with its roles resolved to people;
it is stored with the request, so that a file of another day can only ask for more. Votes count if they say
the same: they are for one digest, which stands for the exact call, or for one response instead of it.
Nothing is read here.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from runtime.core.canonical import canonical_json
from runtime.core.chain import text_hash
from runtime.core.durations import Duration, milliseconds
from runtime.core.model import Frozen

AUTHENTICATED = frozenset({"http-auth", "os-user"})
"""Ways to know who answers that quorum, approvers and separation of duty accept."""

RESPONSE_DOMAIN = "agent-runtime/response/1\n"

Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^\S(.*\S)?$")]


def fits_tool(patterns: Iterable[str], tool_name: str) -> bool:
    """Whether one of some patterns names a tool: ``*``, ``?`` and ``[...]`` match any characters."""
    return any(fnmatchcase(tool_name, pattern) for pattern in patterns)


def response_digest(call_digest: str, content_hash: str) -> str:
    """What a vote to respond with some content, instead of making a call, is for."""
    return text_hash(RESPONSE_DOMAIN + canonical_json([call_digest, content_hash]))


# --- rules ----------------------------------------------------------------------------------------


class Approvers(Frozen):
    """People: those named, and those who hold a role."""

    roles: tuple[Name, ...] = Field(default=(), strict=False)
    principals: tuple[Name, ...] = Field(default=(), strict=False)

    @model_validator(mode="after")
    def _somebody(self) -> Self:
        if not self.roles and not self.principals:
            raise ValueError("approvers names nobody — list roles or principals, or leave approvers out")
        return self

    def people(self, roles: Mapping[str, Collection[str]]) -> frozenset[str]:
        """Their principals.

        Args:
            roles: Who holds which role.
        """
        return frozenset(self.principals).union(*(roles[role] for role in self.roles))


class Escalation(Frozen):
    """Who may answer besides, once nobody has answered for a while."""

    after: Duration
    approvers: Approvers


class ApprovalRule(Frozen):
    """How requests about some tools are to be answered; the first rule that names the tool counts.

    Attributes:
        tools: Patterns of tool names; see `fits_tool`.
        quorum: How many different people have to say the same before the call runs.
        approvers: Who may answer; None for anybody.
        separation_of_duty: Whether the principal for whom the session was started may not approve.
        expires_after: When a request is denied by default; None for the section's own.
        escalate: Who may answer besides, and from when.
    """

    tools: Annotated[tuple[Name, ...], Field(strict=False, min_length=1)]
    quorum: Annotated[int, Field(ge=1)] = 1
    approvers: Approvers | None = None
    separation_of_duty: bool = False
    expires_after: Duration | None = None
    escalate: Escalation | None = None

    @model_validator(mode="after")
    def _can_escalate(self) -> Self:
        if self.escalate is not None and self.approvers is None:
            raise ValueError("escalate adds to approvers, which are not set — set approvers, or remove it")
        return self

    def requirement(self, roles: Mapping[str, Collection[str]]) -> Requirement:
        """What the rule asks for, its roles resolved."""
        second = self.escalate
        return Requirement(
            quorum=self.quorum,
            approvers=None if self.approvers is None else self.approvers.people(roles),
            separation_of_duty=self.separation_of_duty,
            escalate_to=frozenset() if second is None else second.approvers.people(roles),
            escalate_after_ms=None if second is None else milliseconds(second.after),
        )


# --- what is asked --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Requirement:
    """What an approval request asks of those who answer; the default asks for nothing in particular.

    Attributes:
        quorum: How many different people have to say the same.
        approvers: Who may answer; None for anybody.
        separation_of_duty: Whether whoever asked may not approve.
        escalate_to: Who may answer besides, after the escalation.
        escalate_after_ms: Milliseconds until the escalation; None for never.
    """

    quorum: int = 1
    approvers: frozenset[str] | None = None
    separation_of_duty: bool = False
    escalate_to: frozenset[str] = frozenset()
    escalate_after_ms: int | None = None

    @property
    def authenticated(self) -> bool:
        """Whether only principals count who were authenticated."""
        return self.quorum > 1 or self.approvers is not None or self.separation_of_duty

    def may_answer(self, *, escalated: bool) -> frozenset[str] | None:
        """Who may answer; None for anybody."""
        if self.approvers is None or not escalated:
            return self.approvers
        return self.approvers | self.escalate_to

    def tightened(self, other: Requirement) -> Requirement:
        """Both at once: what is stricter in either wins, and escalation goes only as far as both let it.

        Of the two instants of escalation, this requirement's stays.
        """
        known = [each for each in (self.approvers, other.approvers) if each is not None]
        both = frozenset.intersection(*known) if known else None
        later = [each.approvers | each.escalate_to for each in (self, other) if each.approvers is not None]
        return Requirement(
            quorum=max(self.quorum, other.quorum),
            approvers=both,
            separation_of_duty=self.separation_of_duty or other.separation_of_duty,
            escalate_to=frozenset.intersection(*later) - (both or frozenset()) if later else frozenset(),
            escalate_after_ms=self.escalate_after_ms,
        )

    def to_text(self) -> str | None:
        """Canonical JSON, as stored with a request; None where nothing in particular is asked for."""
        if self == Requirement():
            return None
        return canonical_json(
            {
                "quorum": self.quorum,
                "approvers": None if self.approvers is None else sorted(self.approvers),
                "separation_of_duty": self.separation_of_duty,
                "escalate_to": sorted(self.escalate_to),
                "escalate_after_ms": self.escalate_after_ms,
            }
        )

    @staticmethod
    def from_text(text: str | None) -> Requirement:
        """What `to_text` wrote; what it cannot have written is met by nobody."""
        if text is None:
            return Requirement()
        try:
            kept: dict[str, Any] = json.loads(text)
            approvers = kept["approvers"]
            return Requirement(
                quorum=int(kept["quorum"]),
                approvers=None if approvers is None else frozenset(approvers),
                separation_of_duty=bool(kept["separation_of_duty"]),
                escalate_to=frozenset(kept["escalate_to"]),
                escalate_after_ms=kept["escalate_after_ms"],
            )
        except (ValueError, TypeError, KeyError, RecursionError):
            return Requirement(approvers=frozenset())


# --- counting -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Vote:
    """What one person said.

    Attributes:
        principal: Who.
        established_by: How that is known.
        approved: Whether the call may run, or another answer stands in for it.
        digest: What exactly the person approved: a call, or a response instead of it.
    """

    principal: str
    established_by: str
    approved: bool
    digest: str | None


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a vote does not count: a code for programs, and a sentence."""

    code: str
    text: str


@dataclass(frozen=True, slots=True)
class Ballot:
    """A request as those who answer it find it.

    Attributes:
        requirement: What it asks for.
        asked_for: The principal for whom its session was started.
        escalated: Whether the second group may answer too.
        votes: What was said so far.
    """

    requirement: Requirement
    asked_for: str | None
    escalated: bool = False
    votes: tuple[Vote, ...] = ()

    def refusal(self, vote: Vote) -> Refusal | None:
        """Why a vote cannot be taken; ``None`` if it can."""
        asks = self.requirement
        if any(each.principal == vote.principal for each in self.votes):
            return Refusal("already_voted", f"{vote.principal} has answered it already")
        if asks.authenticated and vote.established_by not in AUTHENTICATED:
            return Refusal(
                "not_authenticated",
                f"its rule counts authenticated people only, and who answers is {vote.established_by!r}; "
                "answer from the command line as yourself, or through an application that authenticates",
            )
        allowed = asks.may_answer(escalated=self.escalated)
        if allowed is not None and vote.principal not in allowed:
            return Refusal("not_an_approver", f"{vote.principal} is not among its approvers")
        if asks.separation_of_duty and vote.approved:
            return self._own(vote)
        return None

    def _own(self, vote: Vote) -> Refusal | None:
        if self.asked_for is None:
            return Refusal(
                "separation_of_duty",
                "its rule separates duties, and its session names no principal; start such sessions with one",
            )
        if vote.principal == self.asked_for:
            return Refusal(
                "separation_of_duty", f"its session runs for {vote.principal}, who cannot approve it"
            )
        return None

    def count(self, digest: str | None) -> int:
        """How many people said the same."""
        return sum(each.approved and each.digest == digest for each in self.votes)

    def completed_by(self, vote: Vote) -> bool:
        """Whether a vote that can be taken decides: one denial does, approvals do once there are enough."""
        return not vote.approved or self.count(vote.digest) + 1 >= self.requirement.quorum
