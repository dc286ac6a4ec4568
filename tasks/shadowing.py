"""Finds a foreign module that shadows one of ours, before it does harm."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import runtime
from runtime.errors import ConfigurationError


def refuse_shadowed_modules() -> None:
    """See that ``tasks`` and ``runtime`` are this distribution's own.

    Raises:
        ConfigurationError: Naming the foreign module's file, and the fix.
    """
    home = Path(__file__).resolve().parent.parent
    for name in ("tasks", "runtime"):
        spec = importlib.util.find_spec(name)
        origin = Path(spec.origin).resolve() if spec and spec.origin else None
        if origin != home / name / "__init__.py":
            raise ConfigurationError(shadowed(name, origin))


def shadowed(name: str, origin: Path | None) -> str:
    """What to tell about a foreign module of that name."""
    where = origin or "a folder without __init__.py"
    return (
        f"another module named {name!r} ({where}) shadows the one of governed-agent-runtime "
        f"({Path(runtime.__file__).resolve().parent.parent}); rename yours, or start Celery from another "
        "folder and import your own tasks by their package's name"
    )
