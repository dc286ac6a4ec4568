"""The Redis side of a process: evidence streams and approval waits, best effort by design.

SQL already holds all that is written here, so no step waits for it: a thread sends it, and a failure is
skipped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import redis

from runtime.core.chain import Receipt
from runtime.live import keys
from runtime.live.sender import Command, Sender

STREAM_MAX = 10_000
"""Entries that a session's stream keeps; a follower fills what is older from SQL."""

STREAM_SECONDS = 24 * 3600
"""How long a session's stream outlives its last entry; SQL keeps what it said."""


class Live:
    """Writes to and follows the Redis of one deployment; survives forks and outages."""

    def __init__(self, url: str | None) -> None:
        self.url = url
        self._client: redis.Redis | None = None
        self._pid = os.getpid()
        self._sender = Sender(self.client, after_loss=lambda pipe: pipe.delete(keys.APPROVALS_WHOLE))

    def client(self) -> redis.Redis:
        """The client of this process."""
        client = self._client
        if client is None or self._pid != os.getpid():
            if self.url is None:
                raise redis.ConnectionError("no Redis URL is configured")
            client = redis.Redis.from_url(
                self.url, socket_connect_timeout=1, socket_timeout=5, decode_responses=True
            )
            self._client, self._pid = client, os.getpid()
        return client

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

        Soon, in order, at most one round trip. Never waits and never raises.
        """
        stream = keys.evidence_stream(session_id)
        commands: list[Command] = [_append(stream, _entry(node_id, receipt)) for receipt in receipts]
        if receipts:
            commands.append(lambda pipe: pipe.expire(stream, STREAM_SECONDS))
        if parked:
            commands.append(_waits(parked))
        if resolved:
            commands.append(lambda pipe: pipe.zrem(keys.APPROVALS, *resolved))
        self._send(commands)

    def progress(self, session_id: str, node_id: str, step_id: str, fence: int, n: int, data: Any) -> None:
        """Append one live snapshot, soon; it enters the chain with the finished receipt. Never raises."""
        entry: dict[Any, Any] = {
            "node_id": node_id,
            "step_id": step_id,
            "fence": fence,
            "n": n,
            "kind": "tool_call_progress",
            "live": 1,
            "body": json.dumps({"snapshot": data}),
        }
        self._send([_append(keys.evidence_stream(session_id), entry)])

    def _send(self, commands: Sequence[Command]) -> None:
        if self.url is not None and commands:
            self._sender.put(commands)

    def flush(self) -> bool:
        """Wait a moment for what is to be sent; whether all of it was, or was dropped."""
        return self._sender.flush()

    def misses_waits(self) -> bool:
        """Whether Redis can be asked, and may not know all approval requests that are pending."""
        if self.url is None or self._sender.quiet:
            return False
        try:
            return not self.client().exists(keys.APPROVALS_WHOLE)
        except redis.RedisError as error:
            self._sender.failed(error)
            return False

    def restore_waits(self, pages: Iterable[Mapping[str, int]]) -> None:
        """Write all waits anew, soon: request ids with when they expire. Never raises."""
        self._send([lambda pipe: pipe.delete(keys.APPROVALS)])
        for page in pages:
            self._send([_waits(page)])
        self._send([lambda pipe: pipe.set(keys.APPROVALS_WHOLE, 1)])

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
        """Send what is left, and close the connections of this process."""
        self._sender.close()
        if self._client is not None and self._pid == os.getpid():
            self._client.close()
        self._client = None


def _waits(pending: Mapping[str, int]) -> Command:
    return lambda pipe: pipe.zadd(keys.APPROVALS, dict(pending))


def _append(stream: str, entry: dict[Any, Any]) -> Command:
    return lambda pipe: pipe.xadd(stream, entry, maxlen=STREAM_MAX, approximate=True)


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
