"""Schedules start one session for each due time, on both databases; the clock is moved, nothing waits."""

import logging
import threading
from datetime import datetime

import pytest
import yaml

from runtime.agent_runtime import AgentRuntime
from runtime.core.timetable import delay
from runtime.engine.schedules import DECISIONS
from runtime.engine.sweep import sweep
from runtime.store.clock import Clock
from runtime.store.listing import list_sessions
from runtime.store.schedules import read_schedules
from tests.harness.graphs import run_sql
from tests.harness.inline import InlineWorkers
from tests.harness.sessions import turn_input

SEEN = "2026-03-13T08:30:00Z"
NINE = "2026-03-13T09:00:00Z"
TEN = "2026-03-13T10:00:00Z"
ELEVEN = "2026-03-13T11:00:00Z"

HOURLY = {"id": "report", "cron": "0 * * * *", "file": "report.yaml"}


class Deployment:
    """A runtime whose workspace file has schedules, and its workers in this process."""

    def __init__(self, folder, open_runtime):
        self.folder = folder
        self._open = open_runtime
        self.now = SEEN

    def write(self, *nodes, **values):
        """Write the file that the schedules name."""
        nodes = nodes or ({"id": "only", "execute_turn_input": turn_input("/say done")},)
        (self.folder / "report.yaml").write_text(yaml.safe_dump({"nodes": list(nodes), **values}))

    def open(self, *schedules, lanes=()):
        """Open the runtime with these schedules at 08:30, and let the first sweep see them."""
        self.write() if not (self.folder / "report.yaml").exists() else None
        path = self.folder / "workspace.yaml"
        content = yaml.safe_load(path.read_text())
        content["agent_runtime"]["schedules"] = [*schedules]
        content["lanes"] = [*lanes]
        path.write_text(yaml.safe_dump(content))
        self.runtime = self._open(path)
        self.runtime.activate_workspace()
        self.workers = InlineWorkers(self.runtime)
        self.at(self.now)
        return self

    def set(self, instant):
        self.now = instant
        self.runtime.parts.database.clock = Clock(round(datetime.fromisoformat(instant).timestamp() * 1000))

    def at(self, instant, sweeps=1):
        """Set the clock and sweep."""
        self.set(instant)
        for _ in range(sweeps):
            sweep(self.runtime.parts)

    def drain(self):
        self.workers.drain()

    @property
    def sessions(self):
        """The ids of all sessions, sorted."""
        return sorted(each.session.id for each in list_sessions(self.runtime.parts.database, limit=500))

    def status(self, instant, name="report"):
        return self.runtime.session(f"{name}@{instant}").status()

    def row(self, name="report"):
        return read_schedules(self.runtime.parts.database, [name])[0].get(name)


@pytest.fixture
def deployment(folder, migrated_url, valkey):
    opened = []

    def open_runtime(path):
        opened.append(AgentRuntime.open(path, database_url=migrated_url, redis_url=valkey.url))
        return opened[-1]

    yield Deployment(folder, open_runtime)
    for each in opened:
        each.close()


# --- starting -------------------------------------------------------------------------------------


def test_a_due_time_starts_the_session_named_after_it_and_the_session_runs(deployment):
    deployment.open(HOURLY)
    deployment.at("2026-03-13T08:59:59Z")
    assert deployment.sessions == []
    deployment.at(NINE)
    deployment.drain()
    assert deployment.sessions == [f"report@{NINE}"]
    assert deployment.status(NINE) == "completed"
    deployment.at("2026-03-13T09:59:59Z", sweeps=3)
    assert deployment.sessions == [f"report@{NINE}"]
    deployment.at(TEN)
    assert deployment.sessions == [f"report@{NINE}", f"report@{TEN}"]


def test_a_schedule_seen_for_the_first_time_starts_nothing_that_was_due_before(deployment):
    deployment.now = "2026-03-13T09:00:01Z"
    deployment.open(HOURLY | {"catch_up": "24h"})
    deployment.at("2026-03-13T09:30:00Z", sweeps=3)
    assert deployment.sessions == []


def test_principal_and_lane_are_those_of_the_schedule(deployment):
    deployment.write(principal="file", metadata={"team": "books"})
    both = HOURLY | {"principal": "auditor", "lane_id": "narrow"}
    neither = HOURLY | {"id": "other"}
    deployment.open(both, neither, lanes=[{"id": "narrow"}])
    deployment.at(NINE)
    rows = run_sql(deployment.runtime, "SELECT id, principal, task_id, context FROM session ORDER BY id")
    assert [(row.principal, row.task_id) for row in rows] == [("file", "other"), ("auditor", "report")]
    lanes = [yaml.safe_load(row.context).get("lane_id") for row in rows]
    assert lanes == [None, "narrow"]
    assert all(yaml.safe_load(row.context)["metadata"] == {"team": "books"} for row in rows)


