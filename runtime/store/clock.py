"""The database's clock, in milliseconds since the epoch.

Due times and leases are compared by this clock alone, so that workers need not agree on the time. Tests
bind a literal instead.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

_EXPRESSIONS = {
    "postgresql": "CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT)",
    "sqlite": "CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER)",
}


@dataclass(frozen=True, slots=True)
class Clock:
    """Where the store reads the time.

    Attributes:
        fixed_ms: A bound instant for tests; ``None`` means the database's own clock.
    """

    fixed_ms: int | None = None

    def sql(self, dialect: str) -> str:
        """The SQL expression of the current instant."""
        return _EXPRESSIONS[dialect] if self.fixed_ms is None else str(int(self.fixed_ms))

    def later(self, read_ms: int, read_at: float) -> int:
        """What the clock says now, without asking it again.

        Args:
            read_ms: What it said.
            read_at: Reading of `time.monotonic` at that moment; a fixed clock stands still meanwhile.
        """
        return read_ms if self.fixed_ms is not None else read_ms + round((time.monotonic() - read_at) * 1000)
