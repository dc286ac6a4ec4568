"""Finds a foreign module that shadows one of ours, before anything of ours is imported from it.

Nothing but the standard library is used here: what is looked for would be the wrong `runtime`.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

_HOME = Path(__file__).resolve().parent.parent
_OURS = {"runtime": _HOME / "runtime" / "__init__.py", "beat_schedule": _HOME / "beat_schedule.py"}


def refuse_shadowed_modules() -> None:
    """See that the modules that this package imports are this distribution's own.

    A foreign ``tasks`` cannot be found here, since then this file is not read; the commands of
    ``agent-runtime`` look for that one as well, before they start anything.

    Raises:
        ImportError: Naming the foreign module's file, and the fix.
    """
    for name, ours in _OURS.items():
        spec = importlib.util.find_spec(name)
        found = Path(spec.origin).resolve() if spec and spec.origin else None
        if found != ours:
            raise ImportError(
                f"{found or 'a folder without __init__.py'} shadows the module {name!r} of "
                f"governed-agent-runtime ({ours}); rename it, or start from another folder",
                name=name,
            )
