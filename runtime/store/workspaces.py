"""Which workspace files workers may run under."""

from __future__ import annotations

from sqlalchemy import text

from runtime.store.crashpoints import Transition
from runtime.store.engine import Database

KEPT_ACTIVE = 2
"""Files that may be active at once, so that a rollout can overlap."""


def activate_first(database: Database, workspace_hash: str, path: str) -> bool:
    """Activate a file if none was ever activated; return whether it is active now."""
    with database.writing(Transition.ACTIVATE) as connection:
        connection.execute(
            text(
                f"INSERT INTO workspace_version (hash, path, active, activated_at) "
                f"SELECT :hash, :path, :yes, {database.now_sql} "
                "WHERE NOT EXISTS (SELECT 1 FROM workspace_version)"
            ),
            {"hash": workspace_hash, "path": path, "yes": True},
        )
    return is_active(database, workspace_hash)


def is_active(database: Database, workspace_hash: str) -> bool:
    """Whether workers may run under a file."""
    with database.reading() as connection:
        found = connection.execute(
            text("SELECT active FROM workspace_version WHERE hash = :hash"), {"hash": workspace_hash}
        ).scalar_one_or_none()
    return bool(found)


def activate(database: Database, workspace_hash: str, path: str) -> list[str]:
    """Activate a file; the newest few stay active, older ones stop.

    Returns:
        The hashes that are active now, the newest first.
    """
    with database.writing(Transition.ACTIVATE) as connection:
        connection.execute(text("DELETE FROM workspace_version WHERE hash = :hash"), {"hash": workspace_hash})
        connection.execute(
            text(
                "INSERT INTO workspace_version (hash, path, active, activated_at) "
                f"VALUES (:hash, :path, :yes, {database.now_sql})"
            ),
            {"hash": workspace_hash, "path": path, "yes": True},
        )
        rows = connection.execute(
            text("SELECT hash FROM workspace_version WHERE active ORDER BY activated_at DESC, hash")
        ).all()
        kept = [row.hash for row in rows][:KEPT_ACTIVE]
        if workspace_hash not in kept:
            kept = [workspace_hash, *kept][:KEPT_ACTIVE]
        for row in rows:
            if row.hash not in kept:
                connection.execute(
                    text("UPDATE workspace_version SET active = :no WHERE hash = :hash"),
                    {"no": False, "hash": row.hash},
                )
    return kept
