"""Following a session: what was committed, in order, as it happens.

SQL is what is read; Redis only says when to look, and carries live progress that is not committed yet.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import redis

from runtime.core.model import SessionStatus
from runtime.engine.parts import Parts
from runtime.errors import InvalidInput, SessionNotFound, WaitTimeout
from runtime.store.evidence import StoredReceipt, position_of, read_page
from runtime.store.sessions import read_status

ENDED = frozenset({SessionStatus.COMPLETED, SessionStatus.ERROR, SessionStatus.CANCELLED})

POLL_SECONDS = 0.25
"""How often SQL is asked when Redis cannot say that something happened."""


@dataclass(frozen=True, slots=True)
class Event:
    """One receipt, or one live snapshot that is not committed yet.

    Attributes:
        kind: ``tool_call_started``, ``tool_call_progress``, ``tool_call_finished``, or a control record.
        step_id: Step, or ``control``.
        node_id: Node, if the receipt names one.
        tool_name: Tool, if the receipt names one.
        body: The receipt's body.
        hash: Its hash; ``None`` for live progress.
        live: Whether this is progress that no commit holds yet.
        cursor: Give it to ``events(after=...)`` to go on behind this event.
    """

    kind: str
    step_id: str
    fence: int
    n: int
    node_id: str | None
    tool_name: str | None
    body: dict[str, Any]
    hash: str | None
    live: bool
    cursor: str


class Waiter:
    """Blocks until something happened in a session, or a moment passed."""

    def __init__(self, parts: Parts, session_id: str) -> None:
        self._parts = parts
        self._session_id = session_id
        self._last: str | None = None

    def wait(self, seconds: float) -> list[dict[str, str]]:
        """Wait at most so long; return the new entries of the session's stream."""
        live = self._parts.live
        if live.url is not None and seconds > 0:
            try:
                if self._last is None:
                    self._last = live.last_entry(self._session_id)
                self._last, entries = live.wait(self._session_id, self._last, round(seconds * 1000))
            except (redis.RedisError, OSError, ValueError):  # ValueError: closed by another thread
                self._last = None
            else:
                return entries
        time.sleep(max(0.0, min(seconds, POLL_SECONDS)))
        return []


def wait_for(parts: Parts, session_id: str, until: frozenset[str], timeout: float | None) -> SessionStatus:
    """Wait until a session is in one of some states.

    Raises:
        SessionNotFound: If there is no such session.
        WaitTimeout: If it takes longer than ``timeout`` seconds.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    waiter = Waiter(parts, session_id)
    while True:
        found = read_status(parts.database, session_id)
        if found is None:
            raise SessionNotFound(f"no session {session_id!r}")
        if found[1] in until:
            return found[1]
        left = 1.0 if deadline is None else min(1.0, deadline - time.monotonic())
        if left <= 0:
            raise WaitTimeout(
                f"session {session_id!r} is {found[1]} after {timeout} s, not one of {sorted(until)}",
                details={"status": found[1]},
            )
        waiter.wait(left)


def follow(
    parts: Parts, session_id: str, after: str | None = None, timeout: float | None = None
) -> Iterator[Event]:
    """Yield a session's receipts in order, and live progress between them, until the session ends.

    Args:
        parts: The parts of this process.
        session_id: The session.
        after: Cursor of the last event that was seen.
        timeout: Seconds without any event after which the iteration ends; ``None`` waits for the end.

    Raises:
        InvalidInput: If ``after`` is not a cursor of this session.
        SessionNotFound: If there is no such session.
    """
    position = _position(parts, session_id, after)
    waiter = Waiter(parts, session_id)
    quiet_since = time.monotonic()
    committed: set[tuple[str, int, int]] = set()
    while True:
        found = read_status(parts.database, session_id)
        if found is None:
            raise SessionNotFound(f"no session {session_id!r}")
        page = read_page(parts.database, session_id, position)
        for stored in page:
            position = stored.position
            committed.add((stored.receipt.step_id, stored.receipt.fence, stored.receipt.n))
            yield _event(stored)
        if page:
            quiet_since = time.monotonic()
            continue
        if found[1] in ENDED:
            return
        if timeout is not None and time.monotonic() - quiet_since > timeout:
            return
        for entry in waiter.wait(1.0 if timeout is None else min(1.0, timeout)):
            key = (entry["step_id"], int(entry["fence"]), int(entry["n"]))
            if entry.get("live") and key not in committed:
                quiet_since = time.monotonic()
                yield _live_event(entry, key)


def _position(parts: Parts, session_id: str, after: str | None) -> int:
    if after is None:
        return 0
    step_id, *numbers = after.rsplit("/", 2)
    if len(numbers) != 2 or not all(number.isdigit() for number in numbers):
        raise InvalidInput(f"after={after!r} is not a cursor; give the cursor of an event")
    position = position_of(parts.database, session_id, step_id, int(numbers[0]), int(numbers[1]))
    if position is None:
        raise InvalidInput(f"after={after!r} is not an event of session {session_id!r}")
    return position


def _event(stored: StoredReceipt) -> Event:
    receipt = stored.receipt
    body = json.loads(receipt.body)
    return Event(
        kind=receipt.kind,
        step_id=receipt.step_id,
        fence=receipt.fence,
        n=receipt.n,
        node_id=body.get("node_id"),
        tool_name=body.get("tool_name"),
        body=body,
        hash=receipt.hash,
        live=False,
        cursor=f"{receipt.step_id}/{receipt.fence}/{receipt.n}",
    )


def _live_event(entry: dict[str, str], key: tuple[str, int, int]) -> Event:
    step_id, fence, n = key
    return Event(
        kind=entry["kind"],
        step_id=step_id,
        fence=fence,
        n=n,
        node_id=entry.get("node_id"),
        tool_name=None,
        body=json.loads(entry["body"]),
        hash=None,
        live=True,
        cursor=f"{step_id}/{fence}/{n}",
    )
