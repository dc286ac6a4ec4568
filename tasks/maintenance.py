"""The task that beat sends: find what nobody is working on."""

from __future__ import annotations

from typing import Any

from tasks.arguments import taking_ids
from tasks.worker import never_raising, runtime_of


@taking_ids()
def sweep(self: Any) -> None:
    """Publish what is due, take note of what was lost, and expire what was not answered."""
    from runtime.engine.sweep import sweep as sweep_rows

    with never_raising(self, "sweep"):
        sweep_rows(runtime_of(self).parts)
