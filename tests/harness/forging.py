"""What somebody who can write the whole database can do: compute a new, consistent chain."""

import json

from sqlalchemy import text

from runtime.core.canonical import canonical_json
from runtime.core.chain import receipt_hash
from runtime.store.engine import Database


def forge(database: Database, session_id: str, *, leaves: bool = False, **fields) -> None:
    """Change fields of a session's first finished receipt, and all hashes that follow from it.

    Args:
        database: The database.
        session_id: The session.
        leaves: Whether the entries of seals are rewritten too.
        fields: What the receipt says from now on; nothing else in the database may rest on it.
    """
    new: dict[str, str] = {}
    with database.writing() as connection:
        rows = connection.execute(
            text(
                "SELECT position, kind, CAST(body AS TEXT) AS body, hash FROM evidence "
                "WHERE session_id = :id ORDER BY transaction_id, position"
            ),
            {"id": session_id},
        ).all()
        for row in rows:
            body = row.body
            for old, replaced in new.items():
                body = body.replace(old, replaced)
            if row.kind == "tool_call_finished" and not new:
                body = canonical_json({**json.loads(body), **fields})
            if body != row.body:
                new[row.hash] = receipt_hash(body)
                connection.execute(
                    text("UPDATE evidence SET body = :body, hash = :hash WHERE position = :position"),
                    {"body": body, "hash": new[row.hash], "position": row.position},
                )
        for old, replaced in new.items():
            named = {"old": old, "new": replaced}
            for table, column in (("step", "head"), ("node", "head"), ("session", "control_head")):
                connection.execute(text(f"UPDATE {table} SET {column} = :new WHERE {column} = :old"), named)
            connection.execute(text("UPDATE step SET cites = replace(cites, :old, :new)"), named)
            if leaves:
                connection.execute(text("UPDATE seal_leaf SET hash = :new WHERE hash = :old"), named)
    assert new, "nothing was forged"


def erase(database: Database, session_id: str, *, leaves: bool = False) -> None:
    """Delete every row of a session."""
    tables = ["evidence", "blob", "step", "node", "edge", "approval", "continuation"]
    with database.writing() as connection:
        for table in [*tables, *(["seal_leaf"] if leaves else [])]:
            connection.execute(text(f"DELETE FROM {table} WHERE session_id = :id"), {"id": session_id})
        connection.execute(text("DELETE FROM session WHERE id = :id"), {"id": session_id})
