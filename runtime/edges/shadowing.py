"""Finds foreign modules that the stack's processes would import in place of ours."""

from __future__ import annotations

from importlib.machinery import PathFinder
from pathlib import Path
from sys import path as import_path

import runtime
from runtime.errors import ConfigurationError

_HOME = Path(runtime.__file__).resolve().parent.parent
_OURS = {
    "tasks": _HOME / "tasks" / "__init__.py",
    "runtime": _HOME / "runtime" / "__init__.py",
    "beat_schedule": _HOME / "beat_schedule.py",
}


def refuse_shadowed_modules() -> None:
    """See that ``celery -A tasks``, started in the working directory, would import our modules.

    Celery looks there first; this process may not, so that what it imported itself proves nothing.

    Raises:
        ConfigurationError: Naming the foreign module's file, and the fix.
    """
    for name, ours in _OURS.items():
        # A folder without __init__.py shadows nothing that is found further on, and then has no origin.
        spec = PathFinder.find_spec(name, [str(Path.cwd()), *import_path])
        found = Path(spec.origin).resolve() if spec and spec.origin else ours
        if found != ours:
            raise ConfigurationError(
                f"{found} shadows the module {name!r} of governed-agent-runtime ({ours}): workers that start "
                f"in {Path.cwd()} would import it in place of ours; rename it, or start from another folder"
            )
