"""``agent-runtime schedules list``: when schedules are due, before and after a sweep saw them."""

import shutil
from datetime import UTC, datetime

import pytest

from runtime import AgentRuntime
from runtime.engine.sweep import sweep
from runtime.store.clock import Clock

SCHEDULES = """
  schedules:
    - {id: hourly, cron: "0 * * * *", file: flow.yaml, jitter: 10m, catch_up: 1h}
    - {id: nightly, cron: "30 2 * * *", timezone: Europe/Berlin, file: flow.yaml, overlap: queue}
"""
FLOW = """
nodes:
  - id: only
    execute_turn_input: {model_profile: operations, messages: [{role: user, content: go}]}
"""


@pytest.fixture
def place(home, tmp_path):
    """A deployment with two schedules, and its database."""
    text = (home / "workspace.yaml").read_text()
    (tmp_path / "workspace.yaml").write_text(text.replace("\nsecurity:", f"{SCHEDULES}security:", 1))
    (tmp_path / "flow.yaml").write_text(FLOW)
    shutil.copy(home / "console_notes.py", tmp_path)
    with AgentRuntime.open(tmp_path / "workspace.yaml", state_dir=tmp_path / ".agent-runtime"):
        return tmp_path


def listed(console, place):
    said = console("schedules", "list", "--json", cwd=place)
    assert (said.code, said.err) == (0, "")
    return {each["id"]: each for each in said.json["schedules"]}


def test_a_schedule_that_no_sweep_saw_is_due_next_after_now(console, place):
    found = listed(console, place)
    assert list(found) == ["hourly", "nightly"]
    ahead = datetime.fromisoformat(found["hourly"]["next_due"]) - datetime.now(UTC)
    assert 0 < ahead.total_seconds() <= 3600
    assert found["hourly"]["last_session_id"] is None
    assert found["nightly"]["overlap"] == "queue"


def test_the_list_tells_the_next_due_time_its_delay_and_the_last_session(console, place):
    with AgentRuntime.open(place / "workspace.yaml", state_dir=place / ".agent-runtime") as runtime:
        for instant in ("2026-03-13T08:30:00Z", "2026-03-13T09:10:00Z"):
            at = round(datetime.fromisoformat(instant).timestamp() * 1000)
            runtime.parts.database.clock = Clock(at)
            sweep(runtime.parts)
    found = listed(console, place)
    assert found["hourly"]["last_session_id"] == "hourly@2026-03-13T09:00:00Z"
    assert found["hourly"]["last_session_ended"] is None
    assert found["hourly"]["next_due"] == "2026-03-13T10:00:00.000Z"
    assert "2026-03-13T10:00:00.000Z" <= found["hourly"]["starts_at"] < "2026-03-13T10:10:00.000Z"
    assert found["nightly"]["next_due"] == "2026-03-14T01:30:00.000Z"
    shown = console("schedules", "list", cwd=place)
    assert shown.code == 0
    assert "hourly@2026-03-13T09:00:00Z" in shown.out
    assert "going on" in shown.out
