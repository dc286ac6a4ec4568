"""What a stale holder saw: kept as testimony in its own chain, never as state."""

from __future__ import annotations

import logging

from runtime.engine.parts import Parts
from runtime.engine.recording import Recording
from runtime.store.crashpoints import Transition
from runtime.store.journal import add_evidence
from runtime.store.sessions import add_control_receipt, find_session
from runtime.store.write import Change

logger = logging.getLogger(__name__)


def testify(parts: Parts, recording: Recording) -> None:
    """Keep the receipts of a record that came too late: the step was taken over meanwhile.

    The session's control chain cites them, since no step does: so they cannot be cut off unnoticed.
    """
    if not recording.held or not recording.receipts:
        return  # a refusal that lost its race: nothing of this chain was ever committed
    step = recording.step
    with parts.database.writing(Transition.TESTIFY) as connection:
        session = find_session(parts.database, connection, step.session_id, lock=True)
        assert session is not None
        change = Change()
        add_evidence(change, step.session_id, recording.receipts, recording.contents)
        add_control_receipt(
            change,
            session,
            "testimony_added",
            {"of_step_id": step.id, "of_fence": recording.chain.fence, "at": session.now},
            cites=[recording.receipts[-1].hash],
        )
        change.apply(connection)
    logger.warning(
        "step %s was taken over while this worker ran it; its result is kept as testimony", step.id
    )
