"""Spans of time as people write them: ``24h``, ``90m``, ``1h30m``, ``250ms``."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer

_UNITS = {"ms": "milliseconds", "s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def read_duration(value: Any) -> Any:
    """Read ``24h``, ``90m`` or ``1h30m`` as a span of time; a `timedelta` is taken as it is.

    Raises:
        ValueError: If it is neither, or no time at all.
    """
    if isinstance(value, timedelta):
        span = value
    elif isinstance(value, str) and re.fullmatch(r"(\d+(ms|[smhdw]))+", value):
        parts = re.findall(r"(\d+)(ms|[smhdw])", value)
        try:
            span = sum((timedelta(**{_UNITS[unit]: int(number)}) for number, unit in parts), timedelta())
        except OverflowError:
            raise ValueError(
                "is longer than can be reckoned with — write a shorter one, such as 30d"
            ) from None
    else:
        raise ValueError("is not a duration — write a number and a unit, such as 24h, 90m or 1h30m")
    if span <= timedelta():
        raise ValueError("is no time at all — write a longer duration, such as 24h")
    return span


def write_duration(span: timedelta) -> str:
    """A span of time in the form that `read_duration` reads."""
    whole = milliseconds(span)
    return f"{whole}ms" if whole % 1000 else f"{whole // 1000}s"


def milliseconds(span: timedelta) -> int:
    """A span in whole milliseconds."""
    return round(span.total_seconds() * 1000)


Duration = Annotated[
    timedelta, BeforeValidator(read_duration), PlainSerializer(write_duration, when_used="json")
]
"""A span of time longer than nothing, written as in ``1h30m``."""
