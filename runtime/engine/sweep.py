"""Finds what nobody is working on, from rows alone, and sends hints for it.

It runs every second, in several places at once if need be: each batch is claimed by moving the rows on
before anything is sent. What it does not find in one batch it finds in the next.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

from runtime.core.model import StepKind
from runtime.engine.approvals import expire
from runtime.engine.host_crashes import sweep_crashed
from runtime.engine.parts import Parts
from runtime.live.hints import AdvanceHint, Hint, StepHint
from runtime.store.engine import Database

BATCH = 500

PROPAGATION_GRACE_MS = 1_000
"""How long a record's own advance is left to act before the sweep sends another."""


@dataclass(frozen=True, slots=True)
class Swept:
    """What one sweep sent or did, by kind."""

    ready: int = 0
    lost: int = 0
    advanced: int = 0
    expired: int = 0
    crashed: int = 0


def sweep(parts: Parts) -> Swept:
    """Publish what is due and unpublished, what lost its holder, and what was not propagated."""
    settings = parts.settings
    ready = _claim_ready(parts.database, settings.republish_seconds, settings.republish_max_seconds)
    lost = _claim_lost(parts.database, settings.republish_seconds)
    sessions = _unpropagated(parts.database)
    hints: list[Hint] = [*ready, *lost, *(AdvanceHint(session_id) for session_id in sessions)]
    parts.publisher.publish(hints)
    crashed = sweep_crashed(parts)
    _restore_waits(parts)
    expired = sum(expire(parts, request_id) for request_id in _expired(parts.database))
    return Swept(len(ready), len(lost), len(sessions), expired, crashed)


def _restore_waits(parts: Parts) -> None:
    """Rebuild the approval waits in Redis from SQL, where a flush took them away."""
    if parts.live.waiting() != 0:
        return
    with parts.database.reading() as connection:
        rows = connection.execute(
            text("SELECT id, expires_at FROM approval WHERE status = 'pending' ORDER BY expires_at LIMIT :n"),
            {"n": BATCH},
        ).all()
    if rows:
        parts.live.restore_waits({row.id: row.expires_at for row in rows})


def _locking(connection: Connection) -> str:
    return " FOR UPDATE SKIP LOCKED" if connection.dialect.name == "postgresql" else ""


def _claim_ready(database: Database, first_s: float, longest_s: float) -> list[Hint]:
    """Ready rows whose time to publish has come; the next time backs off with each publish."""
    now = database.now_sql
    with database.writing() as connection:
        rows = connection.execute(
            text(
                f"""UPDATE step SET publishes = publishes + 1, publish_at = {now} +
                    CASE WHEN publishes > 6 THEN CAST(:longest AS BIGINT)
                         ELSE CAST(:first AS BIGINT) * (1 << publishes) END
                WHERE id IN (SELECT id FROM step WHERE status = 'ready' AND publish_at <= {now}
                             ORDER BY publish_at LIMIT :batch{_locking(connection)})
                RETURNING id, session_id, node_id, kind, queue, driver"""
            ),
            {"first": round(first_s * 1000), "longest": round(longest_s * 1000), "batch": BATCH},
        ).all()
    return [_hint(row) for row in rows if row.driver == "worker"]


def _claim_lost(database: Database, again_s: float) -> list[Hint]:
    """Running rows whose lease ran out; whoever takes the hint decides what that means."""
    now = database.now_sql
    with database.writing() as connection:
        rows = connection.execute(
            text(
                f"""UPDATE step SET publish_at = {now} + CAST(:again AS BIGINT)
                WHERE id IN (SELECT id FROM step WHERE status = 'running' AND lease_until < {now}
                               AND driver = 'worker' AND (publish_at IS NULL OR publish_at <= {now})
                             ORDER BY lease_until LIMIT :batch{_locking(connection)})
                RETURNING id, session_id, node_id, kind, queue"""
            ),
            {"again": round(again_s * 1000), "batch": BATCH},
        ).all()
    return [_hint(row) for row in rows]


def _unpropagated(database: Database) -> list[str]:
    predicate = "propagated = 0" if database.dialect == "sqlite" else "NOT propagated"
    with database.reading() as connection:
        rows = connection.execute(
            text(
                f"SELECT DISTINCT session_id FROM step WHERE {predicate} "
                f"AND finished_at < {database.now_sql} - :grace LIMIT :batch"
            ),
            {"grace": PROPAGATION_GRACE_MS, "batch": BATCH},
        )
        return [row[0] for row in rows]


def _expired(database: Database) -> list[str]:
    with database.reading() as connection:
        rows = connection.execute(
            text(
                f"SELECT id FROM approval WHERE status = 'pending' AND expires_at <= {database.now_sql} "
                "ORDER BY expires_at LIMIT :batch"
            ),
            {"batch": BATCH},
        )
        return [row[0] for row in rows]


def _hint(row: Any) -> StepHint:
    return StepHint(row.id, row.session_id, row.node_id, StepKind(row.kind), row.queue)
