"""Keeps the leases of this process alive while its steps act."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from runtime.errors import StoreUnavailable
from runtime.store.engine import Database
from runtime.store.journal import extend_leases

logger = logging.getLogger(__name__)


class Lease:
    """One claim of this process, measured on the monotonic clock from before it was taken."""

    def __init__(self, step_id: str, fence: int, valid_until: float, deadline: float | None) -> None:
        self.step_id = step_id
        self.fence = fence
        self.valid_until = valid_until
        self.deadline = deadline

    def margin(self) -> float:
        """Seconds for which this process may still believe that it holds the step."""
        return self.valid_until - time.monotonic()


class Leases:
    """All claims of this process and the thread that extends them.

    Extending stops at a step's deadline, so that a call which never returns loses its lease.

    Args:
        database: Where leases live.
        lease_s: How long a lease lasts without a heartbeat.
        heartbeat_s: How often leases are extended.
    """

    def __init__(self, database: Database, lease_s: float, heartbeat_s: float) -> None:
        self._database = database
        self.lease_s = lease_s
        self._heartbeat_s = heartbeat_s
        self._lock = threading.Lock()
        self._held: dict[tuple[str, int], Lease] = {}
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._pid = os.getpid()

    @contextmanager
    def holding(self, step_id: str, fence: int, deadline_s: float | None, *, since: float) -> Iterator[Lease]:
        """Keep one lease alive while the block runs.

        Args:
            step_id: The step.
            fence: The fence under which it is held.
            deadline_s: Seconds after which the lease is left to run out; ``None`` for never.
            since: Reading of `time.monotonic` from before the claim was committed.
        """
        deadline = None if deadline_s is None else time.monotonic() + deadline_s
        lease = Lease(step_id, fence, since + self.lease_s, deadline)
        with self._lock:
            self._after_fork()
            self._held[step_id, fence] = lease
            if self._thread is None:
                self._thread = threading.Thread(target=self._beat, name="leases", daemon=True)
                self._thread.start()
        try:
            yield lease
        finally:
            with self._lock:
                self._held.pop((step_id, fence), None)

    def close(self) -> None:
        """End the thread; leases that are still held run out."""
        self._wake.set()

    def _after_fork(self) -> None:
        if self._pid != os.getpid():
            self._pid, self._thread, self._held, self._wake = os.getpid(), None, {}, threading.Event()

    def _beat(self) -> None:
        while not self._wake.wait(self._heartbeat_s):
            now = time.monotonic()
            with self._lock:
                held = [x for x in self._held.values() if x.deadline is None or now < x.deadline]
            if not held:
                continue
            try:
                kept = extend_leases(
                    self._database, [(x.step_id, x.fence) for x in held], round(self.lease_s * 1000)
                )
            except StoreUnavailable as error:
                logger.warning("leases could not be extended: %s", error)
                continue
            for lease in held:
                if lease.step_id in kept:
                    lease.valid_until = now + self.lease_s
