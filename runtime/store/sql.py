"""Runs statements of the hot path as they are: written once, handed to the driver without further work.

Statements name their parameters ``:name``, as everywhere. SQLite's driver takes them so; for PostgreSQL's
they are rewritten, once per text. Texts are few, so drivers and servers can keep them prepared. Errors are
those that SQLAlchemy makes of the driver's, and a connection that broke leaves its pool.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

PARAMETER = re.compile(r"(?<![\w:]):([a-z]\w*)")


def write(connection: Connection, sql: str, params: Mapping[str, Any]) -> int:
    """Execute one statement; how many rows it changed.

    Raises:
        DBAPIError: What the driver raised.
    """
    changed: int = _execute(connection, sql, params, lambda cursor: cursor.rowcount)
    return changed


def read(connection: Connection, sql: str, params: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """Execute one query; its rows.

    Raises:
        DBAPIError: What the driver raised.
    """
    rows: list[tuple[Any, ...]] = _execute(connection, sql, params, lambda cursor: cursor.fetchall())
    return rows


def _execute(
    connection: Connection, sql: str, params: Mapping[str, Any], outcome: Callable[[Any], Any]
) -> Any:
    if connection.dialect.name == "postgresql":
        sql = _for_psycopg(sql)
    raw, driver = connection.connection, connection.dialect.loaded_dbapi
    try:
        with closing(raw.cursor()) as cursor:
            cursor.execute(sql, params)
            return outcome(cursor)
    except driver.Error as error:
        broken = connection.dialect.is_disconnect(error, raw, None)
        if broken:
            connection.invalidate(error)
        raise DBAPIError.instance(
            sql,
            None,
            error,
            driver.Error,
            hide_parameters=True,
            connection_invalidated=broken,
            dialect=connection.dialect,
        ) from error


@lru_cache(maxsize=1024)
def _for_psycopg(sql: str) -> str:
    return PARAMETER.sub(r"%(\1)s", sql.replace("%", "%%"))


def in_list(prefix: str, values: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Placeholders and parameters of an ``IN`` list; an empty list matches nothing."""
    names = {f"{prefix}{k}": value for k, value in enumerate(values)}
    return ", ".join(f":{name}" for name in names) or "NULL", names
