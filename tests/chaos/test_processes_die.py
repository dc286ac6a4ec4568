"""Workers are killed, stopped and starved of Redis in mid-work; nothing is lost and nothing happens twice."""

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import redis
from sqlalchemy import text

from runtime import start_governed_agent_session
from runtime.agent_runtime import AgentRuntime
from runtime.edges.embedded import EmbeddedValkey
from tests.harness.sessions import call, context, turn_input
from tests.harness.stack import running, until

pytestmark = pytest.mark.chaos


@pytest.fixture
def own_valkey(tmp_path):
    with EmbeddedValkey(tmp_path / "state") as server:
        yield server


@pytest.fixture
def attached(folder, tmp_path, own_valkey):
    """A runtime on SQLite and a Valkey of its own, as an application holds it."""
    url = f"sqlite:///{tmp_path / 'runtime.db'}"
    with AgentRuntime.open(
        folder / "workspace.yaml", database_url=url, redis_url=own_valkey.url, state_dir=tmp_path / "state"
    ) as runtime:
        yield runtime


def stack(runtime, **options):
    settings = runtime.settings
    return running(
        settings.workspace, settings.database_url, settings.redis_url, settings.state_dir, **options
    )


def ledger() -> Counter:
    path = Path(os.environ["LEDGER"])
    lines = path.read_text().splitlines() if path.exists() else []
    return Counter(" ".join(line.split()[:2]) for line in lines)


def start(runtime, *turns, session_id="s-1"):
    return start_governed_agent_session(
        runtime=runtime, execute_turn_input=turn_input(*turns), ctx=context(session_id)
    )


