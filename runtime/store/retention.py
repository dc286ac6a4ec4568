"""Retention: removes stored contents of sessions that ended long ago, and keeps all that proves them.

Receipts, hashes and seals stay, so the chain still verifies; that a content is gone on purpose is said by a
row, and by a receipt of the session's control chain, which later seals cover. What is kept: contents that the
control chain cites, inputs of calls under a grant, the input of a step that did not succeed, because a resume
may need it, and what the receipts cite on which a fork rests. A content that no longer fits its hash stays
too: it is a finding, not waste.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, text

from runtime.core.chain import CONTENTS_REMOVED, CONTROL_STEP, text_hash
from runtime.store.crashpoints import Transition
from runtime.store.engine import Database
from runtime.store.sessions import StoredSession, add_control_receipt, find_session
from runtime.store.tables import RemovedBlobRow
from runtime.store.write import Change

SESSIONS_PAGE = 100
CONTENTS_PER_RECEIPT = 50
"""Contents removed in one short transaction: each is read once more, and named by the receipt."""

_ENDED = text(
    "SELECT s.id FROM session s WHERE s.ended_status IS NOT NULL AND s.ended_at < :until AND s.id > :after "
    "AND EXISTS (SELECT 1 FROM blob b WHERE b.session_id = s.id) ORDER BY s.id LIMIT :limit"
)

_CONTENTS = text(
    "SELECT hash, CAST(content AS TEXT) AS content FROM blob WHERE session_id = :id AND hash > :after "
    "ORDER BY hash LIMIT :limit"
)

_DELETE = text("DELETE FROM blob WHERE session_id = :id AND hash IN :hashes").bindparams(
    bindparam("hashes", expanding=True)
)

# Grants and control receipts; the condition on the text only narrows what is parsed.
_CITING = text(
    "SELECT step_id, kind, CAST(body AS TEXT) AS body FROM evidence WHERE session_id = :id "
    "AND (step_id = :control OR (kind = 'tool_call_started' AND body LIKE '%\"grant\"%'))"
)

_UNFINISHED = text(
    "SELECT input_hash FROM step WHERE session_id = :id AND status <> 'succeeded' AND input_hash IS NOT NULL"
)

_ORIGIN = text(
    "SELECT CAST(body AS TEXT) FROM evidence WHERE session_id = :id AND step_id = :control AND fence = 0 "
    "AND n = 0"
)

_BLOB = text("SELECT CAST(content AS TEXT) FROM blob WHERE session_id = :id AND hash = :hash")

_RECEIPTS = text(
    "SELECT CAST(body AS TEXT) AS body FROM evidence WHERE session_id = :id AND hash IN :hashes"
).bindparams(bindparam("hashes", expanding=True))


@dataclass(frozen=True, slots=True)
class Retained:
    """What one run of retention did.

    Attributes:
        sessions: Sessions from which it removed something.
        contents: How many contents.
        damaged: Sessions that it left alone, because a receipt that says what to keep cannot be read.
    """

    sessions: int
    contents: int
    damaged: int = 0


class _Damaged(Exception):
    """A receipt that says what to keep cannot be read."""


def remove_contents(database: Database, older_than_ms: int, reason: str) -> Retained:
    """Remove the contents of sessions that ended longer ago than a span; harmless to repeat or to interrupt.

    Args:
        database: The database.
        older_than_ms: The span, in milliseconds by the database's clock.
        reason: Why, for people; it is kept with each content and in the receipts.
    """
    with database.reading() as connection:
        now = connection.execute(text(f"SELECT {database.now_sql}")).scalar_one()
    until = now - older_than_ms
    sessions = contents = damaged = 0
    for session_id in _ended(database, until):
        try:
            removed = _remove_of(database, session_id, until, reason)
        except _Damaged:
            damaged += 1
            continue
        sessions += removed > 0
        contents += removed
    return Retained(sessions, contents, damaged)


def _ended(database: Database, until: int) -> Iterator[str]:
    after = ""
    while True:
        with database.reading() as connection:
            named = {"until": until, "after": after, "limit": SESSIONS_PAGE}
            page = connection.execute(_ENDED, named).scalars().all()
        if not page:
            return
        yield from page
        after = page[-1]


def _remove_of(database: Database, session_id: str, until: int, reason: str) -> int:
    """Remove a session's contents, some at a time; a session that goes on meanwhile keeps the rest."""
    removed, after = 0, ""
    while True:
        with database.writing(Transition.OTHER) as connection:
            session = find_session(database, connection, session_id, lock=True)
            if session is None or session.ended_at is None or session.ended_at >= until:
                return removed
            named = {"id": session_id, "after": after, "limit": CONTENTS_PER_RECEIPT}
            page = connection.execute(_CONTENTS, named).all()
            if not page:
                return removed
            kept = _kept(connection, session_id)
            going = [row.hash for row in page if row.hash not in kept and text_hash(row.content) == row.hash]
            if going:
                _remove(connection, session, going, reason)
        after = page[-1].hash
        removed += len(going)


def _remove(connection: Connection, session: StoredSession, hashes: Sequence[str], reason: str) -> None:
    change = Change()
    add_control_receipt(
        change, session, CONTENTS_REMOVED, {"contents": list(hashes), "reason": reason, "at": session.now}
    )
    rows = [{"session_id": session.id, "hash": each, "at": session.now, "reason": reason} for each in hashes]
    change.insert(RemovedBlobRow, rows, once=True)
    held = change.apply(connection)
    assert held, "the session's lock is held, so its control chain cannot have grown"
    connection.execute(_DELETE, {"id": session.id, "hashes": list(hashes)})


# --- what is kept ---------------------------------------------------------------------------------


def _kept(connection: Connection, session_id: str) -> set[str]:
    """Hashes of the contents that something still rests on; the caller holds the session's lock."""
    named = {"id": session_id, "control": CONTROL_STEP}
    kept = set(connection.execute(_UNFINISHED, {"id": session_id}).scalars())
    forks: list[str] = []
    for row in connection.execute(_CITING, named):
        body = _parsed(row.body)
        kept |= set(_cited(body))
        if row.step_id == CONTROL_STEP and row.kind == "forked":
            forks.append(str(body.get("into")))
    for fork in forks:
        if heads := _heads_kept_by(connection, fork):
            for cited in connection.execute(_RECEIPTS, {"id": session_id, "hashes": heads}).scalars():
                kept |= set(_cited(_parsed(cited)))
    return kept


def _heads_kept_by(connection: Connection, fork: str) -> list[str]:
    """The receipts of its source on which a fork rests, as its own first receipt names them."""
    origin = connection.execute(_ORIGIN, {"id": fork, "control": CONTROL_STEP}).scalar_one_or_none()
    if origin is None:
        return []  # the fork is gone, and rests on nothing any more
    body = _parsed(origin)
    if "copied" not in body:
        named = {"id": fork, "hash": body.get("copied_hash")}
        body["copied"] = json.loads(connection.execute(_BLOB, named).scalar_one_or_none() or "null")
    try:
        return [each["head"] for each in body["copied"] if each["head"] is not None]
    except (TypeError, KeyError):
        raise _Damaged from None


def _parsed(text_of_body: str) -> dict[str, Any]:
    try:
        body = json.loads(text_of_body)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise _Damaged
    return body


def _cited(body: Mapping[str, Any]) -> Iterable[str]:
    """The hashes of contents that a receipt cites."""
    return (value for name, value in body.items() if name.endswith("_hash") and isinstance(value, str))
