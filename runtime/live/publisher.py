"""Sends hints as Celery messages, by task name."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from celery import Celery

from runtime.core.model import StepKind
from runtime.live.celery_settings import (
    ADVANCE_TASK,
    CALL_TASK,
    HINT_EXPIRES_SECONDS,
    TURN_TASK,
    celery_settings,
)
from runtime.live.hints import Hint, StepHint

logger = logging.getLogger(__name__)

QUIET_SECONDS = 2.0
"""How long to leave the broker alone after a failed publish; the sweep makes up for it."""

_TASKS = {StepKind.TURN: TURN_TASK, StepKind.TOOL_CALL: CALL_TASK}


def producer_app(broker_url: str, queue_prefix: str = "") -> Celery:
    """A Celery application that only publishes."""
    app = Celery("agent-runtime", set_as_current=False)
    app.conf.update(celery_settings(broker_url, queue_prefix))
    return app


class CeleryPublisher:
    """Publishes hints through a Celery application; loses them quietly when the broker is away.

    Args:
        app: The application to publish with, the runtime's own or the user's.
        queue_prefix: Put before the name of each queue.
    """

    def __init__(self, app: Celery, queue_prefix: str = "") -> None:
        self.app = app
        self.queue_prefix = queue_prefix
        self._quiet_until = 0.0

    def publish(self, hints: Sequence[Hint]) -> bool:
        """Send hints; return whether all were handed to the broker. Never raises."""
        if not hints:
            return True
        if time.monotonic() < self._quiet_until:
            return False
        try:
            for hint in dict.fromkeys(hints):
                self._send(hint)
        except Exception as error:  # noqa: BLE001 - any broker failure means: the sweep will publish
            self._quiet_until = time.monotonic() + QUIET_SECONDS
            logger.warning("the broker took no message, the sweep will send it again: %s", error)
            return False
        return True

    def _send(self, hint: Hint) -> None:
        if isinstance(hint, StepHint):
            name, queue, priority = _TASKS[hint.kind], hint.queue, hint.priority
            ids = {"step_id": hint.step_id, "session_id": hint.session_id, "node_id": hint.node_id}
        else:
            name, queue, priority = ADVANCE_TASK, "coordination", 0
            ids = {"session_id": hint.session_id}
        self.app.send_task(
            name,
            kwargs=ids,
            queue=self.queue_prefix + queue,
            priority=priority,
            expires=HINT_EXPIRES_SECONDS,
            serializer="json",
            ignore_result=True,
            retry=False,
        )


class NowherePublisher:
    """Where hints go when no Redis is known: nowhere, until a sweep elsewhere finds the rows."""

    def publish(self, hints: Sequence[Hint]) -> bool:
        """Send nothing; return whether there was nothing to send."""
        return not hints
