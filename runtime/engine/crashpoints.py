"""Named points at which a test may kill this process; they do nothing in production.

Every commit of the engine passes a point before and after it. A test sets
``AGENT_RUNTIME_CRASH_AT=point[:nth[:marker-file]]`` for a worker; the process then kills itself with SIGKILL
when it reaches the point for the n-th time. With a marker file only one process of several does so, once.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

POINTS = (
    "start.before_commit",
    "start.after_commit",
    "record.before_commit",
    "record.after_commit",
    "publish.before",
    "advance.before_commit",
    "advance.after_commit",
    "resolve.before_commit",
    "resolve.after_commit",
)

VARIABLE = "AGENT_RUNTIME_CRASH_AT"


class CrashPoints:
    """Counts passes and kills this process where a test asked for it."""

    def __init__(self, instruction: str | None = None) -> None:
        name, _, rest = (instruction or "").partition(":")
        nth, _, marker = rest.partition(":")
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
