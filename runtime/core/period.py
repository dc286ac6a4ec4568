"""Times of day and days of the week, by the clocks of a zone."""

from __future__ import annotations

from datetime import UTC, datetime, time, tzinfo
from typing import Annotated, Final, Literal
from zoneinfo import ZoneInfo

from pydantic import ConfigDict, Field, field_validator

from runtime.core.model import Frozen

_DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_CLOCK: Final = r"^([01][0-9]|2[0-3]):[0-5][0-9]$"


class Period(Frozen):
    """Hours of the day and days of the week, by the clocks of one zone.

    Attributes:
        zone: IANA name of the time zone.
        start: ``HH:MM`` from which it holds (``from``).
        end: ``HH:MM`` before which it holds (``until``); at or before ``start``, it is that of the next day.
        weekdays: Days that it begins on; without hours, all of each day.
    """

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    zone: str = "UTC"
    start: Annotated[str, Field(alias="from", pattern=_CLOCK)] = "00:00"
    end: Annotated[str, Field(alias="until", pattern=_CLOCK)] = "00:00"
    weekdays: Annotated[
        tuple[Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"], ...] | None,
        Field(strict=False, min_length=1),
    ] = None

    @field_validator("zone")
    @classmethod
    def _is_a_zone(cls, name: str) -> str:
        _zone(name)
        return name

    def holds(self, instant: datetime) -> bool:
        """Whether an instant lies in it."""
        local = instant.astimezone(_zone(self.zone))
        start, end = time.fromisoformat(self.start), time.fromisoformat(self.end)
        clock, day = local.time().replace(tzinfo=None), local.weekday()
        if end > start:
            inside = start <= clock < end
        else:
            inside = clock >= start or clock < end
            if clock < end:
                day -= 1  # the small hours belong to the day before, on which the period began
        return inside and (self.weekdays is None or _DAYS[day] in self.weekdays)


def _zone(name: str) -> tzinfo:
    """The time zone of that name; UTC needs no data.

    Raises:
        ValueError: If there is none.
    """
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ValueError(f"{name!r} is no time zone — write an IANA name such as Europe/Berlin") from None
