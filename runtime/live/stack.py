"""Finds the embedded Redis that a running `dev` or `demo` has written down in the state directory."""

from __future__ import annotations

import json
from pathlib import Path


def recorded_redis_url(state_dir: Path) -> str | None:
    """The URL of the embedded server, or ``None`` when none is recorded."""
    try:
        recorded = json.loads((state_dir / "stack.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    url = recorded.get("redis_url") if isinstance(recorded, dict) else None
    return url if isinstance(url, str) else None
