"""How far the schedules of the workspace file have come.

A due time is claimed before its session starts: it moves from ``next_at`` to ``pending_at``, and leaves
that only when its session exists or cannot be started. So a crash in between loses nothing; and since the
id of the session follows from the due time, whoever goes on starts the same session.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import text

from runtime.store.crashpoints import Transition
from runtime.store.engine import Database


@dataclass(frozen=True, slots=True)
class StoredSchedule:
    """A schedule's row, and how its last session is; instants in milliseconds since the epoch.

    Attributes:
        id: The schedule.
        timetable: Cron expression and zone that ``next_at`` was reckoned by.
        next_at: The next due time.
        pending_at: A due time that was claimed and whose session has yet to start.
        session_id: The last session that it started.
        busy: Whether that session exists and has not ended.
        last_end: How it ended.
    """

    id: str
    timetable: str
    next_at: int
    pending_at: int | None
    session_id: str | None
    busy: bool
    last_end: str | None


_READ = """
SELECT c.now, r.id, r.timetable, r.next_at, r.pending_at, r.session_id, s.ended_status AS last_end,
       (s.id IS NOT NULL AND s.ended_status IS NULL) AS busy
  FROM (SELECT {now} AS now) c
  LEFT JOIN schedule r ON r.id IN ({places})
  LEFT JOIN session s ON s.id = r.session_id
"""


def read_schedules(database: Database, ids: Sequence[str]) -> tuple[dict[str, StoredSchedule], int]:
    """Read the rows of these schedules that exist, and the database's clock."""
    places = {f"s{number}": schedule_id for number, schedule_id in enumerate(ids)}
    names = ", ".join(f":{name}" for name in places) or "NULL"
    with database.reading() as connection:
        rows = connection.execute(text(_READ.format(now=database.now_sql, places=names)), places).all()
    found = {
        row.id: StoredSchedule(
            row.id, row.timetable, row.next_at, row.pending_at, row.session_id, bool(row.busy), row.last_end
        )
        for row in rows
        if row.id is not None
    }
    return found, int(rows[0].now)


def add_schedule(database: Database, schedule_id: str, timetable: str, *, now: int, next_at: int) -> None:
    """Take note of a schedule that is seen for the first time; the first one to do so wins."""
    with database.writing(Transition.CLAIM_SCHEDULE) as connection:
        connection.execute(
            text(
                "INSERT INTO schedule (id, timetable, seen_at, next_at) VALUES (:id, :timetable, "
                "CAST(:now AS BIGINT), CAST(:next AS BIGINT)) ON CONFLICT DO NOTHING"
            ),
            {"id": schedule_id, "timetable": timetable, "now": now, "next": next_at},
        )


def move_schedule(
    database: Database, seen: StoredSchedule, *, timetable: str, next_at: int, claimed: int | None = None
) -> bool:
    """Move on to the next due time; at most one of several who saw the same row does so.

    Args:
        database: Where.
        seen: The row as it was read.
        timetable: What ``next_at`` was reckoned by.
        next_at: The next due time.
        claimed: The due time to claim, if its session is to start.

    Returns:
        Whether it was this one.
    """
    with database.writing(Transition.CLAIM_SCHEDULE) as connection:
        moved = connection.execute(
            text(
                """UPDATE schedule SET timetable = :timetable, next_at = CAST(:next AS BIGINT),
                       pending_at = COALESCE(CAST(:claimed AS BIGINT), pending_at)
                 WHERE id = :id AND next_at = :seen_next AND timetable = :seen_timetable
                   AND COALESCE(pending_at, 0) = :seen_pending"""
            ),
            {
                "id": seen.id,
                "timetable": timetable,
                "next": next_at,
                "claimed": claimed,
                "seen_next": seen.next_at,
                "seen_timetable": seen.timetable,
                "seen_pending": seen.pending_at or 0,
            },
        )
    return moved.rowcount == 1


def finish_pending(database: Database, schedule_id: str, due: int, session_id: str | None) -> None:
    """Take note that a claimed due time's session was started, or (None) that it cannot be."""
    with database.writing(Transition.CLAIM_SCHEDULE) as connection:
        connection.execute(
            text(
                "UPDATE schedule SET pending_at = NULL, session_id = COALESCE(:session, session_id) "
                "WHERE id = :id AND pending_at = :due"
            ),
            {"id": schedule_id, "due": due, "session": session_id},
        )
