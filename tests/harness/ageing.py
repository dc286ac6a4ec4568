"""Lets time pass in a database by moving every instant in its rows into the past."""

from __future__ import annotations

from sqlalchemy import BigInteger, Integer, text
from sqlmodel import SQLModel

from runtime.store.engine import Database

ABOUT_WORK = ("session", "node", "step", "continuation", "approval", "approval_vote", "signal", "schedule")
"""Tables whose instants decide what happens; evidence is chained by its hashes, and stays as it is."""


def age(database: Database, ms: int) -> None:
    """Move all that the rows say about time so many milliseconds back, in one transaction."""
    with database.writing() as connection:
        for name in ABOUT_WORK:
            columns = instants(name)
            moved = ", ".join(f"{column} = {column} - :ms" for column in columns)
            connection.execute(text(f"UPDATE {name} SET {moved}"), {"ms": ms})


def instants(table: str) -> list[str]:
    """The columns of a table that hold milliseconds since the epoch."""
    return [
        column.name
        for column in SQLModel.metadata.tables[table].columns
        if isinstance(column.type, BigInteger | Integer)
        and (column.name == "at" or column.name.endswith(("_at", "_until")))
    ]
