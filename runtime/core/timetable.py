"""When a schedule is due, and what becomes of each due time.

Cron expressions have five fields and are read as Debian's cron reads them (crontab(5) and cron(8) there),
also where clocks change: a time of day that a spring day lacks is due when the clock has jumped, one that
an autumn day has twice is due the first time, and where the field of minutes or hours begins with ``*``,
every matching minute that passes is due.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from enum import StrEnum

from cronsim import CronSim, CronSimError

from runtime.core.canonical import digest

_BEGINNING = datetime(2000, 1, 1, tzinfo=UTC)


class Overlap(StrEnum):
    """What to do with a due time while the schedule's last session has not ended."""

    SKIP = "skip"
    QUEUE = "queue"
    REPLACE = "replace"


class Choice(StrEnum):
    """What becomes of a due time: its session is to start, or why not."""

    CLAIM = "claim"
    MISSED = "missed"
    BUSY = "busy"
    TAKEN = "taken"


def check_cron(cron: str) -> None:
    """See that an expression can be read and is due at some time.

    Raises:
        ValueError: If not.
    """
    example = "write e.g. '0 6 * * 1' (Mondays at 06:00)"
    if len(cron.split()) != 5:
        raise ValueError(f"cron {cron!r} is not five fields — {example}")
    try:
        next(CronSim(cron, _BEGINNING))
    except CronSimError as error:
        reason = str(error)
        raise ValueError(f"cron {cron!r}: {reason[:1].lower()}{reason[1:]} — {example}") from None
    except StopIteration:
        raise ValueError(f"cron {cron!r} is never due — {example}") from None


@dataclass(frozen=True, slots=True)
class Timetable:
    """The due times of a cron expression in a time zone, as milliseconds since the epoch.

    Attributes:
        cron: Five fields that `check_cron` accepts.
        zone: Where the fields are read.
    """

    cron: str
    zone: tzinfo

    def next_after(self, instant: int) -> int:
        """The first due time after an instant.

        Raises:
            ValueError: If there is none within 50 years.
        """
        after = datetime.fromtimestamp(instant // 1000, UTC)
        # Where clocks change the library goes by the clock on the wall, which may lead back before `after`,
        # or to one instant from two times of day.
        for found in CronSim(self.cron, after.astimezone(self.zone)):
            due = round(found.timestamp()) * 1000
            if due > instant:
                return due
        raise ValueError(f"cron {self.cron!r} is not due any more — change it, or remove the schedule")

    def between(self, after: int, until: int) -> Iterator[int]:
        """The due times after ``after``, up to and with ``until``, in order."""
        due = self.next_after(after)
        while due <= until:
            yield due
            due = self.next_after(due)


def delay(schedule_id: str, due: int, jitter: int) -> int:
    """How long after a due time its session starts: the same for all who ask.

    Args:
        schedule_id: The schedule.
        due: The due time.
        jitter: Bound in milliseconds; 0 for none.

    Returns:
        At least 0 and less than ``jitter``, if that is not 0.
    """
    return int(digest(["schedule", schedule_id, due])[:16], 16) % jitter if jitter else 0


def session_id_of(schedule_id: str, due: int) -> str:
    """The id of the session that a due time starts, such as ``weekly-report@2026-03-13T09:00:00Z``."""
    return f"{schedule_id}@{datetime.fromtimestamp(due // 1000, UTC):%Y-%m-%dT%H:%M:%SZ}"


def choose(*, late: int, catch_up: int, overlap: Overlap, busy: bool, waits: bool) -> Choice:
    """Decide what becomes of a due time that has come.

    Args:
        late: Milliseconds since its session should have started.
        catch_up: How late a session may start.
        overlap: The schedule's policy.
        busy: Whether the schedule's last session has not ended.
        waits: Whether an earlier due time still waits.
    """
    if late > catch_up:
        return Choice.MISSED
    if waits:
        return Choice.TAKEN
    if busy and overlap is Overlap.SKIP:
        return Choice.BUSY
    return Choice.CLAIM


def must_wait(overlap: Overlap, *, busy: bool) -> bool:
    """Whether a claimed due time has to wait for the end of the schedule's last session."""
    return busy and overlap is Overlap.QUEUE
