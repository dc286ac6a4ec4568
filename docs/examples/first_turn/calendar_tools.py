"""A calendar in memory: it touches no path and no network, so its tools need no scope."""

from pydantic import BaseModel

from runtime import ToolContext, ToolError, tool

EVENTS = {"evt-review": {"id": "evt-review", "title": "Weekly review", "start": "2026-03-12T16:00:00Z"}}


class ListEvents(BaseModel):
    pass


class RescheduleEvent(BaseModel):
    event_id: str
    start: str


@tool("calendar:list-events", effect="read")
def list_events(input: ListEvents, ctx: ToolContext) -> list[dict[str, str]]:
    """List all events."""
    return list(EVENTS.values())


@tool("calendar:reschedule-event", effect="idempotent")
def reschedule_event(input: RescheduleEvent, ctx: ToolContext) -> dict[str, str]:
    """Move an existing calendar event to a new time."""
    if input.event_id not in EVENTS:
        raise ToolError(f"no event {input.event_id!r}; list the events first", code="EVENT_NOT_FOUND")
    EVENTS[input.event_id]["start"] = input.start
    return EVENTS[input.event_id]
