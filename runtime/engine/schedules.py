"""Starts the sessions of the workspace file's schedules: at most one for each due time, whoever sweeps.

What becomes of a due time is decided by the move of the schedule's row, which at most one sweep makes. What
was claimed by that move is started by whoever finds it: the session's id follows from the due time, and
starting is idempotent, so that a crash at any point neither loses the due time nor starts it twice.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from runtime.core.timetable import Choice, Overlap, choose, delay, must_wait, session_id_of
from runtime.engine.control import cancel_session
from runtime.engine.parts import Parts
from runtime.engine.sessions import DEFAULT_MAX_TURNS, Definition, start_session
from runtime.errors import AgentRuntimeError, SpecTampered, StoreUnavailable
from runtime.store.schedules import (
    StoredSchedule,
    add_schedule,
    finish_pending,
    move_schedule,
    read_schedules,
)
from runtime.store.sessions import read_status
from runtime.store.workspaces import is_active
from runtime.workspace_model import Schedule
from runtime.workspace_workflow import read_scheduled

logger = logging.getLogger(__name__)

DECISIONS = 20
"""How many due times of one schedule a sweep decides on, each in a transaction of its own."""


def start_scheduled(parts: Parts) -> int:
    """Start what is due, at most one session of each schedule.

    Returns:
        How many sessions.

    Raises:
        StoreUnavailable: If the database cannot be reached.
    """
    schedules = parts.host.workspace.schedules
    if not schedules:
        return 0
    rows, now = read_schedules(parts.database, [schedule.id for schedule in schedules])
    moving = [each for each in schedules if _moves(each, rows.get(each.id), now)]
    if not moving or not _may_start(parts):
        return 0
    return sum(_attend_safely(parts, each, rows.get(each.id), now) for each in moving)


def _moves(schedule: Schedule, row: StoredSchedule | None, now: int) -> bool:
    """Whether there is anything to do."""
    if row is None or row.timetable != schedule.timetable_text:
        return True
    if row.pending_at is not None and not must_wait(schedule.overlap, busy=row.busy):
        return True
    return _starts_at(schedule, row.next_at) <= now


def _may_start(parts: Parts) -> bool:
    """Whether the file that this process loaded still holds; workers stop where it does not."""
    workspace = parts.host.workspace
    try:
        workspace.ensure_unchanged()
    except SpecTampered as error:
        logger.error("no schedule is acted on: %s", error)
        return False
    if workspace.path is not None and not is_active(parts.database, workspace.hash):
        logger.warning(
            "no schedule is acted on: %s is not active; see 'agent-runtime config activate'", workspace.path
        )
        return False
    return True


def _attend_safely(parts: Parts, schedule: Schedule, row: StoredSchedule | None, now: int) -> bool:
    """Attend to one schedule; whatever is wrong with it, the others go on."""
    try:
        return _attend(parts, schedule, row, now)
    except StoreUnavailable:
        raise
    except Exception:  # whatever it is, it concerns this schedule alone
        logger.exception("schedule %r could not be attended to; the next sweep tries again", schedule.id)
        return False


def _attend(parts: Parts, schedule: Schedule, row: StoredSchedule | None, now: int) -> bool:
    """Bring one schedule up to now; return whether a session started."""
    database, timetable, text = parts.database, schedule.timetable, schedule.timetable_text
    if row is None:
        add_schedule(database, schedule.id, text, now=now, next_at=timetable.next_after(now))
        return False
    if row.timetable != text:
        # From the old due time on, if that has come: a change at that very moment loses nothing.
        following = timetable.next_after(min(row.next_at - 1, now))
        move_schedule(database, row, timetable=text, next_at=following)
        return False
    if row.pending_at is not None and not must_wait(schedule.overlap, busy=row.busy):
        return _start_pending(parts, schedule, row, row.pending_at)
    for _ in range(DECISIONS):
        if _starts_at(schedule, row.next_at) > now:
            return False
        due, choice = row.next_at, _choose(schedule, row, now)
        following = timetable.next_after(due)
        if choice is Choice.MISSED:
            following = _first_in_time(schedule, due, now)
        claimed = due if choice is Choice.CLAIM else None
        if not move_schedule(database, row, timetable=text, next_at=following, claimed=claimed):
            return False  # another sweep attends to it
        row = replace(row, next_at=following, pending_at=row.pending_at if claimed is None else claimed)
        if claimed is None:
            _log_skipped(schedule, row, due, choice)
        elif not must_wait(schedule.overlap, busy=row.busy):
            return _start_pending(parts, schedule, row, claimed)
    return False


def _starts_at(schedule: Schedule, due: int) -> int:
    return due + delay(schedule.id, due, schedule.jitter_ms)


def _choose(schedule: Schedule, row: StoredSchedule, now: int) -> Choice:
    return choose(
        late=now - _starts_at(schedule, row.next_at),
        catch_up=schedule.catch_up_ms,
        overlap=schedule.overlap,
        busy=row.busy,
        waits=row.pending_at is not None,
    )


def _first_in_time(schedule: Schedule, missed: int, now: int) -> int:
    """The first due time behind a missed one that need not have been missed as well."""
    return schedule.timetable.next_after(max(missed, now - schedule.catch_up_ms - schedule.jitter_ms - 1))


def _log_skipped(schedule: Schedule, row: StoredSchedule, due: int, choice: Choice) -> None:
    """Say which due time starts nothing, and why; ``row`` is the row behind it."""
    name = session_id_of(schedule.id, due)
    if choice is Choice.MISSED:
        logger.warning(
            "%s is skipped, with all due times before %s: nothing swept for longer than catch_up",
            name,
            session_id_of(schedule.id, row.next_at),
        )
    elif choice is Choice.BUSY:
        logger.warning("%s is skipped: session %r has not ended, and overlap is skip", name, row.session_id)
    else:
        logger.warning("%s is skipped: an earlier due time still waits", name)


# --- starting -------------------------------------------------------------------------------------


def _start_pending(parts: Parts, schedule: Schedule, row: StoredSchedule, due: int) -> bool:
    """Start the session of a claimed due time, unless it was started already."""
    session_id = session_id_of(schedule.id, due)
    started = False
    if read_status(parts.database, session_id) is None:
        try:
            _start(parts, schedule, row, session_id)
        except StoreUnavailable:
            raise
        except AgentRuntimeError as error:
            logger.error(
                "%s is skipped: %s cannot be started (%s) — mend the file; the next due time reads it again",
                session_id,
                parts.host.workspace.base_dir / schedule.file,
                error,
            )
            finish_pending(parts.database, schedule.id, due, None)
            return False
        started = True
    finish_pending(parts.database, schedule.id, due, session_id)
    return started


def _start(parts: Parts, schedule: Schedule, row: StoredSchedule, session_id: str) -> None:
    workspace = parts.host.workspace
    found = read_scheduled(schedule, workspace.base_dir, session_id)
    definition = Definition(
        "workflow", found.workflow.nodes, found.ctx, max_turns=found.max_turns or DEFAULT_MAX_TURNS
    )
    if schedule.overlap is Overlap.REPLACE and row.busy and row.session_id is not None:
        cancel_session(parts, row.session_id, f"replaced by {session_id}")
    hints = start_session(parts.database, definition, max_turns_limit=workspace.limits.max_turns_per_session)
    parts.publisher.publish(hints)  # where that fails, the sweep finds the rows
