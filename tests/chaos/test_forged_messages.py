"""Whoever can write to Redis can waste work; no worker dies of it or runs what is not its own."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from runtime import start_governed_agent_session
from runtime.live import keys
from runtime.live.celery_settings import ADVANCE_TASK, CALL_TASK, SWEEP_TASK, TURN_TASK
from runtime.live.publisher import producer_app
from tests.harness.sessions import call, context, turn_input
from tests.harness.stack import until
from tests.harness.witness import ledger, receipts, verified_by_another_process


def start(runtime, *turns, session_id="s-1"):
    return start_governed_agent_session(
        runtime=runtime, execute_turn_input=turn_input(*turns), ctx=context(session_id)
    )


@pytest.fixture
def forger(own_valkey):
    """A Celery application of somebody who knows the broker's address."""
    app = producer_app(own_valkey.url)
    yield app
    app.close()


@contextmanager
def surviving(workers):
    """The very processes that ran before are those that run afterwards, the children of pools included."""
    before = {name: {each.pid for each in workers.family(name)} for name in ("turns", "tools")}
    yield
    workers.supervisor.check()
    for name, pids in before.items():
        assert pids <= {each.pid for each in workers.family(name)}, name


def test_a_forged_add_consumer_does_not_make_a_worker_run_the_calls_of_another_queue(attached, stack, forger):
    with stack(without={"tools"}) as workers:
        answers = forger.control.broadcast(
            "add_consumer", arguments={"queue": "tools"}, reply=True, timeout=10
        )
        assert [list(answer.values()) for answer in answers] == [[{"ok": "add consumer tools"}]]
        flow = start(attached, call("ledger:put", "a"), "/say Done.")
        until(lambda: took(workers, "turns", CALL_TASK))
        assert (ledger(), receipts(flow, "tool_call_started", "ledger:put")) == ({}, [])
        workers.start("tools")
        assert flow.wait(timeout=150) == "completed"
        (started,) = receipts(flow, "tool_call_started", "ledger:put")
        pids = {str(process.pid) for process in workers.family("tools")}
    assert started["worker"].rpartition(":")[2] in pids
    assert ledger() == {"put a": 1}
    assert verified_by_another_process(attached)


def took(workers, name, task):
    """How many messages of a task a worker ran to their end."""
    return sum(f"{name}: " in line and task in line and "succeeded" in line for line in workers.log)


IDS = {"step_id": "nobody", "session_id": "nobody", "node_id": "nobody"}
FORGED = [
    {},
    {"step_id": "nobody"},
    IDS,
    {**IDS, "step_id": {"id": ["s-1"]}},
    {**IDS, "step_id": 7},
    {**IDS, "step_id": None},
    {**IDS, "step_id": "a\x00b"},
    {**IDS, "step_id": "x" * 10_000},
    {**IDS, "queue": "tools", "input": {"name": "forged"}},
    {"session_id": "nobody"},
    {"session_id": {"$ne": 1}},
    {"session_id": 1.5},
    {"session_id": ["s-1"]},
    {"session_id": "../../s-1"},
    {"session_id": "a\x00b"},
]
QUEUE_OF = {TURN_TASK: "turns", CALL_TASK: "tools", ADVANCE_TASK: "coordination", SWEEP_TASK: "maintenance"}


@pytest.mark.parametrize("attached", ["sqlite", "postgresql"], indirect=True)
def test_workers_survive_forged_task_arguments_and_still_complete_a_session(attached, stack, forger):
    with stack() as workers, surviving(workers):
        for task, queue in QUEUE_OF.items():
            for kwargs in FORGED:
                forger.send_task(task, kwargs=kwargs, queue=queue)
            forger.send_task(task, args=["s-1", {"a": 1}, 3], queue=queue)
        forger.send_task("no.such.task", kwargs=IDS, queue="turns")
        flow = start(attached, call("ledger:put", "a"), "/say Done.")
        assert flow.wait(timeout=150) == "completed"
    assert ledger() == {"put a": 1}
    assert verified_by_another_process(attached)


SNAPSHOT = {"step_id": "s", "live": "1", "kind": "tool_call_progress", "body": "{}"}
JUNK = [
    {"junk": "1"},
    {**SNAPSHOT, "fence": "many", "n": "0"},
    {**SNAPSHOT, "fence": "1", "n": "9" * 5000},
    {**SNAPSHOT, "fence": "1", "n": "2", "body": "not JSON"},
    {**SNAPSHOT, "fence": "1", "n": "3", "body": "[]"},
    {"step_id": "s", "fence": "1", "n": "4", "live": "1"},
    {**SNAPSHOT, "fence": "1", "n": "5", "live": "", "kind": "tool_call_finished"},
    {b"\xff\xfe": b"\xff"},
]


def test_junk_in_an_evidence_stream_ends_neither_the_session_nor_who_follows_it(attached, stack, model):
    client, stream, seen = attached.parts.live.client(), keys.evidence_stream("s-1"), []

    def follow(flow):
        for event in flow.events(timeout=60):
            seen.append(event)

    def follower_reads_the_stream():
        client.xadd(stream, {**SNAPSHOT, "fence": "1", "n": "1"})
        return any(event.live for event in seen)

    with stack() as workers, surviving(workers), ThreadPoolExecutor(1) as beside:
        model.faults.hold("ledger:put")
        flow = start(attached, call("ledger:put", "a"), "/say Done.")
        following = beside.submit(follow, flow)
        until(follower_reads_the_stream)
        for entry in JUNK:
            client.xadd(stream, entry)
        model.faults.release()
        assert flow.wait(timeout=150) == "completed"
        following.result(150)
    kinds = [event.kind for event in seen if not event.live]
    assert kinds.count("tool_call_finished") == 3  # of two turns and one call; the forged one is in no chain
    assert ledger() == {"put a": 1}
    assert verified_by_another_process(attached)


def test_a_stream_that_was_replaced_by_another_type_ends_neither_the_session_nor_who_follows_it(
    attached, stack
):
    attached.parts.live.client().set(keys.evidence_stream("s-1"), "junk")
    with stack() as workers, surviving(workers):
        flow = start(attached, call("ledger:put", "a"), "/say Done.")
        kinds = [event.kind for event in flow.events()]
        assert flow.status() == "completed"
    assert kinds.count("tool_call_finished") == 3
    assert verified_by_another_process(attached)
