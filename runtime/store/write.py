"""One guarded change: updates that must each find their row, then inserts that follow from them.

This is the only way in which the journal moves. On PostgreSQL a change is a single statement (data-
modifying CTEs, rows passed as JSON), on SQLite one statement per table; either way it is all or nothing
inside the caller's transaction.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from sqlalchemy import BigInteger, Boolean, Connection, Integer, Table, text
from sqlalchemy.sql.elements import TextClause

Row = Mapping[str, Any]

_PARAMETER = re.compile(r"(?<![\w:]):([a-z]\w*)")


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
            return self._apply_at_once(connection)
        return self._apply_in_turn(connection)

    def _apply_in_turn(self, connection: Connection) -> bool:
        for sql, params in self.guards:
            if connection.execute(text(sql), params).rowcount == 0:
                return False
        for sql, params in self.updates:
            connection.execute(text(sql), params)
        for table, rows, once in self.inserts:
            connection.execute(_plain_insert(table, tuple(rows[0]), once), [dict(row) for row in rows])
        return True

    def _apply_at_once(self, connection: Connection) -> bool:
        parts: list[str] = []
        params: dict[str, Any] = {}
        held = " AND ".join(f"EXISTS (SELECT 1 FROM g{i})" for i in range(len(self.guards))) or "TRUE"
        for i, (sql, values) in enumerate(self.guards):
            after = f" AND EXISTS (SELECT 1 FROM g{i - 1})" if i else ""
            parts.append(f"g{i} AS ({_renamed(sql, values, f'g{i}_', params)}{after} RETURNING 1)")
        for i, (sql, values) in enumerate(self.updates):
            parts.append(f"u{i} AS ({_renamed(sql, values, f'u{i}_', params)} AND {held} RETURNING 1)")
        for i, (table, rows, once) in enumerate(self.inserts):
            params[f"rows{i}"] = json.dumps([dict(row) for row in rows])
            parts.append(
                f"i{i} AS ({_json_insert(table, tuple(rows[0]), once, f'rows{i}')} WHERE {held}"
                f"{' ON CONFLICT DO NOTHING' if once else ''} RETURNING 1)"
            )
        if not parts:
            return True
        last = f"SELECT count(*) FROM g{len(self.guards) - 1}" if self.guards else "SELECT 1"
        found = connection.execute(text(f"WITH {', '.join(parts)} {last}"), params).scalar_one()
        return bool(found)


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
    return int(connection.execute(text(sql), {"rows": json.dumps([dict(row) for row in rows])}).rowcount)


@cache
def _row_source(table: Table, columns: tuple[str, ...], dialect: str) -> str:
    """Rows of a JSON parameter as a table ``r``."""
    if dialect == "postgresql":
        typed = ", ".join(f"{column} {_pg_type(table, column)}" for column in columns)
        return f"json_to_recordset(CAST(:rows AS json)) AS r({typed})"
    picked = ", ".join(f"json_extract(value, '$.{column}') AS {column}" for column in columns)
    return f"(SELECT {picked} FROM json_each(:rows)) AS r"


def _renamed(sql: str, values: Mapping[str, Any], prefix: str, params: dict[str, Any]) -> str:
    """Give the parameters of one part names of their own within the joint statement."""
    params.update((prefix + name, value) for name, value in values.items())
    return _prefixed(sql, prefix)


@cache
def _prefixed(sql: str, prefix: str) -> str:
    return _PARAMETER.sub(rf":{prefix}\1", sql)


@cache
def _plain_insert(table: Table, columns: tuple[str, ...], once: bool) -> TextClause:
    names = ", ".join(columns)
    values = ", ".join(f":{column}" for column in columns)
    return text(f"INSERT {'OR IGNORE ' if once else ''}INTO {table.name} ({names}) VALUES ({values})")


@cache
def _json_insert(table: Table, columns: tuple[str, ...], once: bool, param: str) -> str:
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
