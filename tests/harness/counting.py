"""Counts what a piece of work costs: SQL statements and commits at the driver, Redis round trips."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import redis
from sqlalchemy import event

from runtime.store.engine import Database

_NOT_COUNTED = ("BEGIN", "COMMIT", "ROLLBACK", "PRAGMA", "SELECT 1")


@dataclass
class Cost:
    """What was counted."""

    statements: list[str] = field(default_factory=list)
    commits: int = 0
    redis: int = 0


@contextmanager
def counting(database: Database, monkeypatch) -> Iterator[Cost]:
    """Count in this process while the block runs."""
    cost = Cost()

    def executed(_connection, _cursor, statement, *_):
        if statement.strip().upper() == "COMMIT":
            cost.commits += 1
        if not statement.strip().upper().startswith(_NOT_COUNTED):
            cost.statements.append(statement)

    def committed(_connection):
        cost.commits += 1

    send = redis.connection.AbstractConnection.send_packed_command

    def sent(self, *arguments, **options):
        cost.redis += 1
        return send(self, *arguments, **options)

    monkeypatch.setattr(redis.connection.AbstractConnection, "send_packed_command", sent)
    event.listen(database.engine, "before_cursor_execute", executed)
    if database.dialect == "postgresql":
        event.listen(database.engine, "commit", committed)
    try:
        yield cost
    finally:
        event.remove(database.engine, "before_cursor_execute", executed)
        if database.dialect == "postgresql":
            event.remove(database.engine, "commit", committed)
        monkeypatch.setattr(redis.connection.AbstractConnection, "send_packed_command", send)
