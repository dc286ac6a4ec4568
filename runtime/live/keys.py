"""Every Redis key of ours, in one place.

Session ids are opaque, so keys carry their hash. Nothing here is authority: flush it all and SQL
rebuilds what is needed.
"""

from __future__ import annotations

import hashlib

PREFIX = "agent-runtime:"

APPROVALS = PREFIX + "approvals"
"""Sorted set of pending approval request ids by expiry (milliseconds)."""


def evidence_stream(session_id: str) -> str:
    """Stream of a session's receipts and live progress."""
    return f"{PREFIX}evidence:{hashlib.sha256(session_id.encode()).hexdigest()[:32]}"


APPROVALS_WHOLE = PREFIX + "approvals:whole"
"""Present as long as nothing that belongs into `APPROVALS` was lost: a flush takes it away as well."""
