"""Nodes that took longer than they may: whatever they wait for is over, and their next turn says so.

A turn or a call that starts behind its node's deadline is refused with LIMIT_EXCEEDED, and a refused turn
ends its node in error. So it is enough to end the waiting: requests expire, delays are cut short, suspended
turns become ready. What is running has its own time limit, which ends no later than the deadline.
"""

from __future__ import annotations

from sqlalchemy import text

from runtime.engine.promotion import named
from runtime.store.crashpoints import Transition
from runtime.store.engine import Database

BATCH = 200

_OVERDUE = """
UPDATE node SET reason = 'deadline'
 WHERE uid IN (SELECT uid FROM node WHERE deadline_at <= {now} AND (reason IS NULL OR reason <> 'deadline')
               ORDER BY deadline_at LIMIT :batch)
RETURNING uid
"""

_EFFECTS = (
    "UPDATE approval SET expires_at = {now} WHERE node_uid IN ({nodes}) AND status = 'pending' "
    "AND expires_at > {now}",
    "UPDATE step SET due_at = {now}, publish_at = {now} WHERE node_uid IN ({nodes}) AND status = 'ready' "
    "AND due_at > {now}",
    "UPDATE step SET status = 'ready', due_at = {now}, publish_at = {now} WHERE status IN "
    "('pending', 'quarantined') AND node_uid IN "
    "(SELECT uid FROM node WHERE uid IN ({nodes}) AND status = 'suspended')",
    "UPDATE node SET status = 'running' WHERE uid IN ({nodes}) AND status = 'suspended'",
)


def end_overdue_waits(database: Database) -> int:
    """End the waiting of nodes behind their deadline; return how many there were."""
    now = f"(SELECT {database.now_sql})"
    with database.writing(Transition.CLAIM_OVERDUE) as connection:
        rows = connection.execute(text(_OVERDUE.format(now=now)), {"batch": BATCH}).all()
        if rows:
            places, values = named(row.uid for row in rows)
            for effect in _EFFECTS:
                connection.execute(text(effect.format(now=now, nodes=places)), values)
    return len(rows)
