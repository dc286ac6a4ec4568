"""Finds what nobody is working on, from rows alone, and sends hints for it.

It runs twice a second, in several places at once if need be: each batch is claimed by moving its due time
on before anything is sent or done. What is found again and again is tried ever less often, so that it cannot
keep the rest waiting. What it does not find in one batch it finds in the next.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

from runtime.core.model import StepKind
from runtime.engine.approvals import escalate_due, expire
from runtime.engine.deadlines import end_overdue_waits
from runtime.engine.host_crashes import sweep_crashed
from runtime.engine.notifying import send_beside
from runtime.engine.parts import Parts
from runtime.engine.schedules import start_scheduled
from runtime.engine.standing import answer_due
from runtime.errors import StoreUnavailable
from runtime.live.hints import AdvanceHint, Hint, StepHint
from runtime.store.crashpoints import Transition
from runtime.store.engine import Database
from runtime.store.tables import UNPROPAGATED

logger = logging.getLogger(__name__)

BATCH = 500

BATCHES = 10
"""How many full batches of due steps one sweep publishes; what is still left waits for the next sweep."""

_PRIORITY = "(SELECT n.priority FROM node n WHERE n.uid = step.node_uid) AS priority"

EXPIRY_BATCH = 100
"""How many approval requests one sweep expires, each in a transaction of its own."""

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
    settings, database = parts.settings, parts.database
    backoff = Backoff(settings.republish_seconds, settings.republish_max_seconds)
    ready = _publish_ready(parts, backoff)
    lost = _claim_lost(database, settings.republish_seconds)
    sessions = _claim_unpropagated(database, backoff)
    hints: list[Hint] = [*lost, *(AdvanceHint(session_id) for session_id in sessions)]
    parts.publisher.publish(hints)
    _restore_waits(parts)
    expired = sum(_expire(parts, request_id) for request_id in _claim_expired(database, backoff))
    crashed = sweep_crashed(parts)
    escalate_due(parts)
    answer_due(parts)
    send_beside(parts)
    end_overdue_waits(database)
    start_scheduled(parts)
    return Swept(ready, len(lost), len(sessions), expired, crashed)


def _publish_ready(parts: Parts, backoff: Backoff) -> int:
    """Publish what is due, batch by batch while they are full; how many were claimed."""
    claimed = 0
    for _ in range(BATCHES):
        ready = _claim_ready(parts.database, backoff)
        claimed += len(ready)
        if not parts.publisher.publish(ready) or len(ready) < BATCH:
            break
    return claimed


def _expire(parts: Parts, request_id: str) -> bool:
    """Expire one request; one that cannot be expired is left for later, and the others go on."""
    try:
        return expire(parts, request_id)
    except StoreUnavailable:
        raise
    except Exception:  # whatever it is, it concerns this request alone
        logger.exception("approval request %s could not be expired; it is tried again later", request_id)
        return False


def _restore_waits(parts: Parts) -> None:
    """Rebuild the approval waits in Redis from SQL, where a flush or an outage took any of them away."""
    if parts.live.misses_waits():
        parts.live.restore_waits(_pending(parts.database))


def _pending(database: Database) -> Iterator[dict[str, int]]:
    """All requests that are pending, with when they expire, in pages."""
    expires, last = 0, ""
    while True:
        with database.reading() as connection:
            rows = connection.execute(
                text(
                    "SELECT id, expires_at FROM approval WHERE status = 'pending' AND expires_at >= :expires "
                    "AND (expires_at > :expires OR id > :last) ORDER BY expires_at, id LIMIT :n"
                ),
                {"expires": expires, "last": last, "n": BATCH},
            ).all()
        if not rows:
            return
        yield {row.id: row.expires_at for row in rows}
        expires, last = rows[-1].expires_at, rows[-1].id


@dataclass(frozen=True, slots=True)
class Backoff:
    """After how many seconds a row is found again: ``first``, doubling each time, at most ``longest``."""

    first: float
    longest: float

    def sql(self, count: str) -> str:
        """SQL of the delay in milliseconds after ``count`` (SQL as well) attempts; see `params`."""
        doubled = f"CAST(:first AS BIGINT) * (1 << {count})"
        longest = "CAST(:longest AS BIGINT)"
        return f"CASE WHEN {count} > 20 OR {doubled} > {longest} THEN {longest} ELSE {doubled} END"

    @property
    def params(self) -> dict[str, int]:
        """The parameters of `sql`."""
        return {"first": round(self.first * 1000), "longest": round(self.longest * 1000)}


def _locking(connection: Connection, rows: str = "step") -> str:
    """What makes each of several sweeps take other rows; SQLite has one writer at a time anyway."""
    return f" FOR UPDATE OF {rows} SKIP LOCKED" if connection.dialect.name == "postgresql" else ""


def _now(database: Database) -> str:
    """SQL of the instant at which a statement began: only what does not change can bound an index scan."""
    return f"(SELECT {database.now_sql})"


def _claim_ready(database: Database, backoff: Backoff) -> list[Hint]:
    """Ready rows whose time to publish has come; the next time backs off with each publish."""
    now = _now(database)
    with database.writing(Transition.CLAIM_READY) as connection:
        rows = connection.execute(
            text(
                f"""UPDATE step SET publishes = publishes + 1, publish_at = {now} + {backoff.sql("publishes")}
                WHERE id IN (SELECT id FROM step WHERE status = 'ready' AND publish_at <= {now}
                             ORDER BY publish_at LIMIT :batch{_locking(connection)})
                RETURNING id, session_id, node_id, kind, queue, driver, {_PRIORITY}"""
            ),
            {**backoff.params, "batch": BATCH},
        ).all()
    return [_hint(row) for row in rows if row.driver == "worker"]


def _claim_lost(database: Database, again_s: float) -> list[Hint]:
    """Running rows whose lease ran out; whoever takes the hint decides what that means."""
    now = _now(database)
    with database.writing(Transition.CLAIM_LOST) as connection:
        rows = connection.execute(
            text(
                f"""UPDATE step SET publish_at = {now} + CAST(:again AS BIGINT)
                WHERE id IN (SELECT id FROM step WHERE status = 'running' AND lease_until < {now}
                               AND driver = 'worker' AND (publish_at IS NULL OR publish_at <= {now})
                             ORDER BY lease_until LIMIT :batch{_locking(connection)})
                RETURNING id, session_id, node_id, kind, queue, {_PRIORITY}"""
            ),
            {"again": round(again_s * 1000), "batch": BATCH},
        ).all()
    return [_hint(row) for row in rows]


def _claim_unpropagated(database: Database, backoff: Backoff) -> list[str]:
    """Sessions of steps that ended and from which nothing was made to follow.

    A record leaves the moment it was written as the time to publish, so that what was published before the
    step ended does not count for the delay.
    """
    now, predicate = _now(database), UNPROPAGATED[database.dialect]
    count = "CASE WHEN publish_at <= finished_at THEN 0 ELSE publishes END"
    with database.writing(Transition.CLAIM_UNPROPAGATED) as connection:
        rows = connection.execute(
            text(
                f"""UPDATE step SET publishes = {count} + 1, publish_at = {now} + {backoff.sql(f"({count})")}
                WHERE id IN (SELECT id FROM step WHERE {predicate} AND publish_at <= {now} - :grace
                             ORDER BY publish_at LIMIT :batch{_locking(connection)})
                RETURNING session_id"""
            ),
            {**backoff.params, "grace": PROPAGATION_GRACE_MS, "batch": BATCH},
        ).all()
    return list(dict.fromkeys(row.session_id for row in rows))


def _claim_expired(database: Database, backoff: Backoff) -> list[str]:
    """Pending requests that nobody answered in time; the step that waits keeps when to look again."""
    now = _now(database)
    with database.writing(Transition.CLAIM_EXPIRED) as connection:
        rows = connection.execute(
            text(
                f"""SELECT a.id, a.step_id FROM approval a JOIN step s ON s.id = a.step_id
                WHERE a.status = 'pending' AND a.expires_at <= {now}
                  AND (s.publish_at IS NULL OR s.publish_at <= {now})
                ORDER BY a.expires_at LIMIT :batch{_locking(connection, "s")}"""
            ),
            {"batch": EXPIRY_BATCH},
        ).all()
        if rows:
            places = {f"s{k}": row.step_id for k, row in enumerate(rows)}
            connection.execute(
                text(
                    "UPDATE step SET publishes = publishes + 1, "
                    f"publish_at = {now} + {backoff.sql('publishes')} "
                    f"WHERE id IN ({', '.join(f':{name}' for name in places)})"
                ),
                {**backoff.params, **places},
            )
    return [row.id for row in rows]


def _hint(row: Any) -> StepHint:
    return StepHint(row.id, row.session_id, row.node_id, StepKind(row.kind), row.queue, row.priority)
