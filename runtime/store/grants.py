"""Standing grants: approvals given beforehand, for calls that fit them, so many times and so long."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, RowMapping, text

from runtime.core.canonical import canonical_json
from runtime.core.text import check_name
from runtime.store.crashpoints import Transition
from runtime.store.engine import Database
from runtime.store.tables import StandingGrantRow, StandingGrantUseRow
from runtime.store.write import Change

MOST_ACTIVE = 1000
"""How many grants are looked at for one call; those that expire first come first."""


@dataclass(frozen=True, slots=True)
class StandingGrant:
    """An approval given beforehand.

    Attributes:
        tools: Patterns of tool names.
        condition: What the call's input must be like, as policy rules say it; ``None`` for any input.
        uses: How many calls it lets run.
        used: How many it did.
        granted_by: Who made it; each use counts as this person's answer.
        established_by: How it was known who made it.
        granted_at: Milliseconds since the epoch; so are the other instants.
    """

    id: str
    tools: tuple[str, ...]
    condition: Any
    uses: int
    used: int
    granted_by: str
    established_by: str
    reason: str | None
    granted_at: int
    expires_at: int
    revoked_at: int | None
    revoked_by: str | None


_COLUMNS = ", ".join(StandingGrant.__dataclass_fields__)
_ACTIVE = "revoked_at IS NULL AND used < uses"


def _grant(row: RowMapping) -> StandingGrant:
    read = {name: None if row[name] is None else json.loads(row[name]) for name in ("condition", "reason")}
    return StandingGrant(**{**dict(row), **read, "tools": tuple(json.loads(row["tools"]))})


def add_grant(database: Database, grant: StandingGrant) -> None:
    """Store a new grant."""
    row = {name: getattr(grant, name) for name in StandingGrant.__dataclass_fields__}
    change = Change()
    change.insert(
        StandingGrantRow,
        [
            {
                **row,
                "tools": canonical_json(grant.tools),
                "condition": None if grant.condition is None else canonical_json(grant.condition),
                "reason": None if grant.reason is None else canonical_json(grant.reason),
            }
        ],
    )
    with database.writing(Transition.OTHER) as connection:
        change.apply(connection)


def revoke_grant(database: Database, grant_id: str, revoked_by: str) -> StandingGrant | None:
    """End a grant; one that was revoked stays as it is.

    Returns:
        The grant as it is then; ``None`` if there is none.

    Raises:
        InvalidInput: If nothing can have this id.
    """
    check_name("grant_id", grant_id)
    with database.writing(Transition.OTHER) as connection:
        connection.execute(
            text(
                f"UPDATE standing_grant SET revoked_at = {database.now_sql}, revoked_by = :by "
                "WHERE id = :id AND revoked_at IS NULL"
            ),
            {"id": grant_id, "by": revoked_by},
        )
        found = connection.execute(
            text(f"SELECT {_COLUMNS} FROM standing_grant WHERE id = :id"), {"id": grant_id}
        )
        row = found.mappings().one_or_none()
    return None if row is None else _grant(row)


def active_grants(database: Database, connection: Connection) -> list[StandingGrant]:
    """Read the grants that still let something run, those that expire first first."""
    rows = connection.execute(
        text(
            f"SELECT {_COLUMNS} FROM standing_grant WHERE {_ACTIVE} AND expires_at > {database.now_sql} "
            "ORDER BY expires_at, id LIMIT :most"
        ),
        {"most": MOST_ACTIVE},
    )
    return [_grant(row) for row in rows.mappings()]


def has_active_grants(database: Database) -> bool:
    """Whether any grant still lets something run."""
    with database.reading() as connection:
        found = connection.execute(
            text(f"SELECT 1 FROM standing_grant WHERE {_ACTIVE} AND expires_at > {database.now_sql} LIMIT 1")
        )
        return found.first() is not None


def list_grants(database: Database, *, active: bool = True, limit: int = 100) -> list[StandingGrant]:
    """Read grants, the newest first.

    Args:
        database: Where they are.
        active: Whether to leave out those that were revoked, used up or have expired.
        limit: How many at most.
    """
    where = f"{_ACTIVE} AND expires_at > {database.now_sql}" if active else "1 = 1"
    with database.reading() as connection:
        rows = connection.execute(
            text(
                f"SELECT {_COLUMNS} FROM standing_grant WHERE {where} "
                "ORDER BY granted_at DESC, id DESC LIMIT :limit"
            ),
            {"limit": limit},
        )
        return [_grant(row) for row in rows.mappings()]


def use_grant(change: Change, grant_id: str, request_id: str, session_id: str, now: int) -> None:
    """Have a change use a grant once; it holds only if the grant still lets something run."""
    change.guard(
        f"UPDATE standing_grant SET used = used + 1 WHERE id = :id AND {_ACTIVE} AND expires_at > :now",
        id=grant_id,
        now=now,
    )
    use = {"request_id": request_id, "grant_id": grant_id, "session_id": session_id, "at": now}
    change.insert(StandingGrantUseRow, [use])


def claim_standing(connection: Connection, limit: int) -> list[str]:
    """Read requests that standing grants may still answer."""
    rows = connection.execute(
        text(
            "SELECT id FROM approval WHERE status = 'pending' AND standing ORDER BY requested_at LIMIT :limit"
        ),
        {"limit": limit},
    )
    return [row.id for row in rows]


def leave_to_people(database: Database, request_id: str) -> None:
    """Note that no standing grant answers a request."""
    with database.writing(Transition.OTHER) as connection:
        connection.execute(
            text("UPDATE approval SET standing = :no WHERE id = :id AND status = 'pending'"),
            {"id": request_id, "no": False},
        )