def test_the_turn_budget_of_the_file_holds(deployment):
    deployment.write(max_turns=3)
    deployment.open(HOURLY)
    deployment.at(NINE)
    found = run_sql(deployment.runtime, "SELECT definition FROM session")
    assert yaml.safe_load(found[0].definition)["max_turns"] == 3


def test_sweeps_at_once_start_each_due_time_once(deployment, migrated_url, valkey):
    deployment.open(*({**HOURLY, "id": f"s{number}"} for number in range(8)))
    deployment.set(NINE)
    others = [deployment._open(deployment.folder / "workspace.yaml") for _ in range(2)]
    for each in others:
        each.parts.database.clock = deployment.runtime.parts.database.clock
        InlineWorkers(each)
    barrier, failed = threading.Barrier(3), []

    def run(parts):
        barrier.wait()
        try:
            sweep(parts)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(each.parts,)) for each in (deployment.runtime, *others)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failed == []
    sweep(deployment.runtime.parts)
    assert deployment.sessions == [f"s{number}@{NINE}" for number in range(8)]
    created = run_sql(deployment.runtime, "SELECT count(*) AS n FROM continuation WHERE kind = 'created'")
    assert created[0].n == 8
    assert {deployment.row(f"s{number}").session_id for number in range(8)} == set(deployment.sessions)


# --- crashes --------------------------------------------------------------------------------------


class PowerLoss(BaseException):
    """The process is gone; nothing may catch it."""


@pytest.mark.parametrize("nth", [1, 2])
@pytest.mark.parametrize("point", ["begin", "before_commit", "after_commit"])
@pytest.mark.parametrize("transition", ["claim_schedule", "session_start"])
def test_a_crash_at_any_commit_neither_loses_a_due_time_nor_starts_it_twice(
    deployment, monkeypatch, transition, point, nth
):
    """A claim has two commits, before and behind the start."""
    if (transition, nth) == ("session_start", 2):
        transition, nth = "cancel", 1  # of the session that is replaced
    deployment.open(HOURLY | {"overlap": "replace"})
    deployment.at(NINE)
    left = [nth]

    def reach(name):
        if name == f"{transition}.{point}":
            left[0] -= 1
            if left[0] == 0:
                raise PowerLoss

    with monkeypatch.context() as patch:
        patch.setattr(deployment.runtime.parts.database.crash, "reach", reach)
        with pytest.raises(PowerLoss):
            deployment.at(TEN)
    deployment.at("2026-03-13T10:30:00Z", sweeps=2)  # well after catch_up
    if (transition, point, nth) in {
        ("claim_schedule", "begin", 1),
        ("claim_schedule", "before_commit", 1),
    }:
        assert deployment.sessions == [f"report@{NINE}"]  # nothing was claimed: this is a missed due time
        return
    assert deployment.sessions == [f"report@{NINE}", f"report@{TEN}"]
    assert deployment.row().session_id == f"report@{TEN}"
    assert deployment.row().pending_at is None
    created = run_sql(deployment.runtime, "SELECT count(*) AS n FROM continuation WHERE kind = 'created'")
    assert created[0].n == 2


def test_a_crash_before_the_claim_is_made_up_for_within_the_window(deployment, monkeypatch):
    deployment.open(HOURLY)

    def reach(name):
        if name == "claim_schedule.before_commit":
            raise PowerLoss

    with monkeypatch.context() as patch:
        patch.setattr(deployment.runtime.parts.database.crash, "reach", reach)
        with pytest.raises(PowerLoss):
            deployment.at(NINE)
    deployment.at("2026-03-13T09:00:05Z")
    assert deployment.sessions == [f"report@{NINE}"]


def test_a_publisher_that_fails_costs_neither_the_session_nor_the_note_of_it(deployment, monkeypatch, caplog):
    deployment.open(HOURLY)

    def fail(hints):
        if hints:
            raise ConnectionError("no broker")
        return True

    with monkeypatch.context() as patch:
        patch.setattr(deployment.workers.inbox, "publish", fail)
        deployment.at(NINE)
    assert "schedule 'report' could not be attended to" in caplog.text
    deployment.at("2026-03-13T09:10:00Z")
    assert deployment.row().session_id == f"report@{NINE}"
    deployment.drain()
    assert deployment.status(NINE) == "completed"
    assert deployment.sessions == [f"report@{NINE}"]


