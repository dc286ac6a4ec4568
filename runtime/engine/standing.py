"""Standing grants: approvals given beforehand. Each use is an answer like any other, by who made the grant.

A use is counted by the request's own rule, so that a grant made by one person is one vote, and it is bound to
the exact call that waits. Policy decides the call again when it runs: no grant overrides a deny.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from runtime.core.conditions import Condition, When
from runtime.core.durations import milliseconds, read_duration
from runtime.core.quorum import fits_tool
from runtime.core.text import check_name
from runtime.engine.approvals import resolve
from runtime.engine.calls import call_of, context_of
from runtime.engine.parts import Parts
from runtime.engine.votes import ESTABLISHED_BY, Answer
from runtime.errors import ApprovalRefused, InvalidInput, StoreUnavailable
from runtime.kernel.tool_host import policy_context
from runtime.store.approvals import Approval, find_approval
from runtime.store.grants import (
    StandingGrant,
    active_grants,
    add_grant,
    claim_standing,
    leave_to_people,
    revoke_grant,
)
from runtime.store.ids import new_id
from runtime.store.steps import LoadedStep, load_step_in

logger = logging.getLogger(__name__)

BATCH = 100

MOST_USES = 1_000_000

_CONDITION: TypeAdapter[Condition] = TypeAdapter(When)
_DENIED = "42501"
"""PostgreSQL's code of a missing privilege (its manual, appendix A)."""


# --- making and ending ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NewGrant:
    """What a person lets run beforehand.

    Attributes:
        tools: Patterns of tool names, with ``*``, ``?`` and ``[...]``.
        where: What the input must be like, in the words of policy rules; ``None`` for any input.
        uses: How many calls it lets run.
        expires_in: For how long: a span, or text such as ``8h``.
        granted_by: Who makes it.
        established_by: How that is known.
        reason: Why.
    """

    tools: tuple[str, ...]
    where: Mapping[str, Any] | None
    uses: int
    expires_in: timedelta | str
    granted_by: str
    established_by: str
    reason: str | None = None


def make_grant(parts: Parts, given: NewGrant) -> StandingGrant:
    """Store a standing grant.

    Raises:
        InvalidInput: If anything of it cannot be used.
    """
    for pattern in given.tools or ("",):
        check_name("tool", pattern)
    check_name("granted_by", given.granted_by)
    if given.established_by not in ESTABLISHED_BY:
        raise InvalidInput(
            f"established_by is {str(given.established_by)[:40]!r}; give one of {', '.join(ESTABLISHED_BY)}"
        )
    if type(given.uses) is not int or not 1 <= given.uses <= MOST_USES:
        raise InvalidInput(f"uses is {given.uses!r}; give a number from 1 to {MOST_USES}")
    condition = None if given.where is None else _condition(given.where).model_dump(mode="json")
    with parts.database.reading() as connection:
        now = int(connection.execute(text(f"SELECT {parts.database.now_sql}")).scalar_one())
    grant = StandingGrant(
        id=new_id("stg"),
        tools=given.tools,
        condition=condition,
        uses=given.uses,
        used=0,
        granted_by=given.granted_by,
        established_by=given.established_by,
        reason=given.reason,
        granted_at=now,
        expires_at=now + _span(given.expires_in),
        revoked_at=None,
        revoked_by=None,
    )
    add_grant(parts.database, grant)
    return grant


def _span(value: timedelta | str) -> int:
    try:
        return milliseconds(read_duration(value))
    except ValueError as error:
        raise InvalidInput(f"expires_in {str(value)[:40]!r} {error}") from None


def _condition(where: Mapping[str, Any]) -> Condition:
    try:
        condition = _CONDITION.validate_python(dict(where))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        raise InvalidInput(
            f"where: {problem['msg']}; write a condition of policy rules, such as "
            "{'argument_equals': {'path': ['zone'], 'value': 'test'}}"
        ) from None
    for part in condition.walk():
        (kind,) = part.model_dump(mode="json")
        if kind not in ("all", "any", "not") and not kind.startswith(("argument", "tool_")):
            raise InvalidInput(
                f"where: a standing grant looks at the tool and its input only, not at {kind!r}; leave it out"
            )
    return condition


def end_grant(parts: Parts, grant_id: str, revoked_by: str) -> StandingGrant:
    """Revoke a standing grant; what it let run stays.

    Raises:
        InvalidInput: If there is no such grant.
    """
    check_name("revoked_by", revoked_by)
    found = revoke_grant(parts.database, grant_id, revoked_by)
    if found is None:
        raise InvalidInput(f"there is no standing grant {grant_id!r}; see 'agent-runtime grants list'")
    return found


# --- using ----------------------------------------------------------------------------------------


def answer_by_standing(parts: Parts, request_id: str) -> bool:
    """Answer a request by the standing grants that fit its call; whether it is answered now.

    What none of them answers is left to people. A process that may not write answers leaves it to the sweep
    of one that may.
    """
    try:
        for grant, approval in _fitting(parts, request_id):
            if _cast(parts, grant, approval):
                return True
        leave_to_people(parts.database, request_id)
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != _DENIED:
            raise
    return False


def _fitting(parts: Parts, request_id: str) -> list[tuple[StandingGrant, Approval]]:
    with parts.database.reading() as connection:
        approval = find_approval(connection, request_id)
        step = load_step_in(connection, parts.database, approval.step_id, "") if approval else None
        if approval is None or step is None or approval.status != "pending" or approval.kind != "call":
            return []
        grants = active_grants(parts.database, connection)
    return [(grant, approval) for grant in grants if _fits(grant, step)]


def _fits(grant: StandingGrant, step: LoadedStep) -> bool:
    if not fits_tool(grant.tools, step.tool_name):
        return False
    if grant.condition is None:
        return True
    call = call_of(step, context_of(step))
    test = _condition(grant.condition).bind(step.tool_name)
    if isinstance(test, bool):
        return test
    return test(policy_context(call.ctx, step.tool_name, call.input, {})) is True


def _cast(parts: Parts, grant: StandingGrant, approval: Approval) -> bool:
    """Use a grant for a request; whether that decided it."""
    answer = Answer(
        approval.request_id,
        True,
        grant.granted_by,
        grant.established_by,
        f"standing grant {grant.id}",
        digest=approval.digest,
        standing=grant,
    )
    try:
        return resolve(parts, answer).status != "pending"
    except ApprovalRefused as refused:
        logger.info("standing grant %s does not answer %s: %s", grant.id, approval.request_id, refused)
        return False


def answer_due(parts: Parts) -> int:
    """Ask standing grants about requests that nobody asked them about; used by the sweep."""
    with parts.database.reading() as connection:
        found = claim_standing(connection, BATCH)
    return sum(_try(parts, request_id) for request_id in found)


def _try(parts: Parts, request_id: str) -> bool:
    try:
        return answer_by_standing(parts, request_id)
    except StoreUnavailable:
        raise
    except Exception:  # whatever it is, it concerns this request alone
        logger.exception("standing grants could not be asked about %s; it is tried again later", request_id)
        return False