def verified_by_another_process(runtime, session_id="s-1") -> bool:
    done = subprocess.run(
        [sys.executable, "-m", "runtime.edges.cli", "evidence", "verify", session_id, "--json"],
        env={
            **os.environ,
            "AGENT_RUNTIME_DATABASE_URL": runtime.settings.database_url,
            "PYTHONPATH": str(Path(__file__).parents[2]),
        },
        cwd=runtime.settings.state_dir,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode in (0, 1), done.stderr
    return done.returncode == 0


def results(flow) -> list[str]:
    return [event.body["result"] for event in flow.events() if event.kind == "tool_call_finished"]


def test_a_worker_killed_in_mid_turn_is_replaced_and_the_session_completes(attached, model):
    with stack(attached) as workers:
        model.faults.hold("ledger:put")
        flow = start(attached, call("ledger:put", "a"), "/say Done.")
        model.faults.wait_held(1, 120)
        workers.kill("turns")
        model.faults.release()
        workers.start("turns-2", like="turns")
        assert flow.wait(timeout=150) == "completed"
    assert ledger() == {"put a": 1}
    assert "crashed" in results(flow)
    assert verified_by_another_process(attached)


@pytest.mark.parametrize(
    "point",
    [
        "start.before_commit",
        "start.after_commit",
        "record.before_commit",
        "record.after_commit",
        "advance.after_commit",
    ],
)
def test_a_crash_at_a_commit_boundary_loses_nothing(attached, tmp_path, point):
    marker = tmp_path / "crashed"
    with stack(attached, restarts=3, AGENT_RUNTIME_CRASH_AT=f"{point}:1:{marker}"):
        flow = start(attached, call("ledger:put", "a"), "/say Done.")
        assert flow.wait(timeout=150) == "completed"
    assert marker.exists(), "the crash point was never reached"
    assert ledger() == {"put a": 1}
    assert verified_by_another_process(attached)


@pytest.mark.parametrize("point", ["start.after_commit", "record.before_commit"])
def test_a_tool_worker_killed_around_its_call_repeats_only_what_is_idempotent(attached, tmp_path, point):
    marker = tmp_path / "crashed"
    with stack(attached, beat=True) as workers:
        workers.kill("tools")
        workers.start("tools-2", like="tools", AGENT_RUNTIME_CRASH_AT=f"{point}:1:{marker}")
        flow = start(attached, call("ledger:put", "a"), call("ledger:read", "b"), "/say Done.")
        assert flow.wait(timeout=150) == "completed"
    assert marker.exists()
    assert ledger()["read b"] == 1
    assert 1 <= ledger()["put a"] <= 2
    keys = {
        line.split()[2] for line in Path(os.environ["LEDGER"]).read_text().splitlines() if "put a" in line
    }
    assert len(keys) == 1, "a repeat must carry the same idempotency key"
    assert verified_by_another_process(attached)


def test_redis_flushed_between_start_and_record_loses_nothing(attached, model, own_valkey):
    with stack(attached):
        model.faults.hold("ledger:put")
        flow = start(attached, call("ledger:put", "a"), "/say Done.")
        model.faults.wait_held(1, 120)
        redis.Redis.from_url(own_valkey.url).flushall()
        model.faults.release()
        assert flow.wait(timeout=150) == "completed"
    assert ledger() == {"put a": 1}
    assert verified_by_another_process(attached)


def test_a_stopped_worker_that_wakes_up_late_changes_nothing_and_testifies(attached, model):
    with stack(attached) as workers:
        model.faults.hold("ledger:put")
        flow = start(attached, call("ledger:put", "a"), "/say Done.")
        model.faults.wait_held(1, 120)
        workers.signal("turns", signal.SIGSTOP)
        workers.start("turns-2", like="turns")
        model.faults.wait_held(2, 120)
        model.faults.release()
        assert flow.wait(timeout=150) == "completed"
        workers.signal("turns", signal.SIGCONT)
        until(lambda: workers.said("was taken over while this worker ran it"))
    assert ledger() == {"put a": 1}
    with attached.parts.database.reading() as connection:
        ends = connection.execute(
            text("SELECT count(*) FROM evidence WHERE kind = 'tool_call_finished' AND step_id LIKE '%.0.0'")
        ).scalar_one()
    assert ends == 3  # the first holder crashed, the second one's end, the first one's testimony
    assert verified_by_another_process(attached)


def test_two_calls_of_one_turn_one_denied_and_one_killed(attached):
    with stack(attached) as workers:
        flow = start(
            attached,
            "\n".join([call("ledger:put", "secret"), call("ledger:pay", "rent", hold=True)]),
            "/say Noted.",
        )
        until(lambda: ledger()["pay rent"] == 1)
        workers.kill("tools")
        workers.start("tools-2", like="tools")
        assert flow.wait(until={"waiting_approval"}, timeout=150)
        (question,) = attached.approvals("s-1")
        assert question.kind == "in_doubt"
        assert "may do it twice" in question.message
        attached.resolve_approval(
            request_id=question.request_id, approved=False, approved_by="op@example.com"
        )
        assert flow.wait(timeout=150) == "completed"
    assert ledger() == {"pay rent": 1}
    assert sorted(results(flow)) == ["crashed", "denied", "in_doubt", "success", "success"]
    assert verified_by_another_process(attached)


def test_a_worker_with_another_workspace_file_claims_nothing_and_says_so(attached, folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "ledger_tools.py").write_text((folder / "ledger_tools.py").read_text())
    text_ = (folder / "workspace.yaml").read_text()
    (other / "workspace.yaml").write_text(
        text_.replace("max_turns_per_session: 40", "max_turns_per_session: 41")
    )
    settings = attached.settings
    with running(
        other / "workspace.yaml", settings.database_url, settings.redis_url, settings.state_dir
    ) as workers:
        flow = start(attached, "/say Hello.")
        until(lambda: workers.said("is not active, so this worker runs nothing"))
        assert flow.status() == "active"
        assert flow.nodes()[0].turn_count == 0


def test_a_worker_whose_workspace_file_changes_drains_and_exits_78(attached, folder):
    with stack(attached) as workers:
        path = folder / "workspace.yaml"
        path.write_text(path.read_text().replace("max_turns_per_session: 40", "max_turns_per_session: 41"))
        flow = start(attached, "/say Hello.")
        gone = workers.supervisor.failure(timeout=120)
        assert gone is not None
        assert (gone.name, gone.code) == ("turns", 78)
        assert flow.nodes()[0].turn_count == 0


def test_a_prefork_worker_whose_workspace_file_changes_exits_78_too(attached, folder, model):
    with stack(attached) as workers:
        model.faults.hold("ledger:put")
        flow = start(attached, call("ledger:put", "a"), "/say Done.")
        model.faults.wait_held(1, 120)
        path = folder / "workspace.yaml"
        path.write_text(path.read_text().replace("max_turns_per_session: 40", "max_turns_per_session: 41"))
        model.faults.release()  # the turn was decided before the change; its call was not
        gone = workers.supervisor.failure(timeout=120)
        assert gone is not None
        assert (gone.name, gone.code) == ("tools", 78)
        assert ledger() == {}
        assert flow.nodes()[0].tool_call_count == 0 or flow.status() == "active"
