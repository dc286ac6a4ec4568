"""Following a session: everything once and in order, whatever Redis holds, and nothing that SQL does not."""

import json

import pytest
from sqlalchemy import text

from runtime import start_governed_agent_session
from runtime.core.chain import Chain
from runtime.engine import events as following
from runtime.errors import InvalidInput
from runtime.live import keys
from runtime.store.journal import add_evidence
from runtime.store.write import Change
from tests.harness.sessions import call, context, turn_input

STREAM = keys.evidence_stream("s-1")


@pytest.fixture
def client(runtime):
    found = runtime.parts.live.client()
    found.flushall()
    return found


@pytest.fixture
def flow(runtime, workers, client):
    """A session with three governed calls, none of which has run."""
    return start_governed_agent_session(
        runtime=runtime, execute_turn_input=turn_input(call("ledger:put", "a"), "/say Done."), ctx=context()
    )


def stored(runtime):
    """The hashes of all receipts."""
    with runtime.parts.database.reading() as connection:
        return {row[0] for row in connection.execute(text("SELECT hash FROM evidence"))}


def write(connection, step_id):
    chain, change = Chain(step_id, 1, []), Change()
    add_evidence(change, "s-1", [chain.add("tool_call_started", {"node_id": "n"})])
    assert change.apply(connection)


def test_going_on_from_any_event_repeats_and_misses_nothing_also_after_a_flush(
    runtime, workers, flow, client
):
    workers.drain()
    whole = list(flow.events())
    assert {event.hash for event in whole} == stored(runtime)
    for k, event in enumerate(whole):
        if k % 2:
            client.flushall()
        assert list(flow.events(after=event.cursor)) == whole[k + 1 :]


def test_a_follower_that_comes_back_while_the_session_runs_sees_each_receipt_once(
    runtime, workers, flow, client
):
    seen, cursor = [], None
    while workers.inbox.hints:
        workers.next()
        client.flushall()
        for event in flow.events(after=cursor, timeout=0):
            seen.append(event.hash)
            cursor = event.cursor
    assert flow.status() == "completed"
    assert len(seen) == len(set(seen))
    assert set(seen) == stored(runtime)


JUNK = [
    {"x": "y"},
    {"live": "1"},
    {"live": "1", "kind": "tool_call_progress", "step_id": "s", "fence": "1", "n": "0"},
    {"live": "1", "kind": "tool_call_progress", "step_id": "s", "fence": "one", "n": "0", "body": "{}"},
    {"live": "1", "kind": "tool_call_progress", "step_id": "s", "fence": "1", "n": "²", "body": "{}"},
    {"live": "1", "kind": "tool_call_progress", "step_id": "s", "fence": "1", "n": "9" * 5000, "body": "{}"},
    {"live": "1", "kind": "tool_call_progress", "step_id": "s", "fence": "1", "n": "-1", "body": "{}"},
    {"live": "1", "kind": "tool_call_progress", "step_id": "s", "fence": "1", "n": "0", "body": "[1]"},
    {"live": "1", "kind": "tool_call_progress", "step_id": "s", "fence": "1", "n": "0", "body": "[" * 90_000},
    {"live": "1", "kind": "tool_call_progress", "step_id": "\x00", "fence": "1", "n": "0", "body": "{}"},
    {"live": "1", "kind": "tool_call_finished", "step_id": "s", "fence": "1", "n": "0", "body": "{}"},
    {"kind": "tool_call_finished", "step_id": "s", "fence": "1", "n": "0", "hash": "0" * 64, "body": "{}"},
    {b"\xff": b"\xff"},
]


def follow_while(runtime, flow, happens):
    """Follow with entries arriving while the follower waits; returns what it saw."""
    runtime.parts.live.last_entry("s-1")
    seen = []
    wait = following.Waiter.wait

    def arriving(self, seconds):
        if self._last is None:
            self._last = "0"  # as if the follower had looked before the entries came
        happens()
        return wait(self, seconds)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(following.Waiter, "wait", arriving)
        for event in flow.events():
            seen.append(event)
            assert len(seen) < 100
    return seen


@pytest.mark.parametrize("entry", JUNK, ids=range(len(JUNK)))
def test_junk_in_redis_neither_stops_a_follower_nor_reaches_it(runtime, workers, flow, client, entry):
    def happens():
        client.xadd(STREAM, entry)
        workers.drain()

    seen = follow_while(runtime, flow, happens)
    assert not any(event.live for event in seen if event.step_id in ("s", "\x00"))
    assert {event.hash for event in seen if not event.live} == stored(runtime)


def test_a_key_of_another_type_does_not_stop_a_follower(runtime, workers, flow, client):
    def happens():
        client.set(STREAM, "not a stream")
        workers.drain()

    assert {event.hash for event in follow_while(runtime, flow, happens)} == stored(runtime)


def test_progress_that_no_commit_holds_is_marked_live_and_gives_a_cursor_to_go_on_from(
    runtime, workers, flow, client
):
    workers.next()
    before = list(flow.events(timeout=0))[-1]

    def happens():
        runtime.parts.live.progress("s-1", "n", "made-up", 1, 0, {"half": "way"})
        workers.drain()

    seen = follow_while(runtime, flow, happens)
    (live,) = [event for event in seen if event.step_id == "made-up"]
    assert (live.live, live.hash, live.body) == (True, None, {"snapshot": {"half": "way"}})
    assert live.cursor == before.cursor
    rest = [event for event in seen if not event.live][seen.index(live) :]
    assert list(flow.events(after=live.cursor)) == rest


@pytest.mark.parametrize("migrated_url", ["postgresql"], indirect=True)
def test_an_ended_session_is_followed_until_what_was_held_back_has_come(runtime, workers, flow, monkeypatch):
    database = runtime.parts.database
    older = database.engine.connect().execution_options(isolation_level="READ COMMITTED")
    transaction = older.begin()
    write(older, "late")
    workers.drain()
    assert flow.status() == "completed"
    waits = []

    def wait(self, seconds):
        waits.append(seconds)
        if len(waits) == 3:
            transaction.commit()
            older.close()
        return []

    monkeypatch.setattr(following.Waiter, "wait", wait)
    seen = list(flow.events())
    assert seen[0].step_id == "late", "in the order that every follower sees"
    assert seen[-1].kind == "session_settled"
    assert {event.hash for event in seen} == stored(runtime)
    assert waits == [0.02, 0.04, 0.08]


@pytest.mark.parametrize("cursor", ["no/such/cursor", "x/1", "x/²/1", "x/1/" + "9" * 5000, "x/1/1"])
def test_a_cursor_of_nothing_is_refused_with_what_to_give(flow, cursor):
    with pytest.raises(InvalidInput, match="give the cursor of"):
        next(flow.events(after=cursor))


def test_a_damaged_body_is_still_followed(runtime, workers, flow):
    workers.drain()
    with runtime.parts.database.writing() as connection:
        connection.execute(text("UPDATE evidence SET body = '{' WHERE n = 0 AND step_id LIKE '%.0.0'"))
    first = next(flow.events())
    assert (first.kind, first.body) == ("tool_call_started", {})
    json.dumps(first.body)
