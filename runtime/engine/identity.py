"""Whose a session is, and what it is called when a key rather than its owner names it."""

from __future__ import annotations

from runtime.core.canonical import digest
from runtime.engine.sessions import SESSION_ID_CHARACTERS, check_session_id
from runtime.errors import InvalidInput, SessionConflict, SessionNotFound
from runtime.store.engine import Database
from runtime.store.sessions import find_session

_DIGEST_CHARACTERS = 64


def admit(database: Database, session_id: str, principal: str | None) -> None:
    """Let only the principal of a session read it; one that has none is open to all who can name it.

    Raises:
        SessionNotFound: If there is no such session.
        SessionConflict: If it belongs to another principal.
    """
    with database.reading() as connection:
        found = find_session(database, connection, session_id)
    if found is None:
        raise SessionNotFound(f"no session {session_id!r}; see 'agent-runtime sessions list'")
    if found.principal not in (None, principal):
        raise SessionConflict(
            f"session {session_id!r} belongs to another principal than principal={principal!r}; "
            "give the one for whom it was started"
        )


def turn_session_id(session_id: str, idempotency_key: str) -> str:
    """The id of the session in which the turn with an idempotency key runs.

    Returns:
        The beginning of ``session_id``, for people, and the SHA-256 of both, so that no other pair leads
        to it; at most 200 characters.

    Raises:
        InvalidInput: If the session id cannot be used, or the key is empty.
    """
    check_session_id(session_id)
    if not idempotency_key:
        raise InvalidInput("idempotency_key is empty; name the turn, or leave the key out")
    shown = session_id[: SESSION_ID_CHARACTERS - len("#") - _DIGEST_CHARACTERS]
    return f"{shown}#{digest(['turn', session_id, idempotency_key])}"
