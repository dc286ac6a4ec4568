"""How a worker speaks of a task it runs: its own events say which queue the message came from."""

from __future__ import annotations

from typing import Any

from celery.worker.request import Request


class QueueTellingRequest(Request):  # type: ignore[misc]  # Celery has no types
    """Names the queue in each event, so that whoever publishes need not send an event of its own."""

    def send_event(self, type: str, **fields: Any) -> None:  # noqa: A002 - Celery's name
        """Send one event of the task."""
        queue = (self.delivery_info or {}).get("routing_key")
        super().send_event(type, routing_key=queue, **fields)
