"""Sends commands to Redis from a thread of its own, many in one round trip, so that no step waits for it."""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress

import redis

logger = logging.getLogger(__name__)

Command = Callable[[redis.client.Pipeline], object]
"""Adds one command to a pipeline."""
_Item = Sequence[Command] | threading.Event | None
"""What waits: commands; somebody who wants to know that all before was sent; the end."""

BATCH = 100
"""Of how many puts one round trip sends the commands at most."""

LONGEST = 10_000
"""How many puts may wait; what comes beyond is dropped, as while Redis is away."""

QUIET_SECONDS = 2.0
"""How long to leave Redis alone after a failure."""

CLOSE_SECONDS = 2.0
"""How long a process that ends waits for what it has not sent."""


class Sender:
    """Best effort, in order: what cannot be sent is dropped, since SQL holds all that it says.

    Args:
        client: The client of this process.
        after_loss: Sent before anything else once something was dropped.
    """

    def __init__(self, client: Callable[[], redis.Redis], after_loss: Command | None = None) -> None:
        self._client = client
        self._after_loss = after_loss
        self._begin()
        _of_this_process.add(self)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._quiet_until = 0.0
        self._lost = False
        self._thread: threading.Thread | None = None
        self._queue: queue.SimpleQueue[_Item] = queue.SimpleQueue()

    def put(self, commands: Sequence[Command]) -> None:
        """Send commands soon, in one round trip or fewer. Never waits and never raises."""
        if self._thread is None:
            self._start()
        if self.quiet or self._queue.qsize() >= LONGEST:
            self._lost = True
        else:
            self._queue.put(commands)

    @property
    def quiet(self) -> bool:
        """Whether Redis failed just now and is left alone."""
        return time.monotonic() < self._quiet_until

    def failed(self, error: redis.RedisError) -> None:
        """Take note that Redis failed."""
        self._quiet_until = time.monotonic() + QUIET_SECONDS
        logger.warning("Redis cannot be used, live evidence is delayed: %s", error)

    def flush(self, timeout: float = CLOSE_SECONDS) -> bool:
        """Wait until all that was put before is sent or dropped; whether that was so in time."""
        if self._thread is None:
            return True
        sent = threading.Event()
        self._queue.put(sent)
        return sent.wait(timeout)

    def close(self) -> None:
        """Send what is left, and end the thread."""
        with self._lock:
            thread, self._thread = self._thread, None
            if thread is None:
                return
            self._queue.put(None)
        thread.join(CLOSE_SECONDS)

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                thread = threading.Thread(
                    target=self._run, args=(self._queue,), name="live-evidence", daemon=True
                )
                with suppress(RuntimeError):  # the interpreter ends
                    thread.start()
                    self._thread = thread

    def _run(self, waiting: queue.SimpleQueue[_Item]) -> None:
        while True:
            batch = [waiting.get()]
            with suppress(queue.Empty):
                while len(batch) < BATCH:
                    batch.append(waiting.get_nowait())
            self._send([command for item in batch if isinstance(item, Sequence) for command in item])
            for item in batch:
                if isinstance(item, threading.Event):
                    item.set()
            if None in batch:
                return

    def _send(self, commands: Sequence[Command]) -> None:
        if not commands:
            return
        if self.quiet:
            self._lost = True
            return
        lost, self._lost = self._lost, False
        try:
            pipe = self._client().pipeline(transaction=False)
            if lost and self._after_loss is not None:
                self._after_loss(pipe)
            for command in commands:
                command(pipe)
            refused = [each for each in pipe.execute(raise_on_error=False) if isinstance(each, Exception)]
            if refused:  # of this key; the server is well
                logger.warning("Redis refused live evidence: %s", refused[0])
        except redis.RedisError as error:
            self._lost = True
            self.failed(error)
        except Exception:  # whatever it is, this thread goes on with what comes next
            logger.exception("live evidence could not be sent")


_of_this_process: weakref.WeakSet[Sender] = weakref.WeakSet()


def _begin_anew() -> None:
    """In a child: the parent's threads, what waits for them and the locks they held are the parent's."""
    for sender in _of_this_process:
        sender._begin()


os.register_at_fork(after_in_child=_begin_anew)
