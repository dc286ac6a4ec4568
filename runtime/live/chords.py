"""Counts the headers of chords in Redis. Nobody reads results, so nothing listens for them or waits."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import redis
from celery.backends.redis import RedisBackend
from kombu.exceptions import OperationalError

logger = logging.getLogger(__name__)

CHORD_EXPIRES_SECONDS = 3600
"""A chord whose header takes longer is forgotten; the sweep finds what it would have started."""


class ChordBackend(RedisBackend):  # type: ignore[misc]  # Celery has no types
    """Celery's Redis backend, reduced to what a chord needs.

    An application that publishes chords would otherwise keep a connection that listens for their results, and
    be told of its loss much later, wherever a result is collected as garbage. It would collect the results of
    the whole header, decode them, and hand them to a body that takes none. And it would wait for a Redis that
    is away; here a part that cannot be counted is left to the sweep, as is one that was counted twice.

    Its address is ``runtime.live.chords:ChordBackend+redis://...``.
    """

    def ensure(self, fun: Callable[..., Any], args: tuple[Any, ...], **_policy: Any) -> Any:
        """Run a command once."""
        return fun(*args)

    def set_chord_size(self, group_id: str, chord_size: int) -> None:
        """Remember how many parts a chord's header has; Celery says so before it sends the last of them."""
        self._set_chord_key(self.get_key_for_group(group_id, ".s"), chord_size)

    def on_chord_part_return(self, request: Any, _state: str, _result: Any, **_: Any) -> None:
        """Count one part; who counts the last one sends the body. In one round trip, however wide it is."""
        if not request.group:
            return
        size_key, count_key = (self.get_key_for_group(request.group, end) for end in (".s", ".n"))
        try:
            with self.client.pipeline(transaction=False) as pipe:
                pipe.incr(count_key)
                pipe.expire(count_key, self.chord_expires or CHORD_EXPIRES_SECONDS)
                pipe.get(size_key)
                count, _, size = pipe.execute()
            if size is not None and count == int(size):
                self.app.signature(request.chord).apply_async()
                self.client.delete(size_key, count_key)
        except (redis.RedisError, OperationalError) as error:
            logger.warning("a part of a chord could not be counted; the sweep makes up for it: %s", error)

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
