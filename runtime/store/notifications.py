"""What the webhook is to be told: rows that wait, and how a sender claims them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text

from runtime.core.canonical import canonical_json
from runtime.store.crashpoints import Transition
from runtime.store.engine import Database
from runtime.store.tables import NotificationRow
from runtime.store.write import Change

FIRST_AGAIN_MS = 5_000
LONGEST_MS = 3_600_000
MOST_ATTEMPTS = 20
"""With the delays before it: about twelve hours."""


@dataclass(frozen=True, slots=True)
class Notification:
    """One thing to tell; ``id`` stays the same however often it is told."""

    id: str
    event: str
    body: str
    attempts: int


def add_notification(change: Change, event: str, key: str, body: Mapping[str, Any], now: int) -> None:
    """Have a change leave something to tell; what has the same key is told once."""
    row = {
        "id": key,
        "event": event,
        "body": canonical_json(body),
        "at": now,
        "due_at": now,
        "attempts": 0,
    }
    change.insert(NotificationRow, [row], once=True)


def claim_due(database: Database, limit: int) -> list[Notification]:
    """Take what is due; what is not delivered is due again later and later, and at last never."""
    now = f"(SELECT {database.now_sql})"
    with database.reading() as connection:
        due = connection.execute(text(f"SELECT 1 FROM notification WHERE due_at <= {now} LIMIT 1")).first()
    if due is None:
        return []
    locking = " FOR UPDATE SKIP LOCKED" if database.dialect == "postgresql" else ""
    doubled = "CAST(:first AS BIGINT) * (1 << attempts)"
    with database.writing(Transition.OTHER) as connection:
        rows = connection.execute(
            text(
                f"""UPDATE notification SET attempts = attempts + 1, due_at = CASE
                    WHEN attempts + 1 >= :most THEN NULL
                    WHEN {doubled} > :longest THEN {now} + :longest ELSE {now} + {doubled} END
                WHERE id IN (SELECT id FROM notification WHERE due_at <= {now}
                             ORDER BY due_at LIMIT :limit{locking})
                RETURNING id, event, CAST(body AS TEXT) AS body, attempts, at"""
            ),
            {"first": FIRST_AGAIN_MS, "longest": LONGEST_MS, "most": MOST_ATTEMPTS, "limit": limit},
        ).all()
    ordered = sorted(rows, key=lambda row: (row.at, row.id))
    return [Notification(row.id, row.event, row.body, row.attempts) for row in ordered]


def note_delivered(database: Database, notification_id: str) -> None:
    """Note that something was told."""
    with database.writing(Transition.OTHER) as connection:
        connection.execute(
            text(
                f"UPDATE notification SET delivered_at = {database.now_sql}, due_at = NULL, error = NULL "
                "WHERE id = :id"
            ),
            {"id": notification_id},
        )


def note_failure(database: Database, notification_id: str, error: str) -> None:
    """Note why something could not be told; when it is tried again was fixed by its claim."""
    with database.writing(Transition.OTHER) as connection:
        connection.execute(
            text("UPDATE notification SET error = :error WHERE id = :id AND delivered_at IS NULL"),
            {"id": notification_id, "error": error[:500]},
        )
