"""The demo's calendar tools really write to their file, and a repeat is the same effect."""

import threading
from datetime import UTC, datetime

import pytest

from runtime import ToolContext, ToolError
from runtime.edges.demo import calendar_tools as tools
from runtime.edges.demo.story import SEED_EVENTS


@pytest.fixture
def calendar(tmp_path, monkeypatch):
    path = tmp_path / "calendar.db"
    monkeypatch.setenv("AGENT_RUNTIME_DEMO_CALENDAR", str(path))
    tools.seed(path, SEED_EVENTS)
    return path


def context(key="key-1"):
    return ToolContext(session_id="s", node_id="n", run_id="r", task_id="t", call_id="c", idempotency_key=key)


def call(definition, arguments, key="key-1"):
    return definition(definition.parse(arguments), context(key))


def titles(path):
    return {event.title for event in tools.contents(path)}


def test_a_day_lists_its_events_alone_in_order(calendar):
    day = call(tools.list_events, {"day": "2026-03-12"})
    assert [event.title for event in day.events] == ["Stand-up", "Old planning call", "Weekly review"]
    assert len(call(tools.list_events, {}).events) == len(SEED_EVENTS)


def test_a_repeated_creation_creates_one_event(calendar):
    new = {"title": "Agenda", "start": "2026-03-13T08:30:00Z"}
    first, again = call(tools.create_event, new), call(tools.create_event, new)
    assert first == again
    assert len(tools.contents(calendar)) == len(SEED_EVENTS) + 1
    assert call(tools.create_event, new, key="key-2").id != first.id


def test_concurrent_repeats_of_one_creation_create_one_event(calendar):
    barrier = threading.Barrier(4)

    def create():
        barrier.wait()
        call(tools.create_event, {"title": "Agenda", "start": "2026-03-13T08:30:00Z"})

    threads = [threading.Thread(target=create) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [event.title for event in tools.contents(calendar)].count("Agenda") == 1


def test_rescheduling_moves_the_event_in_utc(calendar):
    moved = call(tools.reschedule_event, {"event_id": "evt-review", "start": "2026-03-13T10:00:00+01:00"})
    assert moved.start == datetime(2026, 3, 13, 9, tzinfo=UTC)
    assert {event.id: event.start for event in tools.contents(calendar)}["evt-review"] == moved.start


def test_deleting_removes_the_event(calendar):
    assert call(tools.delete_event, {"event_id": "evt-planning"}).deleted.title == "Old planning call"
    assert "Old planning call" not in titles(calendar)


@pytest.mark.parametrize("definition", [tools.delete_event, tools.reschedule_event])
def test_an_unknown_event_is_an_error_that_says_how_to_find_the_id(calendar, definition):
    arguments = {"event_id": "evt-none"}
    if definition is tools.reschedule_event:
        arguments["start"] = "2026-03-13T09:00:00Z"
    with pytest.raises(ToolError, match=r"'evt-none'; calendar:list-events") as raised:
        call(definition, arguments)
    assert raised.value.code == "EVENT_NOT_FOUND"


def test_the_tools_state_their_effects_and_need_no_scope():
    definitions = (tools.list_events, tools.create_event, tools.reschedule_event, tools.delete_event)
    effects = {definition.name: str(definition.effect) for definition in definitions}
    assert effects == {
        "calendar:list-events": "read",
        "calendar:create-event": "idempotent",
        "calendar:reschedule-event": "idempotent",
        "calendar:delete-event": "once",
    }
    assert not any(definition.scopes for definition in definitions)
