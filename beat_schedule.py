"""The timetable: what Celery beat sends, and when. Several beats running at once do no harm."""

from __future__ import annotations

from typing import Any

from runtime.live.celery_settings import SWEEP_TASK

SWEEP_SECONDS = 0.5


def beat_schedule(queue_prefix: str = "") -> dict[str, dict[str, Any]]:
    """The beat entries of the runtime.

    Args:
        queue_prefix: Put before the name of the queue.
    """
    return {
        "agent-runtime-sweep": {
            "task": SWEEP_TASK,
            "schedule": SWEEP_SECONDS,
            # A sweep that nobody took before the next is due is not worth running.
            "options": {"queue": queue_prefix + "maintenance", "expires": SWEEP_SECONDS * 10},
        }
    }
