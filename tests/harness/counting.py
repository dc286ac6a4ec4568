"""Counts what a piece of work costs: SQL statements and commits at the driver, Redis round trips.

What is counted is what leaves this process, below SQLAlchemy: each execution by SQLite's own trace, each
``execute`` of psycopg's cursors. A batch counts once per set of parameters, because that is how often either
driver runs the statement. The pool's pings are empty queries, so they are told apart from statements.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from unittest.mock import patch

import psycopg
import redis
from psycopg.pq import TransactionStatus
from sqlalchemy import event

from runtime.live.sender import Command, Sender
from runtime.store.engine import Database


class Counts(NamedTuple):
    """The numbers alone: statements without BEGIN and COMMIT, commits, Redis round trips, empty queries."""

    statements: int
    commits: int
    redis: int
    pings: int = 0


@dataclass
class Cost:
    """What was counted.

    Attributes:
        sent: The SQL statements, each as often as the driver ran it.
        commits: Transactions that were committed, and statements that committed by themselves.
        redis: Round trips to Redis; a pipeline is one.
        pings: Empty queries, by which a pool sees whether a connection is alive.
    """

    sent: list[str] = field(default_factory=list)
    commits: int = 0
    redis: int = 0
    pings: int = 0

    @property
    def counts(self) -> Counts:
        """The numbers alone."""
        return Counts(len(self.sent), self.commits, self.redis, self.pings)

    def ran(self, statement: str, *, autocommit: bool) -> None:
        """Take note of one statement that the driver runs."""
        plain = statement.strip().upper()
        if plain in ("", ";"):
            self.pings += 1
            return
        boundary = plain.startswith(("BEGIN", "COMMIT", "ROLLBACK"))
        reads = plain.startswith(("SELECT", "PRAGMA"))
        if not boundary:
            self.sent.append(statement)
        if plain.startswith("COMMIT") or (autocommit and not boundary and not reads):
            self.commits += 1


@contextmanager
def counting(database: Database) -> Iterator[Cost]:
    """Count in this process while the block runs."""
    cost = Cost()
    with _redis(cost), _sqlite(cost, database) if database.dialect == "sqlite" else _psycopg(cost):
        yield cost


@contextmanager
def _redis(cost: Cost) -> Iterator[None]:
    kind = redis.connection.AbstractConnection
    send = kind.send_packed_command

    def sent(self: Any, *arguments: Any, **options: Any) -> Any:
        cost.redis += 1
        return send(self, *arguments, **options)  # type: ignore[no-untyped-call]

    put = Sender.put

    def put_alone(self: Sender, commands: Sequence[Command]) -> None:
        put(self, commands)
        assert self.flush()  # else several would share a round trip, depending on the moment

    with patch.object(kind, "send_packed_command", sent), patch.object(Sender, "put", put_alone):
        yield


@contextmanager
def _sqlite(cost: Cost, database: Database) -> Iterator[None]:
    def taken(connection: Any, *_: Any) -> None:
        connection.set_trace_callback(
            lambda statement: cost.ran(statement, autocommit=not connection.in_transaction)
        )

    def given_back(connection: Any, *_: Any) -> None:
        if connection is not None:
            connection.set_trace_callback(None)

    event.listen(database.engine, "checkout", taken)
    event.listen(database.engine, "checkin", given_back)
    try:
        yield
    finally:
        event.remove(database.engine, "checkout", taken)
        event.remove(database.engine, "checkin", given_back)


@contextmanager
def _psycopg(cost: Cost) -> Iterator[None]:
    execute, executemany = psycopg.Cursor.execute, psycopg.Cursor.executemany
    commit = psycopg.Connection.commit

    def executed(self: Any, query: Any, *arguments: Any, **options: Any) -> Any:
        cost.ran(str(query), autocommit=self.connection.autocommit)
        return execute(self, query, *arguments, **options)

    def executed_many(self: Any, query: Any, parameters: Any, **options: Any) -> Any:
        each = list(parameters)
        for _ in each:
            cost.ran(str(query), autocommit=self.connection.autocommit)
        return executemany(self, query, each, **options)

    def committed(self: Any) -> None:
        if self.info.transaction_status == TransactionStatus.INTRANS:
            cost.commits += 1
        commit(self)

    with ExitStack() as patched:
        patched.enter_context(patch.object(psycopg.Cursor, "execute", executed))
        patched.enter_context(patch.object(psycopg.Cursor, "executemany", executed_many))
        patched.enter_context(patch.object(psycopg.Connection, "commit", committed))
        yield
