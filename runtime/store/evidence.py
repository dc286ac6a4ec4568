"""Reading evidence: pages in an order that no later commit can change, and whole sessions at one moment.

Receipts are ordered by ``(transaction_id, position)``. Two transactions of PostgreSQL may commit in another
order than they began, so a follower must not go past one that is still open: a page ends before the first
receipt whose transaction is not older than every open one. What is committed but held back so comes with a
later page; nothing that a page has passed can still appear behind it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import Any

from sqlalchemy import Connection, text
from sqlalchemy.sql.elements import TextClause

from runtime.core.chain import CONTROL_STEP, Receipt, Verification, verify
from runtime.core.control_check import ControlNotes
from runtime.store.engine import Database
from runtime.store.recorded import journal_problems
from runtime.store.recorded_control import control_problems

PAGE = 500
BLOBS_PAGE = 20
"""Blobs read at once: each may be large."""


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where a receipt stands in the order of all; the default is before the first."""

    transaction_id: int = 0
    position: int = 0


START = Place()


@dataclass(frozen=True, slots=True)
class StoredReceipt:
    """A receipt with its place in the store."""

    place: Place
    receipt: Receipt


@dataclass(frozen=True, slots=True)
class Page:
    """Receipts in their final order.

    Attributes:
        receipts: Nothing will ever appear between or before these.
        held: Whether more is committed, but held back until transactions that began before it have ended.
    """

    receipts: list[StoredReceipt]
    held: bool


# The snapshot is that of the statement: whatever is older than its oldest open transaction has ended, and if
# committed is seen by it. An id that the server has not given out yet came with a restored dump.
_HELD = {
    "postgresql": "transaction_id >= (SELECT CAST(CAST(pg_snapshot_xmin(pg_current_snapshot()) AS text) "
    "AS bigint)) AND transaction_id < (SELECT CAST(CAST(pg_snapshot_xmax(pg_current_snapshot()) AS text) "
    "AS bigint))",
    "sqlite": "0",
}


@cache
def page_sql(dialect: str) -> TextClause:
    """The statement that reads a page, with ``id transaction position limit``."""
    return text(
        f"SELECT transaction_id, position, step_id, fence, n, kind, CAST(body AS TEXT) AS body, hash, "
        f"{_HELD[dialect]} AS held FROM evidence "
        "WHERE session_id = :id AND (transaction_id, position) > (:transaction, :position) "
        "ORDER BY transaction_id, position LIMIT :limit"
    )


def read_page(database: Database, session_id: str, after: Place = START, limit: int = PAGE) -> Page:
    """Read receipts behind a place; costs the same at any length of the evidence."""
    with database.reading() as connection:
        rows = _rows(connection, session_id, after, limit)
    settled = next((k for k, row in enumerate(rows) if row.held), len(rows))
    return Page([_stored(row) for row in rows[:settled]], held=settled < len(rows))


def _rows(connection: Connection, session_id: str, after: Place, limit: int) -> list[Any]:
    named = {
        "id": session_id,
        "transaction": after.transaction_id,
        "position": after.position,
        "limit": limit,
    }
    return list(connection.execute(page_sql(connection.dialect.name), named))


def _stored(row: Any) -> StoredReceipt:
    return StoredReceipt(
        Place(row.transaction_id, row.position),
        Receipt(row.step_id, row.fence, row.n, row.kind, row.body, row.hash),
    )


def place_of(database: Database, session_id: str, step_id: str, fence: int, n: int) -> Place | None:
    """The place of one receipt, or ``None`` when the session has no such receipt."""
    with database.reading() as connection:
        found = connection.execute(
            text(
                "SELECT transaction_id, position FROM evidence WHERE session_id = :id AND step_id = :step "
                "AND fence = :fence AND n = :n"
            ),
            {"id": session_id, "step": step_id, "fence": fence, "n": n},
        ).one_or_none()
    return None if found is None else Place(found.transaction_id, found.position)


# --- a whole session at one moment ----------------------------------------------------------------


@contextmanager
def snapshot(database: Database) -> Iterator[Connection]:
    """A connection whose reads all see one moment, however long they take; it blocks no writer.

    Raises:
        StoreUnavailable: If the database cannot be reached.
    """
    with database.connecting() as connection:
        if database.dialect == "sqlite":
            connection.exec_driver_sql("BEGIN")
            try:
                yield connection
            finally:
                connection.exec_driver_sql("ROLLBACK")
        else:
            still = connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            with still.begin():
                yield still


def read_receipts(connection: Connection, session_id: str) -> Iterator[Receipt]:
    """Read all receipts of a session in a `snapshot`, page by page."""
    after = START
    while rows := _rows(connection, session_id, after, PAGE):
        yield from (_stored(row).receipt for row in rows)
        after = _stored(rows[-1]).place


def read_blobs(connection: Connection, session_id: str) -> Iterator[tuple[str, str]]:
    """Read the blobs of a session in a `snapshot`, page by page: hash and content, by hash."""
    after = ""
    page = text(
        "SELECT hash, CAST(content AS TEXT) AS content FROM blob WHERE session_id = :id AND hash > :after "
        "ORDER BY hash LIMIT :limit"
    )
    while True:
        rows = connection.execute(page, {"id": session_id, "after": after, "limit": BLOBS_PAGE}).all()
        if not rows:
            return
        yield from ((row.hash, row.content) for row in rows)
        after = rows[-1].hash


def verify_session(database: Database, session_id: str) -> Verification:
    """Recompute a session's chain and every blob, and hold the journal's own rows against them.

    All is read at one moment, in batches; what grows with the session is hashes, never contents. Blobs are
    read as stored, so a flipped byte is found even where no receipt cites it.
    """
    with snapshot(database) as connection:
        control = connection.execute(
            text("SELECT control_head FROM session WHERE id = :id"), {"id": session_id}
        ).scalar_one_or_none()
        notes = ControlNotes()
        return verify(
            notes.noting(read_receipts(connection, session_id)),
            read_blobs(connection, session_id),
            {} if control is None else {CONTROL_STEP: control},
            chain(journal_problems(connection, session_id), control_problems(connection, session_id, notes)),
        )
