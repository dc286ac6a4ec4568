"""Processes are killed where only real ones show what it means: mid-chord, at a heartbeat, beat, Valkey."""

import os
import shutil
import signal

import pytest
import redis

from runtime import start_governed_agent_session
from runtime.edges.embedded import EmbeddedValkey
from tests.harness.graphs import node, numbers, start, statuses
from tests.harness.mortal import rows_of
from tests.harness.sessions import call, context, turn_input
from tests.harness.stack import until
from tests.harness.witness import idempotency_keys, ledger, let_go, results, verified_by_another_process


@pytest.fixture
def own_valkey(tmp_path):
    """A server that is started again when it is killed, with the same address and on the same files."""
    with EmbeddedValkey(tmp_path / "state", max_restarts=3) as server:
        yield server


@pytest.mark.parametrize("attached", ["sqlite", "postgresql"], indirect=True)
def test_a_part_of_a_chord_killed_behind_its_record_holds_up_neither_the_chord_nor_the_session(
    attached, stack, tmp_path
):
    marker = tmp_path / "crashed"
    calls = "\n".join(call("ledger:put", name) for name in "abc")
    with stack(own={"tools": {"AGENT_RUNTIME_CRASH_AT": f"publish.before:2:{marker}"}}):
        flow = start_governed_agent_session(
            runtime=attached, execute_turn_input=turn_input(calls, "/say Done."), ctx=context("s-1")
        )
        assert flow.wait(timeout=150) == "completed"
    assert marker.exists(), "the crash point was never reached"
    assert ledger() == {"put a": 1, "put b": 1, "put c": 1}
    assert results(flow, "ledger:put") == ["success"] * 3
    assert verified_by_another_process(attached)


@pytest.mark.parametrize(
    ("attached", "point"),
    [("sqlite", "heartbeat.before_commit"), ("postgresql", "heartbeat.after_commit")],
    indirect=["attached"],
)
def test_a_worker_killed_at_a_heartbeat_is_replaced_once_its_lease_has_run_out(
    attached, stack, tmp_path, point
):
    marker = tmp_path / "crashed"
    with stack(own={"tools": {"AGENT_RUNTIME_CRASH_AT": f"{point}:1:{marker}"}}):
        flow = start_governed_agent_session(
            runtime=attached,
            execute_turn_input=turn_input(call("ledger:put", "a", hold=True), "/say Done."),
            ctx=context("s-1"),
        )
        until(marker.exists)
        let_go()
        assert flow.wait(timeout=150) == "completed"
    assert 1 <= ledger()["put a"] <= 2, "the first holder may have died before its tool began"
    assert len(idempotency_keys("put a")) == 1, "a repeat must carry the same idempotency key"
    assert results(flow, "ledger:put") == ["crashed", "success"]
    assert verified_by_another_process(attached)


def test_what_becomes_due_while_beat_is_dead_starts_when_beat_is_back(attached, stack):
    with stack() as workers:
        flow = start(attached, node("now"), node("later", wake_after="2s"))
        workers.kill("beat")
        until(lambda: is_due(attached, "later"))
        until(lambda: statuses(flow)["now"] == "completed")
        assert statuses(flow)["later"] == "scheduled"
        workers.start("beat")
        assert flow.wait(timeout=150) == "completed"
    assert verified_by_another_process(attached)


def is_due(runtime, name: str) -> bool:
    """Whether a node's first step should have been published by now."""
    now = runtime.parts.database.now_sql
    return bool(rows_of(runtime, f"SELECT 1 FROM step WHERE node_id = :id AND due_at < {now}", id=name))


@pytest.mark.parametrize("files", ["kept", "lost"])
def test_a_valkey_that_is_killed_and_comes_back_with_or_without_its_data_loses_nothing(
    attached, stack, model, own_valkey, tmp_path, files
):
    client = redis.Redis.from_url(own_valkey.url)
    with stack() as workers:
        model.faults.hold("ledger:put")
        flow = start(
            attached,
            node("a", "\n".join([call("ledger:put", "a"), call("ledger:put", "b")]), "/say Done."),
            node("b"),
            node("join", depends_on=["a", "b"]),
        )
        assert model.faults.wait_held(1, 120)
        if files == "lost":
            shutil.move(tmp_path / "state" / "valkey" / "appendonlydir", tmp_path / "gone")
        before = client.info("server")["run_id"]
        kill(own_valkey.pid)
        until(lambda: answers(client) not in (None, before))
        model.faults.release()
        assert flow.wait(timeout=150) == "completed"
        workers.supervisor.check()
    assert ledger() == {"put a": 1, "put b": 1}
    assert numbers(flow) == list(range(len(numbers(flow))))
    assert verified_by_another_process(attached)


def kill(pid: int) -> None:
    """Kill a process as the kernel does when memory runs out."""

    os.kill(pid, signal.SIGKILL)


def answers(client: redis.Redis) -> str | None:
    """Which run of the server answers, if any does."""
    try:
        return client.info("server")["run_id"]
    except redis.RedisError:
        return None


def test_redis_flushed_in_a_chord_and_before_a_join_loses_nothing(attached, stack, model, own_valkey):
    client = redis.Redis.from_url(own_valkey.url)
    with stack():
        model.faults.hold("/say left")
        flow = start(
            attached,
            node("a", "\n".join([call("ledger:put", "a"), call("ledger:put", "b")]), "/say Done."),
            node("left", depends_on=["a"], max_turns=1),
            node("right", depends_on=["a"], max_turns=1),
            node("join", depends_on=["left", "right"]),
        )
        client.flushall()
        assert model.faults.wait_held(1, 120)
        client.flushall()
        model.faults.release()
        assert flow.wait(timeout=150) == "completed"
    assert ledger() == {"put a": 1, "put b": 1}
    assert set(statuses(flow).values()) == {"completed"}
    assert verified_by_another_process(attached)


@pytest.mark.parametrize("attached", ["sqlite", "postgresql"], indirect=True)
def test_two_beats_and_two_sweeping_workers_at_once_start_each_wake_up_once(attached, stack):
    with stack() as workers:
        workers.start("beat-2", like="beat")
        workers.start("turns-2", like="turns")
        names = [f"n{number}" for number in range(30)]
        flow = start(attached, *(node(name, wake_after=f"{200 + 50 * n}ms") for n, name in enumerate(names)))
        assert flow.wait(timeout=150) == "completed"
        workers.supervisor.check()
    steps = rows_of(attached, "SELECT node_id, attempts, crashes FROM step WHERE session_id = 's-1'")
    assert sorted((row.node_id, row.attempts, row.crashes) for row in steps) == sorted(
        (name, 1, 0) for name in names
    )
    woken = rows_of(attached, "SELECT node_id FROM continuation WHERE kind = 'wakeup'")
    assert sorted(row.node_id for row in woken) == sorted(names)
    assert verified_by_another_process(attached)
