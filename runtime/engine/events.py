"""Following a session: what was committed, in order, as it happens.

SQL is what is read; Redis only says when to look, and carries live progress that is not committed yet.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import redis

from runtime.core.model import SessionStatus
from runtime.engine.parts import Parts
from runtime.errors import InvalidInput, SessionNotFound, WaitTimeout
from runtime.store.evidence import START, Place, StoredReceipt, place_of, read_page
from runtime.store.sessions import read_status

ENDED = frozenset({SessionStatus.COMPLETED, SessionStatus.ERROR, SessionStatus.CANCELLED})

POLL_SECONDS = 0.25
"""How often SQL is asked when Redis cannot say that something happened."""

FIRST_HOLD_SECONDS = 0.02
"""How soon SQL is asked again for what it holds back; each further wait is twice as long, up to 1 s."""

_NUMBER = re.compile(r"[0-9]{1,9}")


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
        cursor: Give it to ``events(after=...)`` to go on behind this event. That of live progress is the
            cursor of the last receipt before it, hence empty before the first.
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

    Each receipt comes once, and in the same order to every follower, also to one that goes on from the
    cursor of the last event it saw. Redis only wakes the follower; nothing that it holds is evidence.

    Args:
        parts: The parts of this process.
        session_id: The session.
        after: Cursor of the last event that was seen; ``None`` or empty for all.
        timeout: Seconds without any event after which the iteration ends; ``None`` waits for the end.

    Raises:
        InvalidInput: If ``after`` is not a cursor of this session.
        SessionNotFound: If there is no such session.
    """
    place = _place(parts, session_id, after)
    cursor = after or ""
    waiter = Waiter(parts, session_id)
    quiet_since = time.monotonic()
    hold = FIRST_HOLD_SECONDS
    committed: dict[tuple[str, int], int] = {}
    while True:
        found = read_status(parts.database, session_id)
        if found is None:
            raise SessionNotFound(f"no session {session_id!r}")
        page = read_page(parts.database, session_id, place)
        for stored in page.receipts:
            event = _event(stored)
            place, cursor = stored.place, event.cursor
            committed[event.step_id, event.fence] = event.n
            yield event
        if page.receipts:
            quiet_since, hold = time.monotonic(), FIRST_HOLD_SECONDS
            continue
        # The end was read before the page: what is held back was committed by then, and is still to come.
        if found[1] in ENDED and not page.held:
            return
        if timeout is not None and time.monotonic() - quiet_since > timeout:
            return
        bound = 1.0 if timeout is None else min(1.0, timeout)
        if page.held:
            bound, hold = min(bound, hold), min(1.0, hold * 2)
        for entry in waiter.wait(bound):
            live = _live_event(entry, cursor)
            if live is not None and live.n > committed.get((live.step_id, live.fence), -1):
                quiet_since = time.monotonic()
                yield live


def _place(parts: Parts, session_id: str, after: str | None) -> Place:
    if not after:
        return START
    step_id, *numbers = after.rsplit("/", 2)
    if len(numbers) != 2 or not all(map(_NUMBER.fullmatch, numbers)):
        raise InvalidInput(f"after={after[:60]!r} is not a cursor; give the cursor of an event")
    place = place_of(parts.database, session_id, step_id, int(numbers[0]), int(numbers[1]))
    if place is None:
        raise InvalidInput(
            f"after={after[:60]!r} is not an event of session {session_id!r}; give the cursor of one"
        )
    return place


def _event(stored: StoredReceipt) -> Event:
    receipt = stored.receipt
    body = _object(receipt.body) or {}  # a damaged body is for verification to name
    return Event(
        kind=receipt.kind,
        step_id=receipt.step_id,
        fence=receipt.fence,
        n=receipt.n,
        node_id=_text(body.get("node_id")),
        tool_name=_text(body.get("tool_name")),
        body=body,
        hash=receipt.hash,
        live=False,
        cursor=f"{receipt.step_id}/{receipt.fence}/{receipt.n}",
    )


def _live_event(entry: Mapping[str, str], cursor: str) -> Event | None:
    """The live snapshot in an entry of the stream, or ``None`` for all else: anybody may write there."""
    step_id, fence, n = entry.get("step_id", ""), entry.get("fence", ""), entry.get("n", "")
    body = _object(entry.get("body", ""))
    if entry.get("live") != "1" or entry.get("kind") != "tool_call_progress" or body is None:
        return None
    if not step_id.isprintable() or not step_id or not _NUMBER.fullmatch(fence) or not _NUMBER.fullmatch(n):
        return None
    return Event(
        kind="tool_call_progress",
        step_id=step_id,
        fence=int(fence),
        n=int(n),
        node_id=_text(entry.get("node_id")),
        tool_name=None,
        body=body,
        hash=None,
        live=True,
        cursor=cursor,
    )


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
