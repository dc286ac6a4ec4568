"""Handing messages to a node that has not ended: its inbox, which its next turn takes in.

A record ends a node only if its turn saw the whole inbox, so a message that was accepted is always seen by a
turn, unless its node fails or is cancelled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, text

from runtime.core.canonical import canonical_json
from runtime.core.lifecycle import NODE_ENDED
from runtime.core.text import MAX_NAME, check_name
from runtime.core.turn import TranscriptMessage, validate_turn_input
from runtime.engine.control import locked_session, refuse_ended
from runtime.engine.definition import GROUP
from runtime.engine.parts import Parts
from runtime.engine.transcript import stored_message
from runtime.errors import InvalidInput, SessionConflict
from runtime.live.hints import AdvanceHint
from runtime.store.crashpoints import Transition
from runtime.store.ids import node_uid
from runtime.store.rows import continuation_row
from runtime.store.sessions import StoredSession
from runtime.store.tables import ContinuationRow, SignalRow
from runtime.store.write import Change

_ENDED = ", ".join(f"'{status}'" for status in sorted(NODE_ENDED))

# The condition is looked at again when a record that ends the node has committed meanwhile.
_RAISE = f"""
UPDATE node SET inbox = inbox + :count
 WHERE uid = :uid AND mode = 'loop' AND status NOT IN ({_ENDED})
RETURNING inbox
"""


def check_messages(session_id: str, messages: Sequence[Any]) -> Sequence[TranscriptMessage]:
    """Validate messages as those of a turn's input are.

    Raises:
        InvalidInput: If there are none, or one is malformed.
    """
    if not messages:
        raise InvalidInput("messages is empty; give at least one, such as {'role': 'user', 'content': ...}")
    given = {"session_id": session_id, "model_profile": "-", "messages": list(messages)}
    return validate_turn_input(given).messages


def signal_node(
    parts: Parts,
    session_id: str,
    node_id: str,
    messages: Sequence[Any],
    idempotency_key: str | None = None,
) -> None:
    """Hand messages to a node; its next turn sees them, also if one is under way that would be its last.

    Args:
        parts: The parts of this process.
        session_id: The session.
        node_id: A node that has not ended; an instance of a ``for_each``, not the group.
        messages: As in a turn's input.
        idempotency_key: A repeat with the same key for the same node changes nothing.

    Raises:
        SessionNotFound: If there is no such session.
        SessionConflict: If the session or the node has ended, or takes no messages.
        InvalidInput: On malformed messages, or a node's id or a key that cannot be used.
    """
    checked = check_messages(session_id, messages)
    if idempotency_key == "":
        raise InvalidInput("idempotency_key is empty; name the signal, or leave the key out")
    if idempotency_key is not None:
        check_name("idempotency_key", idempotency_key)
    check_name("node_id", node_id, most=2 * MAX_NAME)  # an instance's id is its node's and a number
    with parts.database.writing(Transition.SIGNAL) as connection:
        session = locked_session(parts, connection, session_id)
        uid = node_uid(session_id, node_id)
        if idempotency_key is not None and _is_there(connection, uid, idempotency_key):
            return
        refuse_ended(session, "signalled", "resume or fork it to say more")
        raised = connection.execute(text(_RAISE), {"uid": uid, "count": len(checked)}).one_or_none()
        if raised is None:
            raise _refusal(connection, session, node_id)
        change = Change()
        add_signals(change, uid, raised.inbox - len(checked), checked, idempotency_key, session.now)
        change.insert(
            ContinuationRow,
            [
                continuation_row(
                    session_id, "signalled", session.now, node_id, idempotency_key=idempotency_key
                )
            ],
        )
        change.apply(connection)
    parts.publisher.publish([AdvanceHint(session_id)])


def _is_there(connection: Connection, uid: str, key: str) -> bool:
    found = connection.execute(
        text("SELECT EXISTS (SELECT 1 FROM signal WHERE node_uid = :uid AND idempotency_key = :key)"),
        {"uid": uid, "key": key},
    )
    return bool(found.scalar_one())


def add_signals(
    change: Change,
    uid: str,
    before: int,
    messages: Sequence[TranscriptMessage],
    key: str | None,
    now: int,
) -> None:
    """Add messages to the inbox of a node; ``before`` is how many it held."""
    change.insert(
        SignalRow,
        [
            {
                "node_uid": uid,
                "number": before + number,
                "idempotency_key": key,
                "role": message.role,
                "content": canonical_json(stored_message(message)),
                "at": now,
            }
            for number, message in enumerate(messages, start=1)
        ],
    )


def _refusal(connection: Connection, session: StoredSession, node_id: str) -> SessionConflict:
    """Why a node takes no messages."""
    node = connection.execute(
        text("SELECT status, mode FROM node WHERE uid = :uid AND mode <> 'host'"),
        {"uid": node_uid(session.id, node_id)},
    ).one_or_none()
    if node is None:
        return SessionConflict(
            f"session {session.id!r} has no node {node_id!r}; see 'agent-runtime sessions show {session.id}'"
        )
    if node.status in NODE_ENDED:
        return SessionConflict(
            f"node {node_id!r} of session {session.id!r} has ended as {node.status} and takes no more "
            "messages; resume a failed node, or fork from one that is over"
        )
    if node.mode == GROUP:
        return SessionConflict(
            f"node {node_id!r} runs once for each item of a list; signal one of its instances, "
            f"such as {node_id + '[0]'!r}"
        )
    return SessionConflict(f"node {node_id!r} of session {session.id!r} is one turn and takes no messages")
