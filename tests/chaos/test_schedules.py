"""Processes that sweep are killed at every commit of a scheduled start; others, at once, go on."""

import os
import signal
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest
import yaml

from runtime.agent_runtime import AgentRuntime
from runtime.store.clock import Clock
from runtime.store.listing import list_sessions
from runtime.store.schedules import read_schedules
from tests.harness.graphs import run_sql
from tests.harness.sessions import turn_input

pytestmark = pytest.mark.chaos

ROOT = Path(__file__).parents[2]
NAME = "report@2026-03-13T09:00:00Z"

SWEEP = """
import sys
from runtime.agent_runtime import AgentRuntime
from runtime.engine.sweep import sweep
from runtime.store.clock import Clock

workspace, database_url, redis_url, instant, times = sys.argv[1:]
with AgentRuntime.open(workspace, database_url=database_url, redis_url=redis_url) as runtime:
    runtime.parts.database.clock = Clock(int(instant))
    sys.stdin.readline()
    for _ in range(int(times)):
        sweep(runtime.parts)
"""


def at(text):
    return round(datetime.fromisoformat(text).timestamp() * 1000)


@pytest.mark.parametrize(
    "point",
    [
        "claim_schedule.after_commit",
        "session_start.before_commit",
        pytest.param("claim_schedule.before_commit:2", marks=pytest.mark.exhaustive),
    ],
)
def test_a_process_killed_in_a_scheduled_start_leaves_one_session(folder, migrated_url, valkey, point):
    workspace = folder / "workspace.yaml"
    content = yaml.safe_load(workspace.read_text())
    schedule = {"id": "report", "cron": "0 * * * *", "file": "report.yaml"}
    content["agent_runtime"]["schedules"] = [schedule]
    workspace.write_text(yaml.safe_dump(content))
    nodes = [{"id": "only", "execute_turn_input": turn_input("/say done")}]
    (folder / "report.yaml").write_text(yaml.safe_dump({"nodes": nodes}))

    def sweeping(instant, **environment):
        arguments = [str(workspace), migrated_url, valkey.url, str(at(instant)), "3"]
        return subprocess.Popen(
            [sys.executable, "-c", SWEEP, *arguments],
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            stdin=subprocess.PIPE,
        )

    def end(*processes):
        for process in processes:
            process.stdin.write(b"\n")
            process.stdin.flush()
        codes = [process.wait(120) for process in processes]
        for process in processes:
            process.stdin.close()
        return codes

    assert end(sweeping("2026-03-13T08:30:00Z")) == [0]
    killed = sweeping("2026-03-13T09:00:01Z", AGENT_RUNTIME_CRASH_AT=point)
    assert end(killed) == [-signal.SIGKILL]
    assert end(*(sweeping("2026-03-13T09:30:00Z") for _ in range(2))) == [0, 0]  # long after catch_up
    with AgentRuntime.open(workspace, database_url=migrated_url, redis_url=valkey.url) as runtime:
        runtime.parts.database.clock = Clock(at("2026-03-13T09:30:00Z"))
        assert [each.session.id for each in list_sessions(runtime.parts.database, limit=10)] == [NAME]
        created = run_sql(runtime, "SELECT count(*) AS n FROM continuation WHERE kind = 'created'")
        assert created[0].n == 1
        row = read_schedules(runtime.parts.database, ["report"])[0]["report"]
        assert (row.session_id, row.pending_at, row.next_at) == (NAME, None, at("2026-03-13T10:00:00Z"))
