"""Seals in the database: what grew since the last one, adding one, and holding all evidence against a copy.

A seal goes on behind the place that the one before reached, in the order in which followers read
(`runtime.store.evidence`): up to the first receipt that may still be preceded by one of an open transaction.
So every receipt is covered once, no commit slips in behind a seal, and a seal costs what grew, whatever came
before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.sql.elements import TextClause

from runtime.core.chain import Problem
from runtime.core.export_format import LeafLine, SealLine, SealsCopy, root_problem
from runtime.core.seals import SealCheck, SealedHead, SealedReceipts, SignedSeal
from runtime.errors import InvalidInput
from runtime.store.crashpoints import Transition
from runtime.store.engine import Database
from runtime.store.evidence import BEHIND, HELD, START, Place, snapshot, verify_in
from runtime.store.tables import EVERY_RECEIPT

PAGE = 500

_LAST = "SELECT number, body, signature, transaction_id, position FROM seal ORDER BY number DESC LIMIT 1"

# A place of another server, from which a dump was restored, means nothing here.
_FOREIGN = {
    "postgresql": ":transaction >= CAST(CAST(pg_snapshot_xmax(pg_current_snapshot()) AS text) AS bigint)",
    "sqlite": "0",
}

_LEAF = "session_id, step_id, fence, n, hash"


@cache
def grown_sql(dialect: str) -> TextClause:
    """The statement that reads all evidence behind a place, with ``transaction position limit``."""
    return text(
        f"SELECT transaction_id, position, {_LEAF}, {HELD[dialect]} AS held FROM evidence "
        f"WHERE {BEHIND[dialect]} AND {EVERY_RECEIPT} "
        "ORDER BY transaction_id, position LIMIT :limit"
    )


# --- making ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Grown:
    """What came since the last seal.

    Attributes:
        last: The last seal; ``None`` before the first.
        since: The place that it reached.
        heads: The last new receipt of each chain that grew, in a fixed order.
        receipts: How many receipts came.
        until: The place of the last of them.
        at: The database's time.
        workspaces: Hashes of the active workspace files.
    """

    last: SignedSeal | None
    since: Place
    heads: Sequence[SealedHead]
    receipts: int
    until: Place
    at: int
    workspaces: tuple[str, ...]


def read_grown(database: Database, limit: int) -> Grown:
    """Read what came since the last seal, at most ``limit`` receipts of it; blocks no writer.

    Raises:
        InvalidInput: If the last seal in the table is damaged.
    """
    with database.reading() as connection:
        row = connection.execute(text(_LAST)).one_or_none()
        last = None if row is None else SignedSeal.read(row.body, row.signature)
        since = START if row is None else _since(connection, Place(row.transaction_id, row.position))
        at = connection.execute(text(f"SELECT {database.now_sql}")).scalar_one()
        active = connection.execute(text("SELECT hash FROM workspace_version WHERE active ORDER BY hash"))
        workspaces = tuple(active.scalars())
        named = {"transaction": since.transaction_id, "position": since.position, "limit": limit}
        rows = connection.execute(grown_sql(connection.dialect.name), named).all()
    heads: dict[tuple[str, str, int], SealedHead] = {}
    until, receipts = since, 0
    for each in rows:
        if each.held:
            break
        chain = (each.session_id, each.step_id, each.fence)
        if chain not in heads or heads[chain].n < each.n:
            heads[chain] = SealedHead(*chain, each.n, each.hash)
        until, receipts = Place(each.transaction_id, each.position), receipts + 1
    return Grown(last, since, [heads[chain] for chain in sorted(heads)], receipts, until, at, workspaces)


def _since(connection: Connection, place: Place) -> Place:
    foreign = connection.execute(
        text(f"SELECT {_FOREIGN[connection.dialect.name]}"), {"transaction": place.transaction_id}
    ).scalar_one()
    return START if foreign else place


def add_seal(database: Database, signed: SignedSeal, heads: Sequence[SealedHead], until: Place) -> bool:
    """Add a seal with its heads; ``False`` if another process was first with this number."""
    number = signed.seal.number
    seal = {
        "number": number,
        "body": signed.body,
        "signature": signed.signature,
        "transaction": until.transaction_id,
        "position": until.position,
    }
    leaves = [
        {
            "seal": number,
            "leaf": k,
            "id": h.session_id,
            "step": h.step_id,
            "fence": h.fence,
            "n": h.n,
            "hash": h.hash,
        }
        for k, h in enumerate(heads)
    ]
    try:
        with database.writing(Transition.OTHER) as connection:
            connection.execute(
                text(
                    "INSERT INTO seal (number, body, signature, transaction_id, position) "
                    "VALUES (:number, :body, :signature, :transaction, :position)"
                ),
                seal,
            )
            if leaves:
                connection.execute(
                    text(
                        f"INSERT INTO seal_leaf (seal, leaf, {_LEAF}) "
                        "VALUES (:seal, :leaf, :id, :step, :fence, :n, :hash)"
                    ),
                    leaves,
                )
    except IntegrityError:
        return False
    return True


# --- reading --------------------------------------------------------------------------------------


def read_seals(connection: Connection, after: int = -1) -> Iterator[tuple[int, str, str]]:
    """Read seals in their order as they are stored: number, body, signature."""
    page = text("SELECT number, body, signature FROM seal WHERE number > :after ORDER BY number LIMIT :limit")
    while rows := connection.execute(page, {"after": after, "limit": PAGE}).all():
        yield from ((row.number, row.body, row.signature) for row in rows)
        after = rows[-1].number


def read_leaves(connection: Connection, number: int) -> list[SealedHead]:
    """Read the heads that the table lists for a seal."""
    rows = connection.execute(
        text(f"SELECT {_LEAF} FROM seal_leaf WHERE seal = :number ORDER BY leaf"), {"number": number}
    )
    return [SealedHead(*row) for row in rows.all()]


def read_heads(connection: Connection, session_id: str, until: int) -> list[tuple[int, SealedHead]]:
    """Read the heads of one session that seals up to a number list, each with its seal."""
    rows = connection.execute(
        text(
            f"SELECT seal, {_LEAF} FROM seal_leaf WHERE session_id = :id AND seal <= :until "
            "ORDER BY seal, leaf"
        ),
        {"id": session_id, "until": until},
    )
    return [(row.seal, SealedHead(*row[1:])) for row in rows]


def copy_seals(connection: Connection, after: int = -1, *, leaves: bool = True) -> Iterator[str]:
    """The lines of a copy of the seals behind a number, with the heads that each covers."""
    for number, body, signature in read_seals(connection, after):
        yield SealLine(body=body, signature=signature).text()
        for head in read_leaves(connection, number) if leaves else ():
            yield LeafLine(
                session_id=head.session_id, step_id=head.step_id, fence=head.fence, n=head.n, hash=head.hash
            ).text()


# --- verifying ------------------------------------------------------------------------------------


@dataclass(slots=True)
class SealedVerification:
    """What holding the database against a copy of the seals found.

    Attributes:
        seals: How many seals of the database the copy covers.
        newer: How many the database holds beyond the copy.
        sessions: How many sessions were gone through.
        receipts: How many receipts.
        covered: How many of them the copy's seals cover.
        tail: How many they do not cover.
        removed: How many contents retention removed.
        session_id: Where ``problem`` is; ``None`` if in the seals themselves.
        problem: The first entry that does not fit.
    """

    seals: int = 0
    newer: int = 0
    sessions: int = 0
    receipts: int = 0
    blobs: int = 0
    covered: int = 0
    tail: int = 0
    removed: int = 0
    session_id: str | None = None
    problem: Problem | None = None

    @property
    def verified(self) -> bool:
        """Whether everything fits."""
        return self.problem is None


def verify_sealed(
    database: Database, copy: SealsCopy, session_id: str | None = None, trusted: Iterable[str] = ()
) -> SealedVerification:
    """Hold the seal table, and then sessions, against a copy of the seals; all at one moment.

    One seal in the copy is enough to pin all before it, since each names the hash of the one before.

    Args:
        database: The database.
        copy: Seals that were kept elsewhere.
        session_id: The session to go through; ``None``: all.
        trusted: Public keys that the seals must rest on, if any are given.
    """
    found = SealedVerification()
    with snapshot(database) as connection:
        found.problem = copy.unproven() or _SealTable(connection, copy, found).problem(trusted)
        if found.problem is None:
            for each in [session_id] if session_id is not None else _sessions(connection):
                _verify_session(connection, each, copy.last, found)
                if found.problem is not None:
                    break
    return found


@dataclass(slots=True)
class _SealTable:
    """Goes through the seal table beside a copy."""

    connection: Connection
    copy: SealsCopy
    found: SealedVerification
    seen: set[int] = field(default_factory=set)

    def problem(self, trusted: Iterable[str]) -> Problem | None:
        """The first seal that does not fit."""
        check = SealCheck(trusted, whole=True)
        for number, body, signature in read_seals(self.connection):
            if problem := self._seal(check, number, body, signature):
                return problem
        for number in self.copy.seals:
            if number not in self.seen:
                return Problem(f"seal {number}", "the copy holds it, and the database does not")
        return None

    def _seal(self, check: SealCheck, number: int, body: str, signature: str) -> Problem | None:
        entry, held = f"seal {number}", self.copy.seals.get(number)
        if held is not None and (held.body, held.signature) != (body, signature):
            return Problem(entry, "the database holds another seal than the copy under this number")
        try:
            signed = SignedSeal.read(body, signature)
        except InvalidInput as error:
            return Problem(entry, str(error))
        if signed.seal.number != number:
            return Problem(entry, f"it says that it is seal {signed.seal.number}")
        if problem := check.add(signed):
            return problem
        if number > self.copy.last:
            self.found.newer += 1
            return None
        self.seen.add(number)
        self.found.seals += 1
        return self._heads(signed)

    def _heads(self, signed: SignedSeal) -> Problem | None:
        number = signed.seal.number
        listed = read_leaves(self.connection, number)
        held = self.copy.leaves.get(number, ())
        if held == listed:
            return None  # those of the copy make its root, or this would not have been asked
        there = set(listed)
        for mine in held:
            if mine not in there:
                entry = f"{mine.entry} of session {mine.session_id}"
                return Problem(entry, f"seal {number} covers it, and its list in the database was changed")
        return root_problem(signed, listed)


def _sessions(connection: Connection) -> Iterator[str]:
    """Every session that has a row, or that a seal covers."""
    page = text(
        "SELECT id FROM (SELECT id FROM session UNION SELECT session_id FROM seal_leaf) AS known "
        "WHERE id > :after ORDER BY id LIMIT :limit"
    )
    after = ""
    while rows := connection.execute(page, {"after": after, "limit": PAGE}).scalars().all():
        yield from rows
        after = rows[-1]


def _verify_session(connection: Connection, session_id: str, until: int, found: SealedVerification) -> None:
    sealed = SealedReceipts(heads := read_heads(connection, session_id, until))
    one = verify_in(connection, session_id, sealed)
    found.sessions += 1
    found.receipts += one.receipts
    found.blobs += one.blobs
    found.removed += one.removed
    found.covered += sealed.covered
    found.tail += sealed.tail
    found.problem = one.problem or _row_problem(connection, session_id, heads)
    found.session_id = session_id if found.problem else None


def _row_problem(connection: Connection, session_id: str, heads: Sequence[Any]) -> Problem | None:
    row = connection.execute(text("SELECT 1 FROM session WHERE id = :id"), {"id": session_id}).one_or_none()
    if row is None and heads:
        return Problem("session", f"its row is missing, and seal {heads[0][0]} covers its evidence")
    return None
