"""Named points at which a test may kill this process; they do nothing in production.

Every commit has a name, its transition, and passes a point before its transaction begins, one before it
commits and one behind the commit. A test sets
``AGENT_RUNTIME_CRASH_AT=point[:nth[:marker-file]]`` for a process; the process then kills itself with SIGKILL
when it reaches the point for the n-th time. With a marker file only one process of several does so, once.
"""

from __future__ import annotations

import os
import signal
from enum import StrEnum
from pathlib import Path


class Transition(StrEnum):
    """What a commit does; its points are ``<transition>.begin``, ``.before_commit`` and ``.after_commit``."""

    SESSION_START = "session_start"
    START = "start"
    RECORD = "record"
    PARK = "park"
    DOUBT = "doubt"
    QUARANTINE = "quarantine"
    ABANDON = "abandon"
    RELEASE = "release"
    TESTIFY = "testify"
    ADVANCE = "advance"
    RESOLVE = "resolve"
    EXPIRE = "expire"
    CANCEL = "cancel"
    PAUSE = "pause"
    UNPAUSE = "unpause"
    RESUME = "resume"
    SIGNAL = "signal"
    FORK = "fork"
    HOST_START = "host_start"
    HOST_RECORD = "host_record"
    HOST_CRASH = "host_crash"
    CLAIM_READY = "claim_ready"
    CLAIM_LOST = "claim_lost"
    CLAIM_UNPROPAGATED = "claim_unpropagated"
    CLAIM_EXPIRED = "claim_expired"
    CLAIM_HOST_CRASHED = "claim_host_crashed"
    CLAIM_OVERDUE = "claim_overdue"
    CLAIM_SCHEDULE = "claim_schedule"
    HEARTBEAT = "heartbeat"
    TAMPER = "tamper"
    ACTIVATE = "activate"
    OTHER = "other"

    @property
    def points(self) -> tuple[str, str, str]:
        """The points before the transaction, before its commit, and behind it."""
        return f"{self}.begin", f"{self}.before_commit", f"{self}.after_commit"


BEFORE_PUBLISH = "publish.before"
"""Behind a record's commit, before anything is published and its receipts are in Redis."""

POINTS = (*(point for transition in Transition for point in transition.points), BEFORE_PUBLISH)

VARIABLE = "AGENT_RUNTIME_CRASH_AT"


class CrashPoints:
    """Counts passes and kills this process where a test asked for it.

    Args:
        instruction: ``point[:nth[:marker-file]]``, or nothing.
    """

    def __init__(self, instruction: str | None = None) -> None:
        name, _, rest = (instruction or "").partition(":")
        nth, _, marker = rest.partition(":")
        if name and name not in POINTS:
            raise ValueError(f"{VARIABLE} names {name!r}, which is no point; see Transition in {__name__}")
        self._name = name or None
        self._left = int(nth or 1)
        self._marker = Path(marker) if marker else None

    @staticmethod
    def from_environment() -> CrashPoints:
        """What this process's environment asks for; nothing, outside of tests."""
        return CrashPoints(os.environ.get(VARIABLE))

    def reach(self, point: str) -> None:
        """Pass a point."""
        if self._name != point:
            return
        self._left -= 1
        if self._left == 0 and self._first():
            os.kill(os.getpid(), signal.SIGKILL)

    def _first(self) -> bool:
        if self._marker is None:
            return True
        try:
            self._marker.touch(exist_ok=False)
        except FileExistsError:
            return False
        return True
