"""The demo's tools: a small calendar in a SQLite file, really written to.

The file is the one that ``AGENT_RUNTIME_DEMO_CALENDAR`` names, else ``calendar.db`` in the state directory.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field

from runtime import ToolContext, ToolError, tool

SCHEMA = """
CREATE TABLE IF NOT EXISTS event (
    id TEXT PRIMARY KEY,
    title TEXT NOT NULL,
    start TEXT NOT NULL,
    minutes INTEGER NOT NULL,
    idempotency_key TEXT UNIQUE
)
"""


def _whole_seconds_utc(instant: datetime) -> datetime:
    return instant.astimezone(UTC).replace(microsecond=0)


Instant = Annotated[AwareDatetime, AfterValidator(_whole_seconds_utc)]
"""An RFC 3339 instant with its offset, such as ``2026-03-13T09:00:00Z``."""
Minutes = Annotated[int, Field(gt=0, le=24 * 60)]
Title = Annotated[str, Field(min_length=1, max_length=200)]


class Input(BaseModel):
    """Base of the tools' inputs: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")


class ListEvents(Input):
    """Which events to list; without a day, all of them."""

    day: date | None = None


class CreateEvent(Input):
    """A new event."""

    title: Title
    start: Instant
    minutes: Minutes = 30


class RescheduleEvent(Input):
    """An event's new start."""

    event_id: str
    start: Instant


class DeleteEvent(Input):
    """The event to delete."""

    event_id: str


class Event(BaseModel):
    """One event of the calendar."""

    id: str
    title: str
    start: Instant
    minutes: int


class Events(BaseModel):
    """Events by start."""

    events: list[Event]


class Deleted(BaseModel):
    """What was deleted."""

    deleted: Event


@tool("calendar:list-events", effect="read")
def list_events(input: ListEvents, ctx: ToolContext) -> Events:
    """List the calendar's events with their ids, of one day (YYYY-MM-DD, UTC) or all."""
    day = input.day or date.min
    until = day + timedelta(days=1) if input.day else date.max
    with _calendar() as calendar:
        rows = calendar.execute(
            "SELECT id, title, start, minutes FROM event WHERE start >= ? AND start < ? ORDER BY start, id",
            (day.isoformat(), until.isoformat()),
        ).fetchall()
    return Events(events=[_event(row) for row in rows])


@tool("calendar:create-event", effect="idempotent")
def create_event(input: CreateEvent, ctx: ToolContext) -> Event:
    """Create a calendar event; the start is an RFC 3339 instant."""
    key = ctx.idempotency_key
    event_id = "evt-" + hashlib.sha256(key.encode()).hexdigest()[:10]
    with _calendar() as calendar:
        calendar.execute(
            "INSERT INTO event VALUES (?, ?, ?, ?, ?) ON CONFLICT (idempotency_key) DO NOTHING",
            (event_id, input.title, _text(input.start), input.minutes, key),
        )
        return _find(calendar, event_id)


@tool("calendar:reschedule-event", effect="idempotent")
def reschedule_event(input: RescheduleEvent, ctx: ToolContext) -> Event:
    """Move an existing calendar event to a new time; list events first to learn its id."""
    with _calendar() as calendar:
        calendar.execute("UPDATE event SET start = ? WHERE id = ?", (_text(input.start), input.event_id))
        return _find(calendar, input.event_id)


@tool("calendar:delete-event", effect="once")
def delete_event(input: DeleteEvent, ctx: ToolContext) -> Deleted:
    """Delete a calendar event for good; list events first to learn its id."""
    with _calendar() as calendar:
        event = _find(calendar, input.event_id)
        calendar.execute("DELETE FROM event WHERE id = ?", (input.event_id,))
    return Deleted(deleted=event)


def calendar_path() -> Path:
    """Where the calendar is."""
    state_dir = os.environ.get("AGENT_RUNTIME_STATE_DIR") or ".agent-runtime"
    return Path(os.environ.get("AGENT_RUNTIME_DEMO_CALENDAR") or Path(state_dir) / "calendar.db")


def seed(path: Path, events: tuple[Event, ...]) -> None:
    """Make a calendar that holds ``events``."""
    with _calendar(path) as calendar:
        calendar.executemany(
            "INSERT INTO event (id, title, start, minutes) VALUES (?, ?, ?, ?)",
            [(event.id, event.title, _text(event.start), event.minutes) for event in events],
        )


def contents(path: Path) -> list[Event]:
    """All events of a calendar by start."""
    with _calendar(path) as calendar:
        rows = calendar.execute("SELECT id, title, start, minutes FROM event ORDER BY start, id").fetchall()
    return [_event(row) for row in rows]


@contextmanager
def _calendar(path: Path | None = None) -> Iterator[sqlite3.Connection]:
    """One write transaction on the calendar."""
    connection = sqlite3.connect(path or calendar_path(), timeout=10, isolation_level=None)
    with closing(connection):
        connection.execute("BEGIN IMMEDIATE")
        with connection:
            connection.execute(SCHEMA)
            yield connection


def _find(calendar: sqlite3.Connection, event_id: str) -> Event:
    row = calendar.execute("SELECT id, title, start, minutes FROM event WHERE id = ?", (event_id,)).fetchone()
    if row is None:
        raise ToolError(
            f"there is no event {event_id!r}; calendar:list-events tells the ids", code="EVENT_NOT_FOUND"
        )
    return _event(row)


def _event(row: tuple[str, str, str, int]) -> Event:
    return Event(id=row[0], title=row[1], start=datetime.fromisoformat(row[2]), minutes=row[3])


def _text(instant: datetime) -> str:
    return instant.strftime("%Y-%m-%dT%H:%M:%SZ")