# --- overlap --------------------------------------------------------------------------------------


def test_skip_leaves_out_what_is_due_while_the_last_session_goes_on(deployment, caplog):
    deployment.open(HOURLY)
    deployment.at(NINE)
    deployment.at(TEN, sweeps=2)
    assert deployment.sessions == [f"report@{NINE}"]
    assert f"report@{TEN} is skipped: session 'report@{NINE}' has not ended" in caplog.text
    deployment.drain()
    deployment.at(ELEVEN)
    assert deployment.sessions == [f"report@{NINE}", f"report@{ELEVEN}"]


def test_queue_lets_one_due_time_wait_for_the_end_and_skips_the_others(deployment, caplog):
    deployment.open(HOURLY | {"overlap": "queue"})
    for instant in (NINE, TEN, ELEVEN):
        deployment.at(instant, sweeps=2)
    assert deployment.sessions == [f"report@{NINE}"]
    assert f"report@{ELEVEN} is skipped: an earlier due time still waits" in caplog.text
    deployment.drain()
    deployment.at("2026-03-13T11:30:00Z", sweeps=3)  # long after catch_up: it waited, it was not missed
    assert deployment.sessions == [f"report@{NINE}", f"report@{TEN}"]
    deployment.drain()
    deployment.at("2026-03-13T12:00:00Z")
    assert deployment.sessions[-1] == "report@2026-03-13T12:00:00Z"


def test_replace_cancels_the_last_session_and_starts_the_new_one(deployment):
    deployment.open(HOURLY | {"overlap": "replace"})
    deployment.at(NINE)
    deployment.at(TEN)
    deployment.drain()
    assert (deployment.status(NINE), deployment.status(TEN)) == ("cancelled", "completed")


def test_replace_leaves_a_session_that_has_ended_as_it_is(deployment):
    deployment.open(HOURLY | {"overlap": "replace"})
    deployment.at(NINE)
    deployment.drain()
    deployment.at(TEN)
    deployment.drain()
    assert (deployment.status(NINE), deployment.status(TEN)) == ("completed", "completed")


# --- downtime -------------------------------------------------------------------------------------


def test_after_downtime_what_is_within_the_window_starts_in_order_and_the_rest_is_skipped(deployment, caplog):
    deployment.open(HOURLY | {"catch_up": "2h"})
    order = []
    deployment.set("2026-03-15T12:30:00Z")
    for _ in range(6):
        sweep(deployment.runtime.parts)
        order += sorted(set(deployment.sessions) - set(order))
        deployment.drain()
    assert order == ["report@2026-03-15T11:00:00Z", "report@2026-03-15T12:00:00Z"]
    missed = f"report@{NINE} is skipped, with all due times before report@2026-03-15T11:00:00Z"
    assert caplog.text.count("is skipped") == 1
    assert missed in caplog.text


def test_by_default_a_minute_of_downtime_loses_nothing_and_more_does(deployment):
    deployment.open(HOURLY)
    deployment.at("2026-03-13T09:01:00Z")
    deployment.drain()
    deployment.at("2026-03-13T10:01:00.001Z", sweeps=2)
    assert deployment.sessions == [f"report@{NINE}"]
    assert deployment.row().next_at % 3_600_000 == 0
    deployment.at(ELEVEN)
    assert deployment.sessions == [f"report@{NINE}", f"report@{ELEVEN}"]


def test_a_long_downtime_costs_one_sweep_a_bounded_number_of_moves(deployment):
    deployment.open(HOURLY | {"cron": "* * * * *", "catch_up": "24h"})
    deployment.at("2026-03-14T08:00:00Z")  # starts the first one, which goes on
    before = deployment.row().next_at
    deployment.at("2026-03-14T08:00:00Z")
    assert deployment.row().next_at == before + DECISIONS * 60_000


# --- jitter ---------------------------------------------------------------------------------------


def test_jitter_puts_a_start_off_by_the_same_time_for_everybody_and_keeps_the_name(deployment):
    deployment.open(HOURLY | {"jitter": "10m"})
    due = round(datetime.fromisoformat(NINE).timestamp() * 1000)
    starts = due + delay("report", due, 600_000)
    assert due < starts < due + 600_000
    deployment.runtime.parts.database.clock = Clock(starts - 1)
    sweep(deployment.runtime.parts)
    assert deployment.sessions == []
    deployment.runtime.parts.database.clock = Clock(starts)
    sweep(deployment.runtime.parts)
    assert deployment.sessions == [f"report@{NINE}"]


