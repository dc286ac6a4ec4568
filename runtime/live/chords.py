"""Counts the headers of chords in Redis. Nobody reads results, so nothing listens for them or waits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery.backends.redis import RedisBackend


class ChordBackend(RedisBackend):  # type: ignore[misc]  # Celery has no types
    """Celery's Redis backend, reduced to what a chord needs.

    An application that publishes chords would otherwise keep a connection that listens for their results, and
    be told of its loss much later, wherever a result is collected as garbage. And it would wait for a Redis
    that is away; here a chord that cannot be counted fails at once, and the sweep makes up for it.

    Its address is ``runtime.live.chords:ChordBackend+redis://...``.
    """

    def ensure(self, fun: Callable[..., Any], args: tuple[Any, ...], **_policy: Any) -> Any:
        """Run a command once."""
        return fun(*args)

    def on_task_call(self, producer: Any, task_id: str) -> None:
        """Listen for nothing."""

    def add_pending_result(self, result: Any, weak: bool = False) -> Any:
        """Expect nothing."""
        return result

    def remove_pending_result(self, result: Any) -> Any:
        """Nothing was expected."""
        return result


def chord_backend(broker_url: str) -> str:
    """The setting ``result_backend`` for a broker's URL."""
    return f"{__name__}:{ChordBackend.__name__}+{broker_url}"
