"""Reading JSON from providers strictly: no NaN literals, no half objects, nothing that crashes the reader."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any, NoReturn

from runtime.core.model import Json
from runtime.core.turn import trimmed


def _refuse(literal: str) -> NoReturn:
    raise ValueError(f"{literal} is not JSON")


def parse_json(text: str | bytes) -> Json:
    """Parse JSON text, or UTF-8 with or without a BOM; broken UTF-8 reads as U+FFFD.

    Raises:
        ValueError: If it is not JSON, holds ``NaN`` or ``Infinity``, or is nested too deeply.
    """
    decoded = text.decode("utf-8-sig", "replace") if isinstance(text, bytes) else text
    try:
        return json.loads(decoded, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None


def parse_object(text: str | bytes) -> dict[str, Any] | None:
    """The JSON object that a text is, or ``None`` if it is anything else."""
    try:
        value = parse_json(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def is_finite(value: Json) -> bool:
    """Whether every number in a JSON value is finite (``1e999`` parses as infinity)."""
    todo = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, float) and not math.isfinite(item):
            return False
        if isinstance(item, dict):
            todo.extend(item.values())
        elif isinstance(item, list):
            todo.extend(item)
    return True


def joined(pieces: Iterable[str]) -> str:
    """The text of streamed pieces; a surrogate pair cut between two of them is one character again."""
    text = "".join(pieces)
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


def text_of(value: Json) -> str | None:
    """A non-blank string, trimmed; ``None`` for anything else."""
    return (trimmed(value) or None) if isinstance(value, str) else None


def object_of(value: Json) -> dict[str, Any]:
    """The value if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def list_of(value: Json) -> list[Any]:
    """The value if it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def count_of(value: Json) -> int | None:
    """A finite non-negative number, truncated; ``None`` for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if math.isfinite(value) and value >= 0 else None