# --- changes of files -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nodes: [{id: a}]", "execute_turn_input: is missing"),
        ("nodes: [{id: a, execute_turn_input: {}, depends_on: [ghost]}]", "'ghost'"),
        ("nodes: [", "report.yaml:"),
        (None, "cannot be read"),
    ],
)
def test_a_file_that_no_longer_loads_costs_its_due_time_and_the_schedule_goes_on(
    deployment, caplog, text, says
):
    deployment.open(HOURLY, HOURLY | {"id": "other"})
    path = deployment.folder / "report.yaml"
    path.unlink() if text is None else path.write_text(text)
    with caplog.at_level(logging.ERROR):
        deployment.at(NINE, sweeps=2)
    assert deployment.sessions == []
    assert caplog.text.count(f"report@{NINE} is skipped") == 1
    assert str(path) in caplog.text
    assert says in caplog.text
    assert "mend the file" in caplog.text
    assert f"other@{NINE} is skipped" in caplog.text
    deployment.write()
    deployment.at(TEN)
    assert deployment.sessions == [f"other@{TEN}", f"report@{TEN}"]


def test_a_file_that_no_longer_loads_cancels_nothing(deployment):
    deployment.open(HOURLY | {"overlap": "replace"})
    deployment.at(NINE)
    (deployment.folder / "report.yaml").write_text("nodes: []")
    deployment.at(TEN)
    deployment.drain()
    assert deployment.status(NINE) == "completed"


def test_another_timetable_holds_from_the_moment_it_is_seen(deployment):
    deployment.open(HOURLY | {"cron": "0 0 1 * *", "catch_up": "24h"})
    deployment.open(HOURLY | {"catch_up": "24h"})
    deployment.at(NINE)
    assert deployment.sessions == [f"report@{NINE}"]


def test_a_due_time_that_came_while_the_timetable_changed_is_not_lost(deployment):
    deployment.open(HOURLY)
    deployment.now = NINE
    deployment.open(HOURLY | {"timezone": "Europe/Berlin"})
    deployment.at(NINE)
    assert deployment.sessions == [f"report@{NINE}"]


def test_a_schedule_that_was_removed_leaves_its_row_and_starts_nothing(deployment):
    deployment.open(HOURLY)
    row = deployment.row()
    deployment.open(HOURLY | {"id": "other"})
    deployment.at(NINE)
    assert deployment.sessions == [f"other@{NINE}"]
    assert deployment.row() == row


def test_a_workspace_file_that_changed_after_loading_starts_nothing(deployment, caplog):
    deployment.open(HOURLY)
    path = deployment.folder / "workspace.yaml"
    path.write_text(path.read_text().replace("0 * * * *", "5 * * * *"))
    deployment.at(NINE)
    assert deployment.sessions == []
    assert "no schedule is acted on" in caplog.text


def test_a_workspace_file_that_is_not_active_starts_nothing(deployment, caplog):
    deployment.open(HOURLY)
    run_sql(deployment.runtime, "UPDATE workspace_version SET active = (1 = 0)")
    deployment.at(NINE)
    assert deployment.sessions == []
    assert "is not active" in caplog.text


# --- cost -----------------------------------------------------------------------------------------


def statements(deployment):
    """What a call of the schedules' part of a sweep says to the database."""
    from sqlalchemy import event

    from runtime.engine.schedules import start_scheduled

    said = []

    def keep(_connection, _cursor, statement, *_rest):
        said.append(statement)

    engine = deployment.runtime.parts.database.engine
    event.listen(engine, "before_cursor_execute", keep)
    try:
        assert start_scheduled(deployment.runtime.parts) == 0
    finally:
        event.remove(engine, "before_cursor_execute", keep)
    return said


def test_a_sweep_reads_once_if_nothing_is_due_also_while_a_due_time_waits(deployment):
    deployment.open(HOURLY | {"overlap": "queue"}, HOURLY | {"id": "other"})
    assert len(statements(deployment)) == 1
    deployment.at(NINE)
    deployment.at(TEN)
    assert deployment.row().pending_at is not None
    assert len(statements(deployment)) == 1


def test_without_schedules_a_sweep_reads_nothing_for_them(deployment):
    deployment.open()
    assert statements(deployment) == []
