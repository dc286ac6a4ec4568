"""Brings a database to the current schema with Alembic, and checks that it is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import inspect, text

from runtime.errors import StoreUnavailable
from runtime.store.engine import Database

HEAD = "0004"
"""The schema version that this release needs; a test holds it against the newest migration."""


def upgrade(database: Database) -> str:
    """Bring the database to the current schema; harmless to repeat, also side by side.

    Returns:
        The schema version.
    """
    from alembic import command

    with database.connecting() as connection:
        if database.dialect == "postgresql":
            with connection.begin():
                # One migrator at a time; the others find nothing left to do.
                connection.execute(text("SELECT pg_advisory_xact_lock(4711811)"))
                command.upgrade(_config(connection), "head")
        else:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            command.upgrade(_config(connection), "head")
            connection.exec_driver_sql("COMMIT")
    return HEAD


def _config(connection: Any) -> Any:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    return config


def current_version(database: Database) -> str | None:
    """The schema version of the database; ``None`` when it was never migrated."""
    with database.reading() as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        return connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()


def ensure_schema(database: Database) -> None:
    """See that the schema is current; an SQLite file, which is ours alone, is brought there.

    Raises:
        StoreUnavailable: If the database is not at this release's schema.
    """
    found = current_version(database)
    if found == HEAD:
        return
    if database.dialect == "sqlite" and (found is None or found < HEAD):
        upgrade(database)
        return
    shown = database.url.render_as_string(hide_password=True)
    raise StoreUnavailable(
        f"the database {shown} is at schema {found or 'none'}, this release needs {HEAD}; "
        "run 'agent-runtime db upgrade'"
    )
