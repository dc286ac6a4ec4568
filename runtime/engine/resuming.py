"""Resuming: wakes what is due, continues what is suspended, retries what failed, or says something more.

All of it is set-based: the number of statements does not grow with the session.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

from runtime.core.canonical import canonical_json
from runtime.core.chain import extend_transcript
from runtime.core.model import TURN_TOOL, NodeStatus, StepKind, StepStatus
from runtime.core.text import check_name
from runtime.core.turn import TranscriptMessage
from runtime.engine.control import locked_session, open_steps, publish_due
from runtime.engine.definition import GROUP
from runtime.engine.parts import Parts
from runtime.engine.promotion import named
from runtime.engine.publishing import REPUBLISH_MS
from runtime.engine.signals import add_signals, check_messages
from runtime.engine.transcript import stored_message
from runtime.errors import ErrorCode, InvalidInput, SessionConflict
from runtime.live.hints import AdvanceHint, Hint
from runtime.store.crashpoints import Transition
from runtime.store.ids import step_id
from runtime.store.rows import continuation_row, message_row, step_row
from runtime.store.sessions import StoredSession, add_control_receipt, number_continuations
from runtime.store.tables import OPEN_STEPS, ContinuationRow, MessageRow, NodeRow, StepRow
from runtime.store.write import Change, update_rows


def resume_session(
    parts: Parts,
    session_id: str,
    *,
    principal: str | None,
    messages: Sequence[Any] | None = None,
    idempotency_key: str | None = None,
    max_turns: int | None = None,
) -> None:
    """Go on with a session: wake what is due, continue what its turn budget suspended, retry what failed.

    On a session that has completed this changes nothing but the record. Failures that the graph handles
    itself (``on_error: continue``, or a ``when`` that asks for them) are not retried.

    Args:
        parts: The parts of this process.
        session_id: The session.
        principal: Who resumes; must be who started it.
        messages: For linear sessions: what is said next, which starts another turn.
        idempotency_key: A repeat with the same key changes nothing.
        max_turns: Turn budget of the nodes that go on, for this invocation; default: each node's own.

    Raises:
        SessionNotFound: If there is no such session.
        SessionConflict: If it was cancelled, is paused, belongs to another principal, or cannot take
            messages now; with code ``LIMIT_EXCEEDED`` if a node may make no more turns.
        InvalidInput: On malformed messages, a key that cannot be used or a budget below 1.
    """
    _check(idempotency_key, max_turns)
    checked = check_messages(session_id, messages) if messages else ()
    with parts.database.writing(Transition.RESUME) as connection:
        session = locked_session(parts, connection, session_id)
        _refuse(session, principal)
        if idempotency_key is not None and _is_repeat(connection, session_id, idempotency_key):
            return
        change = Change()
        row = continuation_row(session_id, "resumed", session.now, idempotency_key=idempotency_key)
        change.insert(ContinuationRow, [row])
        resumed = {
            "principal": principal,
            "at": session.now,
            "messages": len(checked),
            "max_turns": max_turns,
        }
        receipt = add_control_receipt(change, session, "session_resumed", resumed)
        change.apply(connection)
        resuming = _Resuming(
            connection, session, max_turns, parts.host.workspace.limits.max_turns_per_session
        )
        if checked:
            resuming.say(checked)
        else:
            resuming.go_on()
        hints: list[Hint] = [*publish_due(connection, session, again_in_ms=REPUBLISH_MS)]
        if session.ended_status is not None:
            _reopen_or_end_again(connection, session, moved=bool(hints))
    parts.publisher.publish([*hints, AdvanceHint(session_id)])
    parts.live.announce(session_id, "", [receipt])


def _check(idempotency_key: str | None, max_turns: int | None) -> None:
    if idempotency_key == "":
        raise InvalidInput("idempotency_key is empty; name the resume, or leave the key out")
    if idempotency_key is not None:
        check_name("idempotency_key", idempotency_key)
    if max_turns is not None and max_turns < 1:
        raise InvalidInput(f"max_turns_per_invocation is {max_turns}; give at least 1, or leave it out")


def _refuse(session: StoredSession, principal: str | None) -> None:
    if session.principal != principal:
        raise SessionConflict(f"session {session.id!r} belongs to another principal")
    if session.cancelled_at is not None:
        raise SessionConflict(f"session {session.id!r} was cancelled; start another one")
    if session.paused_at is not None and session.ended_status is None:
        raise SessionConflict(f"session {session.id!r} is paused; unpause it, and it goes on by itself")


def _is_repeat(connection: Connection, session_id: str, key: str) -> bool:
    return bool(
        connection.execute(
            text(
                "SELECT EXISTS (SELECT 1 FROM continuation WHERE session_id = :id AND kind = 'resumed' "
                "AND idempotency_key = :key)"
            ),
            {"id": session_id, "key": key},
        ).scalar_one()
    )


def _reopen_or_end_again(connection: Connection, session: StoredSession, *, moved: bool) -> None:
    """A session that had ended is open again if anything of it moves; else its end is noted once more."""
    if moved:
        connection.execute(
            text(
                "UPDATE session SET ended_status = NULL, ended_at = NULL, end_error = NULL, "
                "paused_at = NULL WHERE id = :id"
            ),
            {"id": session.id},
        )
        return
    change = Change()
    change.insert(ContinuationRow, [continuation_row(session.id, session.ended_status or "", session.now)])
    change.apply(connection)
    connection.execute(
        text("UPDATE session SET continuations = :n WHERE id = :id"),
        {"n": number_continuations(connection, session), "id": session.id},
    )


# --- which nodes go on ----------------------------------------------------------------------------

# A node's steps are read by the end of their index, so that its history does not count.
_STUCK = """
SELECT n.uid, n.node_id, n.mode, n.status, n.max_turns,
       (SELECT max(s.turn_index) FROM step s WHERE s.node_uid = n.uid) AS turn,
       CASE WHEN n.status = 'error' THEN (SELECT max(s.id) FROM step s WHERE s.node_uid = n.uid
            AND s.kind = 'turn' AND s.status IN ('failed', 'denied')) END AS failed_step
  FROM node n
 WHERE n.session_id = :id AND n.mode <> 'host'
   AND ((n.status = 'suspended' AND (n.reason IS NULL OR n.reason <> 'quarantined'))
        OR (n.status = 'error' AND NOT n.handled))
