"""The Redis side of a process: evidence streams and approval waits, best effort by design.

SQL already holds all that is written here, so a failure is counted and skipped, and after one failure
the next attempts wait a moment rather than slow every step by a time-out.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import redis

from runtime.core.chain import Receipt
from runtime.live import keys

logger = logging.getLogger(__name__)

STREAM_MAX = 10_000
"""Entries that a session's stream keeps; a follower fills what is older from SQL."""

STREAM_SECONDS = 24 * 3600
"""How long a session's stream outlives its last entry; SQL keeps what it said."""

QUIET_SECONDS = 2.0
"""How long to leave Redis alone after a failure."""


class Live:
    """Writes to and follows the Redis of one deployment; survives forks and outages."""

    def __init__(self, url: str | None) -> None:
        self.url = url
        self._client: redis.Redis | None = None
        self._pid = os.getpid()
        self._quiet_until = 0.0

    def client(self) -> redis.Redis:
        """The client of this process."""
        if self._client is None or self._pid != os.getpid():
            if self.url is None:
                raise redis.ConnectionError("no Redis URL is configured")
            self._client = redis.Redis.from_url(
                self.url, socket_connect_timeout=1, socket_timeout=5, decode_responses=True
            )
            self._pid = os.getpid()
        return self._client

    def announce(
        self,
        session_id: str,
        node_id: str,
        receipts: Sequence[Receipt],
        *,
        parked: Mapping[str, int] | None = None,
        resolved: Sequence[str] = (),
    ) -> None:
        """Append committed receipts to the session's stream, and add or remove approval waits.

        One round trip. Never raises.
        """
        if self.url is None or time.monotonic() < self._quiet_until:
            return
        try:
            pipe = self.client().pipeline(transaction=False)
            stream = keys.evidence_stream(session_id)
            for receipt in receipts:
                pipe.xadd(stream, _entry(node_id, receipt), maxlen=STREAM_MAX, approximate=True)
            if receipts:
                pipe.expire(stream, STREAM_SECONDS)
            if parked:
                pipe.zadd(keys.APPROVALS, dict(parked))
            if resolved:
                pipe.zrem(keys.APPROVALS, *resolved)
            if len(pipe):
                pipe.execute()
        except redis.RedisError as error:
            self._stay_quiet(error)

    def waiting(self) -> int | None:
        """How many approval requests Redis knows to be pending; ``None`` when it cannot be asked."""
        if self.url is None or time.monotonic() < self._quiet_until:
            return None
        try:
            return int(self.client().zcard(keys.APPROVALS))
        except redis.RedisError as error:
            self._stay_quiet(error)
            return None

    def restore_waits(self, pending: Mapping[str, int]) -> None:
        """Put back waits that a flush took away. Never raises."""
        try:
            self.client().zadd(keys.APPROVALS, dict(pending))
        except redis.RedisError as error:
            self._stay_quiet(error)

    def progress(self, session_id: str, node_id: str, step_id: str, fence: int, n: int, data: Any) -> None:
        """Append one live snapshot; it enters the chain with the finished receipt. Never raises."""
        if self.url is None or time.monotonic() < self._quiet_until:
            return
        entry: dict[Any, Any] = {
            "node_id": node_id,
            "step_id": step_id,
            "fence": fence,
            "n": n,
            "kind": "tool_call_progress",
            "live": 1,
            "body": json.dumps({"snapshot": data}),
        }
        try:
            self.client().xadd(keys.evidence_stream(session_id), entry, maxlen=STREAM_MAX, approximate=True)
        except redis.RedisError as error:
            self._stay_quiet(error)

    def wait(self, session_id: str, after: str, timeout_ms: int) -> tuple[str, list[dict[str, str]]]:
        """Wait for entries after a stream id.

        Returns:
            The last stream id and the entries; both unchanged and empty on a time-out.

        Raises:
            redis.RedisError: If Redis cannot be used; the caller falls back to SQL.
        """
        stream = keys.evidence_stream(session_id)
        found: Any = self.client().xread({stream: after}, count=500, block=max(1, min(timeout_ms, 4000)))
        entries = found[0][1] if found else []
        return (entries[-1][0] if entries else after), [fields for _, fields in entries]

    def last_entry(self, session_id: str) -> str:
        """The id of the newest entry of a session's stream, ``0`` when there is none."""
        newest: Any = self.client().xrevrange(keys.evidence_stream(session_id), count=1)
        return newest[0][0] if newest else "0"

    def reachable(self) -> bool:
        """Whether Redis answers."""
        try:
            return bool(self.client().ping())
        except redis.RedisError:
            return False

    def close(self) -> None:
        """Close the connections of this process."""
        if self._client is not None and self._pid == os.getpid():
            self._client.close()
        self._client = None

    def _stay_quiet(self, error: redis.RedisError) -> None:
        self._quiet_until = time.monotonic() + QUIET_SECONDS
        logger.warning("Redis cannot be used, live evidence is delayed: %s", error)


def _entry(node_id: str, receipt: Receipt) -> dict[Any, Any]:
    return {
        "node_id": node_id,
        "step_id": receipt.step_id,
        "fence": receipt.fence,
        "n": receipt.n,
        "kind": receipt.kind,
        "hash": receipt.hash,
        "body": receipt.body,
    }
