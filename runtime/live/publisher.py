"""Sends hints as Celery messages, by task name."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cached_property
from typing import Any, NamedTuple

from celery import Celery, Signature, chain, chord

from runtime.core.model import StepKind
from runtime.live.celery_settings import (
    ADVANCE_TASK,
    CALL_TASK,
    HINT_EXPIRES_SECONDS,
    TURN_TASK,
    celery_settings,
)
from runtime.live.chords import ChordBackend
from runtime.live.hints import AdvanceHint, ChainHint, ChordHint, Hint, StepHint

logger = logging.getLogger(__name__)

QUIET_SECONDS = 2.0
"""How long to leave the broker alone after a failed publish; the sweep makes up for it."""

BATCH = 50
"""Most messages of one round trip."""

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
            once = list(dict.fromkeys(hints))
            self._send_plainly([step for hint in once for step in self._plain(hint)])
            for hint in once:
                self._send_canvas(hint)
        except Exception as error:  # noqa: BLE001 - any broker failure means: the sweep will publish
            self._quiet_until = time.monotonic() + QUIET_SECONDS
            logger.warning("the broker took no message, the sweep will send it again: %s", error)
            return False
        return True

    def _plain(self, hint: Hint) -> Sequence[StepHint | AdvanceHint]:
        """What needs no canvas; where no backend counts chords, the coordinator does what they would."""
        match hint:
            case StepHint() | AdvanceHint():
                return (hint,)
            case ChordHint(header, _) if not self._counts_chords:
                return header
            case _:
                return ()

    def _send_plainly(self, hints: Sequence[StepHint | AdvanceHint]) -> None:
        if not hints:
            return
        # Many leave in few round trips. Nothing else is sent meanwhile: a canvas takes a producer of its own,
        # and threads that each hold one and wait for another would wait for ever.
        batch = len(hints) > 1
        with self.app.producer_or_acquire() as producer, producer.batch(BATCH) if batch else nullcontext():
            for task in map(_task, hints):
                self.app.send_task(
                    task.name,
                    kwargs=task.ids,
                    expires=HINT_EXPIRES_SECONDS,
                    producer=producer,
                    # What Flower shows; Celery's own rendering is slower and shows no more.
                    argsrepr="()",
                    kwargsrepr=repr(task.ids),
                    **self._options(task),
                )

    def _send_canvas(self, hint: Hint) -> None:
        match hint:
            case ChordHint(header, body) if self._counts_chords:
                chord([self._signature(step) for step in header], app=self.app)(self._signature(body))
            case ChainHint(first, then):
                chain(self._signature(first), self._signature(then), app=self.app).apply_async()

    @cached_property
    def _counts_chords(self) -> bool:
        return isinstance(self.app.backend, ChordBackend)

    def _signature(self, hint: StepHint | AdvanceHint) -> Signature[None]:
        """A task as a part of a canvas; immutable, since the result of another part is nothing to it.

        It carries no ``expires``: one expired header task would lose its whole chord.
        """
        task = _task(hint)
        return self.app.signature(task.name, kwargs=task.ids, immutable=True, **self._options(task))

    def _options(self, task: _Task) -> dict[str, Any]:
        return {
            "queue": self.queue_prefix + task.queue,
            "priority": task.priority,
            "serializer": "json",
            "ignore_result": True,
            "retry": False,
        }


class _Task(NamedTuple):
    """A task to send: its name, ids and nothing else."""

    name: str
    ids: dict[str, str]
    queue: str
    priority: int


def _task(hint: StepHint | AdvanceHint) -> _Task:
    if isinstance(hint, AdvanceHint):
        return _Task(ADVANCE_TASK, {"session_id": hint.session_id}, "coordination", 0)
    ids = {"step_id": hint.step_id, "session_id": hint.session_id, "node_id": hint.node_id}
    return _Task(_TASKS[hint.kind], ids, hint.queue, hint.priority)


class NowherePublisher:
    """Where hints go when no Redis is known: nowhere, until a sweep elsewhere finds the rows."""

    def publish(self, hints: Sequence[Hint]) -> bool:
        """Send nothing; return whether there was nothing to send."""
        return not hints