"""

_GRAPH = """
SELECT e.node_uid, e.depends_on_uid, n.status, d.item IS NOT NULL AS instance
  FROM edge e JOIN node n ON n.uid = e.node_uid JOIN node d ON d.uid = e.depends_on_uid
 WHERE e.session_id = :id
"""

_CONTINUE = f"""
UPDATE {{steps}} SET status = 'ready', crashes = 0, attempts = 0, publishes = 0, reason = NULL,
       started_at = NULL, propagated = :yes, due_at = CAST(:now AS BIGINT), publish_at = CAST(:now AS BIGINT)
 WHERE session_id = :id AND {OPEN_STEPS} AND (status = 'quarantined' OR (status = 'pending' AND node_uid IN
       (SELECT uid FROM node WHERE session_id = :id AND status = 'suspended'
           AND (reason IS NULL OR reason <> 'quarantined'))))
"""

# A budget given with a resume is for all turns of this invocation, those of nodes that start later too.
_LATER = """
UPDATE node SET turn_budget = :budget
 WHERE session_id = :id AND mode <> 'host' AND status IN ('pending', 'scheduled')
"""

# A quarantined call may have siblings that wait for a person.
_RUN = """
UPDATE node SET reason = NULL, status = CASE WHEN EXISTS
       (SELECT 1 FROM step s WHERE s.node_uid = node.uid AND s.status IN ('waiting_approval', 'in_doubt'))
       THEN 'waiting_approval' ELSE 'running' END
 WHERE session_id = :id AND status = 'suspended'
"""

_REOPEN = """
UPDATE edge SET satisfied = :no WHERE depends_on_uid IN ({places}) AND node_uid IN
       (SELECT uid FROM node WHERE session_id = :id
           AND (status = 'pending' OR (mode = 'group' AND status = 'running')))
