"""Reading evidence: pages of receipts, blobs, and what verification needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import text

from runtime.core.chain import Receipt, Verification, verify
from runtime.store.engine import Database

PAGE = 500


@dataclass(frozen=True, slots=True)
class StoredReceipt:
    """A receipt with its place in the store."""

    position: int
    receipt: Receipt


def read_page(database: Database, session_id: str, after: int = 0, limit: int = PAGE) -> list[StoredReceipt]:
    """Read receipts after a position, oldest first; costs the same at any length of the evidence."""
    with database.reading() as connection:
        rows = connection.execute(
            text(
                "SELECT position, step_id, fence, n, kind, body, hash FROM evidence "
                "WHERE session_id = :id AND position > :after ORDER BY position LIMIT :limit"
            ),
            {"id": session_id, "after": after, "limit": limit},
        ).all()
    return [
        StoredReceipt(row.position, Receipt(row.step_id, row.fence, row.n, row.kind, row.body, row.hash))
        for row in rows
    ]


def read_all(database: Database, session_id: str) -> Iterator[StoredReceipt]:
    """Read all receipts of a session, page by page."""
    after = 0
    while page := read_page(database, session_id, after):
        yield from page
        after = page[-1].position


def position_of(database: Database, session_id: str, step_id: str, fence: int, n: int) -> int | None:
    """The position of one receipt."""
    with database.reading() as connection:
        found = connection.execute(
            text(
                "SELECT position FROM evidence WHERE session_id = :id AND step_id = :step "
                "AND fence = :fence AND n = :n"
            ),
            {"id": session_id, "step": step_id, "fence": fence, "n": n},
        ).scalar_one_or_none()
    return None if found is None else int(found)


def verify_session(database: Database, session_id: str) -> Verification:
    """Recompute a session's chain and every blob.

    Blobs are read as stored, so a flipped byte is found even where no receipt cites it.
    """
    with database.reading() as connection:
        heads = {
            row.id: row.head
            for row in connection.execute(
                text("SELECT id, head FROM step WHERE session_id = :id AND head IS NOT NULL"),
                {"id": session_id},
            )
        }
        control = connection.execute(
            text("SELECT control_head FROM session WHERE id = :id"), {"id": session_id}
        ).scalar_one_or_none()
    if control is not None:
        heads["control"] = control
    # In this order nothing that a running session commits meanwhile can be missed: receipts are no older
    # than the heads that name them, blobs no older than the receipts that cite them.
    receipts = [stored.receipt for stored in read_all(database, session_id)]
    with database.reading() as connection:
        rows = connection.execute(
            text("SELECT hash, content FROM blob WHERE session_id = :id"), {"id": session_id}
        )
        blobs = {row.hash: row.content for row in rows}
    return verify(receipts, blobs, heads)
