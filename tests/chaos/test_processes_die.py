"""Workers are killed, stopped and starved of Redis in mid-work; nothing is lost and nothing happens twice."""

import signal

import pytest
import redis
from sqlalchemy import text

from runtime import start_governed_agent_session
from tests.harness.sessions import call, context, turn_input
from tests.harness.stack import running, until
from tests.harness.witness import idempotency_keys, ledger, results, verified_by_another_process

ON_BOTH_DATABASES = pytest.mark.parametrize("attached", ["sqlite", "postgresql"], indirect=True)


def start(runtime, *turns, session_id="s-1"):
    return start_governed_agent_session(
        runtime=runtime, execute_turn_input=turn_input(*turns), ctx=context(session_id)
    )


@ON_BOTH_DATABASES
def test_a_worker_killed_in_mid_turn_is_replaced_and_the_session_completes(attached, stack, model):
    with stack() as workers:
        model.faults.hold("ledger:put")
        flow = start(attached, call("ledger:put", "a"), "/say Done.")
        assert model.faults.wait_held(1, 120)
        workers.kill("turns")
        model.faults.release()
        workers.start("turns-2", like="turns")
        assert flow.wait(timeout=150) == "completed"
    assert ledger() == {"put a": 1}
    assert "crashed" in results(flow)
    assert verified_by_another_process(attached)


@pytest.mark.parametrize(
    ("attached", "point"),
    [
        pytest.param("sqlite", "start.before_commit", marks=pytest.mark.exhaustive),
        ("sqlite", "start.after_commit"),
        ("sqlite", "record.before_commit"),
        pytest.param("sqlite", "record.after_commit", marks=pytest.mark.exhaustive),
        pytest.param("sqlite", "advance.after_commit", marks=pytest.mark.exhaustive),
        ("postgresql", "start.after_commit"),
        ("postgresql", "record.before_commit"),
    ],
    indirect=["attached"],
)
def test_a_crash_at_a_commit_boundary_loses_nothing(attached, stack, tmp_path, point):
    marker = tmp_path / "crashed"
    with stack(restarts=3, AGENT_RUNTIME_CRASH_AT=f"{point}:1:{marker}"):
        flow = start(attached, call("ledger:put", "a"), "/say Done.")
        assert flow.wait(timeout=150) == "completed"
    assert marker.exists(), "the crash point was never reached"
    assert ledger() == {"put a": 1}
    assert verified_by_another_process(attached)


@pytest.mark.parametrize("point", ["start.after_commit", "record.before_commit"])
def test_a_tool_worker_killed_around_its_call_repeats_only_what_is_idempotent(
    attached, stack, tmp_path, point
):
    marker = tmp_path / "crashed"
    with stack(own={"tools": {"AGENT_RUNTIME_CRASH_AT": f"{point}:1:{marker}"}}):
        flow = start(attached, call("ledger:put", "a"), call("ledger:read", "b"), "/say Done.")
        assert flow.wait(timeout=150) == "completed"
    assert marker.exists()
    assert ledger()["read b"] == 1
    assert 1 <= ledger()["put a"] <= 2
    assert len(idempotency_keys("put a")) == 1, "a repeat must carry the same idempotency key"
    assert verified_by_another_process(attached)


def test_redis_flushed_between_start_and_record_loses_nothing(attached, stack, model, own_valkey):
    with stack():
        model.faults.hold("ledger:put")
        flow = start(attached, call("ledger:put", "a"), "/say Done.")
        assert model.faults.wait_held(1, 120)
        redis.Redis.from_url(own_valkey.url).flushall()
        model.faults.release()
        assert flow.wait(timeout=150) == "completed"
    assert ledger() == {"put a": 1}
    assert verified_by_another_process(attached)


def test_a_stopped_worker_that_wakes_up_late_changes_nothing_and_testifies(attached, stack, model):
    with stack() as workers:
        model.faults.hold("ledger:put")
        flow = start(attached, call("ledger:put", "a"), "/say Done.")
        assert model.faults.wait_held(1, 120)
        workers.signal("turns", signal.SIGSTOP)
        workers.start("turns-2", like="turns")
        assert model.faults.wait_held(2, 120)
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


def test_two_calls_of_one_turn_one_denied_and_one_killed(attached, stack):
    with stack() as workers:
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


def test_a_worker_whose_workspace_file_changes_drains_and_exits_78(attached, stack, folder):
    with stack() as workers:
        path = folder / "workspace.yaml"
        path.write_text(path.read_text().replace("max_turns_per_session: 40", "max_turns_per_session: 41"))
        flow = start(attached, "/say Hello.")
        gone = workers.supervisor.failure(timeout=120)
        assert gone is not None
        assert (gone.name, gone.code) == ("turns", 78)
        assert flow.nodes()[0].turn_count == 0


def test_a_prefork_worker_whose_workspace_file_changes_exits_78_too(attached, stack, folder, model):
    with stack() as workers:
        model.faults.hold("ledger:put")
        flow = start(attached, call("ledger:put", "a"), "/say Done.")
        assert model.faults.wait_held(1, 120)
        path = folder / "workspace.yaml"
        path.write_text(path.read_text().replace("max_turns_per_session: 40", "max_turns_per_session: 41"))
        model.faults.release()  # the turn was decided before the change; its call was not
        gone = workers.supervisor.failure(timeout=120)
        assert gone is not None
        assert (gone.name, gone.code) == ("tools", 78)
        assert ledger() == {}
        assert flow.nodes()[0].tool_call_count == 0 or flow.status() == "active"