"""


@dataclass(frozen=True, slots=True)
class Edge:
    """That a node depends on another one; see `what_to_retry`.

    Attributes:
        node: The node that waits.
        status: Its state.
        depends_on: What it waits for.
        instance: Whether that is one of its own instances.
    """

    node: str
    status: str
    depends_on: str
    instance: bool = False


@dataclass(frozen=True, slots=True)
class Retried:
    """What a retry takes back.

    Attributes:
        nodes: Nodes whose failed turn is made again.
        groups: Failed groups that wait for their instances again.
        unskipped: Nodes that were skipped because of what is retried, and may be skipped or not once more.
    """

    nodes: frozenset[str]
    groups: frozenset[str]
    unskipped: frozenset[str]


def what_to_retry(failed: Iterable[str], groups: Iterable[str], edges: Sequence[Edge]) -> Retried:
    """Decide what a retry takes back, from the graph alone.

    Args:
        failed: Nodes whose last turn failed, and whose failure nothing handles.
        groups: Groups that failed.
        edges: All edges of the session.
    """
    nodes, candidates = frozenset(failed), frozenset(groups)
    again = {edge.node for edge in edges if edge.instance and edge.depends_on in nodes} & candidates
    skipped: dict[str, list[str]] = defaultdict(list)
    for edge in edges:
        if edge.status == NodeStatus.SKIPPED:
            skipped[edge.depends_on].append(edge.node)
    unskipped: set[str] = set()
    reached = [*nodes, *again]
    while reached:
        following = [name for name in skipped[reached.pop()] if name not in unskipped]
        unskipped.update(following)
        reached.extend(following)
    return Retried(nodes, frozenset(again), frozenset(unskipped))


@dataclass(frozen=True, slots=True)
class _Resuming:
    """One resume, under the session's lock."""

    connection: Connection
    session: StoredSession
    max_turns: int | None
    ceiling: int | None

    def _execute(self, sql: str, **values: Any) -> Any:
        return self.connection.execute(text(sql), {"id": self.session.id, **values})

    def go_on(self) -> None:
        """Continue what is suspended, and retry what failed."""
        stuck = self._execute(_STUCK).all()
        loops = [row for row in stuck if row.status == NodeStatus.SUSPENDED or row.failed_step is not None]
        for row in loops:
            self._refuse_beyond_limit(row)
        budgets = [{"uid": row.uid, "turn_budget": self._budget(row)} for row in loops]
        update_rows(self.connection, NodeRow, "uid", budgets)
        if self.max_turns is not None:
            self._execute(_LATER, budget=self._bounded(self.max_turns))
        self._execute(open_steps(_CONTINUE, self.connection), now=self.session.now, yes=True)
        self._execute(_RUN)
        failed = {row.uid: row.failed_step for row in stuck if row.failed_step is not None}
        if failed:
            groups = [row.uid for row in stuck if row.mode == GROUP and row.status == NodeStatus.ERROR]
            edges = [Edge(row.node_uid, row.status, row.depends_on_uid, bool(row.instance))
                     for row in self._execute(_GRAPH)]  # fmt: skip
            self._retry(failed, what_to_retry(failed, groups, edges))

    def _refuse_beyond_limit(self, row: Any) -> None:
        if self.ceiling is not None and row.turn >= self.ceiling:
            raise SessionConflict(
                f"node {row.node_id!r} has made {row.turn} turns, and limits.max_turns_per_session is "
                f"{self.ceiling}; raise it in the workspace file to go on",
                code=ErrorCode.LIMIT_EXCEEDED,
            )

    def _budget(self, row: Any) -> int:
        return self._bounded(int(row.turn + (self.max_turns or row.max_turns)))

    def _bounded(self, budget: int) -> int:
        return budget if self.ceiling is None else min(budget, self.ceiling)

    def _retry(self, failed: dict[str, str], retried: Retried) -> None:
        """Make failed turns ready, and take back what followed from their failure."""
        now, connection = self.session.now, self.connection
        again = {"publishes": 0, "attempts": 0, "crashes": 0, "propagated": True}
        ready = {"status": StepStatus.READY, "due_at": now, "publish_at": now, **again}
        waits = {"status": StepStatus.PENDING, "due_at": now, "publish_at": None, **again}
        steps = [{"id": failed[uid], **ready} for uid in retried.nodes]
        steps += [{"id": step_id(uid, 0, 0), **waits} for uid in retried.unskipped]
        update_rows(connection, StepRow, "id", steps)
        places, values = named(str(step["id"]) for step in steps)
        self._execute(
            f"UPDATE step SET started_at = NULL WHERE session_id = :id AND id IN ({places})", **values
        )
        # A node whose turn is made again starts anew: it has as long as the first time.
        moved = dict.fromkeys(retried.nodes, NodeStatus.READY)
        moved |= dict.fromkeys(retried.groups, NodeStatus.RUNNING)
        moved |= dict.fromkeys(retried.unskipped, NodeStatus.PENDING)
        rows = [{"uid": uid, "status": status} for uid, status in moved.items()]
        update_rows(connection, NodeRow, "uid", rows)
        places, values = named(moved)
        self._execute(
            f"UPDATE node SET error = NULL, reason = NULL WHERE session_id = :id AND uid IN ({places})",
            **values,
        )
        self._execute(_REOPEN.format(places=places), no=False, **values)

    # --- saying more ------------------------------------------------------------------------------

    def say(self, messages: Sequence[TranscriptMessage]) -> None:
        """Append messages to a linear session that is not in the middle of something, and go on."""
        node = self._sole_node()
        if node.status == NodeStatus.SUSPENDED:
            self._hand_over(node.uid, messages)
            self.go_on()
            return
        last = self._execute(
            "SELECT turn_index, calls_before, messages_before, transcript_digest, transcript_bytes, inbox "
            "FROM step WHERE node_uid = :uid AND kind = 'turn' ORDER BY turn_index DESC LIMIT 1",
            uid=node.uid,
        ).one()
        turn = last.turn_index + 1
        if self.ceiling is not None and turn >= self.ceiling:
            raise SessionConflict(
                f"session {self.session.id!r} has made {turn} turns, and limits.max_turns_per_session is "
                f"{self.ceiling}; raise it in the workspace file to say more",
                code=ErrorCode.LIMIT_EXCEEDED,
            )
        answer = self._execute(
            "SELECT content FROM message WHERE node_uid = :uid AND number = :n",
            uid=node.uid,
            n=last.messages_before,
        ).scalar_one()
        digest, size = extend_transcript(last.transcript_digest, last.transcript_bytes, answer)
        number, rows = last.messages_before + 1, []
        for message in messages:
            body = canonical_json(stored_message(message))
            digest, size = extend_transcript(digest, size, body)
            rows.append(message_row(node.uid, number, message.role, body))
            number += 1
        now = self.session.now
        step = step_row(
            id=step_id(node.uid, turn, 0), session_id=self.session.id, node_uid=node.uid,
            node_id=node.node_id, kind=StepKind.TURN, turn_index=turn, call_index=0, tool_name=TURN_TOOL,
            queue="turns", status=StepStatus.READY, due_at=now, publish_at=now,
            calls_before=last.calls_before, messages_before=number, transcript_digest=digest,
            transcript_bytes=size, inbox=last.inbox, cites=json.dumps([node.head] if node.head else []),
        )  # fmt: skip
        budget = turn + (self.max_turns or node.max_turns)
        change = Change()
        change.guard(
            "UPDATE node SET status = 'ready', result = NULL, turn_budget = :budget WHERE uid = :uid",
            uid=node.uid,
            budget=budget if self.ceiling is None else min(budget, self.ceiling),
        )
        change.insert(MessageRow, rows)
        change.insert(StepRow, [step])
        change.apply(self.connection)

    def _hand_over(self, uid: str, messages: Sequence[TranscriptMessage]) -> None:
        """Put messages into a node's inbox, for the turn that waits."""
        held = self._execute(
            "UPDATE node SET inbox = inbox + :count WHERE uid = :uid RETURNING inbox",
            uid=uid,
            count=len(messages),
        ).scalar_one()
        change = Change()
        add_signals(change, uid, held - len(messages), messages, None, self.session.now)
        change.apply(self.connection)

    def _sole_node(self) -> Any:
        nodes = self._execute(
            "SELECT uid, node_id, status, max_turns, head FROM node WHERE session_id = :id AND mode <> 'host'"
        ).all()
        if self.session.kind != "session" or len(nodes) != 1:
            raise SessionConflict(
                f"session {self.session.id!r} is a workflow; signal one of its nodes instead"
            )
        if nodes[0].status not in (NodeStatus.COMPLETED, NodeStatus.SUSPENDED):
            raise SessionConflict(
                f"session {self.session.id!r} is {nodes[0].status}; wait until its turn is over, or signal "
                f"node {nodes[0].node_id!r}"
            )
        return nodes[0]
