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
from runtime.core.seals import SealedReceipts
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
HELD = {
    "postgresql": "transaction_id >= (SELECT CAST(CAST(pg_snapshot_xmin(pg_current_snapshot()) AS text) "
    "AS bigint)) AND transaction_id < (SELECT CAST(CAST(pg_snapshot_xmax(pg_current_snapshot()) AS text) "
    "AS bigint))",
    "sqlite": "0",
}


# SQLite narrows a comparison of pairs by their first column only, and would go through all of a session for
# its last page. Its writers are serialised, so that all of its receipts have one transaction id.
BEHIND = {
    "postgresql": "(transaction_id, position) > (:transaction, :position)",
    "sqlite": "transaction_id = :transaction AND position > :position",
}
"""The condition of what stands behind a place; an index narrows by all of it."""


@cache
def page_sql(dialect: str) -> TextClause:
    """The statement that reads a page, with ``id transaction position limit``."""
    return text(
        f"SELECT transaction_id, position, step_id, fence, n, kind, CAST(body AS TEXT) AS body, hash, "
        f"{HELD[dialect]} AS held FROM evidence WHERE session_id = :id AND {BEHIND[dialect]} "
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
    return list(connection.execute(page_sql(connection.dialect.name), named).all())


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


_RECEIPT = slice(2, 8)
"""The columns of a page that make a receipt."""


def read_receipts(connection: Connection, session_id: str) -> Iterator[Receipt]:
    """Read all receipts of a session in a `snapshot`, page by page."""
    after = START
    while rows := _rows(connection, session_id, after, PAGE):
        yield from (Receipt(*row[_RECEIPT]) for row in rows)
        after = Place(rows[-1].transaction_id, rows[-1].position)


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


def read_removed(connection: Connection, session_id: str) -> Iterator[Any]:
    """What retention removed of a session: rows of ``hash``, ``at`` and ``reason``, by hash."""
    return iter(
        connection.execute(
            text("SELECT hash, at, reason FROM removed_blob WHERE session_id = :id ORDER BY hash"),
            {"id": session_id},
        )
    )


def verify_session(database: Database, session_id: str) -> Verification:
    """Recompute a session's chain and every blob, and hold the journal's own rows against them.

    All is read at one moment, in batches; what grows with the session is hashes, never contents. Blobs are
    read as stored, so a flipped byte is found even where no receipt cites it.
    """
    with snapshot(database) as connection:
        return verify_in(connection, session_id)


def verify_in(connection: Connection, session_id: str, sealed: SealedReceipts | None = None) -> Verification:
    """Verify a session in a `snapshot`.

    Args:
        connection: In the snapshot.
        session_id: The session.
        sealed: The heads that seals cover, to be held against its receipts as well.
    """
    control = connection.execute(
        text("SELECT control_head FROM session WHERE id = :id"), {"id": session_id}
    ).scalar_one_or_none()
    notes = ControlNotes()
    receipts = notes.noting(read_receipts(connection, session_id))
    return verify(
        receipts if sealed is None else sealed.noting(receipts),
        read_blobs(connection, session_id),
        {} if control is None else {CONTROL_STEP: control},
        chain(
            () if sealed is None else sealed.problems(),
            journal_problems(connection, session_id, notes.edits),
            control_problems(connection, session_id, notes),
        ),
        (row.hash for row in read_removed(connection, session_id)),
    )
