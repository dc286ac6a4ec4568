"""Runs statements of the hot path as they are: written once, sent to the driver without further work.

Statements name their parameters ``:name``, as everywhere. SQLite's driver takes them so; for PostgreSQL's
they are rewritten, once per text. Texts are few, so drivers and servers can keep them prepared.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, CursorResult

PARAMETER = re.compile(r"(?<![\w:]):([a-z]\w*)")


def run(connection: Connection, sql: str, params: Mapping[str, Any]) -> CursorResult[Any]:
    """Execute one statement."""
    if connection.dialect.name == "postgresql":
        sql = _for_psycopg(sql)
    return connection.exec_driver_sql(sql, dict(params))


@lru_cache(maxsize=1024)
def _for_psycopg(sql: str) -> str:
    return PARAMETER.sub(r"%(\1)s", sql.replace("%", "%%"))
