"""The task that beat sends: find what nobody is working on."""

from __future__ import annotations

from typing import Any

from tasks.worker import never_raising, runtime_of


def sweep(self: Any) -> None:
    """Publish what is due, take note of what was lost, and expire what was not answered."""
    from runtime.engine.sweep import sweep as sweep_rows

    with never_raising(self, "sweep"):
        sweep_rows(runtime_of(self).parts)
