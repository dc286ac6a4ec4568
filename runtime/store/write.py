"""One guarded change: updates that must each find their row, then inserts that follow from them.

This is the only way in which the journal moves. On PostgreSQL a change is a single statement (data-
modifying CTEs, rows passed as JSON), on SQLite one statement per table; either way it is all or nothing
inside the caller's transaction.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any

from sqlalchemy import BigInteger, Boolean, Connection, Integer, Table
from sqlalchemy.exc import DBAPIError

from runtime.store.sql import PARAMETER, write

Row = Mapping[str, Any]


@dataclass(slots=True)
class Change:
    """Guards, further updates and inserts that belong together.

    Attributes:
        guards: ``UPDATE`` statements without ``RETURNING``; each must change at least one row.
        updates: ``UPDATE`` statements that may change none.
        inserts: Rows by table; ``once`` tables ignore rows that exist.
    """

    guards: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    updates: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    inserts: list[tuple[Table, list[Row], bool]] = field(default_factory=list)

    def guard(self, sql: str, **params: Any) -> None:
        """Add an update that must find its row; later parts depend on it."""
        self.guards.append((sql, params))

    def update(self, sql: str, **params: Any) -> None:
        """Add an update that may find nothing."""
        self.updates.append((sql, params))

    def insert(self, table: Any, rows: Sequence[Row], *, once: bool = False) -> None:
        """Add rows for a table; with ``once``, rows whose key exists are left as they are."""
        if rows:
            self.inserts.append((table.__table__, list(rows), once))

    def apply(self, connection: Connection) -> bool:
        """Run everything inside the caller's transaction.

        Returns:
            Whether every guard held. When not, the caller must roll back.
        """
        if connection.dialect.name == "postgresql":
            try:
                return self.apply_at_once(connection)
            except GuardFailed:
                return False
        return self._apply_in_turn(connection)

    def _apply_in_turn(self, connection: Connection) -> bool:
        for sql, params in self.guards:
            if write(connection, sql, params) == 0:
                return False
        for sql, params in self.updates:
            write(connection, sql, params)
        for table, rows, once in self.inserts:
            write(connection, _joint_insert(table, tuple(rows[0]), once), {"rows": _json(rows)})
        return True

    def apply_at_once(self, connection: Connection) -> bool:
        """Run everything as one statement of PostgreSQL, which is all or nothing even outside a transaction.

        Raises:
            GuardFailed: If a guard did not hold; nothing was changed.
        """
        if not (self.guards or self.updates or self.inserts):
            return True
        parts = (("g", self.guards), ("u", self.updates))
        params = {
            f"{kind}{i}_{name}": value
            for kind, statements in parts
            for i, (_, values) in enumerate(statements)
            for name, value in values.items()
        }
        params |= {f"rows{i}": _json(rows) for i, (_, rows, _) in enumerate(self.inserts)}
        sql = _joint_statement(
            tuple(sql for sql, _ in self.guards),
            tuple(sql for sql, _ in self.updates),
            tuple((table, tuple(rows[0]), once) for table, rows, once in self.inserts),
        )
        try:
            write(connection, sql, params)
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) == _DIVISION_BY_ZERO:
                raise GuardFailed from None
            raise
        return True


_DIVISION_BY_ZERO = "22012"


class GuardFailed(Exception):
    """A guard of a change did not find its row, so nothing was changed."""


@lru_cache(maxsize=1024)
def _joint_statement(
    guards: tuple[str, ...],
    updates: tuple[str, ...],
    inserts: tuple[tuple[Table, tuple[str, ...], bool], ...],
) -> str:
    """One statement of data-modifying CTEs; it divides by zero, which undoes it, unless all guards held."""
    parts: list[str] = []
    held = " AND ".join(f"EXISTS (SELECT 1 FROM g{i})" for i in range(len(guards))) or "TRUE"
    for i, sql in enumerate(guards):
        after = f" AND EXISTS (SELECT 1 FROM g{i - 1})" if i else ""
        parts.append(f"g{i} AS ({_prefixed(sql, f'g{i}_')}{after} RETURNING 1)")
    for i, sql in enumerate(updates):
        parts.append(f"u{i} AS ({_prefixed(sql, f'u{i}_')} AND {held} RETURNING 1)")
    for i, (table, columns, once) in enumerate(inserts):
        again = " ON CONFLICT DO NOTHING" if once else ""
        insert = _json_insert(table, columns, f"rows{i}")
        parts.append(f"i{i} AS ({insert} WHERE {held}{again} RETURNING 1)")
    last = f"SELECT 1 / (SELECT least(count(*), 1) FROM g{len(guards) - 1})" if guards else "SELECT 1"
    return f"WITH {', '.join(parts)} {last}"


def _json(rows: Sequence[Row]) -> str:
    return json.dumps([dict(row) for row in rows])


def update_rows(
    connection: Connection, table: Any, key: str, rows: Sequence[Row], where: str = "TRUE"
) -> int:
    """Update several rows in one statement; ``None`` leaves a column as it is.

    Args:
        connection: In a transaction.
        table: The table's class.
        key: The column that tells the rows apart.
        rows: The key and the new values; the same columns in each.
        where: A further condition on the table's rows.

    Returns:
        How many rows were changed.
    """
    if not rows:
        return 0
    columns = tuple(name for name in rows[0] if name != key)
    source = _row_source(table.__table__, (key, *columns), connection.dialect.name)
    name = table.__tablename__
    sets = ", ".join(f"{column} = COALESCE(r.{column}, {name}.{column})" for column in columns)
    sql = f"UPDATE {name} SET {sets} FROM {source} WHERE {name}.{key} = r.{key} AND {where}"
    return write(connection, sql, {"rows": _json(rows)})


@cache
def _row_source(table: Table, columns: tuple[str, ...], dialect: str) -> str:
    """Rows of a JSON parameter as a table ``r``."""
    if dialect == "postgresql":
        typed = ", ".join(f"{column} {_pg_type(table, column)}" for column in columns)
        return f"json_to_recordset(CAST(:rows AS json)) AS r({typed})"
    picked = ", ".join(f"json_extract(value, '$.{column}') AS {column}" for column in columns)
    return f"(SELECT {picked} FROM json_each(:rows)) AS r"


@cache
def _prefixed(sql: str, prefix: str) -> str:
    return PARAMETER.sub(rf":{prefix}\1", sql)


@cache
def _joint_insert(table: Table, columns: tuple[str, ...], once: bool) -> str:
    """One statement for all rows: SQLite's driver would run a batch once per row."""
    verb = "INSERT OR IGNORE INTO" if once else "INSERT INTO"
    source = _row_source(table, columns, "sqlite")
    return f"{verb} {table.name} ({', '.join(columns)}) SELECT * FROM {source}"


@cache
def _json_insert(table: Table, columns: tuple[str, ...], param: str) -> str:
    names = ", ".join(columns)
    typed = ", ".join(f"{column} {_pg_type(table, column)}" for column in columns)
    return (
        f"INSERT INTO {table.name} ({names}) "
        f"SELECT {names} FROM json_to_recordset(CAST(:{param} AS json)) AS r({typed})"
    )


def _pg_type(table: Table, column: str) -> str:
    kind = table.c[column].type
    if isinstance(kind, Boolean):
        return "boolean"
    if isinstance(kind, BigInteger):
        return "bigint"
    return "integer" if isinstance(kind, Integer) else "text"
