"""Writes down that the workspace file changed under a running process."""

from __future__ import annotations

from sqlalchemy import text

from runtime.engine.parts import Parts, worker_name
from runtime.errors import SpecTampered
from runtime.store.crashpoints import Transition
from runtime.store.sessions import add_control_receipt, find_session
from runtime.store.write import Change


def note_tampering(
    parts: Parts, error: SpecTampered, *, session_id: str | None = None, step_id: str | None = None
) -> None:
    """Add a ``spec_tampered`` event to the control chain of the session concerned, if there is one.

    Args:
        parts: The parts of this process.
        error: What was found.
        session_id: The session, or
        step_id: a step of it.
    """
    with parts.database.writing(Transition.TAMPER) as connection:
        if session_id is None:
            session_id = connection.execute(
                text("SELECT session_id FROM step WHERE id = :id"), {"id": step_id}
            ).scalar_one_or_none()
        session = session_id and find_session(parts.database, connection, session_id, lock=True)
        if not session:
            return
        change = Change()
        receipt = add_control_receipt(
            change,
            session,
            "spec_tampered",
            {"details": error.details, "worker": worker_name(), "at": session.now},
        )
        change.apply(connection)
    parts.live.announce(session.id, "", [receipt])
