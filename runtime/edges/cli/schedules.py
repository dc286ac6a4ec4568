"""``agent-runtime schedules``: when the workspace file's schedules are due, and what they started last."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from runtime.edges.cli import options

if TYPE_CHECKING:
    from runtime.store.schedules import StoredSchedule
    from runtime.workspace_model import Schedule

group = typer.Typer(help="See when schedules are due.", no_args_is_help=True)


@group.callback()
def schedules() -> None:
    """See when schedules are due."""


@group.command("list")
def list_(workspace: options.Workspace = None, as_json: options.Json = False) -> None:
    """List the schedules of the workspace file: when each is due, and the last session that it started."""
    from runtime.edges.cli.console import write_json
    from runtime.edges.cli.opening import open_database
    from runtime.edges.cli.show import local, print_table
    from runtime.settings import Settings
    from runtime.store.schedules import read_schedules
    from runtime.workspace import load_workspace

    settings = Settings.load(workspace=workspace)
    found = load_workspace(settings.workspace).schedules
    with open_database(settings) as database:
        rows, now = read_schedules(database, [each.id for each in found])
    if as_json:
        write_json({"schedules": [_json(each, rows.get(each.id), now) for each in found]})
        return
    print_table(
        ("schedule", "cron", "zone", "overlap", "next due", "waits since", "last session", "status"),
        (
            (
                each.id,
                each.cron,
                each.timezone,
                each.overlap.value,
                local(_next_due(each, row, now)),
                local(row.pending_at if row else None),
                row.session_id if row else None,
                _last_status(row),
            )
            for each in found
            for row in (rows.get(each.id),)
        ),
    )


def _next_due(schedule: Schedule, row: StoredSchedule | None, now: int) -> int:
    """When it is due next; one that no sweep has seen as it is now is due after now."""
    if row is None or row.timetable != schedule.timetable_text:
        return schedule.timetable.next_after(now)
    return row.next_at


def _last_status(row: StoredSchedule | None) -> str | None:
    if row is None or row.session_id is None:
        return None
    return "going on" if row.busy else row.last_end


def _json(schedule: Schedule, row: StoredSchedule | None, now: int) -> dict[str, Any]:
    from runtime.core.timetable import delay
    from runtime.edges.cli.show import rfc3339

    due = _next_due(schedule, row, now)
    return {
        **schedule.model_dump(mode="json"),
        "next_due": rfc3339(due),
        "starts_at": rfc3339(due + delay(schedule.id, due, schedule.jitter_ms)),
        "waiting_since": rfc3339(row.pending_at if row else None),
        "last_session_id": row.session_id if row else None,
        "last_session_ended": None if row is None else row.last_end,
    }
