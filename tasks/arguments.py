"""Reads the arguments of a message, which anybody who reaches the broker may have written."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import wraps
from typing import Any

logger = logging.getLogger(__name__)

LONGEST_ID = 1_000
"""Characters; ids of sessions, nodes and steps are far shorter."""


def taking_ids(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Let a task's body run only if its message carries exactly these ids, as keyword arguments.

    A message that does not is ignored with one warning, which quotes nothing of it: what there is to do is in
    SQL, and the sweep sends it again.
    """

    def around(body: Callable[..., None]) -> Callable[..., None]:
        @wraps(body)
        def checked(task: Any, *args: Any, **kwargs: Any) -> None:
            problem = _problem(names, args, kwargs)
            if problem is None:
                body(task, **kwargs)
            else:
                logger.warning(
                    "a message of %s was ignored, since %s; only the runtime itself should send it",
                    task.name,
                    problem,
                )

        return checked

    return around


def _problem(names: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    if args:
        return "it has arguments without a name"
    if missing := [name for name in names if name not in kwargs]:
        return f"{missing[0]} is missing"
    if len(kwargs) > len(names):
        return "it has arguments that the task does not take"
    wrong = [name for name in names if not _is_id(kwargs[name])]
    return f"{wrong[0]} is not an id" if wrong else None


def _is_id(value: Any) -> bool:
    if not isinstance(value, str) or not 0 < len(value) <= LONGEST_ID or "\x00" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # lone surrogates, which JSON can carry and no database takes
        return False
    return True
