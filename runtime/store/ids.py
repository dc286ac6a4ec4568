"""Identifiers: time-ordered for rows that are read in order, derived for steps."""

from __future__ import annotations

import hashlib
import secrets
import time


def new_id(prefix: str) -> str:
    """A fresh, roughly time-ordered id such as ``apr_0199f3...``: 48 bits of time, 80 of randomness."""
    return f"{prefix}_{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"


def node_uid(session_id: str, node_id: str) -> str:
    """The key of a node, derived from its names so that nobody has to look it up."""
    named = f"{len(session_id)}:{session_id}{node_id}"
    return f"nod_{hashlib.sha256(named.encode()).hexdigest()[:32]}"


def step_id(node_uid: str, turn_index: int, call_index: int) -> str:
    """The id of a worker-driven step, derived so that the same step can never be inserted twice.

    ``call_index`` is 0 for the turn itself and counts its tool calls from 1.
    """
    return f"{node_uid}.{turn_index}.{call_index}"
