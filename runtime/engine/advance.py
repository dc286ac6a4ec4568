"""Moves a session on: promotes what waits, and settles what can move no more.

A record leaves its step *unpropagated* when others may follow from it. An advance runs in a later
transaction, so it sees everything that was committed before it; two branches that end together cannot
both miss the join. It takes the session's lock, which steps never touch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from runtime.core.chain import extend_transcript
from runtime.core.lifecycle import NODE_ENDED
from runtime.core.model import NodeStatus, StepKind
from runtime.engine.cancelling import cancel_waiting, look_again
from runtime.engine.frontier import promote_dependants
from runtime.engine.promotion import Promotion, named
from runtime.engine.settle import settle
from runtime.live.hints import Hint, StepHint
from runtime.store.crashpoints import Transition
from runtime.store.engine import Database
from runtime.store.sessions import find_session
from runtime.store.tables import UNPROPAGATED


def advance(database: Database, session_id: str) -> list[Hint]:
    """Promote and settle one session; harmless to repeat.

    Returns:
        Hints for the steps that became ready.
    """
    with database.writing(Transition.ADVANCE) as connection:
        session = find_session(database, connection, session_id, lock=True)
        if session is None or session.ended_status is not None:
            return []
        if session.cancelled_at is not None:
            cancel_waiting(connection, session_id, session.now)
        work = Promotion(connection, session)
        ended = _unpropagated(work)
        _promote_turns(work, {(row.node_uid, row.turn_index) for row in ended if row.kind == "tool_call"})
        promote_dependants(work, {row.node_uid for row in ended if row.node_status in NODE_ENDED})
        work.propagated(row.id for row in ended)
        work.write()
        ended_now = not work.hints and settle(work)
        if session.cancelled_at is not None and not ended_now:
            look_again(connection, session_id, session.now)
    return work.hints


def _unpropagated(work: Promotion) -> Sequence[Any]:
    return work.rows(
        "SELECT s.id, s.node_uid, s.turn_index, s.kind, n.status AS node_status FROM step s JOIN node n "
        f"ON n.uid = s.node_uid WHERE s.session_id = :id AND {UNPROPAGATED[work.connection.dialect.name]}",
        id=work.session.id,
    )


# --- the turn after several calls -----------------------------------------------------------------

_SIBLINGS = """
SELECT s.node_uid, s.turn_index, s.head, m.content, t.id AS turn_id, t.transcript_digest,
       t.transcript_bytes, n.turn_budget, n.node_id, n.priority
  FROM step s
  JOIN step t ON t.node_uid = s.node_uid AND t.turn_index = s.turn_index + 1 AND t.kind = 'turn'
  JOIN node n ON n.uid = s.node_uid
  LEFT JOIN message m ON m.node_uid = s.node_uid AND m.number = s.messages_before + s.call_index - 1
 WHERE s.node_uid IN ({places}) AND s.kind = 'tool_call' AND t.status = 'pending'
 ORDER BY s.node_uid, s.turn_index, s.call_index
"""


def _promote_turns(work: Promotion, groups: set[tuple[str, int]]) -> None:
    """Promote the turn that follows several calls, once each of them has answered."""
    if not groups:
        return
    places, values = named({node_uid for node_uid, _ in groups})
    rows = work.rows(_SIBLINGS.format(places=places), **values)
    for group, calls in groupby(rows, key=lambda row: (row.node_uid, row.turn_index)):
        siblings = list(calls)
        if group in groups and all(row.content is not None for row in siblings):
            _promote_turn(work, siblings)


def _promote_turn(work: Promotion, siblings: Sequence[Any]) -> None:
    first = siblings[0]
    digest, size = first.transcript_digest, first.transcript_bytes
    for row in siblings:
        digest, size = extend_transcript(digest, size, row.content)
    values = {
        "cites": json.dumps([row.head for row in siblings]),
        "transcript_digest": digest,
        "transcript_bytes": size,
    }
    if first.turn_index + 1 < first.turn_budget:
        work.promote(first.turn_id, **values)
        work.hints.append(
            StepHint(
                first.turn_id, work.session.id, first.node_id, StepKind.TURN, "turns", int(first.priority)
            )
        )
        return
    work.keep_pending(first.turn_id, **values)
    work.move(first.node_uid, NodeStatus.SUSPENDED, "max_turns")
    work.note("suspended", first.node_id)
